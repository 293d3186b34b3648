"""The widest depthwise kernels of a network, learned or made for an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from volution.analysis.style import INK, QUIET, figure, plain, styled, svg
from volution.ops import IDConv

__all__ = ["Filters", "filters_picture", "has_filters", "widest_filters"]

_COLUMNS, _ROWS = 6, 2
_STEPS = 20


@dataclass(frozen=True)
class Filters:
    """Kernels of a depthwise convolution.

    Args:
        kernels: One for each channel, ``(C, K, K)``.
        layer: Name of the convolution in the network.
        made_for_image: Whether an image decides them; otherwise they are learned.
    """

    kernels: Tensor
    layer: str
    made_for_image: bool


def has_filters(model: nn.Module) -> bool:
    """Return whether a network has depthwise kernels that are wider than a pixel.

    Example:
        >>> has_filters(nn.Conv2d(4, 4, 3, groups=4)), has_filters(nn.Conv2d(4, 4, 3))
        (True, False)
    """
    return bool(_candidates(model))


@torch.no_grad()
def widest_filters(model: nn.Module, image: Tensor) -> Filters:
    """Return the widest depthwise kernels of a network, of equals the first.

    Kernels that are made for an image (:class:`volution.ops.IDConv`) go before learned ones.

    Args:
        model: The network. It comes back in the mode it was in.
        image: ``(C, H, W)``, prepared as the network expects; decides kernels that are made for
            an image.

    Raises:
        ValueError: If there are none.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 5, groups=4))
        >>> found = widest_filters(net, torch.zeros(3, 8, 8))
        >>> found.layer, found.kernels.shape, found.made_for_image
        ('1', torch.Size([4, 5, 5]), False)
    """
    candidates = _candidates(model)
    if not candidates:
        raise ValueError("model has no depthwise convolution with a kernel wider than a pixel")
    name, layer = max(candidates, key=lambda found: _rank(found[1]))
    if not isinstance(layer, IDConv):
        return Filters(layer.weight.detach().flatten(0, -3).float().cpu(), name, False)
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()(image[None])
        kernels, _ = layer.generate(seen[0])
    finally:
        hook.remove()
        for module, training in modes:
            module.training = training
    return Filters(kernels[0].float().cpu(), name, True)


@styled
def filters_picture(filters: Filters) -> bytes:
    """Draw the mean size of kernels, and those of the channels with the largest ones.

    Args:
        filters: The kernels.

    Returns:
        SVG.
    """
    kernels = filters.kernels
    norms = kernels.square().sum((1, 2))
    shown = norms.topk(min(len(kernels), _COLUMNS * _ROWS)).indices.sort().values.tolist()
    columns = min(len(shown), _COLUMNS)
    rows = -(-len(shown) // columns)
    fig = figure(3.4 + 1.2 * columns, max(2.6, 1.4 * rows + 0.4))
    grid = fig.add_gridspec(rows, columns + 2, width_ratios=[2.0, *([1.0] * columns), 0.08])
    mean = plain(fig.add_subplot(grid[:, 0]), title="Mean size")
    _map(mean, kernels.abs().mean(0), "Blues", 0.0, None)
    limit = float(kernels[shown].abs().max()) or 1.0
    drawn: Any = None
    for place, channel in enumerate(shown):
        axes = plain(fig.add_subplot(grid[place // columns, 1 + place % columns]))
        axes.set_title(f"channel {channel + 1}", fontsize=8.5, color=QUIET)
        drawn = _map(axes, kernels[channel], "PuOr", -limit, limit)
    bar = fig.colorbar(drawn, cax=fig.add_subplot(grid[:, -1]))
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=QUIET, labelcolor=INK, length=0, labelsize=8.5)
    return svg(fig)


def _map(axes: Any, values: Tensor, colours: str, low: float, high: float | None) -> Any:
    from matplotlib import colormaps

    steps = colormaps[colours].resampled(_STEPS)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines["bottom"].set_visible(False)
    return axes.imshow(values.numpy(), cmap=steps, vmin=low, vmax=high, interpolation="none")


def _rank(layer: nn.Module) -> tuple[bool, int]:
    """Kernels that are made for an image count more than wide ones."""
    size: int = layer.weight.shape[-1]  # type: ignore[index, assignment]
    return isinstance(layer, IDConv), size


def _candidates(model: nn.Module) -> list[tuple[str, Any]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, IDConv)
        or (
            isinstance(module, nn.Conv2d)
            and module.groups == module.in_channels > 1
            and module.weight.shape[-1] == module.weight.shape[-2] > 1
        )
    ]
