"""Which implementations and devices the operators are tested on, and operands laid out to hurt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from volution.ops import _library, _native

CUDA = torch.cuda.is_available()
DEVICES = ["cpu", *(["cuda"] if CUDA else [])]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# (device, implementation); without a GPU Triton runs in its interpreter, on CPU tensors.
IMPLEMENTATIONS = [
    ("cpu", "reference"),
    ("cpu", "native"),
    ("cuda" if CUDA else "cpu", "triton"),
    *([("cuda", "reference")] if CUDA else []),
]
INTERPRETED = ("cpu", "triton")
LAYOUTS = ["contiguous", "channels_last", "sliced", "sliced_channels_last", "transposed"]


def identify(value: Any) -> str | None:
    """Name a parameter in the log of the tests."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, tuple) and value and all(isinstance(part, str) for part in value):
        return "-".join(value)
    return getattr(value, "id", None)


def force(implementation: str) -> Any:
    """Force an implementation, or skip the test if it was not built."""
    if implementation == "native" and _native.library is None:
        pytest.skip(_native.reason)
    if implementation == "triton":
        pytest.importorskip("triton", reason="triton is not installed")
    return _library.forced_implementation(implementation)


def supports(implementation: str, dtype: torch.dtype) -> bool:
    """Return whether an implementation lists the dtype."""
    return implementation != "native" or dtype in _native.DTYPES


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """Return an equal tensor with other strides, cut out of NaN where it is a slice."""
    # Maps have their channels second, kernels their groups and taps; a bias has nothing to move.
    rank = tensor.dim()
    inner = (0, 2, 3, 1) if rank == 4 else (0, rank - 2, rank - 1)
    inner = tuple(dict.fromkeys(axis for axis in inner if axis >= 0))
    inner += tuple(axis for axis in range(rank) if axis not in inner)
    order = {"channels_last": inner, "sliced_channels_last": inner}.get(layout, tuple(range(rank)))
    if layout == "transposed" and rank > 1:
        order = (*range(rank - 2), rank - 1, rank - 2)
    margin = 3 if layout.startswith("sliced") else 0
    shape = [tensor.shape[axis] + 2 * margin for axis in order]
    buffer = torch.full(shape, torch.nan, dtype=tensor.dtype, device=tensor.device)
    back = [order.index(axis) for axis in range(rank)]
    view = buffer.permute(back)
    for axis, size in enumerate(tensor.shape):
        view = view.narrow(axis, margin, size)
    return view.copy_(tensor)


def check_results(
    results: Sequence[Tensor],
    wanted: Sequence[Tensor],
    bounds: Sequence[Tensor],
    names: Sequence[str],
) -> None:
    """Assert that output and gradients stay within their bounds; the message names them."""
    for name, result, want, bound in zip(names, results, wanted, bounds, strict=False):
        assert result.shape == want.shape, f"{name}: shape {result.shape}, not {want.shape}"
        excess = (result.double().cpu() - want).abs() - bound
        # A NaN is no number below zero, so it fails too.
        assert bool((excess <= 0).all()), (
            f"{name}: beyond its bound by {excess.max():.1e} of a largest value of "
            f"{want.abs().max():.1e}, {int((~(excess <= 0)).sum())} of {excess.numel()} elements"
        )
