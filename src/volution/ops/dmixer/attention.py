r"""Attention with a position table, in memory that does not grow with queries times keys.

The logits of a few queries at a time are made, used and forgotten; the backward pass makes them
again. Gradients are written out, with P the probabilities and D = G V^T:

    dV = P^T G,  dS = P (D - rowsum(P D)),  dQ = scale dS K,  dK = scale dS^T Q,  dR = A^T dS,

where R is the table resized to the keys and A R the table resized to both.

Legend: N batch, H heads, L queries, M keys, E channels of a head, T queries of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from volution.ops import _checks, _library
from volution.ops._shared.batching import one_by_one
from volution.ops.dmixer.bicubic import bicubic_matrix
from volution.ops.dmixer.position import PositionTable
from volution.ops.dmixer.tiles import attention_grads, tiled_attention, tiles

# Bytes of all logits up to which a training step keeps them: making them again takes longer.
SMALL = 2**24


def biased_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: PositionTable | None = None,
    *,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    r"""Attend with learned numbers added to the logits: :math:`softmax(s q k^\top + T') v`.

    Args:
        q: Queries, shape ``(N, H, L, E)``.
        k: Keys, shape ``(N, H, M, E)``.
        v: Values, shape ``(N, H, M, E)``.
        position: The table :math:`T`, resized to ``L`` by ``M``; None for none.
        scale: The factor :math:`s`.
        dropout: Probability of leaving out a key; the others are scaled up.

    Returns:
        Tensor of shape ``(N, H, L, E)``, the heads of a query adjacent in memory.

    Raises:
        ValueError: If the shapes do not fit, or ``position`` has another number of heads.
        TypeError: If the tensors differ in dtype or device.

    Gradients:
        For all four, of any order. First derivatives of reverse mode take bounded memory.

    Example:
        >>> q, kv = torch.randn(1, 2, 35, 8), torch.randn(1, 2, 6, 8)
        >>> biased_attention(q, kv, kv, PositionTable(2, (14, 10), 4), scale=8**-0.5).shape
        torch.Size([1, 2, 35, 8])
    """
    queries, keys = q.shape[2], k.shape[2]
    if position is not None and position.num_heads != q.shape[1]:
        raise ValueError(
            f"position must have a table for each of the {q.shape[1]} heads, got one for "
            f"{position.num_heads} heads"
        )
    if _library.wants_plain():
        bias = None if position is None else position(queries, keys).to(q.dtype)
        return _plain(q, k, v, bias, scale, dropout)
    rows = None if position is None else position.key_side(keys, q.dtype)
    whole = rows is None or (isinstance(queries, int) and rows.shape[1] == queries)
    if dropout > 0:
        return _dropping(q, k, v, rows, scale, dropout, whole)
    operands = (q, k, v) if rows is None else (q, k, v, rows)
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in operands)
    if recorded and whole and _bytes(q, k) <= SMALL:
        return _plain(q, k, v, rows, scale)
    if _library.runs_directly(q):
        _check(q, k, v, rows)
        return tiled_attention(q, k, v, rows, scale)
    return _library.call(_ATTENTION, q, k, v, rows, float(scale))


def _bytes(q: Tensor, k: Tensor) -> int:
    n, heads, queries, _ = q.shape
    return n * heads * queries * k.shape[2] * q.element_size()


def _plain(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, dropout: float = 0.0
) -> Tensor:
    """Attend with all logits in memory, by operators that any tracer knows."""
    logits = torch.matmul(q, (k * scale).transpose(2, 3))  # fewer keys than queries
    if bias is not None:
        logits = logits + bias
    p = logits.softmax(-1)
    if dropout > 0:
        p = F.dropout(p, dropout)
    # Under autocast the softmax is in float32, and values are not.
    return torch.matmul(p, v)


def _dropping(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor | None,
    scale: float,
    dropout: float,
    whole: bool,
) -> Tensor:
    """Attend with dropout, a tile at a time where there is much; backward draws the same again."""
    if torch.compiler.is_compiling() or (whole and _bytes(q, k) <= SMALL):
        bias = rows if rows is None or whole else _expand(rows, q.shape[2])
        return _plain(q, k, v, bias, scale, dropout)

    def attend(part: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        return _plain(part, k, v, bias, scale, dropout)

    outs = []
    for tile in tiles(q, k, rows, SMALL):
        part = q[:, :, tile.first : tile.last]
        bias = None if rows is None else tile.bias(rows)
        outs.append(checkpoint(attend, part, k, v, bias, use_reentrant=False))
    return torch.cat(outs, 2)


def _expand(rows: Tensor, queries: int) -> Tensor:
    return torch.matmul(bicubic_matrix(queries, rows.shape[1], rows.dtype, rows.device), rows)


def _check(q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, *_: Any) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _checks.check_rank(name, tensor, "N, H, L, E")
        _checks.check_floating(name, tensor)
    n, heads, queries, width = q.shape
    keys = k.shape[2]
    if queries < 1 or keys < 1:
        raise ValueError(f"q and k must have a pixel, got {tuple(q.shape)} and {tuple(k.shape)}")
    for name, tensor in (("k", k), ("v", v)):
        _checks.check_size(name, tensor, (n, heads, keys, width), "N, H, M, E")
        _checks.check_same_kind(name, tensor, "q", q)
    if rows is not None:
        _checks.check_rank("rows", rows, "H, T, M")
        _checks.check_size("rows", rows, (heads, rows.shape[1], keys), "H, T, M")
        _checks.check_same_kind("rows", rows, "q", q)


def _check_grads(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Any, *_: Any) -> None:
    _check(q, k, v, rows)
    _checks.check_size("grad", grad, tuple(q.shape), "N, H, L, E")
    _checks.check_same_kind("grad", grad, "q", q)


def _fake(q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, scale: float) -> Tensor:
    n, heads, queries, width = q.shape
    return q.new_empty((n, queries, heads, width)).transpose(1, 2)


def _fake_grads(grad: Tensor, *operands: Any) -> Tensor:
    return grad.new_empty(sum(x.numel() for x in operands[:4] if x is not None))


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, scale: float) -> Tensor:
    return _plain(q, k, v, None if rows is None else _expand(rows, q.shape[2]), scale)


def _plain_grads(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, scale: float
) -> Tensor:
    """Compute the gradients with all logits in memory, by operators that have derivatives."""
    logits = torch.matmul(q, k.transpose(2, 3)) * scale
    to_queries = None
    if rows is not None:
        to_queries = bicubic_matrix(q.shape[2], rows.shape[1], rows.dtype, rows.device)
        logits = logits + torch.matmul(to_queries, rows)
    p = logits.softmax(-1)
    d = torch.matmul(grad, v.transpose(2, 3))
    ds = p * (d - (p * d).sum(-1, keepdim=True))
    made = [
        torch.matmul(ds, k) * scale,
        torch.matmul(ds.transpose(2, 3), q) * scale,
        torch.matmul(p.transpose(2, 3), grad),
    ]
    parts = [x.transpose(1, 2).reshape(-1) for x in made]
    if to_queries is not None:
        parts.append(torch.matmul(to_queries.t(), ds.sum(0)).reshape(-1))
    return torch.cat(parts)


def _backward(
    grad: Tensor,
    needs: Sequence[bool],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor | None,
    scale: float,
) -> tuple[Tensor | None, ...]:
    # Where this is itself differentiated, by operators that can be.
    twice = torch.is_grad_enabled()
    flat = (_plain_grads if twice else _GRADS)(grad, q, k, v, rows, scale)
    found: list[Tensor | None] = []
    for x in (q, k, v):
        n, heads, pixels, width = x.shape
        part, flat = flat.tensor_split([x.numel()])
        found.append(part.reshape(n, pixels, heads, width).transpose(1, 2))
    found.append(None if rows is None else flat.reshape(rows.shape))
    return tuple(found)


def _not_differentiated(*_: Any) -> tuple[Tensor | None, ...]:
    raise NotImplementedError(
        "biased_attention_grads has no derivative of its own; differentiate biased_attention with "
        "create_graph=True"
    )


def _tangents(plain: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """Return the forward-mode rule that PyTorch has for the same formula."""

    def rule(moved: Sequence[Tensor | None], *args: Any) -> list[Tensor]:
        duals = [
            x if tangent is None else forward_ad.make_dual(x, tangent)
            for x, tangent in zip(args, moved, strict=False)
        ]
        tangent = forward_ad.unpack_dual(plain(*duals, *args[len(duals) :])).tangent
        return [] if tangent is None else [tangent]

    return rule


def _flops(q: Any, k: Any, *_: Any, products: int = 2, **__: Any) -> int:
    n, heads, queries, width = q
    return 2 * products * n * heads * queries * k[2] * width  # type: ignore[no-any-return]


def _flops_grads(grad: Any, q: Any, k: Any, *_: Any, **__: Any) -> int:
    return _flops(q, k, products=5)


_ATTENTION = _library.register(
    "biased_attention(Tensor q, Tensor k, Tensor v, Tensor? rows, float scale) -> Tensor",
    check=_check,
    reference=tiled_attention,
    fake=_fake,
    backward=_backward,
    flops=_flops,
    tensors=4,
    tangents=_tangents(_plain_attention),
    vmap=one_by_one("biased_attention"),
)
_GRADS = _library.register(
    "biased_attention_grads(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? rows, "
    "float scale) -> Tensor",
    check=_check_grads,
    reference=attention_grads,
    fake=_fake_grads,
    backward=_not_differentiated,
    flops=_flops_grads,
    tensors=5,
    tangents=_tangents(_plain_grads),
    vmap=one_by_one("biased_attention_grads"),
)
