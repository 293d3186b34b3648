"""What the three depthwise operators demand of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from volution.ops import _checks
from volution.ops._shared.layout import strided


def _check_kernel(name: str, weight: Tensor, map_name: str, map: Tensor) -> None:
    n, c = map.shape[:2]
    _checks.check_rank(name, weight, "B, C, K, K")
    batch, channels, rows, columns = weight.shape
    if rows != columns or rows % 2 == 0:
        raise ValueError(
            f"{name} must be square with an odd side, got K by K = {rows} by {columns}"
        )
    if channels != c or batch not in (1, n):
        raise ValueError(
            f"{name} must have shape (C, 1, K, K) = {(c, 1, rows, rows)}, or (N, C, K, K) = "
            f"{(n, c, rows, rows)} for kernels of each image's own, to fit {map_name} of shape "
            f"{tuple(map.shape)}, got (B, C, K, K) = {tuple(weight.shape)}"
        )


def _check_steps(stride: int, dilation: int, shortcut: bool = False) -> None:
    _checks.check_positive("stride", stride)
    _checks.check_positive("dilation", dilation)
    if shortcut and stride != 1:
        raise ValueError(f"shortcut needs stride 1, so that sizes are equal, got stride={stride}")


def check_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    stride: int,
    dilation: int,
    scale: float,
    gelu: bool,
    shortcut: bool = False,
) -> None:
    """Raise unless these are arguments of the convolution."""
    _checks.check_rank("input", input, "N, C, H, W")
    _checks.check_floating("input", input)
    _checks.check_same_kind("weight", weight, "input", input)
    _check_kernel("weight", weight, "input", input)
    _check_steps(stride, dilation, shortcut)
    n, c, height, width = input.shape
    _checks.check_sides("input", height, width)
    if bias is not None:
        _checks.check_rank("bias", bias, "B, C")
        _checks.check_same_kind("bias", bias, "input", input)
        if bias.shape[1] != c or bias.shape[0] not in (1, n):
            raise ValueError(
                f"bias must have shape (C,) = {(c,)} or (N, C) = {(n, c)}, got (B, C) = "
                f"{tuple(bias.shape)}"
            )
    if gate is not None:
        _checks.check_rank("gate", gate, "N, C_g, h, w")
        _checks.check_same_kind("gate", gate, "input", input)
        h, w = strided(height, stride), strided(width, stride)
        if not 1 <= gate.shape[1] <= max(1, c):
            raise ValueError(f"gate must have 1 to C = {c} channels, got {gate.shape[1]}")
        expected = (n, gate.shape[1], h, w)
        _checks.check_size("gate", gate, expected, "N, C_g, ceil(H/stride), ceil(W/stride)")


def check_input(
    grad: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: int,
    dilation: int,
    shortcut: bool = False,
) -> None:
    """Raise unless these are arguments of its transpose."""
    _checks.check_rank("grad", grad, "N, C, h, w")
    _checks.check_floating("grad", grad)
    _checks.check_same_kind("weight", weight, "grad", grad)
    _check_kernel("weight", weight, "grad", grad)
    _check_steps(stride, dilation, shortcut)
    if len(size) != 2:
        raise ValueError(f"size must be (height, width), got {tuple(size)}")
    _checks.check_sides("size", *size)
    expected = (*grad.shape[:2], strided(size[0], stride), strided(size[1], stride))
    _checks.check_size("grad", grad, expected, "N, C, ceil(size/stride)")


def check_weight(
    grad: Tensor, input: Tensor, batch: int, kernel_size: int, stride: int, dilation: int
) -> None:
    """Raise unless these are arguments of the gradient of its kernels."""
    _checks.check_rank("grad", grad, "N, C, h, w")
    _checks.check_rank("input", input, "N, C, H, W")
    _checks.check_floating("grad", grad)
    _checks.check_same_kind("input", input, "grad", grad)
    _checks.check_positive("kernel_size", kernel_size, odd=True)
    _check_steps(stride, dilation)
    n, c, height, width = input.shape
    _checks.check_sides("input", height, width)
    if batch not in (1, n):
        raise ValueError(f"batch must be 1 or the batch size of input, {n}, got {batch}")
    expected = (n, c, strided(height, stride), strided(width, stride))
    _checks.check_size("grad", grad, expected, "N, C, ceil(H/stride), ceil(W/stride)")
