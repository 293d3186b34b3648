"""Peak memory of a training step, for a process of its own: ``python -m volution.bench.memory``."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from pathlib import Path

import torch

from volution.bench.cases import networks
from volution.bench.contest import LAYOUTS


def peak_mib(name: str, who: str, device: str, size: int) -> float:
    """Return the MiB that two training steps add to what the process holds before them.

    Args:
        name: A network.
        who: Its form and memory format, such as ``"ours, channels_last"``.
        device: Where it is trained.
        size: Side of the images.
    """
    form, _, label = who.partition(", ")
    step = networks.training_step(name, form, device, LAYOUTS[label], size=size)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    _forget_peak()
    before = _peak()
    step()
    step()
    return (_peak() - before) / 2**20


def _forget_peak() -> None:
    """Start the kernel's record of peak memory afresh, where it can be (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Return the most memory the process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    found = peak_mib(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
    sys.stdout.write(json.dumps({"peak_mib": found}))
