# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# Triton's functions are a language of their own; their arguments have no Python types.
"""The depthwise convolution and its two adjoints as Triton kernels.

Legend: N batch, C channels, K window side, H and W full size, h and w size after the stride.

A program of a map computes a rectangle of pixels for a block of channels, a 2-D tile whose inner
axis is the one adjacent in memory: channels of a channels-last map, pixels of a contiguous one. It
walks over the taps, each a vector of weights over the channels, and keeps the sums in registers:
device memory sees every operand about once, neighbours come from the L1 and L2 caches, and what
follows the convolution happens before the only store.

- The transpose is written from the receiving side, so it needs no atomic additions. At stride s
  the full map falls into s * s classes of pixels, by the remainders of their coordinates; all
  pixels of a class receive the same taps.
- The gradient of the weight is summed in two passes, each in a fixed order: programs write the
  sums of their pixels side by side, and those are added up.
- Sums are kept in float32, in float64 for float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from volution.ops._shared.depthwise import reference, triton_plan
from volution.ops._shared.depthwise.triton_plan import MapPlan, WeightPlan
from volution.ops._shared.layout import empty_map
from volution.ops._shared.tiles import blocks, on_device_of


@triton.jit
def _pixels(values, FAST: tl.constexpr):
    """Shape a vector of pixels for the tile; FAST says that channels are adjacent in memory."""
    return values[:, None] if FAST else values[None, :]


@triton.jit
def _channels(values, FAST: tl.constexpr):
    """Shape a vector of channels for the tile."""
    return values[None, :] if FAST else values[:, None]


@triton.jit
def _inside(row, column, height, width):
    return (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def _place(
    program, channels, tiles_w, tiles,
    BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return the image, channels, rows and columns of a program.

    Channel blocks vary fastest, so that neighbouring programs read the same pixels.
    """
    channel_blocks = tl.cdiv(channels, BC)
    tile = (program // channel_blocks) % tiles
    # Always 64 bits: a batch can be larger than 2**31 elements where an image is not.
    n = (program // channel_blocks // tiles).to(tl.int64)
    pixel = tl.arange(0, BH * BW)
    c = program % channel_blocks * BC + tl.arange(0, BC)
    i = tile // tiles_w * BH + pixel // BW
    j = tile % tiles_w * BW + pixel % BW
    if WIDE:
        c, i, j = c.to(tl.int64), i.to(tl.int64), j.to(tl.int64)
    return n, c, i, j


@triton.jit
def _add_tap(
    total, weights, values, row, column, height, width, x_h, x_w, own, lanes, FAST: tl.constexpr
):
    weight = tl.load(weights, mask=own, other=0).to(total.dtype)
    here = lanes & _pixels(_inside(row, column, height, width), FAST)
    value = tl.load(values + _pixels(row * x_h + column * x_w, FAST), mask=here, other=0)
    return total + _channels(weight, FAST) * value.to(total.dtype)


@triton.jit
def _gelu(x):
    # The constant takes the precision of x.
    return 0.5 * x * (1 + tl.erf(x * 0.7071067811865475244))


@triton.jit
def _conv_kernel(
    x, k, b, g, y, scale: tl.float64, channels, gated, height, width, h, w, tiles_w, tiles,
    x_n, x_c, x_h, x_w, k_n, k_c, k_h, k_w, b_n, b_c, g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w,
    BIAS: tl.constexpr, GATE: tl.constexpr, GELU: tl.constexpr, SHORTCUT: tl.constexpr,
    K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
    FAST: tl.constexpr, UNROLL: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n, c, i, j = _place(tl.program_id(0), channels, tiles_w, tiles, BH, BW, BC, WIDE)
    own = c < channels
    lanes = _channels(own, FAST) & _pixels((i < h) & (j < w), FAST)
    values = x + n * x_n + _channels(c * x_c, FAST)
    weights = k + n * k_n + c * k_c
    total = tl.zeros_like(lanes.to(ACC))
    if BIAS:
        total += _channels(tl.load(b + n * b_n + c * b_c, mask=own, other=0).to(ACC), FAST)
    # Rows of the window in a loop, its columns unrolled: enough independent loads at once.
    for u in range(K):
        row = i * STRIDE + (u - K // 2) * DILATION
        if UNROLL:
            for v in tl.static_range(K):
                total = _add_tap(
                    total, weights + u * k_h + v * k_w, values,
                    row, j * STRIDE + (v - K // 2) * DILATION, height, width, x_h, x_w,
                    own, lanes, FAST,
                )  # fmt: skip
        else:
            for v in range(K):
                total = _add_tap(
                    total, weights + u * k_h + v * k_w, values,
                    row, j * STRIDE + (v - K // 2) * DILATION, height, width, x_h, x_w,
                    own, lanes, FAST,
                )  # fmt: skip
    if SHORTCUT:
        pointers = values + _pixels(i * x_h + j * x_w, FAST)
        total += tl.load(pointers, mask=lanes, other=0).to(ACC)
    total *= tl.full((1, 1), scale, ACC)
    if GELU:
        total = _gelu(total)
    if GATE:
        gates = g + n * g_n + _channels(c * g_c, FAST) + _pixels(i * g_h + j * g_w, FAST)
        here = lanes & _channels(c < gated, FAST)
        total = tl.where(here, total * tl.load(gates, mask=here, other=0).to(ACC), total)
    results = y + n * y_n + _channels(c * y_c, FAST) + _pixels(i * y_h + j * y_w, FAST)
    tl.store(results, total.to(y.dtype.element_ty), mask=lanes)


@triton.jit
def _first_tap(
    residue,
    K: tl.constexpr, COMMON: tl.constexpr, PERIOD: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """Return the first tap that reaches pixels of a residue, K if none does."""
    first = (K // 2 + residue // COMMON * INVERSE) % PERIOD
    return tl.where(residue % COMMON == 0, first, K)


@triton.jit
def _transpose_kernel(
    y, k, x, channels, height, width, h, w, tiles_w, tiles,
    y_n, y_c, y_h, y_w, k_n, k_c, k_h, k_w, x_n, x_c, x_h, x_w,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SHORTCUT: tl.constexpr,
    COMMON: tl.constexpr, PERIOD: tl.constexpr, INVERSE: tl.constexpr,
    K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
    FAST: tl.constexpr, UNROLL: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    residue = tl.program_id(0) % (ROWS * COLUMNS)
    program = tl.program_id(0) // (ROWS * COLUMNS)
    n, c, i, j = _place(program, channels, tiles_w, tiles, BH, BW, BC, WIDE)
    below, right = residue // COLUMNS, residue % COLUMNS
    row, column = i * STRIDE + below, j * STRIDE + right
    own = c < channels
    lanes = _channels(own, FAST) & _pixels((row < height) & (column < width), FAST)
    values = y + n * y_n + _channels(c * y_c, FAST)
    weights = k + n * k_n + c * k_c
    total = tl.zeros_like(lanes.to(ACC))
    top = _first_tap(below, K, COMMON, PERIOD, INVERSE)
    left = _first_tap(right, K, COMMON, PERIOD, INVERSE)
    for u in range(top, K, PERIOD):
        a = i + (below - (u - K // 2) * DILATION) // STRIDE
        if UNROLL:
            for step in tl.static_range(0, K, PERIOD):
                v = left + step
                total = _add_tap(
                    total, weights + u * k_h + v * k_w, values,
                    a, j + (right - (v - K // 2) * DILATION) // STRIDE, h, w, y_h, y_w,
                    own & (v < K), lanes & (v < K), FAST,
                )  # fmt: skip
        else:
            for v in range(left, K, PERIOD):
                total = _add_tap(
                    total, weights + u * k_h + v * k_w, values,
                    a, j + (right - (v - K // 2) * DILATION) // STRIDE, h, w, y_h, y_w,
                    own, lanes, FAST,
                )  # fmt: skip
    if SHORTCUT:
        total += tl.load(values + _pixels(row * y_h + column * y_w, FAST), mask=lanes, other=0).to(
            ACC
        )
    results = x + n * x_n + _channels(c * x_c, FAST)
    results += _pixels(row * x_h + column * x_w, FAST)
    tl.store(results, total.to(x.dtype.element_ty), mask=lanes)


@triton.jit
def _across(values):
    """Give a tile of (pixels, channels) an axis of window columns, in front."""
    return values[None, :, :]


@triton.jit
def _weight_kernel(
    y, x, sums, channels, images, height, width, h, w, chunks,
    y_n, y_c, y_h, y_w, x_n, x_c, x_h, x_w,
    K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, STEPS: tl.constexpr,
    BV: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
    FAST: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # Taps vary fastest: the programs of all rows of the window read the same pixels.
    column_blocks: tl.constexpr = (K + BV - 1) // BV
    channel_blocks = tl.cdiv(channels, BC)
    taps = tl.program_id(0) % (K * column_blocks)
    rest = tl.program_id(0) // (K * column_blocks)
    c = rest % channel_blocks * BC + tl.arange(0, BC)
    part = rest // channel_blocks
    chunk, kernel = part % chunks, (part // chunks).to(tl.int64)
    u, v = taps // column_blocks, taps % column_blocks * BV + tl.arange(0, BV)
    lane = tl.arange(0, BP)
    if WIDE:
        c, lane, chunk = c.to(tl.int64), lane.to(tl.int64), chunk.to(tl.int64)
    own = _channels(c < channels, FAST)
    in_tile = _across(own & _pixels(lane >= 0, FAST)) & (v >= 0)[:, None, None]
    products = tl.zeros_like(in_tile.to(ACC))
    for step in range(STEPS):
        p = (chunk * STEPS + step) * BP + lane
        n, pixel = kernel * images + p // (h * w), p % (h * w)
        i, j = pixel // w, pixel % w
        lanes = own & _pixels(p < images * h * w, FAST)
        pointers = y + _channels(c * y_c, FAST) + _pixels(n * y_n + (i * y_h + j * y_w), FAST)
        grad = tl.load(pointers, mask=lanes, other=0).to(ACC)
        row = i * STRIDE + (u - K // 2) * DILATION
        column = j[None, :] * STRIDE + ((v - K // 2) * DILATION)[:, None]
        inside = _inside(row[None, :], column, height, width) & (v < K)[:, None]
        offsets = (n * x_n)[None, :] + (row * x_h)[None, :] + column * x_w
        if FAST:
            here = _across(lanes) & inside[:, :, None]
            pointers = x + offsets[:, :, None] + (c * x_c)[None, None, :]
        else:
            here = _across(lanes) & inside[:, None, :]
            pointers = x + offsets[:, None, :] + (c * x_c)[None, :, None]
        products += _across(grad) * tl.load(pointers, mask=here, other=0).to(ACC)
    total = tl.sum(products, axis=1 if FAST else 2)
    results = sums + (kernel * chunks + chunk) * channels * (K * K)
    results += c[None, :] * (K * K) + (u * K + v)[:, None]
    tl.store(results, total, mask=(c < channels)[None, :] & (v < K)[:, None])


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    stride: int,
    dilation: int,
    scale: float,
    gelu: bool,
    shortcut: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Compute :func:`reference.depthwise_conv2d` on the GPU, into ``out`` where it is given."""
    if triton_plan.framework_is_faster(weight.shape[2], stride, dilation, weight.shape[0]):
        rest = (stride, dilation, scale, gelu, shortcut)
        return _put(reference.depthwise_conv2d(input, weight, bias, gate, *rest), out)
    n, c, height, width = input.shape
    h, w = blocks(height, stride), blocks(width, stride)
    if out is None:
        out = empty_map(input, (n, c, h, w))
    stride, dilation = (triton_plan.nearest(step, height, width) for step in (stride, dilation))
    plan = MapPlan.make(input, weight, out, gate, (h, w), stride, dilation)
    if plan is None:
        return out
    plan.unroll(weight.shape[2])
    weight = _laid_out(weight, plan)
    gated = 0 if gate is None else gate.shape[1]
    sizes = (scale, c, gated, height, width, h, w, plan.tiles_w, plan.tiles)
    steps = (
        *input.stride(), *_kernel_steps(weight),
        *((0, 0) if bias is None else _kernel_steps(bias)),
        *((0, 0, 0, 0) if gate is None else gate.stride()), *out.stride(),
    )  # fmt: skip
    constants = {
        "BIAS": bias is not None, "GATE": gate is not None, "GELU": gelu, "SHORTCUT": shortcut,
        **plan.constants,
    }  # fmt: skip
    _launch(_conv_kernel, plan.programs, (input, weight, bias, gate, out), sizes + steps, constants)
    return out


def depthwise_conv2d_input(
    grad: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: int,
    dilation: int,
    shortcut: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Compute :func:`reference.depthwise_conv2d_input` on the GPU, into ``out`` if it is given."""
    if triton_plan.framework_is_faster(weight.shape[2], stride, dilation, weight.shape[0]):
        rest = (size, stride, dilation, shortcut)
        return _put(reference.depthwise_conv2d_input(grad, weight, *rest), out)
    n, c, h, w = grad.shape
    if out is None:
        out = empty_map(grad, (n, c, *size))
    stride, dilation = (triton_plan.nearest(step, *size) for step in (stride, dilation))
    plan = MapPlan.make(grad, weight, out, None, (h, w), stride, dilation)
    if plan is None:
        return out
    residues = triton_plan.residues(stride, dilation)
    plan.unroll(blocks(weight.shape[2], residues["PERIOD"]))
    weight = _laid_out(weight, plan)
    # A side shorter than the stride does not have all remainders.
    rows, columns = min(stride, size[0]), min(stride, size[1])
    sizes = (c, *size, h, w, plan.tiles_w, plan.tiles)
    steps = (*grad.stride(), *_kernel_steps(weight), *out.stride())
    constants = {
        "ROWS": rows, "COLUMNS": columns, "SHORTCUT": shortcut, **residues, **plan.constants
    }  # fmt: skip
    programs = plan.programs * rows * columns
    _launch(_transpose_kernel, programs, (grad, weight, out), sizes + steps, constants)
    return out


def depthwise_conv2d_weight(
    grad: Tensor, input: Tensor, batch: int, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    """Compute :func:`reference.depthwise_conv2d_weight` on the GPU."""
    if triton_plan.framework_is_faster(kernel_size, stride, dilation, batch):
        return reference.depthwise_conv2d_weight(grad, input, batch, kernel_size, stride, dilation)
    n, c, height, width = input.shape
    shape = (batch, c, kernel_size, kernel_size)
    stride, dilation = (triton_plan.nearest(step, height, width) for step in (stride, dilation))
    plan = WeightPlan.make(grad, input, batch, kernel_size, stride, dilation)
    if plan is None:
        return grad.new_zeros(shape)
    accumulator = torch.float64 if grad.dtype == torch.float64 else torch.float32
    sums = grad.new_empty((batch, plan.chunks, *shape[1:]), dtype=accumulator)
    sizes = (c, n // batch, height, width, *grad.shape[2:], plan.chunks)
    steps = (*grad.stride(), *input.stride())
    _launch(_weight_kernel, plan.programs, (grad, input, sums), sizes + steps, plan.constants)
    return sums.sum(1).to(grad.dtype)


def _put(result: Tensor, out: Tensor | None) -> Tensor:
    return result if out is None else out.copy_(result)


def _laid_out(weight: Tensor, plan: MapPlan) -> Tensor:
    """Return the weight as the kernel reads it.

    Beside channels-last maps a thread has a few adjacent channels. Copying the small weight once
    makes their taps one load; in the machine code single loads outnumbered those of the map.
    """
    if not plan.constants["FAST"] or weight.stride(1) == 1:
        return weight
    return weight.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _kernel_steps(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides of a weight or bias; images that share it stay in place."""
    first, *rest = tensor.stride()
    return (first if tensor.shape[0] > 1 else 0, *rest)


def _launch(
    kernel: Any,
    programs: int,
    tensors: Sequence[Tensor | None],
    numbers: Sequence[float],
    constants: dict[str, Any],
) -> None:
    wide = any(x is not None and x.dtype == torch.float64 for x in tensors[:1])
    accumulator = tl.float64 if wide else tl.float32
    first = tensors[0]
    assert first is not None
    with on_device_of(first):
        kernel[(programs,)](*tensors, *numbers, ACC=accumulator, **constants)
