"""Which image comes when: over ranks, workers, epochs, repetitions, and from the middle on."""

import numpy as np
import pytest
import torch

from volution import data
from volution.data import Augmentation, InputConfig

CONFIG = InputConfig(3, 12, (0.5,) * 3, (0.25,) * 3)
VARIED = CONFIG.training_transform(Augmentation(auto_augment="rand-m9", random_erasing=0.5))


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (26, 14, 14, 3), dtype=np.uint8)
    return data.ImageArrays(pixels, list(range(26)))


def shuffled(images, batch_size=6, **settings):
    return data.loader(images, VARIED, batch_size=batch_size, shuffle_seed=3, **settings)


def epoch_of(loader, epoch, done=0):
    data.set_position(loader, epoch, done)
    return list(loader)


def same(ours, theirs):
    return len(ours) == len(theirs) and all(
        torch.equal(a.images, b.images) and torch.equal(a.indices, b.indices)
        for a, b in zip(ours, theirs, strict=True)
    )


def together(parts):
    """Join what ranks got of each batch, in their order."""
    return [
        data.Batch(
            torch.cat([part.images for part in batch if len(part.labels)]),
            torch.cat([part.labels for part in batch]),
            torch.cat([part.indices for part in batch]),
            [],
        )
        for batch in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_train_on_the_batches_of_one_process(images, ranks, repeats):
    parts = [
        epoch_of(shuffled(images, repeats=repeats, rank=rank, ranks=ranks), 1)
        for rank in range(ranks)
    ]
    assert {len(batch.labels) for part in parts for batch in part} == {6 // ranks}
    assert same(together(parts), epoch_of(shuffled(images, repeats=repeats), 1))


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
@pytest.mark.parametrize("count", [1, 6, 7, 24, 26])
def test_ranks_together_measure_every_image_once_in_as_many_batches(images, ranks, count):
    some = data.ImageArrays(images.arrays[:count], images.labels[:count])
    loaders = [
        data.loader(some, CONFIG.transform(), batch_size=6, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]
    parts = [list(loader) for loader in loaders]
    assert {len(part) for part in parts} == {len(loader) for loader in loaders} == {-(-count // 6)}
    assert torch.cat([b.indices for b in together(parts)]).tolist() == list(range(count))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_from_its_middle(images, workers):
    whole = epoch_of(shuffled(images), 2)
    loader = shuffled(images, workers=workers)
    for done in (0, 1, 3, 4):
        assert len(loader) == 4
        assert same(epoch_of(loader, 2, done), whole[done:])
    # Those after it are whole again.
    assert same(list(loader), whole)
    with pytest.raises(ValueError, match="batches_done must be from 0 to the 4 batches"):
        data.set_position(loader, 0, 5)


def test_data_in_order_goes_on_from_its_middle_too(images):
    loader = data.loader(images, CONFIG.transform(), batch_size=6)
    whole = list(loader)
    data.set_position(loader, 0, 3)
    assert same(list(loader), whole[3:])
    assert len(whole) == 5


def test_a_position_counts_from_when_the_iteration_began(images):
    """Training loops set the next epoch when the iterator of this one is still in use."""
    loader = shuffled(images)
    whole = epoch_of(loader, 0)
    data.set_position(loader, 0, 1)
    iterator = iter(loader)
    loader.batch_sampler.sampler.set_epoch(7)
    assert same(list(iterator), whole[1:])


def pixels_by_image(batches):
    return {
        int(i): pixels
        for batch in batches
        for i, pixels in zip(batch.indices, batch.images, strict=True)
    }


def test_augmentation_follows_from_seed_epoch_and_position_alone(images):
    """Neither order, batches, workers nor ranks have a part in it."""
    once = pixels_by_image(epoch_of(shuffled(images, batch_size=26), 0))
    again = pixels_by_image(epoch_of(shuffled(images, batch_size=2, workers=2), 0))
    assert once.keys() == again.keys() == set(range(26))
    assert all(torch.equal(once[i], again[i]) for i in once)
    # The order of fewer images is another one; what they look like is not.
    fewer = data.ImageArrays(images.arrays[:9], images.labels[:9])
    part = pixels_by_image(epoch_of(shuffled(fewer, batch_size=3), 0))
    assert all(torch.equal(once[i], part[i]) for i in range(9))
    later = pixels_by_image(epoch_of(shuffled(images, batch_size=26), 1))
    assert not any(torch.equal(once[i], later[i]) for i in range(26))


class TestRepeats:
    def test_each_image_comes_in_a_row_each_time_another_one(self, images):
        batches = epoch_of(shuffled(images, batch_size=6, repeats=3), 0)
        indices = torch.cat([batch.indices for batch in batches])
        pixels = torch.cat([batch.images for batch in batches])
        assert len(indices) == 24  # as many as without, in whole batches
        rows = indices.view(-1, 3)
        assert (rows == rows[:, :1]).all()
        assert len(set(rows[:, 0].tolist())) == 8
        for first, second, third in pixels.view(-1, 3, *pixels.shape[1:]):
            assert not torch.equal(first, second)
            assert not torch.equal(first, third)
            assert not torch.equal(second, third)

    def test_the_epoch_is_as_long_as_without(self, images):
        for repeats in (1, 2, 3, 4, 26, 40):
            order = data.order.Batches(26, batch_size=26, seed=0, repeats=repeats)
            (batch,) = order
            assert len(batch) == 26
            assert len({position for position, _, _ in batch}) == -(-26 // repeats)

    def test_other_epochs_see_other_images(self, images):
        loader = shuffled(images, repeats=3)
        seen = {int(i) for e in range(12) for batch in epoch_of(loader, e) for i in batch.indices}
        assert seen == set(range(26))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_lie_in_channels_last_memory(images, workers):
    for batch in shuffled(images, workers=workers):
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.images.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is that of all ranks together.*got 0"),
        ({"batch_size": 7, "ranks": 2}, "a multiple of ranks = 2, at least 1; got 7"),
        ({"rank": 2, "ranks": 2}, "rank must be at least 0 and below ranks = 2, got 2"),
        ({"repeats": 0}, "repeats must be 1"),
        ({"repeats": 2, "shuffle_seed": None}, "or more with shuffle_seed, got 2"),
        ({"batch_size": 28, "ranks": 2}, "batch_size must be at most the 26 images"),
    ],
)
def test_settings_that_cannot_be(images, settings, message):
    with pytest.raises(ValueError, match=message):
        data.loader(images, VARIED, **{"batch_size": 6, "shuffle_seed": 0, **settings})
