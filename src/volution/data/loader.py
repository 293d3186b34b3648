"""Batches in an order that a seed and an epoch decide; unreadable images fall out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from volution.data.decoding import unlimited
from volution.data.images import Images
from volution.data.order import Batches, Item
from volution.data.seeding import sample_seed, seed_all, undisturbed
from volution.data.stream import Failure, Stream, StreamBatches, StreamItem
from volution.data.transforms import Transform

__all__ = ["Batch", "loader", "set_position"]


_T = TypeVar("_T", covariant=True)


class Batch(NamedTuple):
    """Images of a batch that could be read, and why the others could not."""

    images: Tensor  # (N, C, H, W) in channels-last memory; (0,) if there are none
    labels: Tensor  # (N,)
    indices: Tensor  # (N,), positions in the data
    broken: list[str]
    names: Sequence[str] = ()  # of the images, where they come from a stream


class _Sample(NamedTuple):
    image: Tensor | None
    label: int
    position: int
    problem: str
    name: str | None = None


def loader(
    images: Images | Stream,
    transform: Transform,
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
        images: What to read; from a stream, in an order that it allows (see
            :mod:`volution.data.stream`), and ranks without shuffling take one share each after
            the other.
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
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "seed": shuffle_seed,
        "repeats": repeats,
        "rank": rank,
        "ranks": ranks,
    }
    dataset: Dataset[Any]
    if isinstance(images, Stream):
        dataset = _Streamed(images, transform, shuffle_seed)
        batches: Batches = StreamBatches(images, **settings)
    else:
        dataset = _Transformed(images, transform, shuffle_seed)
        batches = Batches(len(images), **settings)
    return _Loader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        # Otherwise every start of an epoch would take a number from the global generator.
        generator=torch.Generator(),
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
    )


class _Loader(DataLoader[Batch]):
    """Batches; what went wrong in reading a stream is raised where its batch would have come."""

    def __iter__(self) -> Any:
        return _raised(super().__iter__())


def _raised(batches: Iterator[Batch | Failure]) -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, Failure):
            try:
                raise batch.error
            finally:
                # The error keeps this frame alive, which must not keep the reading processes.
                del batch, batches
        yield batch


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
    assert isinstance(order, Batches)
    order.set_position(epoch, batches_done)


class _Batchwise(Dataset[_T]):
    """Gives the samples of a batch at once, and leaves the process's chance alone."""

    seed: int | None

    def __getitems__(self, items: Sequence[Any]) -> list[_T]:
        with nullcontext() if self.seed is None else undisturbed():
            return [self[item] for item in items]


class _Transformed(_Batchwise[_Sample]):
    """Images by position; with epoch and repetition, a seed decides their transform alone."""

    def __init__(self, images: Images, transform: Transform, seed: int | None) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: Item) -> _Sample:
        place = item if isinstance(item, tuple) else (item, 0, 0)
        position = place[0]
        read = partial(self.images.open, position)
        return _sample(read, self.images.labels[position], place, self.transform, self.seed)


class _Streamed(_Batchwise[_Sample | Failure]):
    """Images of a stream, whose sampler has read them: what is left is to decode them."""

    def __init__(self, stream: Stream, transform: Transform, seed: int | None) -> None:
        self.stream = stream
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, item: StreamItem | Failure) -> _Sample | Failure:
        if isinstance(item, Failure):
            return item
        read = partial(item.open, self.stream.channels, self.stream.max_pixels)
        found = _sample(read, item.label, item.place, self.transform, self.seed)
        return found._replace(name=item.sample.name)


def _sample(
    read: Callable[[], Image.Image],
    label: int,
    place: tuple[int, int, int],
    transform: Transform,
    seed: int | None,
) -> _Sample:
    position, epoch, repeat = place
    try:
        image = read()
    except (ValueError, FileNotFoundError) as error:
        return _Sample(None, label, position, str(error))
    if seed is not None:
        seed_all(sample_seed(seed, epoch, position, repeat))
    with unlimited(image):
        return _Sample(transform(image), label, position, "")


def _collate(samples: Sequence[_Sample | Failure]) -> Batch | Failure:
    failure = next((sample for sample in samples if isinstance(sample, Failure)), None)
    return failure or _batch([sample for sample in samples if not isinstance(sample, Failure)])


def _batch(samples: Sequence[_Sample]) -> Batch:
    good = [sample for sample in samples if sample.image is not None]
    return Batch(
        _stack([sample.image for sample in good if sample.image is not None]),
        torch.tensor([sample.label for sample in good], dtype=torch.long),
        torch.tensor([sample.position for sample in good], dtype=torch.long),
        [sample.problem for sample in samples if sample.image is None],
        [sample.name for sample in good if sample.name is not None],
    )


def _stack(images: list[Tensor]) -> Tensor:
    """Return images as one batch in channels-last memory, copied once."""
    if not images:
        return torch.empty(0)
    shape, kind = (len(images), *images[0].shape), images[0].dtype
    batch = torch.empty(0, dtype=kind)
    if get_worker_info() is not None:
        # Where the main process sees it: otherwise the batch would be copied on its way there.
        size = math.prod(shape) * batch.element_size()
        batch.set_(torch.UntypedStorage._new_shared(size))
    batch.resize_(shape, memory_format=torch.channels_last)
    for place, image in zip(batch, images, strict=True):
        place.copy_(image)
    return batch
