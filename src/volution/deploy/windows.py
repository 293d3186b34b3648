"""The neighbourhood operators in few nodes, for exporters.

The reference walks over the taps of a window, which leaves some 400 nodes for each 7 by 7
involution: exporting a RedNet-26 then takes many minutes and gives a graph nobody can read. Cut
out as columns first, the same sum takes ten nodes. It needs more memory, hence not in ops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor
from torch.nn import functional as F

from volution.ops import _library, reference_ops

__all__ = ["gather_windows", "window_ops"]


@contextmanager
def window_ops() -> Iterator[None]:
    """Run every operator as plain PyTorch, and ``gather`` over windows in few nodes."""
    operator = _library._OPERATORS["gather"]
    reference = operator.reference

    def gather(input: Tensor, kernel: Tensor, offsets: Sequence[int], stride: int) -> Tensor:
        if _window(offsets) is None:
            return reference(input, kernel, offsets, stride)
        return gather_windows(input, kernel, offsets, stride)

    operator.reference = gather
    try:
        with reference_ops():
            yield
    finally:
        operator.reference = reference


def gather_windows(input: Tensor, kernel: Tensor, offsets: Sequence[int], stride: int) -> Tensor:
    """Compute :func:`volution.ops.gather` for the taps of a centred square window.

    Raises:
        ValueError: If the offsets are others.
    """
    window = _window(offsets)
    if window is None:
        raise ValueError("offsets must be those of volution.ops.window_offsets")
    size, dilation = window
    n, c = input.shape[:2]
    groups, h, w = kernel.shape[1], kernel.shape[3], kernel.shape[4]
    columns = F.unfold(input, size, dilation, size // 2 * dilation, stride)  # N C*D h*w
    columns = columns.reshape(n, groups, c // groups, size * size, h, w)
    return (columns * kernel.unsqueeze(2)).sum(3).reshape(n, c, h, w)


def _window(offsets: Sequence[int]) -> tuple[int, int] | None:
    """Return side and dilation of the window whose taps these are, or None."""
    size = round((len(offsets) // 2) ** 0.5)
    reach = -min(0, *offsets)
    dilation = max(1, reach // max(1, size // 2))
    steps = [(i - size // 2) * dilation for i in range(size)]
    taps = [value for row in steps for column in steps for value in (row, column)]
    return (size, dilation) if size % 2 and list(offsets) == taps else None
