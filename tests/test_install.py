"""Installing where no compiler works: a pure-Python wheel that says once how slow it is."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = """
import sys, warnings
# This checkout's own editable install would answer first.
sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in type(f).__name__
                    and "ScikitBuild" not in type(f).__name__]
sys.path.insert(0, sys.argv[1])
import torch, volution
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        y = volution.ops.involution2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3, 3, 3))
said = [str(w.message) for w in caught if "plain PyTorch" in str(w.message)]
rows = volution.ops.report()
cpu = {r["implementation"] for r in rows if r["device"] == "cpu"}
print(volution.__file__, y.sum().item(), len(said), said[0], cpu)
"""


def test_without_a_compiler_the_install_succeeds_on_the_reference(tmp_path):
    environment = {**os.environ, "CC": "/bin/false"}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*command, str(ROOT)], env=environment, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("volution-*.whl")
    assert wheel.name.endswith("py3-none-any.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert not list(site.rglob("*volution_cpu*"))
    assert (site / "volution/train/recipes/van_imagenet.yaml").is_file()

    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(site)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("VOLUTION_")},
    )
    assert done.returncode == 0, done.stderr
    assert str(site) in done.stdout
    assert "49.0 1 volution runs on plain PyTorch" in done.stdout
    assert "{'reference'}" in done.stdout
