"""Images read ahead by workers: in order, and no more of them than a few batches at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from volution.infer.inputs import Item

__all__ = ["ReadBatch", "read_batches"]


class ReadBatch(NamedTuple):
    """Images that follow each other: all their names, and the pixels of those that were read."""

    names: list[str]
    problems: list[str]  # empty where the image was read
    images: Tensor  # (N, C, H, W) in channels-last memory; (0,) if there are none


def read_batches(
    items: Iterator[Item],
    read: Callable[[Item], Image.Image],
    transform: Callable[[Image.Image], Tensor],
    *,
    batch_size: int,
    workers: int = 0,
) -> Iterator[ReadBatch]:
    """Yield batches of transformed images, in the order of the items.

    Args:
        items: The images; taken one after the other as they are needed, in this process.
        read: Makes an image of an item; raises ``ValueError`` or ``OSError`` if it cannot.
        transform: Makes a tensor of an image.
        batch_size: Items of a batch.
        workers: Processes that read ahead; 0 reads in this one.

    Raises:
        OSError: If a worker died.
    """
    loader = DataLoader(
        _Reader(read, transform),
        # Items instead of positions: the workers need no list to look them up in.
        batch_sampler=_batched(items, batch_size),
        num_workers=workers,
        generator=torch.Generator(),
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OSError(
            f"a process that reads images died, which happens where memory runs out; use fewer "
            f"workers than {workers}, or a smaller batch_size than {batch_size}"
        ) from error


class _Sample(NamedTuple):
    name: str
    problem: str
    image: Tensor | None


class _Reader(Dataset[_Sample]):
    def __init__(
        self, read: Callable[[Item], Image.Image], transform: Callable[[Image.Image], Tensor]
    ) -> None:
        self.read = read
        self.transform = transform

    def __getitem__(self, item: Item) -> _Sample:
        try:
            image = self.read(item)
        except (ValueError, OSError) as error:
            return _Sample(item.name, str(error), None)
        return _Sample(item.name, "", self.transform(image))


def _batched(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while batch := list(itertools.islice(items, size)):
        yield batch


def _collate(samples: list[_Sample]) -> ReadBatch:
    images = [sample.image for sample in samples if sample.image is not None]
    pixels = torch.empty(0)
    if images:
        shape = (len(images), *images[0].shape)
        pixels = torch.empty(shape, dtype=images[0].dtype, memory_format=torch.channels_last)
        for place, image in zip(pixels, images, strict=True):
            place.copy_(image)
    return ReadBatch([s.name for s in samples], [s.problem for s in samples], pixels)
