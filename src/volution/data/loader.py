"""Batches in an order that a seed and an epoch decide; unreadable images fall out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from volution.data.images import Images

__all__ = ["Batch", "Shuffled", "loader"]


class Batch(NamedTuple):
    """Images of a batch that could be read, and why the others could not."""

    images: Tensor  # (N, C, H, W)
    labels: Tensor  # (N,)
    indices: Tensor  # (N,), positions in the data
    broken: list[str]


class _Sample(NamedTuple):
    image: Tensor | None
    label: int
    position: int
    problem: str


def loader(
    images: Images,
    transform: Callable[[Image.Image], Tensor],
    *,
    batch_size: int,
    workers: int = 0,
    shuffle_seed: int | None = None,
) -> DataLoader[Batch]:
    """Return batches of transformed images.

    Args:
        images: What to read.
        transform: Makes a tensor of an image.
        batch_size: Images per batch; fewer where some cannot be read.
        workers: Processes that read ahead; 0 reads in this one.
        shuffle_seed: Shuffles, differently in each epoch; a last batch that is not full is then
            left out. None keeps order and all.
    """
    shuffle = shuffle_seed is not None
    sampler = Shuffled(len(images), shuffle_seed) if shuffle_seed is not None else None
    return DataLoader(
        _Transformed(images, transform),  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=sampler,
        # A tiny last batch gives bad batch statistics, and of one image none at all.
        drop_last=shuffle and len(images) >= batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        # Otherwise every start of an epoch would take a number from the global generator.
        generator=torch.Generator(),
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
    )


class _Transformed(Dataset[_Sample]):
    """Images by position, or by position and seed; the seed decides their transform alone."""

    def __init__(self, images: Images, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int | tuple[int, int]) -> _Sample:
        index, seed = item if isinstance(item, tuple) else (item, None)
        label = self.images.labels[index]
        try:
            image = self.images.open(index)
        except (ValueError, FileNotFoundError) as error:
            return _Sample(None, label, index, str(error))
        if seed is None:
            return _Sample(self.transform(image), label, index, "")
        with _seeded(seed):
            return _Sample(self.transform(image), label, index, "")


class Shuffled(Sampler[tuple[int, int]]):
    """Positions in a fresh order for each epoch, each with a seed for its augmentation.

    Both follow from the seed and the epoch's number alone: a resumed run sees what an unbroken
    one would have seen, with any number of workers.

    Args:
        length: How many positions there are.
        seed: Decides all epochs.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; training loops call this by its name."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator).tolist()
        seeds = torch.randint(2**32, (self.length,), generator=generator).tolist()
        yield from zip(order, seeds, strict=True)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the three generators that transforms draw from, and leave them as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    # Not torch.manual_seed, which also tells every GPU and takes a millisecond to do so.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def _collate(samples: list[_Sample]) -> Batch:
    good = [sample for sample in samples if sample.image is not None]
    return Batch(
        torch.stack([s.image for s in good if s.image is not None]) if good else torch.empty(0),
        torch.tensor([sample.label for sample in good], dtype=torch.long),
        torch.tensor([sample.position for sample in good], dtype=torch.long),
        [sample.problem for sample in samples if sample.image is None],
    )
