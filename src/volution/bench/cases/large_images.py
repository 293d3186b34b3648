"""One image of the size detectors see: the peak memory of inference and of a training step.

What a network writes out for each pair of pixels grows with the square of the image, and is what
such images fail on. No time is taken here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from volution.bench import memory, runner
from volution.bench.cases import networks
from volution.bench.contest import LAYOUTS, Wanted, WrongResultError

SIZE = (800, 1344)
"""Height and width; the short side of 800 that detectors train at, padded."""

NETWORKS = ("transxnet_t",)
TOLERANCE = 1e-4  # of the largest logit, in float32


def measure(
    device: str, *, size: Sequence[int] = SIZE, wanted: Wanted = lambda name: True
) -> Iterator[dict[str, Any]]:
    """Yield the peak memory of inference and of a training step, against the leaner plain form.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        size: Height and width of the image.
        wanted: Chooses cases by name.
    """
    height, width = size
    for name in NETWORKS:
        for task in ("inference", "training step"):
            case = f"{name} {height}x{width} {task}"
            if wanted(case):
                check(name, device, size)
                yield {"case": case, **_result(name, task, device, size)}


def check(name: str, device: str, size: Sequence[int]) -> None:
    """Raise ``WrongResultError`` unless both forms compute the same of the large image."""
    results = {}
    for form in ("ours", "plain"):
        results[form] = work(name, f"{form}, channels_last", "inference", device, size)()
    error = (results["ours"] - results["plain"]).abs().max() / results["plain"].abs().max()
    if not error.item() < TOLERANCE:
        words = f"{name} at {size[0]}x{size[1]}"
        raise WrongResultError(f"{words}: differs by {error.item():.1e} of the largest logit")


def _result(name: str, task: str, device: str, size: Sequence[int]) -> dict[str, Any]:
    # Ours as the README advises, the peer in the memory format that needs less.
    ours, peers = "ours, channels_last", [f"plain, {label}" for label in LAYOUTS]
    peaks = {
        who: memory.measured_apart(
            "large_images.work", name=name, who=who, task=task, device=device, size=list(size)
        )
        for who in (ours, *peers)
    }
    peer = min(peers, key=lambda who: peaks[who])
    return {
        "batch": 1,
        "image_size": list(size),
        "dtype": "float32",
        "direction": "forward" if task == "inference" else "both",
        "ours": ours,
        "peer": peer,
        "ours_peak_mib": peaks[ours],
        "peer_peak_mib": peaks[peer],
        "memory_share": peaks[ours] / peaks[peer],
    }


def work(name: str, who: str, task: str, device: str, size: Sequence[int]) -> runner.Work:
    """Return a call that runs one image through a network.

    Args:
        name: A network.
        who: Its form and memory format, such as ``"ours, channels_last"``.
        task: ``"inference"`` or ``"training step"``. A single image has no statistics to normalise
            by, so the norms of a batch stay in evaluation mode, as in a detector.
        device: Where it runs.
        size: Height and width of the image.
    """
    form, _, label = who.partition(", ")
    net = networks.build(name, form, device, LAYOUTS[label], size=224)
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    image = image.to(device).contiguous(memory_format=LAYOUTS[label])
    if task == "inference":
        return torch.inference_mode()(partial(net.eval(), image))
    for module in net.train().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return networks.step(net, image)
