"""What a run writes down and shows: rows, events, a bar; the same after an interruption."""

import csv
import io
import multiprocessing
import threading
from contextlib import redirect_stderr

import pytest
import small
from lightning.pytorch import Callback
from rich.console import Console

from volution._support import console
from volution.train import fit, resume
from volution.train.rows import parse_rows, read_rows
from volution.train.runstate import hold, is_held

TINY = {"image_size": 16, "epochs": 2, "batch_size": 8, "warmup_epochs": 1}


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return small.colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=15)


class PowerCut(Exception):
    pass


class CutPower(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.current_epoch == 1 and index == 2:
            raise PowerCut


@pytest.fixture(scope="module")
def whole(colours, tmp_path_factory):
    """A run with all loggers, and what it showed in a pipe."""
    shown = io.StringIO()
    folder = tmp_path_factory.mktemp("runs") / "whole"
    threads = set(threading.enumerate())
    config = small.colour_run(colours, folder, tensorboard=True, wandb="test", **TINY)
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(shown):
        patch.setenv("WANDB_MODE", "offline")
        result = fit(config)
    return result, shown.getvalue(), set(threading.enumerate()) - threads


@pytest.fixture(scope="module")
def broken_off(colours, tmp_path_factory):
    """A run that went down within its second epoch, one step after its state was saved."""
    folder = tmp_path_factory.mktemp("runs") / "broken"
    config = small.colour_run(colours, folder, tensorboard=True, save_steps=2, **TINY)
    with pytest.raises(PowerCut):
        fit(config, show_progress=False, callbacks=[CutPower()])
    before = read_rows(folder / "steps.csv")
    return before, resume(folder, show_progress=False)


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_the_loss_within_epochs(whole):
    result, _, _ = whole
    rows = read_rows(result.folder / "steps.csv")
    # 36 images to learn from, so four batches of eight in an epoch.
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["epoch"] for row in rows] == [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    means = [sum(r["train_loss"] for r in rows[i : i + 4]) / 4 for i in (0, 4)]
    assert means == pytest.approx([row["train_loss"] for row in result.history])
    rates = [row["lr"] for row in rows]
    assert rates[:4] == sorted(rates[:4])  # the warm-up
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert result.history[-1]["lr"] == rates[-1]


def test_an_epoch_of_many_steps_has_few_rows(colours, tmp_path, monkeypatch):
    monkeypatch.setattr("volution.train.history._ROWS_PER_EPOCH", 3)
    config = small.colour_run(
        colours, tmp_path / "run", **{**TINY, "epochs": 1, "warmup_epochs": 0}
    )
    result = fit(config, show_progress=False)
    rows = read_rows(result.folder / "steps.csv")
    # Every second of four batches, for a third of four is more than one; each of two losses.
    assert [row["step"] for row in rows] == [2, 4]
    mean = sum(row["train_loss"] for row in rows) / 2
    assert mean == pytest.approx(result.history[0]["train_loss"])


def test_a_resumed_run_has_the_rows_of_an_unbroken_one(whole, broken_off):
    before, again = broken_off
    assert [row["step"] for row in before] == [1, 2, 3, 4, 5, 6, 7]
    steps = [(r.folder / "steps.csv").read_text() for r in (again, whole[0])]
    assert steps[0] == steps[1]
    times = {"seconds", "images_per_second"}
    ours, theirs = (
        [{k: v for k, v in row.items() if k not in times} for row in r.history]
        for r in (again, whole[0])
    )
    assert ours == theirs
    with (again.folder / "metrics.csv").open() as file:
        assert [float(row["epoch"]) for row in csv.DictReader(file)] == [1, 2]


def test_events_for_tensorboard(whole, broken_off):
    result, _, _ = whole
    found = scalars(result.folder)
    rows = read_rows(result.folder / "steps.csv")
    assert [step for step, _ in found["step/train_loss"]] == [row["step"] for row in rows]
    assert [value for _, value in found["step/train_loss"]] == pytest.approx(
        [row["train_loss"] for row in rows]
    )
    top1 = [row["val_top1"] for row in result.history]
    assert [value for _, value in found["epoch/val_top1"]] == pytest.approx(top1)
    assert [step for step, _ in found["epoch/val_top1"]] == [4, 8]
    # Steps that came twice are there once.
    again = scalars(broken_off[1].folder)
    assert again["step/train_loss"] == found["step/train_loss"]
    assert again["epoch/val_loss"] == found["epoch/val_loss"]


def test_weights_and_biases_without_network(whole):
    result, shown, threads = whole
    folder = result.folder / "wandb"
    name = (folder / "id").read_text().strip()
    (offline,) = folder.glob("offline-run-*")
    assert offline.name.endswith(name)
    (content,) = offline.glob("*.wandb")
    assert b"step/train_loss" in content.read_bytes()
    assert "wandb sync" in shown
    assert not [thread for thread in threads if thread.is_alive() and not thread.daemon]


def test_weights_and_biases_keep_the_runs_name(colours, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = small.colour_run(colours, tmp_path / "run", wandb="test", **TINY)
    with pytest.raises(PowerCut):
        fit(config, show_progress=False, callbacks=[CutPower()])
    name = (config.folder / "wandb" / "id").read_text()
    resume(config.folder, show_progress=False)
    assert (config.folder / "wandb" / "id").read_text() == name
    # Both parts begun in one second, the second has a number behind the name.
    parts = {path.name.split("-")[3] for path in config.folder.glob("wandb/offline-run-*")}
    assert parts == {name.strip()}


def test_weights_and_biases_that_refuse(colours, tmp_path, monkeypatch):
    import wandb

    def refuse(**_):
        raise wandb.errors.UsageError("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", refuse)
    config = small.colour_run(colours, tmp_path / "run", wandb="test", **TINY)
    with pytest.raises(ValueError, match="wandb: cannot log to project 'test': api_key not"):
        fit(config, show_progress=False)


@pytest.mark.parametrize(
    ("package", "option", "extra"),
    [("tensorboard", {"tensorboard": True}, "train"), ("wandb", {"wandb": "x"}, "wandb")],
)
def test_missing_extras_are_named_before_anything_is_done(
    colours, tmp_path, monkeypatch, package, option, extra
):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    config = small.colour_run(colours, tmp_path / "run", **option, **TINY)
    with pytest.raises(ImportError, match=rf"{package} is not installed.*volution\[{extra}\]"):
        fit(config, show_progress=False)
    assert not config.folder.exists()


def test_what_is_shown_in_a_pipe(whole):
    result, shown, _ = whole
    assert "\x1b" not in shown
    lines = [line for line in shown.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert f"top-1 {result.history[0]['val_top1']:6.2%}" in lines[0]
    (bar,) = [line for line in shown.splitlines() if line.startswith("training")]
    assert "100 %" in bar
    assert "images/s" in bar
    assert "epoch 2/2" in bar
    (detail,) = [line for line in shown.splitlines() if line.startswith("  batch")]
    assert "batch 4/4" in detail
    for words in ("loss", "learning rate", "GiB at most"):
        assert words in detail
    assert len(detail) <= 80


def test_the_bar_of_a_resumed_run_starts_where_it_was(colours, tmp_path, monkeypatch):
    from volution.train import progress

    shown = []

    class Meter(console.Meter):
        def __init__(self, description, total, **options):
            shown.append((total, options["done"]))
            super().__init__(description, total, show=False, **options)

        def add(self, images, note="", **more):
            shown.append((images, more["left"]))
            super().add(images, note, **more)

    monkeypatch.setattr(progress, "Meter", Meter)
    config = small.colour_run(colours, tmp_path / "run", **TINY)
    with pytest.raises(PowerCut):
        fit(config, callbacks=[CutPower()])
    assert shown[0] == (64, 0)
    assert [images for images, _ in shown[1:]] == [8] * 7
    shown.clear()
    resume(config.folder)
    # Four of eight batches are left, and the time for them and one validation.
    assert shown[0] == (64, 32)
    assert [images for images, _ in shown[1:]] == [8] * 4
    lefts = [left for _, left in shown[1:]]
    assert lefts[0] is None  # one batch says nothing of the speed
    assert all(0 < left < 60 for left in lefts[1:])


def test_a_meter_shows_the_time_that_it_is_told():
    screen = Console(file=io.StringIO(), width=90, force_terminal=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "log", screen)
        with console.Meter("work", total=10, done=5) as meter:
            meter.add(1, rate=2.0, left=3725.2, detail="half of it")
    text = screen.file.getvalue()
    assert "60 %" in text
    assert "1:02:06" in text
    assert text.splitlines()[-1].strip() == "half of it"
    assert meter.count == 1


def test_a_run_that_goes_on_is_seen_and_left_alone(colours, tmp_path):
    config = small.colour_run(colours, tmp_path / "run", **TINY)
    result = fit(config, show_progress=False)
    path = result.folder / "steps.csv"
    assert not is_held(path)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hold_until_told, args=(path, theirs), daemon=True)
    process.start()
    try:
        assert ours.recv() == "held"
        assert is_held(path)
        for again in (lambda: fit(config, overwrite=True), lambda: resume(config.folder)):
            with pytest.raises(ValueError, match="another process is training in"):
                again()
        ours.send("enough")
    finally:
        process.join(20)
    assert not is_held(path)
    assert len(read_rows(path)) == 8  # nothing was lost


def _hold_until_told(path, pipe):
    with path.open("a") as file:
        hold(file)
        pipe.send("held")
        pipe.recv()


def test_rows_that_are_torn_off_are_left_out():
    assert parse_rows("step,loss\n1,0.5\n2,0.") == [{"step": 1.0, "loss": 0.5}]
    assert parse_rows("") == []
    for damaged in ("step,loss\n1\n", "step\nmany\n"):
        with pytest.raises(ValueError, match=r"zip|convert"):
            parse_rows(damaged)
