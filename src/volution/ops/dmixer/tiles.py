"""Attention a tile of queries at a time: what runs on every device.

Legend: N batch, H heads, L queries, M keys, E channels of a head, T queries of the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from volution.ops._shared.layout import accumulation_dtype
from volution.ops.dmixer.bicubic import bicubic_band

# Bytes of the numbers a tile adds to the logits, and of the logits that are made again in the
# backward pass. On the CPU they stay in the cache; GPUs need more to be busy.
_FORWARD = {"cpu": 2**20}
_BACKWARD = {"cpu": 2**20}
_ELSEWHERE = 2**26


@dataclass(frozen=True)
class Tile:
    """The queries ``first`` to ``last`` of ``queries``."""

    first: int
    last: int
    queries: int

    def band(self, rows: Tensor, dtype: torch.dtype) -> tuple[slice, Tensor | None]:
        """Return which rows of the table they need, and the matrix that resizes those to them."""
        size = rows.shape[1]
        if size == self.queries:
            return slice(self.first, self.last), None
        at = (self.first, self.last, self.queries, size)
        start, matrix = bicubic_band(*at, dtype, rows.device)
        return slice(start, start + matrix.shape[1]), matrix

    def bias(self, rows: Tensor) -> Tensor:
        """Return what is added to their logits, ``(H, last - first, M)``."""
        dtype = accumulation_dtype(rows.dtype)
        band, matrix = self.band(rows, dtype)
        part = rows[:, band]
        if matrix is None:
            return part
        return torch.matmul(matrix, part.to(dtype)).to(rows.dtype)


def tiles(q: Tensor, k: Tensor, rows: Tensor | None, budget: int) -> Iterator[Tile]:
    """Cut the queries so that the numbers added to the logits of one image stay in a budget."""
    _, heads, queries, _ = q.shape
    size = accumulation_dtype(q.dtype).itemsize
    step = max(16, budget // (heads * k.shape[2] * size))
    for first in range(0, queries, step):
        yield Tile(first, min(queries, first + step), queries)


def tiled_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, scale: float) -> Tensor:
    """Compute attention; see :func:`volution.ops.dmixer.attention.biased_attention`.

    Args:
        q: Shape ``(N, H, L, E)``.
        k: Shape ``(N, H, M, E)``.
        v: Shape ``(N, H, M, E)``.
        rows: What is added to the logits, its queries resized to ``L``, shape ``(H, T, M)``.
        scale: Of the products of queries and keys.
    """
    n, heads, queries, width = q.shape
    # Fused kernels have no derivative for what is added, and ask only whether it has one.
    q, k, v = (_adjacent(x.detach()) for x in (q, k, v))
    rows = None if rows is None else rows.detach()
    fused = q.device.type == "cpu"  # its kernel takes any number of queries in bounded memory
    if fused and (rows is None or rows.shape[1] == queries):
        whole = None if rows is None else rows[None]
        return _heads_adjacent(F.scaled_dot_product_attention(q, k, v, whole, scale=scale))
    out = q.new_empty((n, queries, heads, width)).transpose(1, 2)
    for tile in tiles(q, k, rows, _FORWARD.get(q.device.type, _ELSEWHERE)):
        at = slice(tile.first, tile.last)
        bias = None if rows is None else tile.bias(rows)[None]
        out[:, :, at] = F.scaled_dot_product_attention(q[:, :, at], k, v, bias, scale=scale)
    return out


def attention_grads(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, scale: float
) -> Tensor:
    """Compute the gradients for ``q``, ``k``, ``v`` and ``rows``, flat, one after the other.

    Those of the first three have the heads of a pixel adjacent. Half precision is computed in
    float32 and rounded once.
    """
    dtype = accumulation_dtype(q.dtype)
    n, heads, queries, width = q.shape
    sums = [x.new_zeros((n, x.shape[2], heads, width), dtype=dtype) for x in (k, v)]
    d_q = q.new_empty((n, queries, heads, width))
    d_rows = None if rows is None else rows.new_zeros(rows.shape, dtype=dtype)
    budget = _BACKWARD.get(q.device.type, _ELSEWHERE)
    for tile in tiles(q, k, rows, budget):
        bias = None if rows is None else tile.bias(rows).to(dtype)
        logits = heads * (tile.last - tile.first) * k.shape[2] * dtype.itemsize
        d_bias: Tensor | None = None
        step = max(1, budget // logits)
        for i in range(0, n, step):
            some, at = slice(i, i + step), slice(tile.first, tile.last)
            d_out, part = (x[some, :, at].to(dtype) for x in (grad, q))
            keys, values = (x[some].to(dtype) for x in (k, v))
            *found, d_logits = _tile_grads(d_out, part, keys, values, bias, scale)
            d_q[some, at] = found[0]
            for total, x in zip(sums, found[1:], strict=True):
                total[some] += x
            if d_rows is not None:
                over = d_logits.sum(0) if d_logits.shape[0] > 1 else d_logits[0]
                d_bias = over if d_bias is None else d_bias.add_(over)
        if rows is not None and d_rows is not None and d_bias is not None:
            band, matrix = tile.band(rows, dtype)
            d_rows[:, band] += d_bias if matrix is None else torch.matmul(matrix.t(), d_bias)
    parts = [x.to(q.dtype).reshape(-1) for x in (d_q, *sums)]
    if d_rows is not None:
        parts.append(d_rows.to(q.dtype).reshape(-1))
    return torch.cat(parts)


def _tile_grads(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of ``q``, ``k``, ``v``, with heads adjacent, and of the logits."""
    n, heads = q.shape[:2]
    flat_q, flat_k, flat_v, flat_grad = (x.flatten(0, 1) for x in (q, k * scale, v, grad))
    logits = torch.bmm(flat_q, flat_k.transpose(1, 2))
    if bias is not None:
        logits.unflatten(0, (n, heads)).add_(bias)
    p = torch.softmax(logits, -1, out=logits)
    d_v = torch.bmm(p.transpose(1, 2), flat_grad)
    d_p = torch.bmm(flat_grad, flat_v.transpose(1, 2))
    d_logits = torch.ops.aten._softmax_backward_data(d_p, p, -1, p.dtype)
    d_q = torch.bmm(d_logits, flat_k)
    d_k = torch.bmm(d_logits.transpose(1, 2), flat_q).mul_(scale)
    found = (x.unflatten(0, (n, heads)).transpose(1, 2) for x in (d_q, d_k, d_v))
    first, second, third = found
    return first, second, third, d_logits.unflatten(0, (n, heads))


def _adjacent(x: Tensor) -> Tensor:
    """Return ``x`` with the channels of a head adjacent, as fused kernels take it."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _heads_adjacent(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)
