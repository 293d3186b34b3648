"""Batches in an order that a seed and an epoch decide; unreadable images fall out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from volution.data.images import Images
from volution.data.order import Batches, Item
from volution.data.seeding import sample_seed, seeded

__all__ = ["Batch", "loader", "set_position"]


class Batch(NamedTuple):
    """Images of a batch that could be read, and why the others could not."""

    images: Tensor  # (N, C, H, W) in channels-last memory; (0,) if there are none
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
    repeats: int = 1,
    rank: int = 0,
    ranks: int = 1,
) -> DataLoader[Batch]:
    """Return batches of transformed images.

    Args:
        images: What to read.
        transform: Makes a tensor of an image.
        batch_size: Images per batch, on all ranks together; fewer where some cannot be read.
        workers: Processes that read ahead; 0 reads in this one.
        shuffle_seed: Shuffles and varies, differently in each epoch; a last batch that is not full
            is then left out. None keeps order and all.
        repeats: How often an image comes in a row, each time varied anew, in an epoch of the same
            length; goes with ``shuffle_seed``.
        rank: Which part of each batch to give: the first of ``ranks``, the second, and so on. All
            ranks get the same number of batches; parts of a last batch may be short or empty.
        ranks: How many processes share each batch.

    Raises:
        ValueError: If ``batch_size`` cannot be divided by ``ranks``, or there are too few images
            to shuffle among them.

    Example:
        >>> from volution import data
        >>> digits, config = data.load("digits").val, data.InputConfig(1, 32, (0.5,), (0.5,))
        >>> [len(b.labels) for b in loader(digits, config.transform(), batch_size=200)]
        [200, 159]
        >>> second = loader(digits, config.transform(), batch_size=200, rank=1, ranks=2)
        >>> [len(b.labels) for b in second]
        [100, 59]
    """
    batches = Batches(
        len(images),
        batch_size=batch_size,
        seed=shuffle_seed,
        repeats=repeats,
        rank=rank,
        ranks=ranks,
    )
    return DataLoader(
        _Transformed(images, transform, shuffle_seed),  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        # Otherwise every start of an epoch would take a number from the global generator.
        generator=torch.Generator(),
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
    )


def set_position(loader: DataLoader[Batch], epoch: int, batches_done: int = 0) -> None:
    """Let the next iteration be of an epoch, from its middle on; those after it are whole.

    Args:
        loader: What :func:`loader` returned; its length stays that of a whole epoch.
        epoch: Number of the epoch, from 0.
        batches_done: Batches of the epoch that are left out.

    Raises:
        ValueError: If the epoch has fewer batches.
    """
    if not 0 <= batches_done <= len(loader):
        raise ValueError(
            f"batches_done must be from 0 to the {len(loader)} batches of an epoch, got "
            f"{batches_done}"
        )
    order = loader.batch_sampler
    # What is read in order has no sampler: it keeps the position itself.
    holder = order if isinstance(order, Batches) else loader.dataset
    holder.set_position(epoch, batches_done)  # type: ignore[attr-defined]


class _Transformed(Dataset[_Sample]):
    """Images by position; with epoch and repetition, a seed decides their transform alone."""

    def __init__(
        self, images: Images, transform: Callable[[Image.Image], Tensor], seed: int | None
    ) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: Item) -> _Sample:
        position = item if isinstance(item, int) else item[0]
        label = self.images.labels[position]
        try:
            image = self.images.open(position)
        except (ValueError, FileNotFoundError) as error:
            return _Sample(None, label, position, str(error))
        if isinstance(item, int) or self.seed is None:
            return _Sample(self.transform(image), label, position, "")
        _, epoch, repeat = item
        with seeded(sample_seed(self.seed, epoch, position, repeat)):
            return _Sample(self.transform(image), label, position, "")


def _collate(samples: list[_Sample]) -> Batch:
    good = [sample for sample in samples if sample.image is not None]
    return Batch(
        _stack([sample.image for sample in good if sample.image is not None]),
        torch.tensor([sample.label for sample in good], dtype=torch.long),
        torch.tensor([sample.position for sample in good], dtype=torch.long),
        [sample.problem for sample in samples if sample.image is None],
    )


def _stack(images: list[Tensor]) -> Tensor:
    """Return images as one batch in channels-last memory, copied once."""
    if not images:
        return torch.empty(0)
    shape = (len(images), *images[0].shape)
    batch = torch.empty(shape, dtype=images[0].dtype, memory_format=torch.channels_last)
    for place, image in zip(batch, images, strict=True):
        place.copy_(image)
    return batch
