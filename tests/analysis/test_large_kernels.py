"""The picture of an equivalent kernel, and the numbers behind it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import volution
from volution.analysis import border_effect, large_kernel_picture
from volution.ops import LKA


@pytest.mark.parametrize(("kernel_size", "dilation", "margin"), [(21, 3, 9), (15, 5, 5)])
def test_only_the_border_differs(kernel_size, dilation, margin):
    effect = border_effect(LKA(8, kernel_size, dilation).double(), size=32, images=2)
    assert effect.shape == (32, 32)
    assert effect[margin:-margin, margin:-margin].max() < 1e-12
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[margin:-margin, margin:-margin] = True
    assert effect[~inside].min() > 1e-3


def test_without_dilation_only_the_bias_makes_a_border():
    layer = LKA(4, 7, 1).double()
    assert border_effect(layer, size=12).max() > 1e-3
    torch.nn.init.zeros_(layer.conv0.bias)
    assert border_effect(layer, size=12).max() < 1e-12


def test_the_same_for_every_call():
    layer = LKA(4)
    assert torch.equal(border_effect(layer, 20), border_effect(layer, 20))
    assert large_kernel_picture(layer) == large_kernel_picture(layer)


@pytest.mark.parametrize("size", [48, 12])
def test_picture(size):
    layer = LKA(8)
    text = large_kernel_picture(layer, size).decode()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert text.count("<image") == 2
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_the_picture_in_the_readme_is_the_one_that_is_drawn():
    folder = Path(volution.ops.lka.__file__).parent
    picture = (folder / "border.svg").read_bytes()
    assert "border.svg" in (folder / "README.md").read_text()
    assert len(picture) <= 60_000
    title = b"Exact 9 pixels inside the border"
    assert title in picture
    assert title in large_kernel_picture(LKA(8))


@pytest.mark.parametrize("wrong", [{"size": 0}, {"images": 0}])
def test_wrong_numbers(wrong):
    with pytest.raises(ValueError, match="size and images must be at least 1"):
        border_effect(LKA(4), **wrong)
