"""A run's saved states: files that are whole or not there, and a manifest that can prove it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch

from volution._support.files import write_whole

__all__ = ["Best", "State", "Store", "named"]

_MANIFEST = "manifest.json"
_FORMAT = 1
_UNFINISHED = ".unfinished"
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Best:
    """The best weights so far, when a state was saved.

    Args:
        file: Name of the file, beside the states.
        epoch: After which epoch they were measured.
        top1: What was measured.
    """

    file: str
    epoch: int
    top1: float


@dataclass(frozen=True)
class State:
    """A saved state, as the manifest describes it.

    Args:
        file: Name of the file, beside the manifest.
        bytes: Its size.
        sha256: Of its content.
        epoch: Epochs that are complete.
        batch: Batches that are done of the next.
        step: Steps of the optimizer that are done.
        time: When it was written, in seconds since 1970.
        best: The best weights so far, if there were some.
    """

    file: str
    bytes: int
    sha256: str
    epoch: int
    batch: int
    step: int
    time: float
    best: Best | None = None

    @property
    def where(self) -> str:
        """Say how far the run was.

        Example:
            >>> State("a.ckpt", 1, "", epoch=3, batch=0, step=120, time=0.0).where
            'after epoch 3, step 120'
        """
        place = f"after epoch {self.epoch}" if self.batch == 0 else f"in epoch {self.epoch + 1}"
        return f"{place}, step {self.step}"


class Store:
    """The states of a run in one folder, the newest few of them.

    Every file is written beside its place, brought to the disk, moved there, and only then named
    in the manifest, with size and checksum. A file that the manifest does not name is no state.

    Args:
        folder: Where they lie; made at the first write.
        keep: How many are kept.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = Store(Path(folder) / "checkpoints", keep=1)
        ...     for step in (10, 20):
        ...         _ = store.add({"weight": torch.ones(2)}, epoch=0, batch=step, step=step)
        ...     [state.file for state in store.states()]
        ['step00000020.ckpt']
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep
        self.cancelled = threading.Event()

    def states(self) -> list[State]:
        """Return what the manifest names, oldest first.

        Raises:
            ValueError: If the manifest is damaged.
        """
        path = self.folder / _MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}, expected {_FORMAT}")
            return [_state(entry) for entry in content["states"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); the states beside it cannot be told sound from "
                f"broken: start again with --overwrite"
            ) from error

    def path(self, state: State) -> Path:
        """Return the file of a state."""
        return self.folder / state.file

    def find(self, path: Path | None) -> State | None:
        """Return the state of a file; None for none, and for one that is not there."""
        name = None if path is None else path.name
        return next((state for state in self.states() if state.file == name), None)

    def newest(self, remark: Callable[[str], None] = lambda text: None) -> State | None:
        """Return the newest state that is as it was written; None if there never was one.

        Args:
            remark: Told of each newer one that is damaged.

        Raises:
            ValueError: If there are states, and all are damaged.
        """
        states = self.states()
        for state in reversed(states):
            problem = self._problem(state)
            if problem is None:
                return state
            remark(f"{self.path(state)} is damaged ({problem}); it is left out")
        if states:
            raise ValueError(
                f"all {len(states)} saved states in {self.folder} are damaged; start again with "
                f"--overwrite"
            )
        return None

    def add(
        self,
        content: Mapping[str, Any],
        *,
        epoch: int,
        batch: int,
        step: int,
        best: Best | None = None,
    ) -> State | None:
        """Write a state, name it in the manifest, then remove those that are too many.

        Args:
            content: Tensors and plain values, on the CPU.
            epoch: As in :class:`State`, like the next three.
            batch: As above.
            step: As above.
            best: Its file must be there already.

        Returns:
            What the manifest says of it; None if ``cancelled`` was set meanwhile.

        Raises:
            OSError: If a file cannot be written; the states before it are as they were.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        file = f"step{step:08d}.ckpt"
        unfinished = self.folder / f".{file}{_UNFINISHED}"
        try:
            with unfinished.open("wb") as raw:
                hashed = _Hashed(raw, self.cancelled)
                torch.save(content, hashed)  # type: ignore[arg-type]  # it needs no more
                if hashed.error is not None:
                    raise hashed.error
                if self.cancelled.is_set():
                    return None
                raw.flush()
                os.fsync(raw.fileno())
            os.replace(unfinished, self.folder / file)
        except OSError as error:
            raise named(error, self.folder / file) from error
        finally:
            unfinished.unlink(missing_ok=True)
        checksum = hashed.sha256.hexdigest()
        state = State(file, hashed.bytes, checksum, epoch, batch, step, time.time(), best)
        # What stands at or beyond this step was found damaged, or this would not be written.
        earlier = [s for s in self.states() if s.step < step]
        kept = [*earlier, state][-self.keep :]
        self._write_manifest(kept)
        self._remove_all_but(kept)
        return state

    def tidy(self) -> None:
        """Remove what an interruption left unfinished."""
        if self.folder.is_dir():
            for path in self.folder.glob(f".*{_UNFINISHED}"):
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all states; the manifest first, so that a half removed store has none."""
        (self.folder / _MANIFEST).unlink(missing_ok=True)
        if self.folder.is_dir():
            shutil.rmtree(self.folder)

    def _problem(self, state: State) -> str | None:
        path = self.path(state)
        if not path.is_file():
            return "it is gone"
        size = path.stat().st_size
        if size != state.bytes:
            return f"{size} bytes of {state.bytes}"
        sha256 = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_CHUNK):
                sha256.update(block)
        return None if sha256.hexdigest() == state.sha256 else "another checksum than was written"

    def _write_manifest(self, states: list[State]) -> None:
        path = self.folder / _MANIFEST
        text = json.dumps({"format": _FORMAT, "states": [asdict(s) for s in states]}, indent=2)
        write_whole(path, text + "\n")
        _sync_folder(self.folder)

    def _remove_all_but(self, states: list[State]) -> None:
        names = {s.file for s in states} | {s.best.file for s in states if s.best}
        for pattern in ("step*.ckpt", "best*.safetensors"):
            for path in self.folder.glob(pattern):
                if path.name not in names:
                    path.unlink(missing_ok=True)


def named(error: OSError, path: Path) -> OSError:
    """Return an error that says which file it is about; that of a write does not."""
    if error.errno is None:
        return error
    return OSError(error.errno, os.strerror(error.errno), str(path))


class _Hashed:
    """A file for ``torch.save`` that keeps a checksum and the first error.

    The writer in C++ cannot be stopped by an exception without noise, so it writes on into nothing.
    """

    def __init__(self, file: IO[bytes], cancelled: threading.Event) -> None:
        self.file = file
        self.cancelled = cancelled
        self.sha256 = hashlib.sha256()
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        if self.error is None and not self.cancelled.is_set():
            try:
                self.file.write(data)
                self.sha256.update(data)
                self.bytes += len(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        if self.error is None:
            try:
                self.file.flush()
            except OSError as error:
                self.error = error


def _state(entry: dict[str, Any]) -> State:
    best = entry["best"]
    return replace(State(**entry), best=None if best is None else Best(**best))


def _sync_folder(folder: Path) -> None:
    # The move itself must reach the disk; some systems cannot open a folder.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
