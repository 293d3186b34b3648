"""Pixel shift self-attention in pictures: what is multiplied, and how far stacked layers see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from volution.analysis.style import INK, ORANGE, figure, plain, styled, svg
from volution.ops import PSSA, correlate, pssa2d

__all__ = ["receptive_fields", "shift_picture"]

_SIDE, _SHIFT, _DEPTHS = 33, (0, 7), (1, 2, 4, 8)
_STEPS = 20


def receptive_fields(depth: int, kernel_size: int = 3, size: int = 33) -> list[Tensor]:
    """Measure what the middle pixel sees through each of a few stacked attention layers.

    The layers are :class:`volution.ops.PSSA` as freshly made, each followed by a normalisation of
    every pixel on its own, which looks at no neighbour.

    Args:
        depth: How many layers.
        kernel_size: Side of their windows.
        size: Height and width of the map of noise they run on; the same one for every call.

    Returns:
        For each number of layers from 1 on the norm of the derivative of the middle pixel by every
        pixel of the map, ``(size, size)``, relative to the greatest. It is zero outside a square
        that grows by ``kernel_size - 1`` with every layer.

    Raises:
        ValueError: If ``depth`` or ``size`` is not positive.

    Example:
        >>> [int((field > 0).sum()) for field in receptive_fields(3, size=15)]
        [9, 25, 49]
    """
    if depth < 1 or size < 1:
        raise ValueError(f"depth and size must be at least 1, got {depth} and {size}")
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        layers = [PSSA(8, kernel_size=kernel_size, dtype=torch.float64) for _ in range(depth)]
        x = torch.randn(1, 8, size, size, dtype=torch.float64, requires_grad=True)
        y, fields = x, []
        for layer in layers:
            y = F.normalize(layer(y), dim=1)
            seen = y[0, :, size // 2, size // 2].sum()
            (grad,) = torch.autograd.grad(seen, x, retain_graph=True)
            field = grad[0].square().sum(0).sqrt()
            fields.append(field / field.max())
    return fields


@styled
def shift_picture() -> bytes:
    """Draw one offset of the attention on a small scene, and the reach of stacked layers.

    Returns:
        SVG.
    """
    scene = _scene()
    offset = _SHIFT
    moved = torch.zeros_like(scene)
    moved[..., : -offset[1]] = scene[..., offset[1] :]
    weights = correlate(scene, scene, offset, 1)[0, 0, 0]
    whole = pssa2d(scene, scene, scene, heads=1, kernel_size=2 * offset[1] + 1)
    # Colours of the scene are channels: a disc, a bar, and a faint ground.
    maps = [_shade(scene), _shade(moved), weights, _shade(whole)]
    titles = ["A map", "Shift", "Multiply", "Sum"]
    notes = [
        "queries",
        f"keys, {offset[1]} pixels to the right",
        "the weights of this offset",
        "values, over 15 by 15 offsets",
    ]
    fig = figure(10.4, 6.0)
    fig.set_layout_engine("constrained", h_pad=0.12, w_pad=0.08)
    axes = fig.subplots(2, 4)
    for place, values, title, note in zip(axes[0], maps, titles, notes, strict=True):
        _panel(place, values, "Blues", title, note)
    fields = receptive_fields(_DEPTHS[-1], size=_SIDE)
    for place, depth in zip(axes[1], _DEPTHS, strict=True):
        levels = fields[depth - 1].clamp_min(1e-12).log10().clamp_min(-6)
        side = 2 * depth + 1
        many = "layer" if depth == 1 else "layers"
        _panel(place, levels + 6, "Oranges", f"{depth} {many}", f"sees {side} by {side}")
        low, high = _SIDE // 2 - depth - 0.5, _SIDE // 2 + depth + 0.5
        corners = [low, high, high, low, low], [low, low, high, high, low]
        place.plot(*corners, color=ORANGE, linewidth=1.2, linestyle=(0, (4, 3)))
    return svg(fig)


def _scene() -> Tensor:
    """Return a map of three channels: a disc, a bar, and a ground, each with its own."""
    rows, columns = torch.meshgrid(*(torch.arange(_SIDE).float(),) * 2, indexing="ij")
    disc = (rows - 11).square() + (columns - 10).square() <= 64
    bar = (rows >= 22) & (rows < 29) & (columns >= 5) & (columns < 30)
    ground = ~(disc | bar)
    return torch.stack([disc.float(), 0.8 * bar.float(), 0.25 * ground.float()])[None]


def _shade(map: Tensor) -> Tensor:
    shades = map[0].square().sum(0).sqrt()
    return shades / shades.max()


def _panel(axes: Any, values: Tensor, colours: str, title: str, note: str) -> None:
    from matplotlib import colormaps

    plain(axes, title=title)
    # Few steps keep the file small, and show the levels better.
    steps = colormaps[colours].resampled(_STEPS)
    axes.imshow(values.numpy(), cmap=steps, vmin=0, interpolation="none")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(note, color=INK)
    axes.spines["bottom"].set_visible(False)
