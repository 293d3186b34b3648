# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# Triton's functions are a language of their own; their arguments have no Python types.
"""The static and dynamic convolution as a Triton kernel: gather, with what is fixed beside it.

Tiles, and the names of sizes and steps, are those of the gather kernel. A program sums the dynamic
taps, scales them, adds the static taps of the same pixels, which the caches still hold, and bias
and residual before its only store.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from volution.ops._shared.layout import empty_map
from volution.ops._shared.neighbourhood.triton_kernels import (
    _channels,
    _entry,
    _gather_tap,
    _groups,
    _inside,
    _lanes,
    _pixels,
    _place,
    _plane,
)
from volution.ops._shared.neighbourhood.triton_plan import Plan
from volution.ops._shared.tiles import on_device_of


@triton.jit
def _static_dynamic_kernel(
    x, k, w_, s, b, r, y, table, taps, groups, height, width, h, w, tiles_w, tiles, apart,
    x_n, x_c, x_h, x_w, k_n, k_g, k_d, k_h, k_w, w_c, w_h, w_w, s_c, b_c,
    r_n, r_c, r_h, r_w, y_n, y_c, y_h, y_w,
    SIDE: tl.constexpr, SCALE: tl.constexpr, BIAS: tl.constexpr, REST: tl.constexpr,
    CG: tl.constexpr, STRIDE: tl.constexpr, WINDOW: tl.constexpr, DILATION: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BG: tl.constexpr, BC: tl.constexpr,
    FAST: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n, g, cb, i, j = _place(tl.program_id(0), groups, tiles_w, tiles, CG, BH, BW, BG, BC, WIDE)
    c = cb * BC + _lanes(BC, WIDE)
    in_map = (i < h) & (j < w)
    own = _groups(g < groups, FAST) & _channels(c < CG, FAST)
    lanes = own & _pixels(in_map, FAST)
    # A plane has no channels; a sum of two flags is 2 where both hold.
    plane_lanes = _plane(in_map.to(tl.int32), (g < groups).to(tl.int32), FAST) == 2
    channel = _groups(g * CG, FAST) + _channels(c, FAST)
    values = x + n * x_n + channel * x_c
    weights = k + n * k_n + _plane(i * k_h + j * k_w, g * k_g, FAST)
    top, left = i * STRIDE, j * STRIDE
    total = tl.zeros_like(lanes.to(ACC))
    if WINDOW > 0:
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
    if SCALE:
        total *= tl.load(s + channel * s_c, mask=own, other=0).to(ACC)
    for u in range(SIDE):
        row = top + (u - SIDE // 2) * apart
        for v in range(SIDE):
            column = left + (v - SIDE // 2) * apart
            weight = tl.load(w_ + channel * w_c + u * w_h + v * w_w, mask=own, other=0).to(ACC)
            here = lanes & _pixels(_inside(row, column, height, width), FAST)
            value = tl.load(values + _pixels(row * x_h + column * x_w, FAST), mask=here, other=0)
            total += weight * value.to(ACC)
    if BIAS:
        total += tl.load(b + channel * b_c, mask=own, other=0).to(ACC)
    if REST:
        pointers = r + n * r_n + channel * r_c + _pixels(i * r_h + j * r_w, FAST)
        total += tl.load(pointers, mask=lanes, other=0).to(ACC)
    results = y + n * y_n + channel * y_c + _pixels(i * y_h + j * y_w, FAST)
    tl.store(results, total.to(y.dtype.element_ty), mask=lanes)


def static_dynamic_conv2d(
    input: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    offsets: Sequence[int],
    stride: int,
    dilation: int,
) -> Tensor:
    """Compute the operator on the GPU."""
    n, c, height, width = input.shape
    _, groups, taps, h, w = kernel.shape
    out = empty_map(input, (n, c, h, w))
    plan = Plan.make(input, kernel, out, groups, (h, w), offsets, stride)
    if plan is None:
        return out
    tensors = (input, kernel, weight, scale, bias, residual, out, plan.tap_table())
    sizes = (taps, groups, height, width, h, w, plan.tiles_w, plan.tiles, dilation)
    steps = (
        *input.stride(), *kernel.stride(),
        *((0, 0, 0) if weight is None else weight.stride()[1:]),
        *(0 if vector is None else vector.stride(0) for vector in (scale, bias)),
        *((0, 0, 0, 0) if residual is None else residual.stride()), *out.stride(),
    )  # fmt: skip
    constants = {
        "SIDE": 0 if weight is None else weight.shape[2],
        "SCALE": scale is not None, "BIAS": bias is not None, "REST": residual is not None,
        "ACC": tl.float64 if input.dtype == torch.float64 else tl.float32,
        **plan.constants,
    }  # fmt: skip
    with on_device_of(input):
        _static_dynamic_kernel[(plan.programs,)](*tensors, *sizes, *steps, **constants)
    return out
