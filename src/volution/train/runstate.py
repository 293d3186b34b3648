"""Whether a run is going on: its process holds a lock on a file as long as it lives."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TextIO

if sys.platform != "win32":
    import fcntl

__all__ = ["hold", "is_held", "refuse_held"]

# Where there are no locks, a file that was written so recently is taken for one in use.
_SECONDS = 120.0


def hold(file: TextIO) -> None:
    """Lock an open file until this process closes it or ends, however that happens.

    It must not open the file a second time meanwhile: closing that would unlock it.

    Raises:
        ValueError: If another process holds it.
    """
    if sys.platform == "win32":
        return
    try:
        # Not flock, which processes that read images would go on holding after a kill.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(_held(Path(file.name))) from error
    except OSError:
        # Some network file systems have no locks; two runs in one folder then go unnoticed.
        return


def is_held(path: Path) -> bool:
    """Return whether another process holds a file.

    A process that holds it must not ask: its lock would be lost.

    Example:
        >>> is_held(Path("runs/none/steps.csv"))
        False
    """
    try:
        with path.open("rb+") as file:
            if sys.platform == "win32":
                return time.time() - path.stat().st_mtime < _SECONDS
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def refuse_held(path: Path) -> None:
    """Raise ``ValueError`` if another process holds a run's file."""
    if is_held(path):
        raise ValueError(_held(path))


def _held(path: Path) -> str:
    return (
        f"out: another process is training in {path.parent} right now; wait for it, or choose "
        f"another out"
    )
