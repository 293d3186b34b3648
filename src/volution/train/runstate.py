"""Whether a run is going on: its process holds a lock on a file as long as it lives."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TextIO

if sys.platform != "win32":
    import fcntl

__all__ = ["hold", "is_held"]

# Where there are no locks, a file that was written so recently is taken for one in use.
_SECONDS = 120.0


def hold(file: TextIO) -> None:
    """Lock an open file until it is closed or its process ends, however that happens.

    Raises:
        ValueError: If another process holds it.
    """
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        folder = Path(file.name).parent
        raise ValueError(f"out: another process is training in {folder} right now") from error
    except OSError:
        # Some network file systems have no locks; two runs in one folder then go unnoticed.
        return


def is_held(path: Path) -> bool:
    """Return whether a process holds a file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "steps.csv"
        >>> is_held(path)
        False
        >>> with path.open("a") as file:
        ...     hold(file)
        ...     is_held(path)
        True
        >>> is_held(path)
        False
    """
    try:
        with path.open("rb") as file:
            if sys.platform == "win32":
                return time.time() - path.stat().st_mtime < _SECONDS
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
