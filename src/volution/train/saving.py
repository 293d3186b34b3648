"""Writing states beside the training: a copy is taken at once, a thread brings it to the disk."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from volution.train.store import Best, Store, named
from volution.train.trouble import TrainingError

__all__ = ["BackgroundIO", "on_cpu"]

WriteBest = Callable[[Path, dict[str, Tensor], Best], None]


class BackgroundIO(CheckpointIO):
    """How Lightning reads and writes the states of a run; one write is under way at most.

    Args:
        store: Where they lie.
        best_file: Where the best weights are found; those of each state lie beside the state.
        prefix: What the names of the weights that are measured begin with, in the state.
        write_best: Writes a file of such weights.

    Attributes:
        best: The best weights so far; :meth:`save_checkpoint` writes them if they are new.
        parameters: Names of what is learned, which must be finite in every state.
    """

    def __init__(self, store: Store, best_file: Path, prefix: str, write_best: WriteBest) -> None:
        self.store = store
        self.best_file = best_file
        self.prefix = prefix
        self.write_best = write_best
        self.best: Best | None = None
        self._written: Best | None = None
        self.parameters: Collection[str] = ()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a write is under way."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether a write has failed; :meth:`wait` raises why."""
        return self._error is not None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Copy a state and begin to write it; ``path`` is the store's choice.

        Raises:
            OSError: If the write before it failed.
        """
        self.wait()
        self.store.cancelled.clear()
        self._thread = threading.Thread(
            target=self._write,
            args=(on_cpu(checkpoint), self.best),
            name="saving",
            daemon=True,
        )
        self._thread.start()

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a state; nothing in it can run code."""
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state

    def remove_checkpoint(self, path: str | Path) -> None:
        """Do nothing: the store removes what is too old."""

    def wait(self) -> None:
        """Wait for the write that is under way.

        Raises:
            OSError: If it failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def settle(self, *, cancel: bool = False) -> None:
        """Let the write that is under way come to its end, or to none; nothing is raised."""
        if cancel:
            self.store.cancelled.set()
        while self._thread is not None:
            # Each reading process that died raises here, whatever this thread is just doing.
            with suppress(RuntimeError):
                self._thread.join()
                self._thread = None

    def restore_best(self, best: Best | None) -> None:
        """Bring back the best weights that belong to a state; those found later are left out."""
        self.best = self._written = best
        if best is None:
            self.best_file.unlink(missing_ok=True)
        elif (self.store.folder / best.file).is_file():
            self._show_best(best)

    def _write(self, checkpoint: dict[str, Any], best: Best | None) -> None:
        try:
            self._check_finite(checkpoint["state_dict"])
            # A file of that name may be there, of an epoch that is now done again.
            if best is not None and best != self._written:
                self._write_best(checkpoint["state_dict"], best)
                self._written = best
            position = checkpoint["position"]
            self.store.add(
                checkpoint,
                epoch=position["epoch"],
                batch=position["batch"],
                step=checkpoint["global_step"],
                best=best,
            )
        except BaseException as error:  # it is raised where the run can stop
            self._error = error

    def _check_finite(self, state_dict: dict[str, Tensor]) -> None:
        for name in self.parameters:
            if not torch.isfinite(state_dict[name]).all():
                raise TrainingError(
                    f"the weights {name} are no numbers any more, so the state is not kept; lower "
                    f"the learning rate, warm up longer or clip the gradients (clip_grad)"
                )

    def _write_best(self, state_dict: dict[str, Tensor], best: Best) -> None:
        weights = {
            name.removeprefix(self.prefix): value
            for name, value in state_dict.items()
            if name.startswith(self.prefix)
        }
        path = self.store.folder / best.file
        try:
            self.store.folder.mkdir(parents=True, exist_ok=True)
            self.write_best(path, weights, best)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            self._show_best(best)
        except safetensors.SafetensorError as error:
            found = re.search(r"os error (\d+)", str(error))
            if found is None:
                raise
            raise named(OSError(int(found[1]), ""), path) from error
        except OSError as error:
            raise named(error, path) from error

    def _show_best(self, best: Best) -> None:
        """Let the file that people use be the best one: the same file where that is possible."""
        source = self.store.folder / best.file
        unfinished = self.best_file.with_name(f".{self.best_file.name}.unfinished")
        unfinished.unlink(missing_ok=True)
        try:
            os.link(source, unfinished)
        except OSError:  # a file system without links
            unfinished.write_bytes(source.read_bytes())
        os.replace(unfinished, self.best_file)


def on_cpu(value: Any) -> Any:
    """Return a copy of nested containers that shares no tensor with the original.

    Example:
        >>> weight = torch.zeros(2)
        >>> copy = on_cpu({"net": [weight]})
        >>> _ = weight.add_(1)
        >>> copy
        {'net': [tensor([0., 0.])]}
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        # Lightning's and PyTorch's own kinds of dictionaries need not come back.
        return {key: on_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(on_cpu(item) for item in value)
    return value
