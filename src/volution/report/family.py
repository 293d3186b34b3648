"""Pictures of what a network's own operators do, whichever of them it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor, nn

from volution import analysis
from volution.ops import LKA, Involution2d, Xvolution2d
from volution.report.page import Page

__all__ = ["add_involution_kernels", "add_kernels", "add_receptive_field"]

# Row and column, as shares of the image: the middle, and nearer to the border.
_PIXELS = ((0.5, 0.5), (0.72, 0.16))


def add_kernels(page: Page, model: nn.Module, pixels: Tensor, image: Image.Image) -> None:
    """Add a section on the spatial operator of a network, if it has one that can be shown.

    Args:
        page: The page.
        model: The network, in evaluation mode, on the CPU.
        pixels: An image as it takes it, ``(C, H, W)``.
        image: The same to look at.
    """
    modules = list(model.named_modules())

    def first(kind: type[Any]) -> tuple[str, Any] | None:
        return next(((name, m) for name, m in modules if isinstance(m, kind)), None)

    if first(Involution2d) is not None:
        add_involution_kernels(page, model, pixels, image, _PIXELS)
        return
    if (found := first(LKA)) is not None:
        _add_large_kernel(page, *found)
    elif (found := first(Xvolution2d)) is not None:
        _add_shifts(page, *found)
    elif analysis.has_filters(model):
        _add_filters(page, model, pixels)


def add_involution_kernels(
    page: Page,
    model: nn.Module,
    pixels: Tensor,
    image: Image.Image,
    places: tuple[tuple[float, float], ...],
) -> None:
    """Add a section: the kernels that an involution makes for two pixels."""
    maps = analysis.kernel_maps(model, pixels, places)
    size = maps.kernels.shape[-1]
    page.section(
        "What involution does",
        f"A convolution would use one kernel everywhere. An involution makes one from each "
        f"pixel's own feature: here the {size} by {size} kernels that {maps.layer} makes for "
        f"pixel A and for pixel B (dashed: the neighbours they reach). Purple adds a neighbour, "
        f"orange subtracts it. The channels of a group share a kernel.",
    ).picture(
        analysis.kernels_picture(maps, image),
        "An image with two marked pixels, and heat maps of the kernels of both.",
    )


def _add_large_kernel(page: Page, name: str, layer: LKA) -> None:
    page.section(
        "What large-kernel attention does",
        f"Two small depthwise convolutions, one of them dilated, stand for one large kernel: here "
        f"that of {name}, averaged over its channels, and how far both differ near the border.",
    ).picture(
        analysis.large_kernel_picture(layer),
        "Heat maps: the equivalent kernel, and the relative difference at every pixel.",
    )


def _add_shifts(page: Page, name: str, layer: Xvolution2d) -> None:
    page.section(
        "What X-volution does",
        f"{name} is one of the layers that add pixel shift self-attention to a convolution. The "
        f"picture shows the operator itself, not what was learned: the map is shifted, multiplied "
        f"with itself and summed; stacked layers see further.",
    ).picture(
        analysis.shift_picture(),
        "Maps of one shift and of the sum over all, and the reach of one to eight layers.",
    )


def _add_filters(page: Page, model: nn.Module, pixels: Tensor) -> None:
    filters = analysis.widest_filters(model, pixels)
    size = filters.kernels.shape[-1]
    how = (
        "mixes for each image from a few learned ones, here for one image"
        if filters.made_for_image
        else "has learned"
    )
    page.section(
        "The widest filters",
        f"The {size} by {size} kernels that {filters.layer} {how}: their mean size, and those of "
        f"single channels. Purple adds a neighbour, orange subtracts it.",
    ).picture(
        analysis.filters_picture(filters),
        "Heat maps of the kernels of a depthwise convolution.",
    )


def add_receptive_field(page: Page, model: nn.Module, pixels: Tensor, image: Image.Image) -> None:
    """Add a section: what the middle of the last map depends on; nothing if there is no map.

    Args:
        page: The page.
        model: The network.
        pixels: Images as it takes them, ``(N, C, H, W)``.
        image: One of them to look at.
    """
    field = _or_none(lambda: analysis.effective_receptive_field(model, pixels))
    if field is None:
        return
    page.section(
        "What it sees",
        f"How much each pixel changes the middle of the last feature map, on average over "
        f"{len(pixels)} images.",
    ).picture(
        analysis.receptive_field_picture(field, image),
        "Heat map of the effective receptive field, and an image of the same size.",
    )


def _or_none(measure: Callable[[], Tensor]) -> Tensor | None:
    try:
        return measure()
    except ValueError:  # the features are not maps, as those of transformers
        return None
