"""Peak memory of a piece of work, in a process of its own: ``python -m volution.bench.memory``.

What ran earlier in a process decides what its allocator holds, so nothing else runs in this one.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from volution.bench.runner import Work

__all__ = ["made_by", "measured_apart", "peak_mib"]


def measured_apart(function: str, **arguments: Any) -> float:
    """Return :func:`peak_mib` of the work that a function makes, from a process of its own.

    Args:
        function: Its name in ``volution.bench.cases``, such as ``"networks.training_step"``.
        arguments: What it takes, as JSON can write it, ``device`` among it.
    """
    command = [sys.executable, "-m", "volution.bench.memory", function, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{function} of {arguments} failed in its own process:\n{done.stderr}")
    return float(json.loads(done.stdout)["peak_mib"])


def made_by(function: str, **arguments: Any) -> Work:
    """Return the work that a function of ``volution.bench.cases`` makes."""
    module, _, name = function.rpartition(".")
    work: Work = getattr(importlib.import_module(f"volution.bench.cases.{module}"), name)(
        **arguments
    )
    return work


def peak_mib(work: Work, device: str) -> float:
    """Return the MiB that two calls add to what the process holds before them."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    _forget_peak()
    before = _peak()
    work()
    work()
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
    arguments = json.loads(sys.argv[2])
    found = peak_mib(made_by(sys.argv[1], **arguments), arguments["device"])
    sys.stdout.write(json.dumps({"peak_mib": found}))
