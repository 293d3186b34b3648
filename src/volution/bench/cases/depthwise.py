"""Depthwise convolution at the sizes of VAN and HorNet: forward, and backward for all gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from volution._support.console import log
from volution.bench import contest
from volution.bench.contest import Wanted, WrongResultError
from volution.ops import depthwise_conv2d


class Case(NamedTuple):
    """One convolution, with a bias, of a map that is as high as wide."""

    kernel_size: int
    dilation: int
    channels: int
    side: int

    @property
    def name(self) -> str:
        """Return what the table calls it, such as ``dw7x7 d3 64x56²`` for a dilation of 3."""
        step = f" d{self.dilation}" if self.dilation > 1 else ""
        return f"dw{self.kernel_size}x{self.kernel_size}{step} {self.channels}x{self.side}²"


CASES = (
    *(Case(7, 3, channels, side) for channels, side in ((64, 56), (128, 28), (320, 14), (512, 7))),
    *(Case(k, 1, channels, side) for k in (7, 5, 3) for channels, side in ((64, 56), (320, 14))),
)

# Error allowed against float64, as a share of the largest value: the output is a sum of K * K
# products and is rounded once, a weight's gradient is one of N * H * W.
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-2, 1e-2), torch.float16: (2e-3, 4e-3)}
_PARTS = ("output", "grad input", "grad weight", "grad bias")


def measure(
    device: str,
    dtypes: list[torch.dtype],
    *,
    batch: int,
    budget: float,
    compiled: bool,
    wanted: Wanted = lambda name: True,
) -> Iterator[dict[str, Any]]:
    """Yield one result for each case, dtype and direction; the peer is the framework's own.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        dtypes: Dtypes to run.
        batch: Images.
        budget: Seconds for each pair of contestants.
        compiled: Let the peer run under :func:`torch.compile` as well, and keep its fastest form.
        wanted: Chooses cases by name.
    """
    for dtype in dtypes:
        for case in CASES:
            if not wanted(case.name):
                continue
            operands = _operands(case, device, dtype, batch)
            ours = partial(depthwise_conv2d, dilation=case.dilation)
            peer = partial(framework_conv2d, dilation=case.dilation)
            yield from compare(
                case.name, ours, peer, operands, device, budget=budget, compiled=compiled
            )


def compare(
    name: str,
    ours: Callable[..., Tensor],
    peer: Callable[..., Tensor],
    operands: tuple[Tensor, ...],
    device: str,
    *,
    budget: float,
    compiled: bool,
) -> Iterator[dict[str, Any]]:
    """Yield a result for each direction of a depthwise convolution, behind the gate.

    Args:
        name: The case.
        ours: A function of map, weight and bias.
        peer: The same in PyTorch's own operators; in float64 it is the definition.
        operands: Map, weight, bias and the output's gradient.
        device: ``"cpu"`` or ``"cuda"``.
        budget: Seconds for each pair of contestants.
        compiled: As in :func:`measure`.
    """
    check(name, {"ours": ours}, peer, operands)
    try:
        check(name, {"conv2d": peer}, peer, operands)
    except WrongResultError as error:
        # PyTorch's dilated weight gradient, for one, is NaN in bfloat16 on some CPUs.
        log.print(f"left out, the peer is wrong: {error}", markup=False)
        return
    settings: dict[str, Any] = {"budget": budget, "compiled": compiled}
    for result in contest.both_passes(ours, peer, "conv2d", operands, device, **settings):
        yield {"case": name, **result, **_rates(operands, result)}


def framework_conv2d(x: Tensor, weight: Tensor, bias: Tensor, *, dilation: int) -> Tensor:
    """Filter each channel by itself with the framework's grouped convolution."""
    padding = dilation * (weight.shape[-1] // 2)
    return F.conv2d(x, weight, bias, 1, padding, dilation, groups=x.shape[1])


def check(
    name: str,
    contestants: dict[str, Callable[..., Tensor]],
    definition: Callable[..., Tensor],
    operands: tuple[Tensor, ...],
) -> None:
    """Raise ``WrongResultError`` unless every contestant agrees with float64."""
    once, summed = TOLERANCE[operands[0].dtype]
    allowed = dict(zip(_PARTS, (once, once, summed, summed), strict=True))
    slack = _peer_slack(operands[0])
    contest.check_passes(name, contestants, definition, operands, allowed, slack=slack)


def _peer_slack(x: Tensor) -> int:
    """Return how much less exact than ours the framework may be, and still be timed."""
    if x.dtype != torch.float32:
        return 8  # it sums weights' gradients of half precision in half precision
    return 200 if x.is_cuda else 1  # it may use TF32


def _operands(case: Case, device: str, dtype: torch.dtype, batch: int) -> tuple[Tensor, ...]:
    """Return map, weight, bias and output gradient, channels-last as the networks make them."""
    generator = torch.Generator().manual_seed(case.channels)
    k, c, side = case.kernel_size, case.channels, case.side
    shapes = ((batch, c, side, side), (c, 1, k, k), (c,), (batch, c, side, side))
    drawn = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    x, weight, bias, grad = drawn
    last = torch.channels_last
    return x.contiguous(memory_format=last), weight, bias, grad.contiguous(memory_format=last)


def _rates(operands: tuple[Tensor, ...], result: dict[str, Any]) -> dict[str, float]:
    # What the kernels weigh does not count.
    (x, weight, *_), forward = operands, result["direction"] == "forward"
    flops = 2 * x.numel() * weight.shape[-1] ** 2 * (1 if forward else 2)
    moved = (2 if forward else 3) * x.numel() * x.element_size()
    return contest.rates(moved, flops, result["ours_ms"]["median"])
