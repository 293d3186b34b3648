"""The benchmark: its peers compute the right thing, and it refuses to time what does not."""

import json
import subprocess
import sys
import time
from functools import partial

import parity
import pytest
import torch
from networks import images, twin

from volution import bench
from volution.bench import contest, memory, peers, peers_van, runner, table
from volution.bench.cases import (
    depthwise,
    dmixer,
    involution,
    large_images,
    networks,
    scaling,
    xvolution,
)
from volution.cli import main
from volution.ops import Involution2d, Xvolution2d, involution2d, pssa2d


def test_the_unfold_formulation_is_involution():
    x = torch.randn(2, 8, 9, 6, dtype=torch.float64)
    kernel = torch.randn(2, 2, 5, 5, 5, 3, dtype=torch.float64)
    ours = involution2d(x, kernel, stride=2, dilation=2)
    theirs = peers.unfold_involution2d(x, kernel, stride=2, dilation=2)
    torch.testing.assert_close(theirs, ours)


@pytest.mark.parametrize("size", [3, 7])
def test_unfolding_is_pixel_shift_attention(size):
    q, k, v = torch.randn(3, 2, 12, 9, 6, dtype=torch.float64)
    theirs = peers.unfold_pssa2d(q, k, v, heads=3, kernel_size=size)
    torch.testing.assert_close(theirs, pssa2d(q, k, v, heads=3, kernel_size=size))


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

    def test_a_form_that_is_far_behind_is_not_run_again(self):
        calls = []
        forms = {"quick": lambda: None, "slow": lambda: calls.append(time.sleep(0.3))}
        assert runner.fastest(forms, "cpu") == "quick"
        assert len(calls) == 2  # what settling takes

    def test_peers_come_in_every_form(self):
        seen = {}

        def work(function, x, flat):
            layout = "last" if x.stride(1) == 1 else "contiguous"
            return lambda: seen.setdefault((layout, function is torch.relu))

        x = torch.randn(2, 3, 4, 5)
        found = contest.forms(torch.relu, (x, torch.randn(3)), work, compiled=False)
        assert list(found) == ["contiguous, eager", "channels_last, eager"]
        for form in found.values():
            form()
        assert set(seen) == {("contiguous", True), ("last", True)}

    def test_the_closest_rival_is_the_one_that_counts(self):
        peers = {"contiguous, eager": lambda: time.sleep(0.006),
                 "contiguous, compiled": lambda: time.sleep(0.003)}  # fmt: skip
        ours = partial(time.sleep, 0.001)
        found = contest.against_each_mode(ours, peers, "plain", "cpu", 0.05)
        assert found["peer"] == "plain, contiguous, compiled"
        assert [rival["peer"] for rival in found["peers"]] == [
            "plain, contiguous, eager", "plain, contiguous, compiled",
        ]  # fmt: skip

    @pytest.mark.parametrize("wrong", [1.001, float("nan")])
    def test_the_gate(self, wrong):
        want = torch.ones(3, dtype=torch.float64)
        contest.check_close("right", want.float(), want, 1e-5)
        with pytest.raises(contest.WrongResultError, match=r"ours: error .* allowed 1e-05"):
            contest.check_close("ours", wrong * want, want, 1e-5)


class TestRun:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        monkeypatch.setattr(involution, "STAGES", ((32, 6),))
        monkeypatch.setattr(depthwise, "CASES", (depthwise.Case(7, 3, 16, 9),))
        monkeypatch.setattr(dmixer, "STAGES", ((12, 6),))
        monkeypatch.setattr(xvolution, "SIDE", 5)
        monkeypatch.setattr(scaling, "SIDES", (8, 16, 32))
        monkeypatch.setattr(bench, "measure_peaks", partial(bench.measure_peaks, budget=0.05))

    def test_results_carry_machine_versions_and_commit(self, tmp_path, capsys):
        path = tmp_path / "deep" / "ops.json"
        assert bench.run("ops", out=path, quick=True) == 0
        record = json.loads(path.read_text())
        assert {"schema", "machine", "versions", "commit", "peaks", "results"} <= set(record)
        timed = [r for r in record["results"] if "ratio" in r]
        functions = [r for r in timed if not r["case"].startswith("X-volution")]
        assert [(r["case"], r["dtype"], r["direction"]) for r in functions] == [
            (case, dtype, direction)
            for cases in (
                ["dw7x7 d3 16x9²"], ["per-sample dw7x7 12x6²"], ["involution 32x6²"],
                ["PSSA 3x3 64x5²", "PSSA 7x7 64x5²"],
            )
            for dtype in ("float32", "bfloat16")
            for case in cases
            for direction in ("forward", "backward")
        ]  # fmt: skip
        assert all(r["gbps"] > 0 and r["gflops"] > 0 for r in functions)
        assert [r["case"] for r in timed[len(functions) :]] == [
            "X-volution depthwise 64x5²", "X-volution dense 64x5²"
        ]  # fmt: skip
        assert all(r["ratio"]["median"] > 0 for r in timed)
        assert all(len(r["ms"]) == 3 for r in record["results"] if "slope" in r)
        shown = capsys.readouterr()
        assert "involution 32x6²" in shown.out
        assert "LKA(64) scaling: time grows with pixels to the power" in shown.out
        assert "dw7x7 d3 16x9² bfloat16 backward: " in shown.err

    @pytest.mark.parametrize(
        ("module", "function"),
        [(involution, "unfold_involution2d"), (depthwise, "framework_conv2d"),
         (depthwise, "depthwise_conv2d"), (dmixer, "grouped_conv2d"),
         (dmixer, "dynamic_depthwise_conv2d"), (xvolution, "unfold_pssa2d"), (xvolution, "pssa2d")],
    )  # fmt: skip
    def test_nothing_is_timed_or_written_if_a_contestant_is_wrong(
        self, tmp_path, monkeypatch, module, function
    ):
        right = getattr(module, function)
        monkeypatch.setattr(module, function, lambda *a, **k: _grown(right(*a, **k)))
        path = tmp_path / "ops.json"
        assert bench.run("ops", out=path, quick=True) == 1
        assert not path.exists()

    def test_an_unequal_fold_is_not_timed(self, tmp_path, monkeypatch, capsys):
        def fuse(layer, right=Xvolution2d.fuse):
            folded = right(layer)
            with torch.no_grad():
                folded.bias += 0.1
            return folded

        monkeypatch.setattr(Xvolution2d, "fuse", fuse)
        path = tmp_path / "ops.json"
        assert bench.run("ops", out=path, quick=True, only="X-volution") == 1
        assert "X-volution depthwise 64x5², ours: error" in capsys.readouterr().err
        assert not path.exists()

    def test_only_some_cases(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["bench", "ops", "--quick", "--only=DW7x7*x9", "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert {r["case"] for r in record["results"]} == {"dw7x7 d3 16x9²"}
        assert not list(tmp_path.iterdir())
        assert main(["bench", "ops", "--quick", "--only=windmill"]) == 2
        assert "the name of no case contains 'windmill'" in capsys.readouterr().err

    @pytest.mark.parametrize(("quick", "size"), [(True, (160, 224)), (False, (800, 1344))])
    def test_networks_are_followed_by_large_images(self, quick, size, monkeypatch):
        monkeypatch.setattr(networks, "measure", lambda device, **settings: [settings["size"]])
        monkeypatch.setattr(large_images, "measure", lambda device, **settings: [settings["size"]])
        assert list(bench.measure_models("cpu", quick=quick)) == [64 if quick else 224, size]

    def test_what_is_named(self):
        with pytest.raises(ValueError, match="what must be ops or models, got 'speed'"):
            bench.run("speed")


def _grown(result):
    """A result that is off by a little more than a gate lets through, in one value."""
    bump = torch.zeros_like(result)
    bump[(0,) * result.dim()] = 0.2 * result.detach().abs().max()
    return result + bump


def measured_here(function, **arguments):
    """In this process: another one would not know what a test has made small."""
    # Of a process that has much memory free already, work may take none.
    return 1.0 + memory.peak_mib(memory.made_by(function, **arguments), arguments["device"])


class TestNetworks:
    @pytest.fixture(autouse=True)
    def one(self, monkeypatch):
        plain = partial(peers_van.PlainVAN, dims=(32, 64, 160, 256), depths=(3, 3, 5, 2))
        monkeypatch.setattr(networks, "NETWORKS", {"van_b0": plain})
        monkeypatch.setattr(memory, "measured_apart", measured_here)

    def run(self, **settings):
        return list(networks.measure("cpu", size=64, budget=0.05, compiled=False, **settings))

    def test_inference_and_training(self):
        inference, training = self.run()
        assert inference["case"] == "van_b0 eager/eager"
        assert training["case"] == "van_b0 training step"
        for result in (inference, training):
            assert result["ours"].startswith("ours")
            assert result["peer"].startswith("plain")
            assert result["ratio"]["median"] > 0
        assert training["memory_share"] > 0

    def test_a_choice_of_cases(self):
        (result,) = self.run(wanted=lambda name: "inference" in name)
        assert result["direction"] == "forward"
        assert self.run(wanted=lambda name: False) == []

    def test_the_compiled_and_fused_forms_are_made(self, monkeypatch):
        # Compiling itself takes minutes.
        monkeypatch.setattr(torch, "compile", lambda net, options: net)
        results = list(
            networks.measure(
                "cpu", size=64, budget=0.05, compiled=True, wanted=lambda name: "inference" in name
            )
        )
        assert [r["case"] for r in results] == [
            "van_b0 eager/eager",
            "van_b0 compiled/eager",
            "van_b0 compiled/compiled",
        ]
        assert results[1]["ours"] == results[2]["ours"] == "ours, fused, compiled, channels_last"
        # The peer is compiled in the format in which it is fastest.
        formats = [r["peer"].rpartition(", ")[2] for r in results]
        assert formats[0] == formats[1] == formats[2]

    def test_a_wrong_network_is_not_timed(self, monkeypatch):
        class Wrong(peers_van.PlainVAN):
            def forward(self, x):
                return 1.001 * super().forward(x)

        def build(name, form, *args, right=networks.build, **settings):
            net = right(name, form, *args, **settings)
            if form == "plain":
                net.__class__ = Wrong
            return net

        monkeypatch.setattr(networks, "build", build)
        with pytest.raises(contest.WrongResultError, match="van_b0, ours, eager"):
            self.run(wanted=lambda name: "inference" in name)
        with pytest.raises(contest.WrongResultError, match="van_b0, gradient of the image"):
            self.run(wanted=lambda name: "training" in name)


class TestMemory:
    def test_what_a_process_holds_at_its_peak(self):
        # 64 MiB, gone at once; here they could lie in what earlier tests have left free.
        code = (
            "import torch; from volution.bench import memory; "
            "print(memory.peak_mib(lambda: torch.ones(64 * 2**18), 'cpu'))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert 60 < float(done.stdout) < 80

    def test_a_process_of_its_own(self):
        arguments = {"name": "van_b2", "device": "cpu", "size": [64, 96]}
        peak = memory.measured_apart(
            "large_images.work", who="ours, channels_last", task="inference", **arguments
        )
        assert 1 < peak < 1000

    def test_what_goes_wrong_there_is_told(self):
        with pytest.raises(RuntimeError, match=r"(?s)networks.training_step .*KeyError: 'resnet'"):
            memory.measured_apart(
                "networks.training_step", name="resnet", who="plain, contiguous", device="cpu",
                size=64,
            )  # fmt: skip


class TestLargeImages:
    @pytest.fixture(autouse=True)
    def one(self, monkeypatch):
        plain = partial(peers_van.PlainVAN, dims=(32, 64, 160, 256), depths=(3, 3, 5, 2))
        monkeypatch.setattr(networks, "NETWORKS", {"van_b0": plain})
        monkeypatch.setattr(large_images, "NETWORKS", ("van_b0",))

    def test_memory_is_compared_with_the_leaner_peer(self, monkeypatch, capsys):
        peaks = {"ours, channels_last": 10, "plain, contiguous": 40, "plain, channels_last": 30}

        def measured(function, who, **arguments):
            memory.made_by(function, who=who, **arguments)()
            return peaks[who]

        monkeypatch.setattr(memory, "measured_apart", measured)
        results = list(large_images.measure("cpu", size=(64, 96)))
        assert [r["case"] for r in results] == [
            "van_b0 64x96 inference", "van_b0 64x96 training step"
        ]  # fmt: skip
        for result in results:
            assert result["peer"] == "plain, channels_last"
            assert result["memory_share"] == 10 / 30
            assert table.progress(result).endswith(": 10 MiB against 30 MiB, 33 %")
        machine = {"copy_gbps": 1.0, "gemm_gflops_float32": 1.0}
        table.show({"what": "models", "peaks": machine, "results": results})
        shown = capsys.readouterr().out
        assert "van_b0 64x96 training step: peak memory 10 MiB against 30 MiB" in shown

    def test_norms_do_not_see_the_single_image(self, monkeypatch):
        made = []
        monkeypatch.setattr(networks, "step", lambda net, image: made.append(net))
        large_images.work("van_b0", "ours, channels_last", "training step", "cpu", (64, 64))
        (net,) = made
        assert net.training
        assert not any(m.training for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))

    def test_a_wrong_network_is_not_measured(self, monkeypatch):
        right = large_images.work

        def work(name, who, *args):
            result = right(name, who, *args)()
            return lambda: result * (1.001 if "plain" in who else 1)

        monkeypatch.setattr(large_images, "work", work)
        with pytest.raises(contest.WrongResultError, match="van_b0 at 64x96: differs by"):
            list(large_images.measure("cpu", size=(64, 96)))


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_equals_its_plain_formulation(name):
    ours, plain = (
        networks.build(name, form, "cpu", torch.channels_last, size=64).double().eval()
        for form in ("ours", "plain")
    )
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        want = plain(x)
        assert (ours(x) - want).abs().max() < 1e-7 * want.abs().max()
    networks.check_gradients(name, "cpu")
