"""The kernels that an involution makes for single pixels: its way of paying attention."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from volution.analysis.style import BLUE, INK, ORANGE, QUIET, figure, plain, styled, svg
from volution.ops import Involution2d

__all__ = ["KernelMaps", "kernel_maps", "kernels_picture"]

_MOST_GROUPS = 6
# Name, marker and colour of each pixel: told apart by any one of them.
_PIXELS = (("A", "o", BLUE), ("B", "s", ORANGE))


@dataclass(frozen=True)
class KernelMaps:
    """Kernels of chosen pixels.

    Args:
        kernels: ``(P, G, K, K)``: pixel, group, and the weight of each neighbour.
        pixels: Row and column of each pixel, as shares of the image from 0 to 1.
        window: Height and width of the neighbourhood, as shares of the image.
        layer: Name of the involution in the network.
    """

    kernels: Tensor
    pixels: tuple[tuple[float, float], ...]
    window: tuple[float, float]
    layer: str


@torch.inference_mode()
def kernel_maps(
    model: nn.Module,
    image: Tensor,
    pixels: Sequence[tuple[float, float]],
    layer: str | None = None,
) -> KernelMaps:
    """Run a network on an image and keep what an involution makes for single pixels.

    Args:
        model: The network; comes back in the mode it was in.
        image: ``(C, H, W)``, prepared as the network expects.
        pixels: Row and column of each pixel, as shares of the image from 0 to 1.
        layer: Name of an involution in the network; the widest window of the finest map by
            default.

    Raises:
        ValueError: If a pixel is outside, or there is no such involution.
    """
    for row, column in pixels:
        if not (0 <= row < 1 and 0 <= column < 1):
            raise ValueError(f"pixels must be from 0 to 1 (1 excluded), got ({row}, {column})")
    found: dict[str, tuple[Involution2d, Tensor]] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, Involution2d):

            def keep(
                _: nn.Module, __: Any, out: Tensor, name: str = name, module: Any = module
            ) -> None:
                found[name] = (module, out)

            hooks.append(module.kernel_generator.register_forward_hook(keep))
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()(image[None])
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    if not found or layer not in (None, *found):
        raise ValueError(
            f"layer must be an involution of the network, got {layer!r}; it has "
            f"{', '.join(found) or 'none'}"
        )
    # Of equals, the first that ran.
    layer = layer or max(found, key=lambda n: (found[n][0].kernel_size, found[n][1].shape[-1]))
    involution, out = found[layer]
    height, width = out.shape[-2:]
    size = involution.kernel_size
    kernels = out.reshape(involution.groups, size, size, height, width).cpu().float()
    chosen = [kernels[..., int(row * height), int(column * width)] for row, column in pixels]
    # The window lies on the layer's input, which is finer than its output by the stride.
    reach = (size - 1) * involution.dilation + 1
    window = (reach / (height * involution.stride), reach / (width * involution.stride))
    return KernelMaps(torch.stack(chosen), tuple(pixels), window, layer)


@styled
def kernels_picture(maps: KernelMaps, image: Image.Image) -> bytes:
    """Draw an image with its chosen pixels, and beside it their kernels as heat maps.

    Args:
        maps: Kernels of one or two pixels.
        image: What the network saw.

    Returns:
        SVG.

    Raises:
        ValueError: If there are more pixels, or none.
    """
    if not 1 <= len(maps.pixels) <= len(_PIXELS):
        raise ValueError(f"kernels_picture shows one or two pixels, got {len(maps.pixels)}")
    count, groups, size, _ = maps.kernels.shape
    shown = min(groups, _MOST_GROUPS)
    fig = figure(4.0 + 1.75 * shown, 1.75 * count + 0.7)
    grid = fig.add_gridspec(count, shown + 2, width_ratios=[2.1, *([1.0] * shown), 0.07])
    _draw_image(plain(fig.add_subplot(grid[:, 0]), title="What it looks at"), maps, image)
    limit = float(maps.kernels.abs().max()) or 1.0
    drawn: Any = None
    for pixel, group in itertools.product(range(count), range(shown)):
        name, marker, colour = _PIXELS[pixel]
        axes = plain(fig.add_subplot(grid[pixel, 1 + group]))
        kernel = maps.kernels[pixel, group].numpy()
        drawn = axes.imshow(kernel, cmap="PuOr", vmin=-limit, vmax=limit)
        centre = size // 2
        axes.plot(centre, centre, marker, markersize=7, markerfacecolor="none", color="#000000")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines["bottom"].set_visible(False)
        if pixel == 0:
            axes.set_title(f"group {group + 1} of {groups}", fontsize=9.5, color=QUIET)
        if group == 0:
            axes.set_ylabel(f"kernel of {name}", fontweight="bold", color=colour)
    bar = fig.colorbar(drawn, cax=fig.add_subplot(grid[:, -1]))
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=QUIET, labelcolor=INK, length=0, labelsize=8.5)
    return svg(fig)


def _draw_image(axes: Any, maps: KernelMaps, image: Image.Image) -> None:
    from matplotlib.patches import Rectangle

    axes.imshow(image, cmap="gray")
    width, height = image.size
    tall, wide = maps.window[0] * height, maps.window[1] * width
    for (row, column), (name, marker, colour) in zip(maps.pixels, _PIXELS, strict=False):
        x, y = column * width - 0.5, row * height - 0.5
        reach = Rectangle((x - wide / 2, y - tall / 2), wide, tall, fill=False, edgecolor=colour)
        reach.set(linewidth=1.4, linestyle=(0, (3, 2)))
        axes.add_patch(reach)
        axes.plot(x, y, marker, markersize=9, color=colour, markeredgecolor="#ffffff")
        axes.annotate(
            name,
            (x, y),
            xytext=(8, 8),
            textcoords="offset points",
            color="#ffffff",
            fontweight="bold",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 2},
        )
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_axis_off()
