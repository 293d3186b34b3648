"""How long the command takes to start: what it adds to importing timm, in time and in modules."""

import json
import subprocess
import sys

import pytest

# Time of this process alone, which other work on the machine changes little.
CODE = """
import io, json, sys, time
from contextlib import redirect_stdout
start = time.process_time()
import timm
spent = [time.process_time() - start]
before = set(sys.modules)
from volution.cli import main
for words in (["--help"], ["list", "--help"], ["info", "--help"], ["train", "--help"]):
    text = io.StringIO()
    with redirect_stdout(text):
        assert main(words) == 0
    assert "usage: volution" in text.getvalue()
    spent.append(time.process_time() - start)
print(json.dumps({"spent": spent, "modules": sorted(set(sys.modules) - before)}))
"""


@pytest.fixture(scope="module")
def started():
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


@pytest.mark.parametrize(("place", "words"), [(1, "--help"), (4, "--help of four commands")])
def test_help_takes_little_longer_than_importing_timm(started, place, words):
    timm, whole = started["spent"][0], started["spent"][place]
    # 0.4 s where importing timm takes 3 s; a slower machine is slower at both.
    assert whole - timm <= max(0.4, 0.4 / 3 * timm), f"{words}: {whole:.2f} s, timm {timm:.2f} s"


@pytest.mark.parametrize(
    "module",
    ["lightning", "matplotlib", "pyarrow", "sklearn", "webdataset", "datasets", "wandb", "triton"],
)
def test_help_does_without(started, module):
    assert module not in started["modules"]
