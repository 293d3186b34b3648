"""Shards read in order, mixed within a window: which sample comes when, on which rank.

The order of an epoch follows from the seed, the epoch's number and the batch size alone. Its
shards, shuffled, are laid end to end and cut into equal *lanes*, each of which fills the same few
places of every batch. A rank reads the lanes that its part of the batches needs, so ranks together
read everything once and see the batches of a single process. Within a lane samples change places
with others of a window, and no more than a window is held in memory, undecoded.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image

from volution.data.ahead import Ahead
from volution.data.decoding import MAX_PIXELS, decode_image
from volution.data.order import Batches
from volution.data.shard_reading import RawSample, Shard, read_shard

__all__ = ["Failure", "Stream", "StreamBatches", "StreamItem"]

WINDOW = 2048
"""Samples that all lanes together hold to mix them."""
_LANES = 32  # at most, so many files are open
_PLACES_OF_A_LANE = 32  # at least, in every batch, if it has as many
_AHEAD = 32  # samples that are read before they are asked for


@dataclass(frozen=True)
class Stream:
    """Labelled images in shards, which are read in order.

    Args:
        shards: Where they are, and how many samples each holds.
        classes: How many classes there are; None takes samples without labels too, as class 0.
        channels: 3 reads RGB, 1 grey.
        max_pixels: Larger images are refused.
        window: Samples within which the order is mixed when shuffling.
    """

    shards: tuple[Shard, ...]
    classes: int | None
    channels: int = 3
    max_pixels: int = MAX_PIXELS
    window: int = WINDOW
    starts: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ends = np.cumsum([0, *(shard.samples for shard in self.shards)])
        object.__setattr__(self, "starts", tuple(ends.tolist()))

    def __len__(self) -> int:
        return self.starts[-1]

    @cached_property
    def labels(self) -> Sequence[int]:
        """Class numbers; 0 where there is none."""
        return [max(0, label) for shard in self.shards for label in shard.labels]

    def open(self, index: int) -> Image.Image:
        """Return one image; slow, for a few that are looked at."""
        return self._item(index).open(self.channels, self.max_pixels)

    def name(self, index: int) -> str:
        """Return shard and name of an image; as slow."""
        item = self._item(index)
        return f"{item.shard}: {item.sample.name}"

    def _item(self, index: int) -> StreamItem:
        return next(self.read(np.array([index])))

    def read(
        self, positions: np.ndarray, order: np.ndarray | None = None
    ) -> Generator[StreamItem, None, None]:
        """Yield samples in their order; shards without any of them are not touched.

        Args:
            positions: Ascending, as counted with the shards laid end to end.
            order: The order in which the shards are laid; None for their own.

        Raises:
            FileNotFoundError: If a shard is missing.
            ValueError: If one is damaged, has fewer samples than it should, or a sample without
                image, without label or with a label that is no class.
            OSError: If one cannot be read.
        """
        order = np.arange(len(self.shards)) if order is None else order
        ends = np.cumsum([self.shards[i].samples for i in order])
        cuts = np.searchsorted(positions, ends)
        for place, (i, first, last) in enumerate(
            zip(order.tolist(), (0, *cuts[:-1].tolist()), cuts.tolist(), strict=True)
        ):
            if first < last:
                start = int(ends[place]) - self.shards[i].samples
                yield from self._read_shard(i, positions[first:last] - start)

    def _read_shard(self, i: int, numbers: np.ndarray) -> Iterator[StreamItem]:
        shard, wanted = self.shards[i], set(numbers.tolist())
        whole = None if len(wanted) == shard.samples else wanted
        left = len(wanted)
        for sample in read_shard(shard, wanted=whole, labelled=self.classes is not None):
            if not left:
                break
            left -= 1
            yield StreamItem(
                sample, shard.place, self.starts[i] + sample.number, self._label(i, sample)
            )
        if left:
            raise ValueError(
                f"shard {shard.place} is cut off: it should hold {shard.samples} samples, {left} "
                f"of them are missing"
            )

    def _label(self, i: int, sample: RawSample) -> int:
        if self.classes is None or sample.label is None:
            return sample.label or 0
        if not 0 <= sample.label < self.classes:
            raise ValueError(
                f"shard {self.shards[i].place}, sample {sample.number} ({sample.name}): label "
                f"{sample.label} is not from 0 to {self.classes - 1}"
            )
        return sample.label


class StreamItem(NamedTuple):
    """A sample on its way to whoever decodes it."""

    sample: RawSample
    shard: str
    position: int  # in the data
    label: int
    epoch: int = 0
    repeat: int = 0

    @property
    def place(self) -> tuple[int, int, int]:
        """Position, epoch and repetition, which decide the augmentation."""
        return self.position, self.epoch, self.repeat

    def open(self, channels: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """Return the image; raises ``ValueError`` if it cannot be decoded."""
        name = f"{self.shard}: {self.sample.name}"
        return decode_image(self.sample.image, name, channels, max_pixels)


class Failure(NamedTuple):
    """What went wrong in reading, in the place of a batch."""

    error: Exception


class StreamBatches(Batches):
    """Samples of each batch of a stream, the part of one rank; a sampler that reads.

    Arguments are those of :class:`volution.data.order.Batches`, with a stream instead of a length.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        batch_size: int,
        seed: int | None = None,
        repeats: int = 1,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        super().__init__(
            len(stream), batch_size=batch_size, seed=seed, repeats=repeats, rank=rank, ranks=ranks
        )
        self.stream = stream
        self.share = batch_size // ranks

    def batches_from(self, done: int) -> Iterator[list[StreamItem | Failure]]:  # type: ignore[override]
        """Return the batches of the epoch after the first ones; the last may be a failure."""
        if self.seed is None:
            return _to_the_failure(self._in_order(done))
        return _to_the_failure(self._mixed(self.seed, self.epoch, done))

    def _in_order(self, done: int) -> Iterator[list[StreamItem]]:
        """Yield one rank's share of all samples, the ranks' shares lying one after the other."""
        first = min(self.rank * len(self) * self.share, self.length)
        end = min(first + len(self) * self.share, self.length)
        positions = np.arange(min(first + done * self.share, end), end)
        with closing(Ahead(self.stream.read(positions), _AHEAD)) as items:
            for start in range(0, (len(self) - done) * self.share, self.share):
                yield [next(items) for _ in positions[start : start + self.share]]

    def _mixed(self, seed: int, epoch: int, done: int) -> Iterator[list[StreamItem]]:
        lanes = self._lanes(seed, epoch, done)
        try:
            for _ in range(done, len(self)):
                yield [item for lane in lanes for item in lane.row()]
        finally:
            for lane in lanes:
                lane.close()

    def _lanes(self, seed: int, epoch: int, done: int) -> list[_Lane]:
        """Return the lanes that this rank needs, ready for the batch after those done."""
        rows, places = len(self), min(self.batch_size, self.length)
        count = min(_LANES, max(1, places // _PLACES_OF_A_LANE))
        bounds = [places * i // count for i in range(count + 1)]
        shards = np.random.default_rng((seed, epoch)).permutation(len(self.stream.shards))
        lanes, start = [], 0
        for number, (first, last) in enumerate(pairwise(bounds)):
            slots = rows * (last - first)
            length = math.ceil(slots / self.repeats)
            begin = max(first, self.rank * self.share)
            end = min(last, (self.rank + 1) * self.share)
            if begin < end:
                chance = np.random.default_rng((seed, epoch, number + 1)).random(length)
                jump = chance * (self.stream.window / count)
                # Each sample moves back by a chance within the window, so no more wait for it.
                order = np.argsort(np.arange(length) + jump, kind="stable") + start
                slot = np.arange(slots).reshape(rows, -1)[done:, begin - first : end - first]
                lanes.append(_Lane(self.stream, shards, order, slot, epoch, self.repeats))
            start += length
        return lanes


def _to_the_failure(
    batches: Iterator[list[StreamItem]],
) -> Iterator[list[StreamItem | Failure]]:
    """Yield batches and, as the last, the error that ended them.

    An error in a sampler lets PyTorch stumble over its own workers; and the batches before it
    would be lost.
    """
    try:
        for batch in batches:
            yield [*batch]
    except Exception as error:
        yield [Failure(error)]


class _Lane:
    """Samples of one lane, row by row: what it adds to each batch of a rank."""

    def __init__(
        self,
        stream: Stream,
        shards: np.ndarray,
        order: np.ndarray,
        slots: np.ndarray,  # (rows, places): numbers in the order, repetitions counted
        epoch: int,
        repeats: int,
    ) -> None:
        self._rows = iter(slots)
        self._order, self._epoch, self._repeats = order, epoch, repeats
        needed, uses = np.unique(order[slots.ravel() // repeats], return_counts=True)
        self._needed = zip(needed.tolist(), uses.tolist(), strict=True)
        self._held: dict[int, tuple[StreamItem, int]] = {}
        self._items = Ahead(stream.read(needed, shards), _AHEAD)

    def row(self) -> list[StreamItem]:
        return [self._take(slot) for slot in next(self._rows).tolist()]

    def _take(self, slot: int) -> StreamItem:
        position = int(self._order[slot // self._repeats])
        while position not in self._held:
            item = next(self._items)
            read, uses = next(self._needed)
            self._held[read] = item, uses
        item, uses = self._held.pop(position)
        if uses > 1:
            self._held[position] = item, uses - 1
        return item._replace(epoch=self._epoch, repeat=slot % self._repeats)

    def close(self) -> None:
        self._items.close()
