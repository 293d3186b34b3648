"""Several processes: they do what one does, find each other, and stop together."""

import os
import subprocess
import sys
import threading
import time

import pair
import pytest
import small
import timm
import torch

from volution import hub
from volution.cli import main
from volution.train import TrainConfig, fit, launching, ranks, sharding
from volution.train.config import write_config
from volution.train.rows import read_rows
from volution.train.store import Store

ELASTIC = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
SLURM = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_NNODES": "2"}
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


class TestOwnProcesses:
    """Processes that the first one starts: no launcher, on one machine."""

    def test_two_count_what_one_counts_and_name_what_none_can_read(self, tmp_path):
        images = small.colour_folder(tmp_path / "colours", per_class=10)
        bad = small.break_image(images / "red" / "00.png")
        results = [
            fit(
                small.colour_run(
                    images,
                    tmp_path / str(devices),
                    model="hornet_tiny_7x7",
                    model_args={"widths": [8, 16, 16, 32], "depths": [1, 1, 1, 1]},
                    devices=devices,
                    batch_size=4,
                    lr=1e-3,
                ),
                show_progress=False,
            )
            for devices in (1, 2)
        ]
        one, two = (result.history for result in results)
        for alone, together in zip(one, two, strict=True):
            for name in ("train_loss", "val_loss", "val_top1", "val_top5"):
                assert together[name] == pytest.approx(alone[name], rel=1e-4), name
        assert all(result.broken[0].startswith(str(bad)) for result in results)
        assert "RANK" not in os.environ
        assert not torch.distributed.is_initialized()

    def test_a_killed_one_stops_the_other_with_one_message(
        self, colours, tmp_path, monkeypatch, capsys
    ):
        started = []
        start = launching._Crew.start

        def remember(crew, words, env):
            start(crew, words, env)
            started.append(crew.processes[1])

        monkeypatch.setattr(launching._Crew, "start", remember)
        folder = tmp_path / "run"
        config = small.colour_run(colours, folder, epochs=10_000, devices=2, save_steps=1)
        config_file = tmp_path / "config.yaml"
        write_config(config, config_file)
        killed = []

        def kill():
            while not list(folder.glob("checkpoints/step*.ckpt")):
                time.sleep(0.05)
            killed.append(time.monotonic())
            started[0].kill()

        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        assert main(["train", "--config", str(config_file)]) == 2
        assert time.monotonic() - killed[0] < 60
        lines = capsys.readouterr().err.splitlines()
        (said,) = [line for line in lines if line.startswith("volution: error:")]
        assert "process 1 of the 2 processes 0 to 1 ended unexpectedly (signal SIGKILL)" in said
        assert f"volution train --resume {folder}" in said
        assert all(torch.isfinite(value).all() for value in last_state(folder).values())


class TestPlaces:
    @pytest.fixture(autouse=True)
    def alone(self, monkeypatch):
        for name in list(os.environ):
            if name.startswith("SLURM") or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
                monkeypatch.delenv(name)

    def in_place(self, monkeypatch, variables, **settings):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return ranks.in_place(TrainConfig(**settings))

    @pytest.mark.parametrize(
        ("variables", "expected"),
        [
            ({**ELASTIC, "LOCAL_WORLD_SIZE": "2"}, (2, 2)),
            (ELASTIC, (4, 1)),
            (SLURM, (4, 2)),
            ({**SLURM, "SLURM_NTASKS_PER_NODE": "4"}, (4, 2)),
            ({**SLURM, "SLURM_JOB_NAME": "bash"}, (1, 1)),
            ({**SLURM, "SLURM_NTASKS": "1"}, (1, 1)),
        ],
    )
    def test_devices_left_out_are_those_that_were_started(self, monkeypatch, variables, expected):
        config = self.in_place(monkeypatch, variables)
        assert (config.devices, config.nodes) == expected

    @pytest.mark.parametrize(
        ("variables", "message"),
        [
            (ELASTIC, "must be what torchrun started, 4 and 1, got 2 and 1; leave both out"),
            (SLURM, "must be what srun started, 4 and 2, got 2 and 1"),
            ({**ELASTIC, "WORLD_SIZE": "many"}, "WORLD_SIZE must be a number .* got 'many'"),
            ({**ELASTIC, "LOCAL_WORLD_SIZE": "3"}, "got 4 in all and 3 on this one"),
            ({**SLURM, "SLURM_NTASKS": "7"}, "every machine must have as many tasks"),
        ],
    )
    def test_what_contradicts_is_refused(self, monkeypatch, variables, message):
        with pytest.raises(ValueError, match=message):
            self.in_place(monkeypatch, variables, devices=2)

    def test_only_the_first_writes(self, monkeypatch):
        assert ranks.is_first()
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("LOCAL_RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert not ranks.is_first()


def test_a_network_is_shared_out_by_its_blocks():
    for name in pair.FAMILIES:
        net = timm.create_model(name, device="meta")
        found = sharding.blocks(net)
        held = sum(p.numel() for block in found for p in block.parameters())
        assert len(found) >= 8, name
        # The rest are stem, downsampling and head.
        assert held > 0.7 * sum(p.numel() for p in net.parameters()), name
