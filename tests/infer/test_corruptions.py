"""Corruptions: each does what its formula says, the same every time, and worse with severity."""

import numpy as np
import pytest
import torch
from greys import brightness, greys
from PIL import Image

from volution import data, infer
from volution.infer import CORRUPTIONS, corrupt

SIDE = 64
GREY = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))


def picture(mode="RGB"):
    """Smooth waves with some grain: something to blur, to compress and to overexpose."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    waves = np.stack([np.sin(9 * x + 3 * y + phase) for phase in (0, 1, 2)], axis=2)
    grain = np.random.default_rng(0).normal(0, 0.15, waves.shape)
    pixels = (128 + 70 * (waves + grain)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def values(image):
    return np.asarray(image).astype(float) / 255


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_it_gets_worse_with_severity(name, mode):
    image = picture(mode)
    distances = [
        np.abs(values(corrupt(image, name, severity)) - values(image)).mean()
        for severity in infer.corruptions.SEVERITIES
    ]
    assert distances[0] > 0.002
    assert distances == sorted(distances)
    assert distances[4] > 1.3 * distances[0]
    worst = corrupt(image, name, 5)
    assert (worst.mode, worst.size) == (mode, image.size)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_gets_the_same_every_time(name):
    before = picture().tobytes()
    image = picture()
    torch.manual_seed(1)
    first = corrupt(image, name, 3)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert corrupt(picture(), name, 3).tobytes() == first.tobytes()
    assert image.tobytes() == before


def test_different_images_get_different_noise():
    other = GREY.copy()
    other.putpixel((0, 0), (127, 128, 128))
    first, second = (values(corrupt(image, "gaussian_noise", 1)) for image in (GREY, other))
    assert np.abs(first - second).mean() > 0.05


def test_noise_has_its_strength():
    grey = 128 / 255
    difference = values(corrupt(GREY, "gaussian_noise", 1)) - grey
    assert difference.std() == pytest.approx(0.08, rel=0.03)
    assert abs(difference.mean()) < 0.005
    # Photons of mean 60 * value have a variance of as many.
    shot = values(corrupt(GREY, "shot_noise", 1)) - grey
    assert shot.std() == pytest.approx((grey / 60) ** 0.5, rel=0.03)
    impulses = np.asarray(corrupt(GREY, "impulse_noise", 5))
    assert np.mean(impulses == 0) == pytest.approx(0.27 / 2, rel=0.1)
    assert np.mean(impulses == 255) == pytest.approx(0.27 / 2, rel=0.1)
    assert set(np.unique(impulses)) == {0, 128, 255}


def test_brightness_keeps_hue_and_saturation():
    bright = corrupt(Image.new("RGB", (1, 1), (100, 50, 20)), "brightness", 2)
    # The value of HSV goes from 100 to 151; the others keep their ratio to it.
    assert bright.getpixel((0, 0)) == (151, round(50 * 1.51), round(20 * 1.51))
    assert corrupt(Image.new("RGB", (1, 1)), "brightness", 1).getpixel((0, 0)) == (26, 26, 26)
    assert corrupt(Image.new("L", (1, 1), 250), "brightness", 5).getpixel((0, 0)) == 255


def test_contrast_shrinks_towards_the_mean():
    image = Image.fromarray(np.array([[0, 100], [100, 200]], np.uint8))
    assert np.asarray(corrupt(image, "contrast", 1)).tolist() == [[60, 100], [100, 140]]


def test_defocus_spreads_a_dot_over_a_disc():
    dot = np.zeros((SIDE, SIDE), np.uint8)
    dot[SIDE // 2, SIDE // 2] = 255
    stack = Image.fromarray(np.full((SIDE, SIDE), 90, np.uint8))
    assert corrupt(stack, "defocus_blur", 5).getextrema() == (90, 90)
    spread = np.asarray(corrupt(Image.fromarray(dot), "defocus_blur", 1))
    reached = np.argwhere(spread > 0) - SIDE // 2
    assert np.hypot(*reached.T).max() <= 3.5
    assert len(reached) == pytest.approx(np.pi * 3.5**2, rel=0.2)


def test_pixelate_makes_blocks():
    pixels = np.asarray(corrupt(picture("L"), "pixelate", 5))  # a quarter of the side
    blocks = pixels.reshape(SIDE // 4, 4, SIDE // 4, 4)
    assert (blocks == blocks[:, :1, :, :1]).all()
    means = np.asarray(picture("L")).reshape(SIDE // 4, 4, SIDE // 4, 4).mean((1, 3))
    assert np.abs(blocks[:, 0, :, 0] - means).max() <= 1


def test_names_and_severities_that_do_not_exist():
    with pytest.raises(ValueError, match=r"corruption must be one of gaussian_noise.*got 'fog'"):
        corrupt(GREY, "fog", 1)
    with pytest.raises(ValueError, match="severity must be from 1 to 5, got 6"):
        corrupt(GREY, "jpeg", 6)


def test_a_classifier_sees_what_corrupt_makes():
    levels, labels = [20, 90, 150, 240, 60], [0, 1, 2, 3, 0]
    images, classifier = greys(levels, labels), brightness()
    found = infer.evaluate_corrupted(classifier, images, batch_size=10, show_progress=False)
    assert list(found.top1) == list(CORRUPTIONS)
    assert found.count == 5
    for name in ("brightness", "contrast", "impulse_noise"):
        for severity in infer.corruptions.SEVERITIES:
            seen = [values(corrupt(images.open(i), name, severity)) for i in range(5)]
            batch = torch.tensor(np.stack(seen))[:, None].float()
            right = classifier.model(batch).argmax(1) == torch.tensor(labels)
            assert found.top1[name][severity - 1] == pytest.approx(float(right.float().mean()))
    shares = [share for row in found.top1.values() for share in row]
    assert found.mean == pytest.approx(sum(shares) / 40)


def test_order_and_batches_do_not_matter():
    levels, labels = [30, 95, 160, 225, 128, 64], [0, 1, 2, 3, 1, 0]
    alone = infer.evaluate_corrupted(brightness(), greys(levels, labels), show_progress=False)
    turned = data.ImageArrays(greys(levels, labels).arrays[::-1].copy(), labels[::-1])
    others = infer.evaluate_corrupted(brightness(), turned, batch_size=5, show_progress=False)
    assert alone.top1 == others.top1
    assert 0 < alone.mean < 1
