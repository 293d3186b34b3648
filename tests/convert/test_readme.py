"""The README's conversion runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from volution.ops import Involution2d, Xvolution2d


def test_the_readmes_conversion_runs(capsys):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Put an operator into your own network")[2]
    code = re.search(r"```python\n(.+?)```", section, flags=re.DOTALL).group(1)
    names = {}
    exec(code, names)
    net = names["net"]
    for kind, count in ((Xvolution2d, 6), (Involution2d, 3)):
        assert sum(type(module) is kind for module in net.modules()) == count
    assert "9 replaced, 0 kept" in capsys.readouterr().out
    assert net.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 10)
