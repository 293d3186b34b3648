"""Pixel shift self-attention against unfolding, and X-volution folded against its two branches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from volution.bench import contest, runner
from volution.bench.contest import Wanted, check_close, dtype_name
from volution.bench.peers import unfold_pssa2d
from volution.ops import Xvolution2d, pssa2d, window_offsets
from volution.ops._shared.neighbourhood import reference

CHANNELS, SIDE, HEADS = 64, 56, 1
"""The map, which is as high as wide, and what of its channels attends together."""

KERNEL_SIZES = (3, 7)

LAYERS = {"depthwise": CHANNELS, "dense": 1}
"""Forms of X-volution and the groups of their convolution, 3 by 3."""

# Error allowed against float64, as a share of the largest value; in half precision the weights of
# each pixel are rounded before they are used.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
_PARTS = ("output", "grad q", "grad k", "grad v")


def measure(
    device: str,
    dtypes: list[torch.dtype],
    *,
    batch: int,
    budget: float,
    compiled: bool,
    wanted: Wanted = lambda name: True,
) -> Iterator[dict[str, Any]]:
    """Yield one result for each window, dtype and direction, and one for each layer that folds.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        dtypes: Dtypes to run the function in; the layers run in float32.
        batch: Images.
        budget: Seconds for each pair of contestants.
        compiled: Let the peers run under :func:`torch.compile` as well, and keep the fastest form.
        wanted: Chooses cases by name.
    """
    settings: dict[str, Any] = {"budget": budget, "compiled": compiled}
    for dtype in dtypes:
        for size in KERNEL_SIZES:
            name = f"PSSA {size}x{size} {CHANNELS}x{SIDE}²"
            if wanted(name):
                operands = _operands(device, dtype, batch)
                for result in _attention(name, size, operands, device, **settings):
                    yield {"case": name, **result}
    for form, groups in LAYERS.items():
        name = f"X-volution {form} {CHANNELS}x{SIDE}²"
        if wanted(name):
            x = _operands(device, torch.float32, batch)[0]
            yield {"case": name, **_folded(name, groups, x, device, **settings)}


def _attention(
    name: str, size: int, operands: tuple[Tensor, ...], device: str, **settings: Any
) -> Iterator[dict[str, Any]]:
    ours = partial(pssa2d, heads=HEADS, kernel_size=size)
    peer = partial(unfold_pssa2d, heads=HEADS, kernel_size=size)
    allowed = dict.fromkeys(_PARTS, TOLERANCE[operands[0].dtype])
    definition = partial(_definition, window_offsets(size))
    contestants = {"ours": ours, "unfold": peer}
    # Unfolding rounds every product in half precision; on the GPU nothing here may use TF32.
    slack = 1 if operands[0].dtype == torch.float32 else 8
    contest.check_passes(name, contestants, definition, operands, allowed, slack=slack)
    for result in contest.both_passes(ours, peer, "unfold", operands, device, **settings):
        forward, milliseconds = result["direction"] == "forward", result["ours_ms"]["median"]
        x = operands[0]
        moved = (4 if forward else 7) * x.numel() * x.element_size()
        flops = 4 * x.numel() * size**2 * (1 if forward else 2)
        yield {**result, **contest.rates(moved, flops, milliseconds)}


def _definition(offsets: tuple[int, ...], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    kernel = reference.correlate(q, k, offsets, HEADS, 1) * (q.shape[1] // HEADS) ** -0.5
    return reference.gather(v, kernel, offsets, 1)


def _folded(
    name: str, groups: int, x: Tensor, device: str, *, budget: float, compiled: bool
) -> dict[str, Any]:
    torch.manual_seed(0)
    layer = Xvolution2d(CHANNELS, CHANNELS, 3, groups=groups, heads=HEADS)
    _enliven(layer)
    layer.to(device).to(memory_format=torch.channels_last).eval()
    folded = layer.fuse()
    # The dense one's matrix products may use TF32 on the GPU.
    allowed = TOLERANCE[x.dtype] * (200 if x.is_cuda else 1)
    with torch.no_grad():
        want = layer.double()(x.double())
        layer.float()
        for who, form in (("ours", folded), ("two branches", layer)):
            check_close(f"{name}, {who}", form(x), want, allowed)
    peers = contest.forms(layer, [x], _forward, compiled=compiled)
    times = contest.against_each_mode(_forward(folded, x), peers, "two branches", device, budget)
    return {"dtype": dtype_name(x.dtype), "direction": "forward", **times}


@torch.no_grad()
def _enliven(layer: nn.Module) -> None:
    """Fill a layer so that no branch is switched off and both norms have something to do."""
    for parameter in layer.parameters():
        if parameter.dim() < 2:
            parameter.uniform_(0.1, 0.5)
        else:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)


def _forward(layer: Any, x: Tensor) -> runner.Work:
    return torch.inference_mode()(partial(layer, x))


def _operands(device: str, dtype: torch.dtype, batch: int) -> tuple[Tensor, ...]:
    """Return queries, keys, values and output gradient, channels-last as convolutions make them."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, CHANNELS, SIDE, SIDE)
    drawn = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4))
    return tuple(t.contiguous(memory_format=torch.channels_last) for t in drawn)
