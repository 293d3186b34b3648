"""The folder of states: what is damaged is found out, what cannot be written harms nothing."""

import errno
import json
import os
import random
import threading
import time

import pytest
import safetensors.torch
import torch

from volution.train.saving import BackgroundIO, on_cpu
from volution.train.store import Best, Store
from volution.train.trouble import TrainingError, how_to_continue


def content(step):
    return {"state_dict": {"model.weight": torch.full((400,), float(step))}, "step": step}


@pytest.fixture
def store(tmp_path):
    """Two states, of steps 10 and 20."""
    store = Store(tmp_path / "checkpoints", keep=3)
    for step in (10, 20):
        store.add(content(step), epoch=step // 10, batch=0, step=step)
    return store


def test_the_manifest_says_what_is_there(store):
    first, second = store.states()
    assert (first.step, second.step, second.epoch, second.batch) == (10, 20, 2, 0)
    assert second.bytes == store.path(second).stat().st_size
    assert time.time() - 60 < second.time <= time.time()
    assert store.newest() == second
    assert torch.load(store.path(second), weights_only=True)["step"] == 20


def damage(path, kind, place):
    data = bytearray(path.read_bytes())
    if kind == "flipped":
        data[place] ^= 1 << (place % 8)
    else:
        del data[place:]
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["flipped", "truncated"])
def test_a_state_that_is_damaged_at_any_byte_is_left_out(store, kind):
    first, second = store.states()
    path = store.path(second)
    whole = path.read_bytes()
    places = [0, len(whole) - 1, *random.SystemRandom().sample(range(len(whole)), 40)]
    for place in places:
        path.write_bytes(whole)
        damage(path, kind, place)
        remarks = []
        assert store.newest(remarks.append) == first, place
        (remark,) = remarks
        assert remark.startswith(f"{path} is damaged (")


def test_a_state_that_is_gone_is_left_out(store):
    first, second = store.states()
    store.path(second).unlink()
    assert store.newest() == first


def test_nothing_sound_is_an_error_and_nothing_at_all_is_not(store, tmp_path):
    for state in store.states():
        damage(store.path(state), "flipped", 100)
    with pytest.raises(ValueError, match=r"all 2 saved states in .* are damaged; start again"):
        store.newest()
    assert Store(tmp_path / "none").newest() is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 9, "states": []}'])
def test_a_damaged_manifest_is_an_error(store, text):
    (store.folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        store.states()


def test_only_the_newest_are_kept_with_their_best_weights(tmp_path):
    store = Store(tmp_path, keep=2)
    for step in range(1, 6):
        best = Best(f"best{step // 2:05d}.safetensors", step // 2, 0.5)
        (tmp_path / best.file).touch()
        store.add(content(step), epoch=step, batch=0, step=step, best=best)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best00002.safetensors",
        "manifest.json",
        "step00000004.ckpt",
        "step00000005.ckpt",
    ]


def test_what_comes_after_a_state_that_was_left_out_takes_its_place(store):
    damage(store.path(store.states()[1]), "truncated", 50)
    again = store.add(content(15), epoch=1, batch=5, step=15)
    assert [state.step for state in store.states()] == [10, 15]
    assert store.newest() == again


@pytest.mark.parametrize("at", [0, 1000, 10**9], ids=["at once", "in the middle", "at the sync"])
def test_a_write_that_fails_leaves_all_as_it_was(store, monkeypatch, at):
    before = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        def __init__(self, file):
            self.file, self.left = file, at

        def write(self, data):
            self.left -= len(data)
            if self.left < 0:
                raise full
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

    def sync(handle):
        raise full

    open_ = type(store.folder).open
    monkeypatch.setattr(type(store.folder), "open", lambda p, *a, **k: Full(open_(p, *a, **k)))
    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(OSError, match=r"No space left on device: .*step00000030\.ckpt"):
        store.add(content(30), epoch=3, batch=0, step=30)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == before


def test_what_was_left_unfinished_goes_and_nothing_else(store):
    (store.folder / ".step00000030.ckpt.unfinished").write_bytes(b"half")
    before = {path.name for path in store.folder.iterdir()}
    store.tidy()
    assert before - {path.name for path in store.folder.iterdir()} == {
        ".step00000030.ckpt.unfinished"
    }
    # Without its manifest a state proves nothing, but it is not for a start to throw away.
    (store.folder / "manifest.json").unlink()
    store.tidy()
    assert len(list(store.folder.glob("*.ckpt"))) == 2


class TestBackground:
    def io(self, tmp_path):
        def write_best(path, weights, best):
            safetensors.torch.save_file(weights, path, {"epoch": str(best.epoch)})

        store = Store(tmp_path / "checkpoints")
        return BackgroundIO(store, tmp_path / "best.safetensors", "model.", write_best)

    def state(self, step, value=1.0):
        return {
            "state_dict": {"model.weight": torch.full((4,), value)},
            "position": {"epoch": 0, "batch": step},
            "global_step": step,
        }

    def test_training_goes_on_while_it_writes(self, tmp_path, monkeypatch):
        io, go = self.io(tmp_path), threading.Event()
        save = torch.save
        monkeypatch.setattr(torch, "save", lambda *args: (go.wait(60), save(*args)))
        state = self.state(1)
        io.save_checkpoint(state, "anywhere")
        assert io.busy
        assert io.store.states() == []
        state["state_dict"]["model.weight"].zero_()  # the next step
        go.set()
        io.wait()
        (found,) = io.store.states()
        saved = torch.load(io.store.path(found), weights_only=True)
        assert saved["state_dict"]["model.weight"].tolist() == [1.0] * 4

    def test_a_failure_is_raised_where_the_run_can_stop_and_once(self, tmp_path, monkeypatch):
        io = self.io(tmp_path)
        (tmp_path / "checkpoints").write_text("in the way")
        io.save_checkpoint(self.state(1), "anywhere")
        with pytest.raises(OSError, match="exists"):
            io.wait()
        io.wait()

    def test_weights_that_are_no_numbers_are_not_kept(self, tmp_path):
        io = self.io(tmp_path)
        io.parameters = ["model.weight"]
        io.save_checkpoint(self.state(1), "anywhere")
        io.save_checkpoint(self.state(2, float("nan")), "anywhere")
        with pytest.raises(TrainingError, match=r"model.weight are no numbers any more"):
            io.wait()
        assert [state.step for state in io.store.states()] == [1]

    def test_an_impatient_end_leaves_the_states_before(self, tmp_path, monkeypatch):
        io, go = self.io(tmp_path), threading.Event()
        io.save_checkpoint(self.state(1), "anywhere")
        io.wait()
        save = torch.save
        monkeypatch.setattr(torch, "save", lambda *args: (go.wait(60), save(*args)))
        io.save_checkpoint(self.state(2), "anywhere")
        io.store.cancelled.set()
        go.set()
        io.settle(cancel=True)
        assert [state.step for state in io.store.states()] == [1]
        assert not list(io.store.folder.glob(".*"))

    def test_the_best_weights_follow_the_state(self, tmp_path):
        io = self.io(tmp_path)
        for step, value in ((1, 1.0), (2, 2.0)):
            io.best = Best(f"best{step:05d}.safetensors", step, value / 10)
            io.save_checkpoint(self.state(step, value), "anywhere")
            io.wait()
        weight = safetensors.torch.load_file(tmp_path / "best.safetensors")["weight"]
        assert weight[0] == 2.0
        first, _ = io.store.states()
        io.restore_best(first.best)
        weight = safetensors.torch.load_file(tmp_path / "best.safetensors")["weight"]
        assert weight[0] == 1.0
        io.restore_best(None)
        assert not (tmp_path / "best.safetensors").exists()

    def test_best_weights_of_an_epoch_that_is_done_again_are_written_again(self, tmp_path):
        io = self.io(tmp_path)
        io.store.folder.mkdir()
        # Written by a run that was killed before its state was.
        (io.store.folder / "best00001.safetensors").write_bytes(b"of another epoch 1")
        io.restore_best(None)
        io.best = Best("best00001.safetensors", 1, 0.5)
        io.save_checkpoint(self.state(1, 3.0), "anywhere")
        io.wait()
        assert safetensors.torch.load_file(tmp_path / "best.safetensors")["weight"][0] == 3.0

    def test_a_full_disk_is_told_of_the_best_weights_too(self, tmp_path):
        io = self.io(tmp_path)

        def full(path, weights, best):
            raise safetensors.SafetensorError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            )

        io.write_best = full
        io.best = Best("best00001.safetensors", 1, 0.5)
        io.save_checkpoint(self.state(1), "anywhere")
        with pytest.raises(OSError, match=r"No space left on device: .*best00001.safetensors"):
            io.wait()


def test_a_copy_shares_nothing():
    original = {"a": [torch.zeros(2), (torch.ones(1),)], "b": 3}
    copy = on_cpu(original)
    original["a"][0].fill_(5)
    assert copy["a"][0].tolist() == [0, 0]
    assert isinstance(copy["a"][1], tuple)
    assert copy["b"] == 3


def test_where_to_continue(tmp_path, store):
    assert "no state was saved yet" in how_to_continue(tmp_path / "none")
    assert how_to_continue(tmp_path) == (
        f"the last good state is {tmp_path}/checkpoints/step00000020.ckpt (after epoch 2, step "
        f"20); continue with: volution train --resume {tmp_path}"
    )
    assert json.loads((store.folder / "manifest.json").read_text())["format"] == 1
