"""Batches in an order that a seed and an epoch decide; unreadable images fall out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from volution.data.images import Images

__all__ = ["Batch", "loader"]


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
    return DataLoader(
        _Transformed(images, transform),  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=_Shuffled(len(images), shuffle_seed) if shuffle_seed is not None else None,
        # A tiny last batch gives bad batch statistics, and of one image none at all.
        drop_last=shuffle and len(images) >= batch_size,
        # Not persistent: new workers are seeded by their epoch, so a run can be resumed.
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
    )


class _Transformed(Dataset[_Sample]):
    def __init__(self, images: Images, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> _Sample:
        label = self.images.labels[index]
        try:
            image = self.images.open(index)
        except (ValueError, FileNotFoundError) as error:
            return _Sample(None, label, index, str(error))
        return _Sample(self.transform(image), label, index, "")


class _Shuffled(Sampler[int]):
    """A fresh order for each epoch that only the seed and the epoch's number decide."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; training loops call this by its name."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        yield from torch.randperm(self.length, generator=generator).tolist()


def _collate(samples: list[_Sample]) -> Batch:
    good = [sample for sample in samples if sample.image is not None]
    return Batch(
        torch.stack([s.image for s in good if s.image is not None]) if good else torch.empty(0),
        torch.tensor([sample.label for sample in good], dtype=torch.long),
        torch.tensor([sample.position for sample in good], dtype=torch.long),
        [sample.problem for sample in samples if sample.image is None],
    )
