"""Several processes: they do what one does, find each other, and stop together."""

import subprocess
import sys

import pair
import pytest
import small
import torch

from volution import hub
from volution.train import fit
from volution.train.rows import read_rows
from volution.train.store import Store

EXACT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return small.colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=10)


def last_state(folder):
    (*_, newest) = Store(folder / "checkpoints").states()
    state = torch.load(folder / "checkpoints" / newest.file, weights_only=True)
    return state["state_dict"]


@pytest.fixture(scope="module")
def together(colours, tmp_path_factory):
    """The folder of two processes that torchrun started, and the processes."""
    out = tmp_path_factory.mktemp("together")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words += [pair.__file__, colours, out]
    process = subprocess.Popen(
        list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    yield out, process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def alone(together, colours, tmp_path_factory):
    """The results of the same runs in this process, made meanwhile."""
    out = tmp_path_factory.mktemp("alone")
    results = {}
    for name, case in pair.cases().items():
        run = pair.config(case, colours, out / name)
        results[name] = fit(run, show_progress=False, callbacks=[pair.InFloat64()])
    printed, _ = together[1].communicate(timeout=240)
    assert together[1].returncode == 0, printed
    return results


class TestTwoProcessesEqualOne:
    """In float64: what is left are orders of summation."""

    @pytest.fixture(params=pair.cases())
    def case(self, request):
        return request.param

    def test_weights_statistics_and_their_average(self, alone, together, case):
        one, two = (
            last_state(folder / case) for folder in (alone[case].folder.parent, together[0])
        )
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, **EXACT, msg=lambda m, n=name: f"{n}: {m}")
        weights = [name for name in one if name.startswith("model.")]
        assert any(not torch.equal(one[n], one[f"average.module.{n[6:]}"]) for n in weights)

    def test_what_is_measured(self, alone, together, case):
        (one,), (two,) = (alone[case].history, read_rows(together[0] / case / "metrics.csv"))
        for name in ("lr", "train_loss", "val_loss", "val_top1", "val_top5"):
            assert two[name] == pytest.approx(one[name], rel=1e-9), name

    def test_the_best_weights(self, alone, together, case):
        one, two = (
            hub.read_checkpoint(f / case / "best.safetensors")
            for f in (alone[case].folder.parent, together[0])
        )
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, **EXACT)
