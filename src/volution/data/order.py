"""Which images make up each batch of an epoch, on one rank of several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

__all__ = ["Batches", "Item"]

Item = int | tuple[int, int, int]
"""A position in the data; with the epoch and the repetition where augmentation needs them."""


class Batches(Sampler[list[Item]]):
    """Positions of the images of each batch, the part of one rank.

    All follows from the seed and the epoch's number alone: a resumed run sees what an unbroken
    one would have seen, and the ranks together see the batches of a single process.

    Args:
        length: How many images there are.
        batch_size: Images of a batch on all ranks together, divisible by ``ranks``.
        seed: Decides the order of all epochs; a last batch that is not full is then left out,
            unless it is the only one. None keeps the order, and all images.
        repeats: How often an image comes in a row; the epoch is as long as without.
        rank: Which part of each batch is asked for.
        ranks: How many parts there are.

    Example:
        >>> list(Batches(5, batch_size=4, rank=1, ranks=2))
        [[2, 3], []]
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: int | None = None,
        repeats: int = 1,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % ranks:
            raise ValueError(
                f"batch_size is that of all ranks together: a multiple of ranks = {ranks}, at "
                f"least 1; got {batch_size}"
            )
        if not 0 <= rank < ranks:
            raise ValueError(f"rank must be at least 0 and below ranks = {ranks}, got {rank}")
        if repeats < 1 or (repeats > 1 and seed is None):
            raise ValueError(f"repeats must be 1, or more with shuffle_seed, got {repeats}")
        if seed is not None and ranks > 1 and length < batch_size:
            raise ValueError(
                f"batch_size must be at most the {length} images there are, to give each of "
                f"{ranks} ranks as many; got {batch_size}"
            )
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.repeats = repeats
        self.rank = rank
        self.ranks = ranks
        self.epoch = 0
        self.batches_done = 0

    @property
    def sampler(self) -> Batches:
        """Itself: training loops look here for :meth:`set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iterations; training loops call this by its name."""
        self.epoch = epoch

    def set_position(self, epoch: int, batches_done: int) -> None:
        """Let the next iteration be of an epoch, without its first batches."""
        self.epoch = epoch
        self.batches_done = batches_done

    def __len__(self) -> int:
        # A tiny last batch gives bad batch statistics, and of one image none at all.
        whole = self.seed is not None and self.length >= self.batch_size
        return (self.length if whole else self.length + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[list[Item]]:
        # Not a generator itself: position and epoch are those of now, not of the first batch.
        return self._used_up(self.batches_from(self.batches_done))

    def batches_from(self, done: int) -> Iterator[list[Item]]:
        """Return the batches of the epoch after the first ones."""
        return self._batches(self._order(), range(done, len(self)))

    def _used_up(self, batches: Iterator[list[Item]]) -> Iterator[list[Item]]:
        # Only now: with workers, PyTorch asks for a second iterator before it uses one.
        self.batches_done = 0
        yield from batches

    def _batches(self, order: Sequence[Item], numbers: range) -> Iterator[list[Item]]:
        share = self.batch_size // self.ranks
        for number in numbers:
            start = number * self.batch_size + self.rank * share
            end = min(start + share, (number + 1) * self.batch_size)
            yield list(order[start:end])

    def _order(self) -> Sequence[Item]:
        if self.seed is None:
            return range(self.length)
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator)
        different = math.ceil(self.length / self.repeats)
        return [
            (position, self.epoch, repeat)
            for position in order[:different].tolist()
            for repeat in range(self.repeats)
        ][: self.length]
