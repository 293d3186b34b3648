"""Arithmetic over the processes of a run; with one process it does nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed

from volution.data import Batch

__all__ = ["filled", "processes", "summed", "take_from_first", "union"]


def processes() -> int:
    """Return how many processes compute together."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()


def summed(tensor: Tensor, device: torch.device | None = None) -> Tensor:
    """Return the sum of a tensor over all processes, where the tensor is.

    Args:
        tensor: Numbers of this process; left as they are.
        device: Where processes exchange tensors; the tensor's own if not given.
    """
    if processes() == 1:
        return tensor
    total = tensor.to(device, copy=True)
    distributed.all_reduce(total)
    return total.to(tensor.device)


def take_from_first(buffers: Iterable[Tensor]) -> None:
    """Overwrite tensors, such as running statistics, with those of the first process."""
    if processes() > 1:
        for buffer in buffers:
            distributed.broadcast(buffer, 0)


def union(found: Iterable[str]) -> dict[str, None]:
    """Return what any process has found, in the same order on all of them."""
    mine = list(found)
    if processes() == 1:
        return dict.fromkeys(mine)
    lists: list[Any] = [None] * processes()
    distributed.all_gather_object(lists, mine)
    return dict.fromkeys(item for each in lists for item in each)


def filled(batch: Batch, shape: tuple[int, int, int]) -> Batch:
    """Return a batch of at least two images, for a network that wants as many.

    Where other processes have images, this one has to go through the network with them, whatever
    it could read: two copies of its only image then, or two grey ones that count nothing.

    Example:
        >>> nothing = Batch(torch.empty(0), torch.empty(0, dtype=torch.long), torch.empty(0), [])
        >>> filled(nothing, (3, 8, 8)).images.shape
        torch.Size([2, 3, 8, 8])
    """
    labels = batch.labels
    if len(labels) >= 2:
        return batch
    if len(labels) == 1:
        return batch._replace(images=batch.images.repeat(2, 1, 1, 1), labels=labels.repeat(2))
    images = torch.zeros(2, *shape, device=labels.device)
    return batch._replace(images=images, labels=labels.new_zeros(2))
