"""Involution at the four stages of RedNet-50: forward, and backward for both gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from volution.bench import contest, runner
from volution.bench.contest import Wanted, check_close, dtype_name
from volution.bench.peers import unfold_involution2d
from volution.ops import _native, involution2d
from volution.ops._shared.neighbourhood import reference, window_offsets

STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))
"""Channels and side of the maps that RedNet-50 involves at 224 by 224."""

KERNEL_SIZE = 7
GROUP_CHANNELS = 16

# Error allowed against float64, as a share of the largest value: rounding the result once, and
# float32 sums of K * K * 16 products.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def measure(
    device: str,
    dtypes: list[torch.dtype],
    *,
    batch: int,
    budget: float,
    compiled: bool,
    wanted: Wanted = lambda name: True,
) -> Iterator[dict[str, Any]]:
    """Yield one result for each stage, dtype and direction.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        dtypes: Dtypes to run.
        batch: Images.
        budget: Seconds for each pair of contestants.
        compiled: Let the peer run under :func:`torch.compile` as well, and keep its fastest form.
        wanted: Chooses cases by name.
    """
    for dtype in dtypes:
        for channels, side in STAGES:
            name = f"involution {channels}x{side}²"
            if not wanted(name):
                continue
            x, kernel, grad = _operands(device, dtype, batch, channels, side)
            check(x, kernel, grad)
            for direction in ("forward", "backward"):
                ours = _work(involution2d, x, kernel, grad, direction)
                peers = _peers(x, kernel, grad, direction, compiled=compiled)
                times = contest.against_each_mode(ours, peers, "unfold", device, budget)
                result: dict[str, Any] = {
                    "case": name,
                    "dtype": dtype_name(dtype),
                    "direction": direction,
                    **times,
                }
                result |= _rates(x, kernel, direction, times["ours_ms"]["median"])
                if device == "cpu" and direction == "forward" and _native.library is not None:
                    # Repeated, so the 7 by 7 map is measured where it lives: in the cache.
                    raw = runner.alone(_raw_gather(x, kernel), device, budget=budget / 4)
                    result["raw_ms"] = raw
                    result["raw_gbps"] = _bytes(x, kernel, direction) / raw["median"] / 1e6
                yield result


def check(x: Tensor, kernel: Tensor, grad: Tensor) -> None:
    """Raise ``WrongResultError`` unless ours and the peer agree with float64."""
    offsets = window_offsets(KERNEL_SIZE)
    wide = (x.double(), kernel.flatten(2, 3).double(), grad.double())
    want = (
        reference.gather(wide[0], wide[1], offsets, 1),
        reference.scatter(wide[2], wide[1], offsets, x.shape[2:], 1),
        reference.correlate(wide[2], wide[0], offsets, kernel.shape[1], 1).view_as(kernel),
    )
    for name, function in (("ours", involution2d), ("unfold", unfold_involution2d)):
        a, k = (t.detach().clone().requires_grad_() for t in (x, kernel))
        y = function(a, k)
        got = (y, *torch.autograd.grad(y, (a, k), grad))
        for part, one, other in zip(
            ("output", "grad input", "grad kernel"), got, want, strict=True
        ):
            # The unfold formulation rounds every product in half precision; ours only the result.
            allowed = TOLERANCE[x.dtype] * (8 if name == "unfold" else 1)
            check_close(f"{name}, {part}, {tuple(x.shape)} {x.dtype}", one, other, allowed)


def _operands(
    device: str, dtype: torch.dtype, batch: int, channels: int, side: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return input, kernel and output gradient, channels-last as the network makes them."""
    generator = torch.Generator().manual_seed(channels)
    groups = channels // GROUP_CHANNELS
    x = torch.randn(batch, channels, side, side, generator=generator)
    kernel = torch.randn(batch, groups * KERNEL_SIZE**2, side, side, generator=generator)
    grad = torch.randn(batch, channels, side, side, generator=generator)
    last = torch.channels_last
    x, kernel, grad = (
        t.to(device, dtype).contiguous(memory_format=last) for t in (x, kernel, grad)
    )
    return x, kernel.unflatten(1, (groups, KERNEL_SIZE, KERNEL_SIZE)), grad


def _work(
    function: Callable[..., Tensor], x: Tensor, kernel: Tensor, grad: Tensor, direction: str
) -> runner.Work:
    if direction == "forward":
        return torch.no_grad()(partial(function, x, kernel))
    x, kernel = x.detach().requires_grad_(), kernel.detach().requires_grad_()
    y = function(x, kernel)
    return partial(torch.autograd.grad, y, (x, kernel), grad, retain_graph=True)


def _peers(
    x: Tensor, kernel: Tensor, grad: Tensor, direction: str, *, compiled: bool
) -> dict[str, runner.Work]:
    """Return the peer's forms; a pixel's kernel is laid out as the layer before makes it."""

    def work(function: Callable[..., Tensor], x: Tensor, flat: Tensor, grad: Tensor) -> runner.Work:
        return _work(function, x, flat.view_as(kernel), grad, direction)

    operands = (x, kernel.flatten(1, 3), grad)
    return contest.forms(unfold_involution2d, operands, work, compiled=compiled)


def _raw_gather(x: Tensor, kernel: Tensor) -> runner.Work:
    """The compiled kernel without Python's and the dispatcher's share."""
    n, c, h, w = x.shape
    groups, taps = kernel.shape[1], KERNEL_SIZE**2
    k = kernel.flatten(2, 3)
    y = torch.empty_like(x)
    steps = [(t.stride(0), t.stride(-2), t.stride(-1)) for t in (x, y, k)]
    geometry = (n, c, h, w, groups, taps, h, w, 1, *steps[0], *steps[1], *steps[2])
    return partial(_native.call, "gather", geometry, window_offsets(KERNEL_SIZE), (x, k), y)


def _bytes(x: Tensor, kernel: Tensor, direction: str) -> int:
    maps, kernels = (2, 1) if direction == "forward" else (3, 2)
    return (maps * x.numel() + kernels * kernel.numel()) * x.element_size()


def _rates(x: Tensor, kernel: Tensor, direction: str, milliseconds: float) -> dict[str, float]:
    flops = 2 * x.numel() * KERNEL_SIZE**2 * (1 if direction == "forward" else 2)
    return {
        "gbps": _bytes(x, kernel, direction) / milliseconds / 1e6,
        "gflops": flops / milliseconds / 1e6,
    }
