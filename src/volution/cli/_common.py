"""What several commands need: devices, and the list of images that were skipped."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Literal

from volution._support.console import log

__all__ = ["Device", "find_device", "tell_broken"]

_SHOWN = 100

Device = Literal["auto", "cpu", "cuda"]


def find_device(name: str, number: int = 0) -> str:
    """Return the device that a name stands for here, for one process of several on a machine."""
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("device cuda: there is no CUDA device here; choose cpu or auto")
    if name == "cpu" or not available:
        return "cpu"
    # Several processes may share a GPU.
    return f"cuda:{number % torch.cuda.device_count()}"


def tell_broken(broken: Collection[str]) -> int:
    """List the images that were skipped; return the exit code."""
    if not broken:
        return 0
    log.print(f"{len(broken)} image{'s' * (len(broken) > 1)} could not be read:")
    # More than that pushes everything else out of a terminal; a file takes all.
    shown = _SHOWN if log.is_terminal else len(broken)
    for problem in itertools.islice(broken, shown):
        log.print(f"  {problem}", markup=False, soft_wrap=True)
    if len(broken) > shown:
        log.print(f"  and {len(broken) - shown:,} more; 2> FILE lists all")
    return 1
