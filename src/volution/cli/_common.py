"""What several commands need: devices, and the list of images that were skipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from volution._support.console import log

__all__ = ["Device", "find_device", "tell_broken"]

Device = Literal["auto", "cpu", "cuda"]


def find_device(name: str) -> str:
    """Return the device that a name stands for here."""
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("device cuda: there is no CUDA device here; choose cpu or auto")
    return "cuda" if available and name == "auto" else name.replace("auto", "cpu")


def tell_broken(broken: Sequence[str]) -> int:
    """List the images that were skipped; return the exit code."""
    if not broken:
        return 0
    log.print(f"{len(broken)} image{'s' * (len(broken) > 1)} could not be read:")
    for problem in broken:
        log.print(f"  {problem}", markup=False, soft_wrap=True)
    return 1
