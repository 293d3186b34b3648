"""The per-sample depthwise convolution of TransXNet-T's four stages: forward, and backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from volution.bench.cases import depthwise
from volution.bench.contest import Wanted
from volution.bench.peers_transxnet import grouped_conv2d
from volution.ops import dynamic_depthwise_conv2d

STAGES = ((24, 56), (48, 28), (112, 14), (224, 7))
"""Channels and side of the maps that TransXNet-T's IDConv filters at 224 by 224."""

KERNEL_SIZE = 7

BATCH = 8
"""Images, at least: what there is to filter together grows with them."""


def measure(
    device: str,
    dtypes: list[torch.dtype],
    *,
    batch: int,
    budget: float,
    compiled: bool,
    wanted: Wanted = lambda name: True,
) -> Iterator[dict[str, Any]]:
    """Yield one result for each stage, dtype and direction; the peer is one grouped convolution.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        dtypes: Dtypes to run.
        batch: Images.
        budget: Seconds for each pair of contestants.
        compiled: Let the peer run under :func:`torch.compile` as well, and keep its fastest form.
        wanted: Chooses cases by name.
    """
    settings: dict[str, Any] = {"budget": budget, "compiled": compiled}
    for dtype in dtypes:
        for channels, side in STAGES:
            name = f"per-sample dw{KERNEL_SIZE}x{KERNEL_SIZE} {channels}x{side}²"
            if not wanted(name):
                continue
            operands = _operands(device, dtype, batch, channels, side)
            contestants = dynamic_depthwise_conv2d, grouped_conv2d
            yield from depthwise.compare(name, *contestants, operands, device, **settings)


def _operands(
    device: str, dtype: torch.dtype, batch: int, channels: int, side: int
) -> tuple[Tensor, ...]:
    """Return map, kernels, biases and output gradient; maps are channels-last as in the network."""
    generator = torch.Generator().manual_seed(channels)
    maps = (batch, channels, side, side)
    shapes = (maps, (batch, channels, KERNEL_SIZE, KERNEL_SIZE), (batch, channels), maps)
    drawn = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    x, kernel, bias, grad = drawn
    last = torch.channels_last
    return x.contiguous(memory_format=last), kernel, bias, grad.contiguous(memory_format=last)
