"""The same command again: what continues, what is refused, what begins anew."""

from dataclasses import replace

import pytest
import small
import torch
from lightning.pytorch import Callback

from volution import hub
from volution.cli import main
from volution.train import TrainingError, can_resume, fit, resume
from volution.train.config import read_config
from volution.train.store import Store


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return small.colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=7)


class Trouble(Callback):
    """Raise something at a batch of an epoch; count the batches until then."""

    def __init__(self, error=None, epoch=1, batch=2):
        self.error, self.epoch, self.batch = error, epoch, batch
        self.batches = 0

    def on_train_batch_start(self, trainer, module, batch, index):
        self.batches += 1
        if self.error is not None and (trainer.current_epoch, index) == (self.epoch, self.batch):
            raise self.error


class PowerCut(Exception):
    pass


@pytest.fixture
def broken(colours, tmp_path):
    """Settings of a run that stopped in its second epoch of two, with a state of step 5."""
    config = small.colour_run(colours, tmp_path / "run", batch_size=4, save_steps=1)
    with pytest.raises(PowerCut):
        fit(config, show_progress=False, callbacks=[Trouble(PowerCut())])
    return config


def test_the_same_settings_continue_and_a_finished_run_is_left_alone(broken):
    count = Trouble()
    result = fit(broken, show_progress=False, callbacks=[count])
    assert count.batches == 2  # of eight; six were done
    assert [row["epoch"] for row in result.history] == [1, 2]
    files = {path: path.stat().st_mtime_ns for path in broken.folder.rglob("*")}
    again = Trouble()
    assert fit(broken, show_progress=False, callbacks=[again]) == result
    assert again.batches == 0
    assert {path: path.stat().st_mtime_ns for path in broken.folder.rglob("*")} == files


def test_a_change_of_place_is_no_other_run(broken):
    count = Trouble()
    fit(replace(broken, workers=1, keep=1), show_progress=False, callbacks=[count])
    assert count.batches == 2
    assert len(Store(broken.folder / "checkpoints").states()) == 1


def test_other_settings_are_refused_with_both_values(broken):
    before = {path: path.read_bytes() for path in broken.folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="other settings") as caught:
        fit(replace(broken, lr=0.5, epochs=9))
    assert "epochs (2 there, 9 here), lr (0.005 there, 0.5 here)" in str(caught.value)
    with pytest.raises(ValueError, match=r"model_args \(.*32, 32.* there, .*48, 48.* here\)"):
        fit(replace(broken, model_args={"widths": (48, 48, 48, 48), "drop_path_rate": 0.1}))
    after = {path: path.read_bytes() for path in broken.folder.rglob("*") if path.is_file()}
    assert after == before


def test_overwriting_begins_anew(broken):
    count = Trouble()
    other = replace(broken, epochs=1)
    fit(other, overwrite=True, show_progress=False, callbacks=[count])
    assert count.batches == 4
    assert read_config(broken.folder / "config.yaml") == other
    assert all(state.step <= 4 for state in Store(broken.folder / "checkpoints").states())


def test_a_run_without_a_state_starts_from_the_beginning(colours, tmp_path):
    config = small.colour_run(colours, tmp_path / "run", batch_size=4)
    with pytest.raises(PowerCut):
        fit(config, show_progress=False, callbacks=[Trouble(PowerCut(), epoch=0)])
    assert not can_resume(config.folder)
    count = Trouble()
    result = resume(config.folder, show_progress=False, callbacks=[count])
    assert count.batches == 8
    whole = fit(replace(config, out=tmp_path / "whole"), show_progress=False)
    ours, theirs = (hub.read_checkpoint(r.best) for r in (result, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_state_before_a_damaged_one_is_taken(broken, capsys):
    store = Store(broken.folder / "checkpoints")
    before, last = store.states()
    small.break_image(store.path(last))
    count = Trouble()
    fit(broken, show_progress=False, callbacks=[count])
    assert count.batches == 8 - before.step
    assert f"{last.file} is damaged" in "".join(capsys.readouterr().err.split("\n"))
    assert store.newest().step == 8


def test_best_weights_that_were_found_later_do_not_stay(broken):
    """The state of the first epoch is what is left; the best of the second never was."""
    store = Store(broken.folder / "checkpoints")
    best = store.states()[-1].best
    assert best.epoch == 1
    epoch_1 = broken.folder / "best.safetensors"
    known = epoch_1.read_bytes()
    epoch_1.unlink()
    epoch_1.write_bytes(b"the best of an epoch that was not saved")
    with pytest.raises(PowerCut):
        fit(broken, show_progress=False, callbacks=[Trouble(PowerCut(), batch=3)])
    assert epoch_1.read_bytes() == known


class TestResume:
    def test_settings_of_place_are_taken_over(self, broken):
        result = resume(broken.folder, changes={"workers": 1}, show_progress=False)
        assert len(result.history) == 2

    def test_others_are_refused_unless_they_are_the_same(self, broken):
        with pytest.raises(ValueError, match=r"leave out lr \(0.005 there, 1.0 here\)"):
            resume(broken.folder, changes={"lr": 1.0})
        assert resume(broken.folder, changes={"lr": 0.005}, show_progress=False).history

    def test_a_run_can_be_moved(self, broken, tmp_path):
        moved = broken.folder.rename(tmp_path / "moved")
        assert resume(moved, show_progress=False).folder == moved
        with pytest.raises(ValueError, match="the run stays in"):
            resume(moved, changes={"out": tmp_path / "elsewhere"})

    def test_the_command_knows_what_was_given(self, broken, capsys):
        words = ["train", "--resume", str(broken.folder)]
        assert main([*words, "--overwrite"]) == 2
        assert "give one of them" in capsys.readouterr().err
        # The default, but not what the run was begun with.
        assert main([*words, "--lr=0.001"]) == 2
        line = " ".join(capsys.readouterr().err.split())
        assert "leave out lr (0.005 there, 0.001 here)" in line
        assert main([*words, "--workers=0"]) == 0
        capsys.readouterr()
        assert main(words) == 0
        assert f"{broken.folder} is finished" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory at batch_size = 4; in a new run try --batch_size 2"),
        (torch.OutOfMemoryError("CUDA out of memory"), "--accumulate 2 for the same step"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "--grad_checkpointing"),
    ],
    ids=["python", "torch", "allocator"],
)
def test_out_of_memory_says_what_helps_and_where_to_continue(colours, tmp_path, error, message):
    config = small.colour_run(colours, tmp_path / "run", batch_size=4)
    with pytest.raises(TrainingError) as caught:
        fit(config, show_progress=False, callbacks=[Trouble(error)])
    assert message in str(caught.value)
    assert str(caught.value).endswith(
        f"step00000004.ckpt (after epoch 1, step 4); continue with: volution train --resume "
        f"{config.folder}"
    )


def test_a_loss_that_is_no_number_names_the_place_and_the_last_good_state(broken, monkeypatch):
    class Explode(Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            if index == 3:
                batch.images.fill_(float("inf"))

    with pytest.raises(TrainingError) as caught:
        fit(broken, show_progress=False, callbacks=[Explode()])
    text = str(caught.value)
    assert text.startswith("the loss is nan in epoch 2, batch 4, at learning rate ")
    assert "lower the learning rate (lr=0.005)" in text
    store = Store(broken.folder / "checkpoints")
    assert f"{store.states()[-1].file} (in epoch 2, step 7); continue with" in text
    state = small.newest_state(broken.folder)
    assert all(value.isfinite().all() for value in state["state_dict"].values())


def test_what_a_worker_raises_is_one_line(colours, tmp_path, monkeypatch):
    from volution.data import ImageFiles

    def fall_over(self, index):
        raise KeyError("nothing that an image would raise")

    monkeypatch.setattr(ImageFiles, "open", fall_over)
    config = small.colour_run(colours, tmp_path / "run", batch_size=4, workers=1)
    with pytest.raises(TrainingError, match="a process that reads images failed with KeyError"):
        fit(config, show_progress=False)
