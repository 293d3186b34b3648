"""Signals, full disks and lost processes: a run stops with one line, and its state is safe."""

import json
import os
import signal
import time

import pytest
import small
import torch

from volution import hub
from volution.train.interruption import job_id
from volution.train.store import Store

SETTINGS = {
    "epochs": 3,
    "batch_size": 4,
    "image_size": 32,
    "device": "cpu",
    "ema_decay": 0.8,
    "mixup": 0.8,
    "accumulate": 2,
    "workers": 1,
    "lr": 5e-3,
}


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return small.colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=14)


def words(colours, out, **more):
    settings = {**SETTINGS, **more}
    return [
        "train",
        f"--data=folder:{colours}",
        f"--out={out}",
        f"--model_args={json.dumps(small.WIDTHS)}",
        *(f"--{name}={value}" for name, value in settings.items()),
    ]


@pytest.fixture(scope="module")
def whole(mother, colours, tmp_path_factory):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    child = mother.start(
        "killed:command", words(colours, folder / "run"), "Mark", folder / "mark", 1, 0.0,
        log=folder / "log.txt",
    )  # fmt: skip
    assert child.wait() == 0, child.output()
    return folder / "run"


def stopped(mother, command, folder, signals, *, batch=12, pause=0.1, env=None):
    """Start a command, wait for a batch, send signals to all its processes; code and output."""
    mark = folder / "mark"
    child = mother.start(
        "killed:command", command, "Mark", mark, batch, pause, log=folder / "log.txt", env=env
    )
    child.wait_for(mark)
    for signum in signals:
        os.killpg(child.pid, signum)  # as a terminal does, and SLURM: to the workers too
        time.sleep(0.05)
    return child.wait(), child.output()


def newest(run):
    return Store(run / "checkpoints").states()[-1]


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_a_signal_saves_the_step_and_the_run_goes_on_as_if_nothing_had_been(
    mother, colours, tmp_path, whole, signum, code
):
    run = tmp_path / "run"
    found, output = stopped(mother, words(colours, run), tmp_path, [signum])
    assert found == code, output
    assert output.rstrip().endswith(f"continue with: volution train --resume {run}")
    assert "Traceback" not in output
    state = newest(run)
    # The mark is set in the middle of the second epoch, which nothing but the signal saves.
    assert (state.epoch, state.batch % SETTINGS["accumulate"]) == (1, 0)
    assert 4 <= state.batch < 8

    continued_equals(mother, run, whole)


def test_a_long_validation_is_not_waited_for(mother, colours, tmp_path, whole):
    run, mark = tmp_path / "run", tmp_path / "mark"
    child = mother.start(
        "killed:command", words(colours, run), "LongValidation", mark, log=tmp_path / "log.txt"
    )
    child.wait_for(mark)
    child.send(signal.SIGTERM)
    assert child.wait() == 143, child.output()
    # Of the second epoch's eight batches, without the last step of two.
    assert (newest(run).epoch, newest(run).batch) == (1, 6)
    continued_equals(mother, run, whole)


def continued_equals(mother, run, whole):
    """Continue a run elsewhere, and hold its end against that of another."""
    child = mother.start(
        "killed:command", ["train", "--resume", run, "--workers=0"], "Mark", run / "no", 99, 0.0,
        log=run.parent / "again.txt",
    )  # fmt: skip
    assert child.wait() == 0, child.output()
    ours, theirs = small.newest_state(run), small.newest_state(whole)
    for name, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], value), name
    best, other = (hub.read_checkpoint(r / "best.safetensors") for r in (run, whole))
    assert all(torch.equal(best[name], other[name]) for name in other)


def test_a_second_ctrl_c_leaves_at_once(mother, colours, tmp_path):
    run = tmp_path / "run"
    start = time.monotonic()
    code, output = stopped(
        mother, words(colours, run), tmp_path, [signal.SIGINT] * 2, batch=12, pause=300.0
    )
    assert code == 130, output
    assert time.monotonic() - start < 200
    assert "Ctrl-C again leaves at once" in output
    assert f"continue with: volution train --resume {run}" in output
    state = newest(run)
    assert (state.epoch, state.batch) == (1, 0)
    assert Store(run / "checkpoints").newest() == state


def test_slurm_is_asked_to_queue_the_job_again(mother, colours, tmp_path):
    run, asked = tmp_path / "run", tmp_path / "asked.txt"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    scontrol.chmod(0o755)
    env = {
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "15",
        "SLURM_ARRAY_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": "3",
    }
    command = words(colours, run, epochs=2)
    code, output = stopped(mother, command, tmp_path, [signal.SIGUSR1], env=env)
    assert code == 128 + signal.SIGUSR1, output
    assert asked.read_text() == "requeue 12_3\n"
    assert "SLURM job 12_3 is requeued" in output
    assert newest(run).batch > 0
    # The job's script has the same command again.
    child = mother.start(
        "killed:command", command, "Mark", tmp_path / "no", 99, 0.0, log=tmp_path / "again.txt"
    )
    assert child.wait() == 0, child.output()
    assert len((run / "metrics.csv").read_text().splitlines()) == 3
    steps = [line.partition(",")[0] for line in (run / "steps.csv").read_text().splitlines()]
    assert steps[1:] == [str((batch + 1) // 2) for batch in range(16)]


def test_the_task_of_an_array_has_its_own_name():
    job = {"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    assert job_id(job) == "12_3"
    assert job_id({"SLURM_JOB_ID": "15"}) == "15"
    assert job_id({}) is None


def test_a_full_disk_costs_nothing_that_was_saved(mother, colours, tmp_path):
    run = tmp_path / "run"
    child = mother.start(
        "killed:command", words(colours, run), "FillDisk", log=tmp_path / "log.txt"
    )
    assert child.wait() == 2
    (line,) = [line for line in child.output().splitlines() if "error" in line]
    state = newest(run)
    assert line == (
        f"volution: error: cannot write {run}/checkpoints/step00000008.ckpt: File too large; the "
        f"last good state is {run}/checkpoints/{state.file} (after epoch 1, step 4); continue "
        f"with: volution train --resume {run}"
    )
    assert Store(run / "checkpoints").newest() == state
    assert hub.read_checkpoint(run / "best.safetensors")
    assert not list(run.rglob("*.unfinished"))


def test_a_lost_worker_stops_the_run_with_one_line(mother, colours, tmp_path):
    run = tmp_path / "run"
    child = mother.start(
        "killed:command", words(colours, run), "LoseWorker", log=tmp_path / "log.txt"
    )
    assert child.wait() == 2, child.output()
    (line,) = [line for line in child.output().splitlines() if "error" in line]
    assert "a process that reads images died" in line
    assert "fewer than workers = 1" in line
    assert line.endswith(f"continue with: volution train --resume {run}")
    assert Store(run / "checkpoints").newest() == newest(run)
