"""Peak memory of a training step, for a process of its own: ``python -m volution.bench.memory``."""

from __future__ import annotations

import json
import resource
import sys

import torch

from volution.bench.cases import rednet


def peak_mib(name: str, device: str, size: int) -> float:
    """Return the MiB that two training steps add to what the process holds before them."""
    form, _, label = name.partition(", ")
    layout = torch.channels_last if label == "channels_last" else torch.contiguous_format
    step = rednet.training_step(form, device, layout, size=size)
    before = _peak(device)
    step()
    step()
    return (_peak(device) - before) / 2**20


def _peak(device: str) -> float:
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"peak_mib": peak_mib(sys.argv[1], sys.argv[2], int(sys.argv[3]))}))
