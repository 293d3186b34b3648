"""A place in a network, what can be put there, and how to make it fit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Place",
    "Replacement",
    "after",
    "check_shape",
    "check_undilated",
    "custom",
    "fronts",
    "settle",
]

# Small, odd and not square: whoever mistakes a side or a rounding does not pass.
_TRIAL_SIZE = (15, 14)


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


def settle(layer: nn.Module, place: Place) -> None:
    """Give a new layer device, dtype, memory format and mode of the old one."""
    layer.to(place.device, place.dtype)
    layer.train(place.module.training)
    weight = getattr(place.module, "weight", None)
    # Weights of a single channel or pixel are in both formats, and ask for none.
    if isinstance(weight, Tensor) and weight.dim() == 4 and not weight.is_contiguous():
        layer.to(memory_format=torch.channels_last)


@torch.no_grad()
def check_shape(layer: nn.Module, place: Place, old: str) -> None:
    """Run a new layer once, in evaluation, and raise unless its output has the right shape."""
    height, width = _TRIAL_SIZE
    trial = torch.zeros(1, place.in_channels, height, width, **place.where)
    rows, columns = (-(-side // place.stride) for side in (height, width))
    expected = 1, place.out_channels, rows, columns
    modes = {module: module.training for module in layer.modules()}
    layer.eval()
    try:
        got = layer(trial)
    except (RuntimeError, ValueError, TypeError) as error:
        given = tuple(trial.shape)
        raise ValueError(f"must take maps of shape {given}, and fails: {error}") from error
    finally:
        for module, training in modes.items():
            module.training = training
    shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
    if shape != expected:
        raise ValueError(
            f"must turn {tuple(trial.shape)} into {expected}, as {old} does, got {shape}"
        )
