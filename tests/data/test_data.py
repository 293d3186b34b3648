"""Datasets: which images, in which order, and what happens to those that cannot be read."""

import random
from collections import Counter

import numpy as np
import pytest
import small
import torch
from PIL import Image

from volution import data
from volution.data import transforms


@pytest.fixture
def colours(tmp_path):
    return small.colour_folder(tmp_path / "colours")


def batches(images, **kwargs):
    config = data.InputConfig(3, 16, (0.5,) * 3, (0.5,) * 3)
    return list(data.loader(images, config.transform(), batch_size=4, **kwargs))


def test_the_split_of_the_digits_is_stratified_and_fixed():
    first, again = data.load("digits"), data.load("digits")
    assert len(first.train) + len(first.val) == 1797
    assert list(first.val.labels) == list(again.val.labels)
    counts = Counter(first.val.labels)
    assert max(counts.values()) - min(counts.values()) <= 2
    together = [images.open(i).tobytes() for images in (first.train, first.val) for i in range(9)]
    assert len(set(together)) == 18


def test_a_folder_of_class_folders_is_split(colours):
    found = data.load(f"folder:{colours}")
    assert found.classes == ("blue", "green", "red")
    assert Counter(found.val.labels) == {0: 2, 1: 2, 2: 2}
    assert not set(found.train.paths) & set(found.val.paths)


@pytest.mark.parametrize("held_out", ["val", "validation", "test"])
def test_a_folder_with_its_own_split_keeps_it(tmp_path, held_out):
    small.colour_folder(tmp_path / "train", per_class=2)
    small.colour_folder(tmp_path / held_out, per_class=1)
    found = data.load(f"folder:{tmp_path}")
    assert (len(found.train), len(found.val)) == (6, 3)


def test_grey_and_transparent_files_are_read_as_rgb(colours):
    Image.new("LA", (20, 10), (3, 200)).save(colours / "red" / "grey.png")
    found = data.load(f"folder:{colours}")
    assert {found.train.open(i).mode for i in range(len(found.train))} == {"RGB"}


def test_hidden_files_and_other_files_are_passed_over(colours):
    (colours / "red" / ".thumb.png").write_bytes(b"x")
    (colours / "red" / "notes.txt").write_text("x")
    (colours / ".cache").mkdir()
    found = data.load(f"folder:{colours}")
    assert len(found.train) + len(found.val) == 24


def test_unreadable_images_fall_out_of_their_batch(colours):
    bad = small.break_image(colours / "red" / "00.png")
    everything = data.ImageFiles(data.find_images(colours), [0] * 24)
    got = batches(everything)
    assert sum(len(batch.labels) for batch in got) == 23
    (problem,) = [problem for batch in got for problem in batch.broken]
    assert problem.startswith(f"{bad} is not a readable image")


def test_a_batch_of_unreadable_images_is_empty(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"not an image")
    (batch,) = batches(data.ImageFiles(data.find_images(tmp_path), [0, 0, 0]))
    assert len(batch.labels) == 0
    assert len(batch.broken) == 3


def test_order_depends_on_seed_and_epoch_alone(colours):
    images = data.ImageFiles(data.find_images(colours), list(range(24)))

    def order(seed, epoch, workers=0):
        config = data.InputConfig(3, 16, (0.5,) * 3, (0.5,) * 3)
        loader = data.loader(
            images, config.transform(), batch_size=4, shuffle_seed=seed, workers=workers
        )
        data.set_position(loader, epoch)
        return torch.cat([batch.labels for batch in loader]).tolist()

    assert order(0, 0) == order(0, 0) == order(0, 0, workers=1)
    assert sorted(order(0, 0)) == list(range(24))
    assert len({tuple(order(*pair)) for pair in [(0, 0), (0, 1), (1, 0)]}) == 3


def test_the_last_training_batch_is_full_but_small_data_is_used(colours):
    images = data.ImageFiles(data.find_images(colours), [0] * 24)
    config = data.InputConfig(3, 16, (0.5,) * 3, (0.5,) * 3)

    def sizes(batch_size):
        loader = data.loader(images, config.transform(), batch_size=batch_size, shuffle_seed=0)
        return [len(batch.labels) for batch in loader]

    assert sizes(10) == [10, 10]
    assert sizes(100) == [24]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("digit", ValueError, "unknown dataset 'digit'; nearest: digits"),
        ("imagenet", ValueError, "nearest: imagenette, imagenet:PATH"),
        ("zebras", ValueError, r"known: digits, cifar10, .*, folder:PATH, imagenet:PATH, hf:NAME"),
        ("cifar-10", ValueError, "nearest: cifar10"),
        ("cifar10:", ValueError, "unknown dataset 'cifar10:'"),
        ("hf:", ValueError, "unknown dataset 'hf:'"),
        ("folder:", ValueError, "unknown dataset 'folder:'"),
        ("folder:/no/such/place", FileNotFoundError, "does not exist"),
    ],
)
def test_names_that_mean_nothing(name, error, message):
    with pytest.raises(error, match=message):
        data.load(name)


def test_folders_that_hold_no_classes(tmp_path):
    with pytest.raises(ValueError, match="no folder at all"):
        data.load(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match=f"folder:{tmp_path}"):
        data.load(str(tmp_path))
    (tmp_path / "cats").mkdir()
    with pytest.raises(ValueError, match="only cats/"):
        data.load(f"folder:{tmp_path}")
    (tmp_path / "dogs").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        data.load(f"folder:{tmp_path}")


def test_training_and_validation_must_agree_on_classes(tmp_path):
    small.colour_folder(tmp_path / "train", per_class=1)
    with pytest.raises(ValueError, match="has train/ but none of val"):
        data.load(f"folder:{tmp_path}")
    small.colour_folder(tmp_path / "val", per_class=1)
    (tmp_path / "val" / "pink").mkdir()
    with pytest.raises(ValueError, match="classes that train/ has not: pink"):
        data.load(f"folder:{tmp_path}")


def test_augmentation_depends_on_seed_and_epoch_alone_and_disturbs_nobody(colours):
    images = data.ImageFiles(data.find_images(colours), list(range(24)))
    config = data.InputConfig(3, 16, (0.5,) * 3, (0.5,) * 3)
    transform = config.training_transform(data.Augmentation(auto_augment="rand-m9"))

    def pixels(epoch, batch_size=6, workers=0):
        loader = data.loader(
            images, transform, batch_size=batch_size, shuffle_seed=0, workers=workers
        )
        data.set_position(loader, epoch)
        return torch.cat([batch.images for batch in loader])

    torch.manual_seed(5)
    first = pixels(0)
    drawn = torch.rand(3)
    assert torch.equal(first, pixels(0, batch_size=4, workers=1))
    assert not torch.equal(first, pixels(1))
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("policy", ["rand-m15-mstd0.5-inc1", "original", "v0", "augmix-m10"])
def test_policies_at_their_strongest_take_every_image(policy, mode):
    channels = len(mode)
    config = data.InputConfig(channels, 16, (0.5,) * channels, (0.5,) * channels)
    transform = config.training_transform(data.Augmentation(auto_augment=policy))
    image = Image.effect_noise((20, 20), 80).convert(mode)
    random.seed(0)
    assert all(transform(image).shape == (channels, 16, 16) for _ in range(200))


def test_no_bit_kept_is_black():
    image = Image.new("RGB", (3, 2), (200, 100, 50))
    assert np.asarray(transforms._posterize(image, 0)).tolist() == [[[0, 0, 0]] * 3] * 2
    assert transforms._posterize(image, 2).getpixel((0, 0)) == (192, 64, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_is_continued_in_its_middle_and_the_next_is_whole(colours, workers):
    config = data.InputConfig(3, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    images = data.load(f"folder:{colours}").train
    loader = data.loader(images, config.transform(), batch_size=4, shuffle_seed=0, workers=workers)
    data.set_position(loader, 3)
    whole = [batch.indices.tolist() for batch in loader]
    data.set_position(loader, 3, 2)
    assert [batch.indices.tolist() for batch in loader] == whole[2:]
    assert len(list(loader)) == len(whole)
