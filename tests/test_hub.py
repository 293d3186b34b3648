"""Checkpoint files: whole, damaged and malicious ones."""

from __future__ import annotations

import argparse
import os
import pickle
import random
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch.testing import assert_close

from volution import hub

STATE = {"conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2), "bn.count": torch.tensor(3)}
# How a file begins that is taken for one of the formats.
STARTS = {
    "none": b"",
    "zip": b"PK\x03\x04",
    "legacy": b"\x80\x02",
    "safetensors": b"\x80" + 7 * b"\x00" + b"{",
}
# PyTorch warns of an unknown protocol before it fails to read it.
warns_of_protocols = pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")


class Malicious:
    """Pickles to a call that leaves a trace if anybody makes it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


class TestReading:
    @pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
    @pytest.mark.parametrize(
        "checkpoint",
        [
            STATE,
            {"state_dict": STATE, "epoch": 4},
            {"model": STATE, "args": argparse.Namespace(lr=0.1, name="x")},
            {"state_dict": {f"module.{key}": value for key, value in STATE.items()}},
        ],
        ids=["bare", "state_dict", "model-and-options", "parallel"],
    )
    def test_pytorch_file(self, tmp_path, checkpoint, legacy):
        path = tmp_path / "net.pth"
        torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
        assert_close(hub.read_checkpoint(path), STATE)

    @pytest.mark.parametrize("name", ["net.safetensors", "net.pth", "net"])
    def test_safetensors_by_content(self, tmp_path, name):
        safetensors.torch.save_file(STATE, tmp_path / name)
        assert_close(hub.read_checkpoint(str(tmp_path / name)), STATE)

    def test_pytorch_file_by_content(self, tmp_path):
        torch.save(STATE, tmp_path / "net.safetensors")
        assert_close(hub.read_checkpoint(tmp_path / "net.safetensors"), STATE)


class TestBadFiles:
    def refused(self, path: Path, match: str) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            hub.read_checkpoint(path)
        assert str(path) in str(caught.value)

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*net\.pth"):
            hub.read_checkpoint(tmp_path / "net.pth")

    def test_folder(self, tmp_path):
        self.refused(tmp_path, "is a folder")

    @pytest.mark.parametrize("kept", [0, 5, 9, 40, 0.5, 0.99])
    @pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
    def test_truncated(self, tmp_path, kind, kept):
        path = tmp_path / "net.pth"
        if kind == "safetensors":
            safetensors.torch.save_file(STATE, path)
        else:
            torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
        whole = path.read_bytes()
        path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
        self.refused(path, "damaged")

    @pytest.mark.parametrize("content", [b"\x00" * 64, b"<html>not found</html>", b"{}"])
    def test_something_else(self, tmp_path, content):
        path = tmp_path / "net.pth"
        path.write_bytes(content)
        self.refused(path, "damaged")

    @warns_of_protocols
    @pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
    def test_noise(self, tmp_path, start):
        path, generator = tmp_path / "net.pth", random.Random(0)
        for _ in range(100):
            path.write_bytes(start + generator.randbytes(200))
            self.refused(path, "damaged|refused")

    @warns_of_protocols
    @pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
    def test_changed_bytes(self, tmp_path, kind):
        """Damage inside a tensor goes unseen; anywhere else it is a ValueError, nothing else."""
        path, generator = tmp_path / "net.pth", random.Random(0)
        if kind == "safetensors":
            safetensors.torch.save_file(STATE, path)
        else:
            torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
        whole, refused = path.read_bytes(), 0
        for _ in range(200):
            at = generator.randrange(len(whole))
            path.write_bytes(whole[:at] + generator.randbytes(1) + whole[at + 1 :])
            try:
                hub.read_checkpoint(path)
            except ValueError as error:
                refused += str(path) in str(error)
        assert refused > 5

    @pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
    def test_code_is_refused_and_not_run(self, tmp_path, kind):
        path, trace = tmp_path / "net.pth", tmp_path / "trace"
        checkpoint = {"state_dict": STATE, "extra": Malicious(trace)}
        if kind == "pickle":
            path.write_bytes(pickle.dumps(Malicious(trace), protocol=2))
        else:
            torch.save(checkpoint, path, _use_new_zipfile_serialization=kind == "zip")
        self.refused(path, r"is refused: .* could run code \(posix.mkdir\)")
        assert not trace.exists()

    def test_whole_model_is_refused(self, tmp_path):
        torch.save(torch.nn.Linear(2, 2), tmp_path / "net.pth")
        self.refused(tmp_path / "net.pth", r"refused.*\(torch.nn.modules.linear.Linear\)")

    @pytest.mark.parametrize("content", [{"epoch": 3}, {}, [1], {"model": {"lr": 0.1}}])
    def test_no_weights(self, tmp_path, content):
        torch.save(content, tmp_path / "net.pth")
        self.refused(tmp_path / "net.pth", "is not a checkpoint: a checkpoint must")

    def test_allow_list_is_as_it_was(self, tmp_path):
        torch.save({"model": STATE, "args": argparse.Namespace()}, tmp_path / "net.pth")
        before = set(torch.serialization.get_safe_globals())
        hub.read_checkpoint(tmp_path / "net.pth")
        assert set(torch.serialization.get_safe_globals()) == before


class TestWriting:
    def test_round_trip_with_metadata(self, tmp_path):
        path = tmp_path / "net.safetensors"
        hub.write_checkpoint(path, STATE, {"model": "rednet26"})
        assert_close(hub.read_checkpoint(path), STATE)
        with safetensors.safe_open(path, "pt") as file:
            assert file.metadata() == {"model": "rednet26"}

    def test_views_and_shared_memory(self, tmp_path):
        base = torch.arange(48.0).reshape(1, 3, 4, 4)
        state = {
            "a": base,
            "same": base,
            "part": base[0, 1:, ::2],
            "last": base.to(memory_format=torch.channels_last),
            "wide": torch.zeros(1).expand(5),
            "trained": torch.nn.Parameter(torch.ones(2)),
        }
        hub.write_checkpoint(tmp_path / "net.safetensors", state)
        read = hub.read_checkpoint(tmp_path / "net.safetensors")
        assert_close(read, {key: value.detach() for key, value in state.items()})
        assert all(value.is_contiguous() for value in read.values())

    def test_failure_leaves_the_earlier_file(self, tmp_path, monkeypatch):
        path = tmp_path / "net.safetensors"
        hub.write_checkpoint(path, STATE)

        def broken(tensors, filename, metadata):
            Path(filename).write_bytes(b"half a file")
            raise OSError("no space left on device")

        monkeypatch.setattr(safetensors.torch, "save_file", broken)
        with pytest.raises(OSError, match="no space left"):
            hub.write_checkpoint(path, {"other": torch.ones(1)})
        assert_close(hub.read_checkpoint(path), STATE)
        assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]

    def test_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere to write net"):
            hub.write_checkpoint(tmp_path / "nowhere" / "net.safetensors", STATE)

    def test_wrong_content(self, tmp_path):
        with pytest.raises(TypeError, match=r"state_dict\['lr'\] must be a tensor, got float"):
            hub.write_checkpoint(tmp_path / "net.safetensors", {"lr": 0.1})
        with pytest.raises(TypeError, match=r"metadata\['epoch'\] must be a str, got int"):
            hub.write_checkpoint(tmp_path / "net.safetensors", STATE, {"epoch": 1})
        assert not list(tmp_path.iterdir())

    def test_readable_by_others_as_the_umask_says(self, tmp_path):
        hub.write_checkpoint(tmp_path / "net.safetensors", STATE)
        (tmp_path / "plain").touch()
        modes = {(tmp_path / name).stat().st_mode for name in ("plain", "net.safetensors")}
        assert len(modes) == 1
