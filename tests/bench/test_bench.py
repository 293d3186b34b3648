"""The benchmark: its peers compute the right thing, and it refuses to time what does not."""

import json
import time

import parity
import pytest
import torch
from networks import images, twin

from volution import bench
from volution.bench import peers, runner
from volution.bench.cases import involution
from volution.ops import Involution2d, involution2d


def test_the_unfold_formulation_is_involution():
    x = torch.randn(2, 8, 9, 6, dtype=torch.float64)
    kernel = torch.randn(2, 2, 5, 5, 5, 3, dtype=torch.float64)
    ours = involution2d(x, kernel, stride=2, dilation=2)
    theirs = peers.unfold_involution2d(x, kernel, stride=2, dilation=2)
    torch.testing.assert_close(theirs, ours)


@parity.needs_fixtures
@pytest.mark.parametrize("name", parity.names("involution_") or ["absent"])
def test_the_peer_passes_the_authors_fixtures(name):
    fixture = parity.load(name)
    made = fixture.meta["construct"]
    layer = Involution2d(made["channels"], made["kernel_size"], made["stride"])
    layer.load_state_dict(fixture.weights())
    peer = peers.UnfoldInvolution2d(layer).double()
    parity.compare(fixture, peer, torch.float64)


def test_a_network_keeps_its_function_when_its_involutions_unfold():
    model = twin("rednet26").eval()
    unfolded = peers.with_unfold(model)
    assert Involution2d not in {type(layer) for layer in unfolded.modules()}
    assert Involution2d in {type(layer) for layer in model.modules()}
    x = images(1)
    torch.testing.assert_close(unfolded(x), model(x), rtol=1e-4, atol=1e-4)


class TestRunner:
    def test_a_ratio_is_of_pairs(self):
        result = runner.paired(
            lambda: time.sleep(0.001), lambda: time.sleep(0.004), "cpu", budget=0.05
        )
        assert 2 < result["ratio"]["median"] < 5
        assert result["pairs"] >= 5
        assert result["ours_ms"]["p10"] <= result["ours_ms"]["median"] <= result["ours_ms"]["p90"]

    def test_the_fastest_form_of_a_peer_is_found(self):
        forms = {"slow": lambda: time.sleep(0.004), "quick": lambda: time.sleep(0.001)}
        assert runner.fastest(forms, "cpu") == "quick"


class TestRun:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        monkeypatch.setattr(involution, "STAGES", ((32, 6),))

    def test_results_carry_machine_versions_and_commit(self, tmp_path, capsys):
        path = tmp_path / "deep" / "ops.json"
        assert bench.run("ops", out=path, quick=True) == 0
        record = json.loads(path.read_text())
        assert {"schema", "machine", "versions", "commit", "peaks", "results"} <= set(record)
        assert [(r["dtype"], r["direction"]) for r in record["results"]] == [
            (dtype, direction)
            for dtype in ("float32", "bfloat16")
            for direction in ("forward", "backward")
        ]
        assert all(r["ratio"]["median"] > 0 and r["gbps"] > 0 for r in record["results"])
        assert "involution 32x6²" in capsys.readouterr().out

    def test_nothing_is_timed_or_written_if_a_contestant_is_wrong(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            involution, "unfold_involution2d", lambda *a: 1.01 * peers.unfold_involution2d(*a)
        )
        path = tmp_path / "ops.json"
        assert bench.run("ops", out=path, quick=True) == 1
        assert not path.exists()

    def test_what_is_named(self):
        with pytest.raises(ValueError, match="what must be ops or models, got 'speed'"):
            bench.run("speed")
