"""How time grows with the image: linearly, for operators that look at a window of fixed size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from volution.bench import runner
from volution.bench.contest import Wanted
from volution.ops import LKA, PSSA, GnConv, IDConv, Xvolution2d

SIDES = (128, 181, 256, 362, 512, 724, 1024)
"""Heights and widths of the maps, with twice as many pixels from one to the next."""

CHANNELS = 64

LAYERS: dict[str, Callable[[], nn.Module]] = {
    f"LKA({CHANNELS})": lambda: LKA(CHANNELS),
    f"GnConv({CHANNELS}, order=2)": lambda: GnConv(CHANNELS, order=2),
    f"IDConv({CHANNELS})": lambda: IDConv(CHANNELS),
    f"PSSA({CHANNELS})": lambda: PSSA(CHANNELS),
    f"Xvolution2d({CHANNELS}, {CHANNELS})": lambda: Xvolution2d(CHANNELS, CHANNELS),
}


def measure(
    device: str,
    *,
    budget: float,
    sides: Sequence[int] = SIDES,
    wanted: Wanted = lambda name: True,
) -> Iterator[dict[str, Any]]:
    """Yield the slope of log time over log pixels for each layer: 1 is linear.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        budget: Seconds for each layer and size.
        sides: Heights and widths of the maps.
        wanted: Chooses cases by name.
    """
    for name, make in LAYERS.items():
        if not wanted(f"{name} scaling"):
            continue
        torch.manual_seed(0)
        layer = make().to(device).eval()
        times = {side: _time(layer, side, device, budget) for side in sides}
        yield {
            "case": f"{name} scaling",
            "dtype": "float32",
            "direction": "forward",
            "slope": slope(times),
            "sides": list(sides),
            "ms": [times[side] for side in sides],
        }


def slope(times: dict[int, float]) -> float:
    """Return the slope of the least-squares line of log time over log pixels.

    >>> slope({10: 1.0, 20: 4.0, 40: 16.0})
    1.0
    """
    pixels = [math.log(side**2) for side in times]
    logs = [math.log(value) for value in times.values()]
    return statistics.linear_regression(pixels, logs).slope


def _time(layer: nn.Module, side: int, device: str, budget: float) -> float:
    x = torch.randn(1, CHANNELS, side, side, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    work = torch.inference_mode()(partial(layer, x))
    return runner.alone(work, device, budget=budget)["median"]
