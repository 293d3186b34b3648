"""Batching rules that several operators share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def one_by_one(name: str) -> Callable[..., tuple[Tensor, int]]:
    """Return the batching rule of an operator that takes one problem after the other.

    For operators whose images share a tensor: problems that differ in it cannot join one batch.
    """

    def rule(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        operator = getattr(torch.ops.volution, name)

        pairs = list(zip(args, in_dims, strict=True))

        def problem(i: int) -> list[Any]:
            return [x.select(dim, i) if isinstance(dim, int) else x for x, dim in pairs]

        if info.batch_size == 0:
            # Sums over nothing have the shapes of one problem.
            one = [x.sum(dim) if isinstance(dim, int) else x for x, dim in pairs]
            return operator(*one)[None][:0], 0
        return torch.stack([operator(*problem(i)) for i in range(info.batch_size)]), 0

    return rule
