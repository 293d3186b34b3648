# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# Triton's functions are a language of their own; their arguments have no Python types.
"""Gather, scatter and correlate as Triton kernels; the only file that imports Triton.

Legend: N batch, C channels, G groups, D taps, H and W full size, h and w size after the stride.

One program computes a rectangle of pixels for a few groups, a 3-D tile of (pixels, groups,
channels of a group). It walks over the taps and keeps the sums in registers, so device memory
sees every operand about once and the neighbours come from the L1 and L2 caches. The innermost
axis of the tile is the one adjacent in memory: channels of a channels-last map, pixels of a
contiguous one.

- Square windows run with constant offsets. Any other list of taps is read from a small table.
- Scatter is a gather with the opposite offsets: every result is the work of one program, without
  atomic additions, so it is deterministic. At stride s the full map falls into s * s classes of
  pixels, by the remainders of their coordinates; all pixels of a class receive the same taps.
- Sums are kept in float32, in float64 for float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from volution.ops._shared.layout import empty_kernel, empty_map
from volution.ops._shared.neighbourhood.triton_plan import Plan
from volution.ops._shared.tiles import on_device_of


@triton.jit
def _pixels(values, FAST: tl.constexpr):
    """Shape a vector of pixels for the tile; FAST says that channels are adjacent in memory."""
    return values[:, None, None] if FAST else values[None, None, :]


@triton.jit
def _groups(values, FAST: tl.constexpr):
    """Shape a vector of groups for the tile."""
    return values[None, :, None] if FAST else values[:, None, None]


@triton.jit
def _channels(values, FAST: tl.constexpr):
    """Shape a vector along the last axis of the problem, channels or taps, for the tile."""
    return values[None, None, :] if FAST else values[None, :, None]


@triton.jit
def _plane(pixels, groups, FAST: tl.constexpr):
    """Add a vector of pixels and one of groups: a tile without the channels."""
    return pixels[:, None] + groups[None, :] if FAST else pixels[None, :] + groups[:, None]


@triton.jit
def _spread(plane, FAST: tl.constexpr):
    """Give a plane of (pixels, groups) the axis of channels."""
    return plane[:, :, None] if FAST else plane[:, None, :]


@triton.jit
def _place(
    program, groups, tiles_w, tiles,
    CG: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BG: tl.constexpr, BC: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Return the image, groups, channel block, rows and columns of a program.

    Group and channel blocks vary fastest, so that neighbouring programs read the same pixels.
    """
    channel_blocks: tl.constexpr = (CG + BC - 1) // BC
    blocks = tl.cdiv(groups, BG) * channel_blocks
    block = program % blocks
    tile = (program // blocks) % tiles
    # Always 64 bits: a batch can be larger than 2**31 elements where an image is not.
    n = (program // blocks // tiles).to(tl.int64)
    pixel = tl.arange(0, BH * BW)
    i = tile // tiles_w * BH + pixel // BW
    j = tile % tiles_w * BW + pixel % BW
    g = block // channel_blocks * BG + tl.arange(0, BG)
    if WIDE:
        i, j, g = i.to(tl.int64), j.to(tl.int64), g.to(tl.int64)
    return n, g, block % channel_blocks, i, j


@triton.jit
def _lanes(SIZE: tl.constexpr, WIDE: tl.constexpr):
    """Count from zero, in 64 bits if one image alone is larger than 2**31 elements."""
    return tl.arange(0, SIZE).to(tl.int64) if WIDE else tl.arange(0, SIZE)


@triton.jit
def _inside(row, column, height, width):
    return (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def _entry(table, t):
    """Return tap number, row offset and column offset of an entry of the table."""
    tap = tl.load(table + 3 * t).to(tl.int64)
    return tap, tl.load(table + 3 * t + 1), tl.load(table + 3 * t + 2)


@triton.jit
def _gather_tap(
    weights, values, row, column, height, width, x_h, x_w, plane_lanes, lanes,
    FAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # Weights are read for taps outside the image too: zero times NaN is NaN, as in the reference.
    weight = tl.load(weights, mask=plane_lanes, other=0).to(ACC)
    here = lanes & _pixels(_inside(row, column, height, width), FAST)
    value = tl.load(values + _pixels(row * x_h + column * x_w, FAST), mask=here, other=0).to(ACC)
    return _spread(weight, FAST) * value


@triton.jit
def _gather_kernel(
    x, k, y, table, taps, groups, height, width, h, w, tiles_w, tiles,
    x_n, x_c, x_h, x_w, k_n, k_g, k_d, k_h, k_w, y_n, y_c, y_h, y_w,
    CG: tl.constexpr, STRIDE: tl.constexpr, WINDOW: tl.constexpr, DILATION: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BG: tl.constexpr, BC: tl.constexpr,
    FAST: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n, g, cb, i, j = _place(tl.program_id(0), groups, tiles_w, tiles, CG, BH, BW, BG, BC, WIDE)
    c = cb * BC + _lanes(BC, WIDE)
    in_map = (i < h) & (j < w)
    lanes = _groups(g < groups, FAST) & _channels(c < CG, FAST) & _pixels(in_map, FAST)
    # A plane has no channels; a sum of two flags is 2 where both hold.
    plane_lanes = _plane(in_map.to(tl.int32), (g < groups).to(tl.int32), FAST) == 2
    values = x + n * x_n + _groups(g * CG * x_c, FAST) + _channels(c * x_c, FAST)
    weights = k + n * k_n + _plane(i * k_h + j * k_w, g * k_g, FAST)
    top, left = i * STRIDE, j * STRIDE
    total = tl.zeros_like(lanes.to(ACC))
    if WINDOW > 0:
        # Rows of the window in a loop, its columns unrolled: enough independent loads at once.
        # The zero from n makes the tap number 64 bits wide.
        for u in range(WINDOW):
            row = top + (u - WINDOW // 2) * DILATION
            for v in tl.static_range(WINDOW):
                column = left + (v - WINDOW // 2) * DILATION
                total += _gather_tap(
                    weights + (n * 0 + u * WINDOW + v) * k_d, values, row, column, height, width,
                    x_h, x_w, plane_lanes, lanes, FAST, ACC,
                )  # fmt: skip
    else:
        for entry in range(taps):
            t, dy, dx = _entry(table, entry)
            total += _gather_tap(
                weights + t * k_d, values, top + dy, left + dx, height, width,
                x_h, x_w, plane_lanes, lanes, FAST, ACC,
            )  # fmt: skip
    results = y + n * y_n + _groups(g * CG * y_c, FAST) + _channels(c * y_c, FAST)
    results += _pixels(i * y_h + j * y_w, FAST)
    tl.store(results, total.to(y.dtype.element_ty), mask=lanes)


@triton.jit
def _scatter_tap(
    weights, values, a, b, h, w, k_h, k_w, x_h, x_w, group_flags, lanes,
    FAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    inside = _inside(a, b, h, w)
    pointers = weights + _plane(a * k_h + b * k_w, group_flags * 0, FAST)
    plane_lanes = _plane(inside.to(tl.int32), group_flags, FAST) == 2
    weight = tl.load(pointers, mask=plane_lanes, other=0).to(ACC)
    here = lanes & _pixels(inside, FAST)
    value = tl.load(values + _pixels(a * x_h + b * x_w, FAST), mask=here, other=0).to(ACC)
    return _spread(weight, FAST) * value


@triton.jit
def _scatter_kernel(
    x, k, y, table, groups, height, width, h, w, tiles_w, tiles,
    x_n, x_c, x_h, x_w, k_n, k_g, k_d, k_h, k_w, y_n, y_c, y_h, y_w,
    CG: tl.constexpr, STRIDE: tl.constexpr, WINDOW: tl.constexpr, DILATION: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BG: tl.constexpr, BC: tl.constexpr,
    FAST: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    CLASSES: tl.constexpr = STRIDE * STRIDE
    residue = tl.program_id(0) % CLASSES
    program = tl.program_id(0) // CLASSES
    n, g, cb, i, j = _place(program, groups, tiles_w, tiles, CG, BH, BW, BG, BC, WIDE)
    c = cb * BC + _lanes(BC, WIDE)
    row, column = i * STRIDE + residue // STRIDE, j * STRIDE + residue % STRIDE
    in_map = (row < height) & (column < width)
    lanes = _groups(g < groups, FAST) & _channels(c < CG, FAST) & _pixels(in_map, FAST)
    group_flags = (g < groups).to(tl.int32)
    values = x + n * x_n + _groups(g * CG * x_c, FAST) + _channels(c * x_c, FAST)
    weights = k + n * k_n + _plane(i * 0, g * k_g, FAST)
    total = tl.zeros_like(lanes.to(ACC))
    if WINDOW > 0:
        for u in range(WINDOW):
            a = i - (u - WINDOW // 2) * DILATION
            for v in tl.static_range(WINDOW):
                b = j - (v - WINDOW // 2) * DILATION
                total += _scatter_tap(
                    weights + (n * 0 + u * WINDOW + v) * k_d, values, a, b, h, w,
                    k_h, k_w, x_h, x_w, group_flags, lanes, FAST, ACC,
                )  # fmt: skip
    else:
        for entry in range(tl.load(table + residue), tl.load(table + residue + 1)):
            t, dy, dx = _entry(table + CLASSES + 1, entry)
            total += _scatter_tap(
                weights + t * k_d, values, i + dy, j + dx, h, w, k_h, k_w, x_h, x_w,
                group_flags, lanes, FAST, ACC,
            )  # fmt: skip
    results = y + n * y_n + _groups(g * CG * y_c, FAST) + _channels(c * y_c, FAST)
    results += _pixels(row * y_h + column * y_w, FAST)
    tl.store(results, total.to(y.dtype.element_ty), mask=lanes)


@triton.jit
def _correlate_tap(
    query, queries, values, q_c, x_c, row, column, height, width, x_h, x_w, plane_lanes,
    CG: tl.constexpr, BC: tl.constexpr, FAST: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Multiply query and input, sum over the channels of each group."""
    c = _lanes(BC, WIDE)
    here = plane_lanes & _pixels(_inside(row, column, height, width), FAST)
    base = values + _pixels(row * x_h + column * x_w, FAST)
    if CG <= BC:
        mask = here & _channels(c < CG, FAST)
        products = query * tl.load(base + _channels(c * x_c, FAST), mask=mask, other=0).to(ACC)
    else:
        products = tl.zeros_like(query)
        for start in range(0, CG, BC):
            lanes = _channels(start + c < CG, FAST)
            pointers = queries + _channels((start + c) * q_c, FAST)
            part = tl.load(pointers, mask=plane_lanes & lanes, other=0).to(ACC)
            pointers = base + _channels((start + c) * x_c, FAST)
            products += part * tl.load(pointers, mask=here & lanes, other=0).to(ACC)
    return tl.sum(products, axis=2 if FAST else 1, keep_dims=True)


@triton.jit
def _correlate_kernel(
    q, x, k, table, taps, groups, height, width, h, w, tiles_w, tiles,
    q_n, q_c, q_h, q_w, x_n, x_c, x_h, x_w, k_n, k_g, k_d, k_h, k_w,
    CG: tl.constexpr, STRIDE: tl.constexpr, WINDOW: tl.constexpr, DILATION: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BG: tl.constexpr, BC: tl.constexpr,
    FAST: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    # One program sums whole groups: as many channels as fit the tile at once, the rest in turn.
    n, g, _, i, j = _place(tl.program_id(0), groups, tiles_w, tiles, BC, BH, BW, BG, BC, WIDE)
    plane_lanes = _groups(g < groups, FAST) & _pixels((i < h) & (j < w), FAST)
    queries = q + n * q_n + _groups(g * CG * q_c, FAST) + _pixels(i * q_h + j * q_w, FAST)
    values = x + n * x_n + _groups(g * CG * x_c, FAST)
    results = k + n * k_n + _groups(g * k_g, FAST) + _pixels(i * k_h + j * k_w, FAST)
    top, left = i * STRIDE, j * STRIDE
    c = _lanes(BC, WIDE)
    lanes = plane_lanes & _channels(c < CG, FAST)
    query = tl.load(queries + _channels(c * q_c, FAST), mask=lanes, other=0).to(ACC)
    if WINDOW > 0:
        # The sums of a window row are stored together: they are adjacent in a pixel-major kernel.
        position = _channels(_lanes(SPAN, WIDE), FAST)
        for u in range(WINDOW):
            row = top + (u - WINDOW // 2) * DILATION
            sums = tl.zeros_like((plane_lanes & (position >= 0)).to(ACC))
            for v in tl.static_range(WINDOW):
                column = left + (v - WINDOW // 2) * DILATION
                total = _correlate_tap(
                    query, queries, values, q_c, x_c, row, column, height, width, x_h, x_w,
                    plane_lanes, CG, BC, FAST, WIDE, ACC,
                )  # fmt: skip
                sums = tl.where(position == v, total, sums)
            pointers = results + (u * WINDOW + position) * k_d
            mask = plane_lanes & (position < WINDOW)
            tl.store(pointers, sums.to(k.dtype.element_ty), mask=mask)
    else:
        for entry in range(taps):
            t, dy, dx = _entry(table, entry)
            total = _correlate_tap(
                query, queries, values, q_c, x_c, top + dy, left + dx, height, width, x_h, x_w,
                plane_lanes, CG, BC, FAST, WIDE, ACC,
            )  # fmt: skip
            tl.store(results + t * k_d, total.to(k.dtype.element_ty), mask=plane_lanes)


def gather(input: Tensor, kernel: Tensor, offsets: Sequence[int], stride: int) -> Tensor:
    """Compute :func:`reference.gather` on the GPU."""
    n, c, height, width = input.shape
    _, groups, taps, h, w = kernel.shape
    out = empty_map(input, (n, c, h, w))
    plan = Plan.make(input, kernel, out, groups, (h, w), offsets, stride)
    if plan is not None:
        sizes = (taps, groups, height, width, h, w, plan.tiles_w, plan.tiles)
        tensors = (input, kernel, out)
        _launch(_gather_kernel, plan, plan.programs, tensors, plan.tap_table(), sizes)
    return out


def scatter(
    input: Tensor, kernel: Tensor, offsets: Sequence[int], size: Sequence[int], stride: int
) -> Tensor:
    """Compute :func:`reference.scatter` on the GPU."""
    n, c, h, w = input.shape
    groups = kernel.shape[1]
    out = empty_map(input, (n, c, *size))
    plan = Plan.make(input, kernel, out, groups, (h, w), offsets, stride)
    if plan is not None:
        table = plan.residue_table()
        sizes = (groups, *size, h, w, plan.tiles_w, plan.tiles)
        programs = plan.programs * stride**2
        _launch(_scatter_kernel, plan, programs, (input, kernel, out), table, sizes)
    return out


def correlate(
    query: Tensor, input: Tensor, offsets: Sequence[int], groups: int, stride: int
) -> Tensor:
    """Compute :func:`reference.correlate` on the GPU."""
    _, _, h, w = query.shape
    height, width = input.shape[2:]
    taps = len(offsets) // 2
    out = empty_kernel(query, groups, taps)
    plan = Plan.make(query, input, out, groups, (h, w), offsets, stride)
    if plan is None:
        return out.zero_()  # no channels to sum over, or nothing to fill
    plan.constants["SPAN"] = triton.next_power_of_2(plan.constants["WINDOW"])
    sizes = (taps, groups, height, width, h, w, plan.tiles_w, plan.tiles)
    programs = plan.programs // plan.channel_blocks
    _launch(_correlate_kernel, plan, programs, (query, input, out), plan.tap_table(), sizes)
    return out


def _launch(
    kernel: Any,
    plan: Plan,
    programs: int,
    tensors: tuple[Tensor, Tensor, Tensor],
    table: Tensor | None,
    sizes: tuple[int, ...],
) -> None:
    steps = (step for tensor in tensors for step in tensor.stride())
    accumulator = tl.float64 if tensors[0].dtype == torch.float64 else tl.float32
    with on_device_of(tensors[0]):
        kernel[(programs,)](*tensors, table, *sizes, *steps, ACC=accumulator, **plan.constants)
