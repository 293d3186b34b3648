"""Argument checks with one message style: what was expected, what came, what to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_rank(name: str, tensor: Tensor, layout: str) -> None:
    """Raise unless ``tensor`` has a dimension for each name in ``layout``, say ``"N, C, H, W"``."""
    rank = layout.count(",") + 1
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dim() != rank:
        raise ValueError(
            f"{name} must have {rank} dimensions ({layout}), got {tensor.dim()} with shape "
            f"{tuple(tensor.shape)}"
        )


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise unless ``tensor`` holds real floating-point numbers."""
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name} must be floating point, got {tensor.dtype}; convert it with {name}.float()"
        )


def check_same_kind(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless both tensors share dtype and device."""
    if tensor.dtype != other.dtype:
        raise TypeError(
            f"{name} must have the dtype of {other_name}, {other.dtype}, got {tensor.dtype}; "
            f"convert one of them, or run under torch.autocast"
        )
    if tensor.device != other.device:
        raise TypeError(
            f"{name} must be on the device of {other_name}, {other.device}, got {tensor.device}"
        )


def check_positive(name: str, value: int, *, odd: bool = False) -> None:
    """Raise unless ``value`` is a positive integer, odd if asked."""
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1 or (odd and value % 2 == 0):
        kind = "a positive odd integer" if odd else "an integer of at least 1"
        raise ValueError(f"{name} must be {kind}, got {value}")


def check_divides(name: str, value: int, of_name: str, of: int) -> None:
    """Raise unless ``value`` divides ``of``."""
    if value < 1 or of % value:
        raise ValueError(f"{name} must divide {of_name}, got {name}={value} and {of_name}={of}")


def check_size(name: str, tensor: Tensor, expected: Sequence[int], layout: str) -> None:
    """Raise unless the shape of ``tensor`` is ``expected``."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(
            f"{name} must have shape ({layout}) = {tuple(expected)}, got {tuple(tensor.shape)}"
        )


def check_one_of(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")


def check_sides(name: str, height: int, width: int) -> None:
    """Raise unless an image has a pixel."""
    if height < 1 or width < 1:
        raise ValueError(f"{name} must be at least 1 pixel high and wide, got {(height, width)}")
