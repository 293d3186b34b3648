"""The one large kernel that a large-kernel attention stands for, and where it is exact."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from volution.analysis.style import INK, ORANGE, QUIET, figure, plain, styled, svg
from volution.ops import LKA

__all__ = ["border_effect", "large_kernel_picture"]

_STEPS = 20


@torch.no_grad()
def border_effect(layer: LKA, size: int = 48, images: int = 8) -> Tensor:
    """Measure how far the equivalent kernel is from the two convolutions it stands for.

    Args:
        layer: The attention.
        size: Height and width of the maps of noise that both are run on.
        images: How many of them; the same ones for every call.

    Returns:
        ``(size, size)``: at every pixel the root mean square of the difference over that of the
        result. It is zero, but for rounding, from ``dilation * (side // 2)`` pixels inside the
        border on, where ``side`` is that of the dilated kernel.

    Raises:
        ValueError: If ``size`` or ``images`` is not positive.

    Example:
        >>> effect = border_effect(LKA(4, kernel_size=9, dilation=2), size=16)
        >>> bool(effect[4:12, 4:12].max() < 1e-5), bool(effect[:4].min() > 1e-3)
        (True, True)
    """
    if size < 1 or images < 1:
        raise ValueError(f"size and images must be at least 1, got {size} and {images}")
    kernel, bias = layer.equivalent_kernel()
    channels = kernel.shape[0]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, channels, size, size, generator=generator)
    x = x.to(kernel.device, kernel.dtype)
    both = layer.conv_spatial(layer.conv0(x))
    one = F.conv2d(x, kernel, bias, padding=layer.reach // 2, groups=channels)
    difference = (one - both).double().square().mean((0, 1)).sqrt()
    relative: Tensor = difference / both.double().square().mean().sqrt()
    return relative.cpu()


@styled
def large_kernel_picture(layer: LKA, size: int = 48) -> bytes:
    """Draw the equivalent kernel, averaged over the channels, and where it is not exact.

    Args:
        layer: The attention.
        size: Height and width of the maps of noise that the two are compared on.

    Returns:
        SVG.
    """
    kernel, _ = layer.equivalent_kernel()
    effect = border_effect(layer, size)
    margin = layer.dilation * (layer.conv_spatial.kernel_size[0] // 2)
    fig = figure(9.2, 4.2)
    # The axes are square, and would fill the height up to their titles.
    fig.set_layout_engine("constrained", h_pad=0.12)
    left, right = fig.subplots(1, 2)
    plain(left, title=f"One kernel, {layer.reach} by {layer.reach}")
    middle = layer.reach // 2
    edges = (-middle - 0.5, middle + 0.5, middle + 0.5, -middle - 0.5)
    weights = kernel.detach().double().abs().mean((0, 1)).cpu().numpy()
    _map(left, weights, "Blues", edges)
    left.set_xlabel("mean size of a weight")
    plain(right, title=f"Exact {margin} pixels inside the border")
    _map(right, effect.numpy(), "Oranges", None)
    right.set_xlabel("relative difference")
    if size > 2 * margin:
        box = (margin - 0.5, size - margin - 0.5)
        right.plot(
            [box[0], box[1], box[1], box[0], box[0]],
            [box[0], box[0], box[1], box[1], box[0]],
            color=ORANGE,
            linewidth=1.2,
            linestyle=(0, (4, 3)),
        )
    for axes in (left, right):
        axes.spines["bottom"].set_visible(False)
    return svg(fig)


def _map(axes: Any, values: Any, colours: str, extent: tuple[float, ...] | None) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    # Few steps keep the file small, and show the levels better.
    steps = colormaps[colours].resampled(_STEPS)
    drawn = axes.imshow(values, cmap=steps, extent=extent, vmin=0, interpolation="none")
    bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.85, ticks=MaxNLocator(3))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=QUIET, labelcolor=INK, length=0, labelsize=8.5)
