"""The arguments of an X-volution, checked and completed once for both of its forms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from volution.ops import _checks
from volution.ops.xvolution.op import Offsets, flat_offsets

Attention = str | Callable[..., nn.Module]
Pair = int | tuple[int, int]

KINDS = ("pssa", "involution", "sa")
BRANCHES = ("both", "conv", "attention")


@dataclass(frozen=True)
class Settings:
    """What both forms of an X-volution are built from; sides and steps as single numbers."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    dilation: int
    groups: int
    bias: bool
    heads: int | None
    attention: Attention
    branches: str
    attention_kernel_size: int
    attention_dilation: int
    offsets: tuple[int, ...] | None
    normalize: str
    scale: float | None
    qk_channels: int | None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the layer that these are the settings of."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.offsets is not None:
            found["attention_kernel_size"] = None
        return found

    @property
    def depthwise(self) -> bool:
        """Whether every channel is convolved on its own, and none is made twice."""
        return self.groups == self.in_channels == self.out_channels

    @property
    def padding(self) -> int:
        """Pixels that the convolution adds on each side."""
        return self.dilation * (self.kernel_size - 1) // 2


def settings_of(
    in_channels: int,
    out_channels: int,
    kernel_size: Pair,
    stride: Pair,
    padding: str | Pair,
    dilation: Pair,
    groups: int,
    bias: bool,
    padding_mode: str,
    heads: int | None,
    attention: Attention,
    branches: str,
    attention_kernel_size: int | None,
    attention_dilation: int | None,
    offsets: Offsets | None,
    normalize: str | None,
    scale: float | None,
    qk_channels: int | None,
) -> Settings:
    """Check the arguments of :class:`Xvolution2d` against each other, and complete them.

    Raises:
        ValueError: If the layer cannot honour one of them.
    """
    side, spread = _square("kernel_size", kernel_size), _square("dilation", dilation)
    near = side if attention_kernel_size is None else attention_kernel_size
    made = Settings(
        in_channels,
        out_channels,
        side,
        _square("stride", stride),
        spread,
        groups,
        bias,
        heads,
        attention,
        branches,
        near,
        spread if attention_dilation is None else attention_dilation,
        None if offsets is None else flat_offsets(offsets, near),
        normalize or ("softmax" if attention == "sa" else "none"),
        scale,
        qk_channels,
    )
    _check_numbers(made)
    _check_padding(padding, padding_mode, made.padding)
    _check_attention(attention, offsets, attention_kernel_size, normalize, scale, qk_channels)
    return made


def _check_numbers(made: Settings) -> None:
    for name in ("in_channels", "out_channels", "stride", "dilation", "groups"):
        _checks.check_positive(name, getattr(made, name))
    _checks.check_positive("kernel_size", made.kernel_size, odd=True)
    _checks.check_positive("attention_kernel_size", made.attention_kernel_size, odd=True)
    _checks.check_positive("attention_dilation", made.attention_dilation)
    _checks.check_divides("groups", made.groups, "in_channels", made.in_channels)
    _checks.check_divides("groups", made.groups, "out_channels", made.out_channels)
    _checks.check_one_of("branches", made.branches, BRANCHES)
    if made.heads is not None:
        _checks.check_positive("heads", made.heads)
        _checks.check_divides("heads", made.heads, "out_channels", made.out_channels)
    if made.qk_channels is not None:
        _checks.check_positive("qk_channels", made.qk_channels)
        _checks.check_divides("heads", made.heads or 1, "qk_channels", made.qk_channels)


def _square(name: str, value: Pair) -> int:
    if isinstance(value, int):
        return value
    if len(value) != 2 or value[0] != value[1]:
        raise ValueError(
            f"{name} must be the same in both directions, got {tuple(value)}; keep the plain "
            f"convolution there"
        )
    return value[0]


def _check_padding(padding: str | Pair, padding_mode: str, needed: int) -> None:
    if padding_mode != "zeros":
        raise ValueError(
            f"padding_mode must be 'zeros', got {padding_mode!r}: attention has no pixels outside "
            f"the image to look at, so convolution and attention would not fold into one"
        )
    if isinstance(padding, str):
        given = {"same": (needed, needed), "valid": (0, 0)}.get(padding)
    else:
        given = (padding, padding) if isinstance(padding, int) else padding
    if given is None or tuple(given) != (needed, needed):
        raise ValueError(
            f"padding must be 'same' or dilation * (kernel_size - 1) // 2 = {needed} on every "
            f"side, got {padding!r}"
        )


def _check_attention(
    attention: Attention,
    offsets: Offsets | None,
    kernel_size: int | None,
    normalize: str | None,
    scale: float | None,
    qk_channels: int | None,
) -> None:
    """Raise for settings that this kind of attention does not know, or would ignore."""
    if not callable(attention):
        _checks.check_one_of("attention", attention, KINDS)
    if normalize is not None:
        _checks.check_one_of("normalize", normalize, ("none", "softmax"))
    if offsets is not None and kernel_size is not None:
        raise ValueError(
            f"give attention_kernel_size or offsets, not both, got {kernel_size} and {offsets}"
        )
    if attention == "pssa":
        return
    unused: dict[str, object] = {"offsets": offsets}
    if attention != "sa":
        unused |= {"scale": scale, "qk_channels": qk_channels}
        unused |= {"normalize": None if normalize == "none" else normalize}
    for name, value in unused.items():
        if value is not None:
            raise ValueError(
                f"{name} must be left out with attention={attention!r}, which does not use it, "
                f"got {value!r}"
            )
