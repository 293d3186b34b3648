"""A place in a network, what can be put there, and how to make it fit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Place", "Replacement", "after", "check_undilated", "custom", "fronts"]


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


def custom(function: Callable[..., Any]) -> Replacement:
    """Return the replacement that a user's function from the old layer to the new one makes."""
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


def check_undilated(name: str, place: Place) -> None:
    """Raise if the place has a dilation; for operators that have none."""
    if place.dilation != 1:
        raise ValueError(f"{name} has no dilation to match the convolution's {place.dilation}")


def fronts(place: Place, *, pools: bool = True, projects: bool = True) -> dict[str, nn.Module]:
    """Return what does the part of the convolution's work that the operator does not do."""
    found: dict[str, nn.Module] = {}
    if pools and place.stride > 1:
        # ceil_mode: a padded convolution has ceil(H / stride) rows.
        found["pool"] = nn.AvgPool2d(place.stride, place.stride, ceil_mode=True)
    if projects and place.in_channels != place.out_channels:
        found["proj"] = nn.Conv2d(place.in_channels, place.out_channels, 1, **place.where)
    return found


def after(front: dict[str, nn.Module], name: str, layer: nn.Module) -> nn.Module:
    """Return the layer with what comes first before it."""
    return nn.Sequential(OrderedDict(**front, **{name: layer})) if front else layer
