"""What can be put in a place: the operators with their settings, or any function."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from volution.ops import LKA, DepthwiseConv2d, GnConv, Involution2d

__all__ = ["Place", "Replacement", "gnconv", "involution", "lka", "resolve"]


@dataclass(frozen=True)
class Place:
    """What a replacement has to fit.

    Args:
        module: What stands there now: a convolution, or the attention of a plain ViT.
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        stride: Step between output pixels; the output side is ``ceil(side / stride)``.
        dilation: Step between kernel taps of the convolution.
        device: Where its parameters live.
        dtype: What they are.
    """

    module: nn.Module
    in_channels: int
    out_channels: int
    stride: int
    dilation: int
    device: torch.device
    dtype: torch.dtype

    @property
    def where(self) -> dict[str, Any]:
        """Device and dtype, as the constructors of layers take them."""
        return {"device": self.device, "dtype": self.dtype}


@dataclass(frozen=True)
class Replacement:
    """What to put in the place of a layer; made by :func:`xvolution` and its like.

    Args:
        name: What it is called in messages.
        build: From the place to the new layer, and whether the layer computes what the old one
            did. None keeps what stands there; a ValueError says why it must be kept.
        custom: Whether the user wrote ``build``; its errors are then not reasons to keep a layer.
    """

    name: str
    build: Callable[[Place], tuple[nn.Module, bool] | None]
    custom: bool = False


def involution(
    *,
    kernel_size: int = 7,
    groups: int | None = None,
    group_channels: int = 16,
    reduction: int = 4,
    norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    act_layer: Callable[[], nn.Module] = nn.ReLU,
) -> Replacement:
    """Put :class:`volution.ops.Involution2d` in a place; the settings are its own.

    Stride and dilation are those of the convolution. Where it changes the number of channels, a
    1 by 1 convolution comes first.

    Example:
        >>> from torch import nn
        >>> import volution
        >>> net = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1))
        >>> net = volution.convert(net, "0", involution(kernel_size=5), quiet=True)
        >>> net[0].proj
        Conv2d(16, 32, kernel_size=(1, 1), stride=(1, 1))
        >>> net[0].involution.extra_repr()
        '32, kernel_size=5, stride=2, dilation=1, groups=2'
    """

    def build(place: Place) -> tuple[nn.Module, bool]:
        layer = Involution2d(
            place.out_channels,
            kernel_size,
            place.stride,
            place.dilation,
            groups,
            group_channels,
            reduction,
            norm_layer,
            act_layer,
            **place.where,
        )
        return _after(_fronts(place, pools=False), "involution", layer), False

    return Replacement("involution", build)


def gnconv(
    *,
    order: int = 5,
    proj_out: bool = True,
    filter: str | Callable[[int], nn.Module] = "depthwise",
    kernel_size: int = 7,
    filter_size: tuple[int, int] = (14, 8),
    scale: float = 1.0,
) -> Replacement:
    """Put :class:`volution.ops.GnConv` in a place; the settings are its own.

    It takes any width that ``2 ** (order - 1)`` divides. Where the convolution has a stride, an
    average pooling comes first. A dilated convolution is kept.

    Example:
        >>> gnconv(order=3).name
        'gnconv'
    """

    def build(place: Place) -> tuple[nn.Module, bool]:
        _undilated("gnconv", place)
        layer = GnConv(
            place.in_channels,
            order,
            out_dim=place.out_channels,
            proj_out=proj_out,
            filter=filter,
            kernel_size=kernel_size,
            filter_size=filter_size,
            scale=scale,
            **place.where,
        )
        return _after(_fronts(place, projects=False), "gnconv", layer), False

    return Replacement("gnconv", build)


def lka(*, kernel_size: int = 21, dilation: int = 3) -> Replacement:
    """Put :class:`volution.ops.LKA` in a place; the settings are its own.

    Where the convolution has a stride, an average pooling comes first; where it changes the
    number of channels, a 1 by 1 convolution. A dilated convolution is kept.

    LKA multiplies its input, pixel by pixel, with something computed from it, so the only
    convolutions it can equal are those that scale each channel and do nothing else: depthwise,
    no bias, zero off the centre. Theirs is the one function that is carried over, exactly: the
    gate starts as that constant. Elsewhere the layer starts anew.

    Example:
        >>> lka(kernel_size=35, dilation=5).name
        'lka'
    """

    def build(place: Place) -> tuple[nn.Module, bool]:
        _undilated("lka", place)
        layer = LKA(place.out_channels, kernel_size, dilation, **place.where)
        carried = _carry_scaling(place, layer)
        return _after(_fronts(place), "lka", layer), carried

    return Replacement("lka", build)


def resolve(to: object) -> Replacement:
    """Return the replacement that ``to`` stands for.

    Raises:
        TypeError: If it is not one, nor a class or function that makes one.
    """
    if isinstance(to, Replacement):
        return to
    for layer, make in _OPERATORS.items():
        if to is layer or to is make:
            return make()
    if callable(to):
        return _custom(to)
    known = ", ".join(layer.__name__ for layer in _OPERATORS)
    raise TypeError(
        f"to must be one of {known}, what volution.convert.{involution.__name__}(...) and its "
        f"like return, or a function from the old layer to the new one, got {to!r}"
    )


def _custom(function: Callable[..., Any]) -> Replacement:
    name = getattr(function, "__name__", type(function).__name__)

    def build(place: Place) -> tuple[nn.Module, bool] | None:
        layer = function(place.module)
        if layer is None or layer is place.module:
            return None
        if not isinstance(layer, nn.Module):
            raise TypeError(
                f"{name} must return a torch.nn.Module, or None to keep the layer, got "
                f"{type(layer).__name__}"
            )
        return layer, False

    return Replacement(name, build, custom=True)


def _undilated(name: str, place: Place) -> None:
    if place.dilation != 1:
        raise ValueError(f"{name} has no dilation to match the convolution's {place.dilation}")


def _fronts(place: Place, *, pools: bool = True, projects: bool = True) -> dict[str, nn.Module]:
    """Return what does the part of the convolution's work that the operator does not do."""
    fronts: dict[str, nn.Module] = {}
    if pools and place.stride > 1:
        # ceil_mode: a padded convolution has ceil(H / stride) rows.
        fronts["pool"] = nn.AvgPool2d(
            place.stride, place.stride, ceil_mode=True, count_include_pad=False
        )
    if projects and place.in_channels != place.out_channels:
        fronts["proj"] = nn.Conv2d(place.in_channels, place.out_channels, 1, **place.where)
    return fronts


def _after(fronts: dict[str, nn.Module], name: str, layer: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(**fronts, **{name: layer})) if fronts else layer


@torch.no_grad()
def _carry_scaling(place: Place, layer: LKA) -> bool:
    """Make an LKA compute what a convolution does that only scales each channel; say if it is."""
    conv = place.module
    plain = isinstance(conv, DepthwiseConv2d) or type(conv) is nn.Conv2d
    if not plain or not isinstance(conv, nn.Conv2d) or conv.weight.is_meta:
        return False
    depthwise = conv.groups == conv.in_channels == conv.out_channels and place.stride == 1
    if not depthwise or (conv.bias is not None and conv.bias.any()):
        return False
    centre = conv.weight.shape[-1] // 2
    scaling = conv.weight[:, 0, centre, centre]
    if conv.weight.count_nonzero() != scaling.count_nonzero():
        return False
    assert layer.conv1.bias is not None
    layer.conv1.weight.zero_()
    layer.conv1.bias.copy_(scaling)
    return True


_OPERATORS: dict[type[nn.Module], Callable[[], Replacement]] = {
    Involution2d: involution,
    GnConv: gnconv,
    LKA: lka,
}
