"""The operators with their settings, as what can be put in a place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from volution.convert.carrying import carry_scaling, plain
from volution.convert.replacement import Place, Replacement, after, check_undilated, custom, fronts
from volution.ops import LKA, DMixer, GnConv, Involution2d, Xvolution2d

__all__ = ["dmixer", "gnconv", "involution", "lka", "resolve", "xvolution"]


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
        return after(fronts(place, pools=False), "involution", layer), False

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
        check_undilated("gnconv", place)
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
        return after(fronts(place, projects=False), "gnconv", layer), False

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
        check_undilated("lka", place)
        layer = LKA(place.out_channels, kernel_size, dilation, **place.where)
        carried = carry_scaling(place, layer)
        return after(fronts(place), "lka", layer), carried

    return Replacement("lka", build)


def dmixer(
    *,
    kernel_size: int = 7,
    num_groups: int = 2,
    num_heads: int = 1,
    sr_ratio: int = 1,
    reduction_ratio: int = 4,
    attn_drop: float = 0.0,
) -> Replacement:
    """Put :class:`volution.ops.DMixer` in a place; the settings are its own.

    Where the convolution has a stride, an average pooling comes first; where it changes the
    number of channels, a 1 by 1 convolution. A dilated convolution is kept. There is no table of
    positions. In training its norms need two images or more, as in TransXNet.

    Its attention compares every pixel with the map shrunk by ``sr_ratio``: in early stages take
    8 or so.

    Example:
        >>> dmixer(num_heads=4, sr_ratio=2).name
        'dmixer'
    """

    def build(place: Place) -> tuple[nn.Module, bool]:
        check_undilated("dmixer", place)
        layer = DMixer(
            place.out_channels,
            kernel_size,
            num_groups,
            num_heads,
            sr_ratio,
            reduction_ratio,
            attn_drop,
            **place.where,
        )
        return after(fronts(place), "dmixer", layer), False

    return Replacement("dmixer", build)


def xvolution(
    *,
    heads: int | None = None,
    attention: str | Callable[..., nn.Module] = "pssa",
    branches: str = "both",
    attention_kernel_size: int | None = None,
    attention_dilation: int | None = None,
    offsets: Sequence[tuple[int, int]] | Sequence[int] | None = None,
    normalize: str | None = None,
    scale: float | None = None,
    qk_channels: int | None = None,
    kernel_size: int = 3,
) -> Replacement:
    """Put :class:`volution.ops.Xvolution2d` in a place; the settings are its own.

    The convolution stays as one of the two branches, with all its arguments and weights, and the
    attention starts switched off: in evaluation the network computes what it did. A BatchNorm
    after the convolution stays where it is. Two exceptions start anew: ``branches="attention"``,
    and the place of a ViT's attention, where there is no convolution to keep; its side is then
    ``kernel_size``.

    A convolution that changes its weights on the way, by standardisation for example, is kept.

    Example:
        >>> import torch, volution
        >>> net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)).eval()
        >>> x = torch.randn(1, 8, 6, 6)
        >>> new = volution.convert(net, "0", xvolution(heads=4), quiet=True)
        >>> torch.allclose(new(x), net(x), atol=1e-6)
        True
    """
    settings: dict[str, Any] = {
        "heads": heads,
        "attention": attention,
        "branches": branches,
        "attention_kernel_size": attention_kernel_size,
        "attention_dilation": attention_dilation,
        "offsets": offsets,
        "normalize": normalize,
        "scale": scale,
        "qk_channels": qk_channels,
    }

    def build(place: Place) -> tuple[nn.Module, bool]:
        conv, side, groups = place.module, kernel_size, 1
        if isinstance(conv, nn.Conv2d):
            if branches != "attention":
                return Xvolution2d.from_conv(plain(conv), **settings), True
            side, groups = conv.kernel_size[0], conv.groups
        layer = Xvolution2d(
            place.in_channels,
            place.out_channels,
            side,
            place.stride,
            dilation=place.dilation,
            groups=groups,
            **settings,
            **place.where,
        )
        return layer, False

    return Replacement("xvolution", build)


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
        return custom(to)
    known = ", ".join(layer.__name__ for layer in _OPERATORS)
    raise TypeError(
        f"to must be one of {known}, what volution.convert.{involution.__name__}(...) and its "
        f"like return, or a function from the old layer to the new one, got {to!r}"
    )


_OPERATORS: dict[type[nn.Module], Callable[[], Replacement]] = {
    Involution2d: involution,
    GnConv: gnconv,
    LKA: lka,
    DMixer: dmixer,
    Xvolution2d: xvolution,
}
