"""What stops a run, in one line that says what to do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from volution.train.config import TrainConfig
from volution.train.folder import CHECKPOINTS
from volution.train.store import Store

__all__ = ["TrainingError", "explained", "how_to_continue"]

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES)
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.I)
_WORKER_DIED = re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)")
_WORKER_RAISED = re.compile(r"Caught (\w+) in DataLoader worker process")


class TrainingError(RuntimeError):
    """A run that had begun was stopped; the message says why, and where to continue."""


def how_to_continue(folder: Path) -> str:
    """Return the last good state of a run and the command that continues from it."""
    try:
        states = Store(folder / CHECKPOINTS).states()
    except ValueError:
        states = []
    if not states:
        return "no state was saved yet; start again with the same command"
    newest = states[-1]
    return (
        f"the last good state is {folder / CHECKPOINTS / newest.file} ({newest.where}); continue "
        f"with: volution train --resume {folder}"
    )


@contextmanager
def explained(config: TrainConfig, folder: Path) -> Iterator[None]:
    """Turn what a run can stumble over into a :class:`TrainingError`; all else gets through."""
    try:
        yield
    except TrainingError as error:
        raise TrainingError(f"{error}; {how_to_continue(folder)}") from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TrainingError(_memory(config, folder)) from error
    except OSError as error:
        if error.errno not in _DISK:
            raise
        path = Path(error.filename or folder)
        what = "cannot write" if path.is_relative_to(folder) else "trouble with"
        reason = os.strerror(error.errno)
        raise TrainingError(f"{what} {path}: {reason}; {how_to_continue(folder)}") from error
    except RuntimeError as error:
        if _OUT_OF_MEMORY.search(str(error)):
            raise TrainingError(_memory(config, folder)) from error
        if _WORKER_DIED.search(str(error)):
            raise TrainingError(
                f"a process that reads images died, often for want of memory; try fewer than "
                f"workers = {config.workers} ({_first_line(error)}); {how_to_continue(folder)}"
            ) from error
        _raise_if_of_worker(error, folder)
        raise
    except Exception as error:
        _raise_if_of_worker(error, folder)
        raise


def _raise_if_of_worker(error: Exception, folder: Path) -> None:
    text = str(error)
    found = _WORKER_RAISED.search(text)
    if found:
        lines = [line for line in text.splitlines() if line.strip()]
        raise TrainingError(
            f"a process that reads images failed with {lines[-1].strip()}; "
            f"{how_to_continue(folder)}"
        ) from error


def _memory(config: TrainConfig, folder: Path) -> str:
    where = "GPU memory" if config.device != "cpu" and torch.cuda.is_available() else "memory"
    half = max(2, config.batch_size // 2)
    advice = [f"--batch_size {half} --accumulate {config.accumulate * 2} for the same step"]
    if not config.grad_checkpointing:
        advice.append("--grad_checkpointing")
    if config.precision == "32":
        advice.append("--precision bf16")
    return (
        f"out of {where} at batch_size = {config.batch_size}; in a new run try "
        f"{', or '.join(advice)}; {how_to_continue(folder)}"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
