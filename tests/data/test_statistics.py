"""What a network is fed is what its authors fed it: computed here once more, from first steps."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms import functional

from volution import data, models, tasks

OTHERS = [
    "resnet50.a1_in1k",
    "resnet50.tv_in1k",
    "inception_v3.tv_in1k",  # 299, other statistics
    "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "convnext_tiny.in12k_ft_in1k_384",  # squashed
    "tf_efficientnet_b3.ns_jft_in1k",
    "mobilenetv3_large_100.ra_in1k",
    "vit_base_patch16_clip_384.openai_ft_in1k",
]
FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


def published(name):
    return timm.get_pretrained_cfg(name).to_dict()


def transform_of(name):
    # The configuration is all that is asked of the network.
    return tasks.input_config(SimpleNamespace(pretrained_cfg=published(name))).transform()


def by_hand(image, cfg):
    """Resize, crop, subtract and divide, with nothing but Pillow and numpy."""
    side = cfg["input_size"][-1]
    large = math.floor(side / cfg["crop_pct"])
    if cfg.get("crop_mode") == "squash":
        width, height = large, large
    else:
        short = min(image.size)
        width, height = (int(large * length / short) for length in image.size)
    resized = np.asarray(image.resize((width, height), FILTERS[cfg["interpolation"]]))
    left, top = round((width - side) / 2), round((height - side) / 2)
    pixels = resized[top : top + side, left : left + side] / 255
    return (pixels - np.array(cfg["mean"])) / np.array(cfg["std"])


def tags():
    return [f"{n}.{tag}" if tag else n for n in models.list_models() for tag in tags_of(n)]


def tags_of(name):
    return [found.partition(".")[2] for found in timm.list_pretrained(f"{name}.*")] or [""]


@pytest.mark.parametrize("name", [*tags(), *OTHERS])
def test_images_arrive_as_the_network_wants_them(name):
    cfg, transform = published(name), transform_of(name)
    side = cfg["input_size"][-1]
    plain = transform(Image.new("RGB", (90, 60), (30, 140, 250)))
    assert plain.shape == (3, side, side)
    want = (torch.tensor([30, 140, 250]) / 255 - torch.tensor(cfg["mean"])) / torch.tensor(
        cfg["std"]
    )
    torch.testing.assert_close(plain, want[:, None, None].expand_as(plain))
    for size in ((100, 70), (61, 110)):
        noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        got = transform(image).permute(1, 2, 0)
        torch.testing.assert_close(got, torch.from_numpy(by_hand(image, cfg)).float())


def test_the_cases_differ():
    """A transform that ignored one of them would be noticed."""
    cfgs = [published(name) for name in [*tags(), *OTHERS]]
    assert len(tags()) >= len(models.list_models()) >= 28
    for key, least in (("crop_pct", 4), ("interpolation", 2), ("mean", 3), ("input_size", 4)):
        assert len({cfg[key] for cfg in cfgs}) >= least, key
    assert {cfg.get("crop_mode") for cfg in cfgs} >= {"squash"}


def test_training_images_have_the_same_statistics():
    config = data.InputConfig(3, 32, (0.2, 0.4, 0.6), (0.1, 0.2, 0.3))
    varied = config.training_transform(data.Augmentation(color_jitter=0.0))
    image = varied(Image.new("RGB", (90, 60), (51, 102, 204)))
    want = torch.tensor([0.0, 0.0, 2 / 3])[:, None, None].expand(3, 32, 32)
    torch.testing.assert_close(image, want, rtol=1e-5, atol=1e-6)


def test_a_border_is_of_the_mean_colour():
    config = data.InputConfig(3, 20, (0.2, 0.4, 0.6), (1.0,) * 3, crop_mode="border")
    image = config.transform()(Image.new("RGB", (40, 20), (255, 255, 255)))
    assert image.shape == (3, 20, 20)
    torch.testing.assert_close(image[:, 0], torch.zeros(3, 20), rtol=0, atol=1e-6)
    torch.testing.assert_close(image[:, 10, 10], torch.tensor([0.8, 0.6, 0.4]))


def test_a_configuration_of_before_is_still_read():
    text = '{"channels": 1, "image_size": 8, "mean": [0.5], "std": [0.5]}'
    assert data.InputConfig.from_json(text).crop_mode == "center"


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_the_numbers_are_those_of_torchvision_to_the_last_bit(mode, channels):
    mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    image = Image.effect_noise((31, 31), 90).convert(mode)
    got = data.InputConfig(channels, 31, mean, std).transform()(image)
    want = functional.normalize(functional.to_tensor(image), mean, std)
    assert torch.equal(got, want)
    assert got.permute(1, 2, 0).is_contiguous()


def test_an_image_of_other_channels_is_refused():
    config = data.InputConfig(1, 8, (0.5,), (0.5,))
    with pytest.raises(ValueError, match="an image of mode RGB was given where 1 channels"):
        config.transform()(Image.new("RGB", (9, 9)))
