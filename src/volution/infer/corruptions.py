"""Eight of the corruptions of ImageNet-C, made on the fly, the same for an image every time."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor, resize, to_pil_image

from volution.data import Images, InputConfig
from volution.infer.evaluate import look
from volution.tasks import Accuracy, Classifier

__all__ = ["CORRUPTIONS", "SEVERITIES", "Robustness", "corrupt", "evaluate_corrupted"]

SEVERITIES = (1, 2, 3, 4, 5)

CORRUPTIONS: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "defocus_blur": (3, 4, 6, 8, 10),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "jpeg": (25, 18, 15, 10, 7),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
}
"""The parameter of each corruption at severities 1 to 5, as in ImageNet-C; see :func:`corrupt`."""


def corrupt(image: Image.Image, name: str, severity: int) -> Image.Image:
    """Return a corrupted copy of an image, as Hendrycks and Dietterich do (ICLR 2019).

    ======================  ============================================  ======================
    name                    what is done, with values from 0 to 1         parameter at severity
                                                                          1, 2, 3, 4, 5
    ======================  ============================================  ======================
    ``gaussian_noise``      adds noise of this standard deviation         .08, .12, .18, .26, .38
    ``shot_noise``          counts photons: Poisson(value × p) / p        60, 25, 12, 5, 3
    ``impulse_noise``       sets this share of values to 0 or 1           .03, .06, .09, .17, .27
    ``defocus_blur``        averages over a disc of this radius, pixels   3, 4, 6, 8, 10
    ``brightness``          adds this to the value of HSV                 .1, .2, .3, .4, .5
    ``contrast``            scales the distance to each channel's mean    .4, .3, .2, .1, .05
    ``jpeg``                saves and reads with this quality             25, 18, 15, 10, 7
    ``pixelate``            shrinks to this share of the side, and back   .6, .5, .4, .3, .25
    ======================  ============================================  ======================

    The parameters are those of ImageNet-C. Two things are made in a simpler way: the disc of the
    blur has a border one pixel soft instead of a Gaussian one, and beyond the image lies its
    outermost pixel. ImageNet-C stores its images as JPEG of quality 85 on top; this does not. The
    parameters are meant for images of 224 pixels: on smaller ones a blur reaches further.

    Noise is drawn from a generator that is seeded with the image's own pixels: an image gets the
    same noise in every run, in any order and with any number of workers.

    Args:
        image: RGB or grey, as the network will see it.
        name: One of :data:`CORRUPTIONS`.
        severity: From 1 to 5.

    Raises:
        ValueError: If there is no such corruption or severity.

    Example:
        >>> grey = Image.new("L", (8, 8), 100)
        >>> corrupt(grey, "brightness", 2).getpixel((0, 0))  # 100 + 0.2 * 255
        151
        >>> noisy = corrupt(grey, "gaussian_noise", 1)
        >>> noisy == corrupt(grey, "gaussian_noise", 1), noisy == grey
        (True, False)
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption must be one of {', '.join(CORRUPTIONS)}, got {name!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be from 1 to 5, got {severity}")
    parameter = CORRUPTIONS[name][severity - 1]
    if name == "jpeg":
        return _jpeg(image, int(parameter))
    if name == "pixelate":
        return _pixelate(image, parameter)
    values = pil_to_tensor(image).float() / 255
    changed = _MADE[name](values, parameter, _generator(image))
    made: Image.Image = to_pil_image((changed.clamp(0, 1) * 255).round().byte())
    return made


def _generator(image: Image.Image) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(image.tobytes()))


def _gaussian_noise(x: Tensor, sigma: float, random: np.random.Generator) -> Tensor:
    return x + torch.from_numpy(random.normal(0, sigma, x.shape)).float()


def _shot_noise(x: Tensor, photons: float, random: np.random.Generator) -> Tensor:
    return torch.from_numpy(random.poisson(x.double().numpy() * photons) / photons).float()


def _impulse_noise(x: Tensor, share: float, random: np.random.Generator) -> Tensor:
    drawn = torch.from_numpy(random.random(x.shape))
    return torch.where(drawn < share / 2, 0.0, torch.where(drawn < share, 1.0, x))


def _defocus_blur(x: Tensor, radius: float, random: np.random.Generator) -> Tensor:
    reach = int(radius) + 1
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
    disc = (radius + 0.5 - torch.hypot(steps[:, None], steps[None, :])).clamp(0, 1)
    padded = functional.pad(x[:, None], (reach,) * 4, mode="replicate")
    return functional.conv2d(padded, (disc / disc.sum())[None, None])[:, 0]


def _brightness(x: Tensor, more: float, random: np.random.Generator) -> Tensor:
    value = x.amax(0, keepdim=True)
    brighter = (value + more).clamp(max=1)
    # The ratio of the channels is hue and saturation; black has neither and turns grey.
    return torch.where(value > 0, x * brighter / value.clamp(min=1e-6), brighter)


def _contrast(x: Tensor, scale: float, random: np.random.Generator) -> Tensor:
    mean = x.mean((1, 2), keepdim=True)
    return (x - mean) * scale + mean


_MADE: dict[str, Callable[[Tensor, float, np.random.Generator], Tensor]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "brightness": _brightness,
    "contrast": _contrast,
}


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert(image.mode)


def _pixelate(image: Image.Image, share: float) -> Image.Image:
    width, height = image.size
    small = [max(1, int(height * share)), max(1, int(width * share))]
    box = v2.InterpolationMode.BOX
    shrunk: Image.Image = resize(image, small, interpolation=box)
    grown: Image.Image = resize(shrunk, [height, width], interpolation=box)
    return grown


@dataclass(frozen=True)
class Robustness:
    """How a classifier does on corrupted images.

    Args:
        count: Images that were looked at, each with all corruptions.
        top1: For each corruption the share that was right at severities 1 to 5.
        broken: Images that could not be read, and why.
    """

    count: int
    top1: dict[str, tuple[float, ...]]
    broken: list[str]

    @property
    def mean(self) -> float:
        """Mean share that was right, over all corruptions and severities."""
        shares = [share for row in self.top1.values() for share in row]
        return sum(shares) / len(shares)


class _Severities:
    """Resize and crop, corrupt with every severity, and only then make numbers of it."""

    def __init__(self, wanted: InputConfig, name: str) -> None:
        transform: Any = wanted.transform()
        steps = list(transform.transforms)
        # Up to here they give pictures: that is where ImageNet-C corrupts.
        probe, first = Image.new("RGB" if wanted.channels == 3 else "L", (64, 64)), 0
        while isinstance(made := steps[first](probe), Image.Image):
            probe, first = made, first + 1
        self.before, self.after, self.name = steps[:first], steps[first:], name

    def __call__(self, image: Image.Image) -> Tensor:
        for step in self.before:
            image = step(image)
        versions = [corrupt(image, self.name, severity) for severity in SEVERITIES]
        for step in self.after:
            versions = [step(version) for version in versions]
        return torch.cat([torch.as_tensor(version) for version in versions])


@torch.inference_mode()
def evaluate_corrupted(
    classifier: Classifier,
    images: Images,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    show_progress: bool = True,
) -> Robustness:
    """Let a classifier look at labelled images under every corruption of :func:`corrupt`.

    The images are corrupted after resizing and cropping, as in ImageNet-C. Each is read once for
    every corruption and passes the network 40 times in all.

    Args:
        classifier: As in :func:`volution.infer.evaluate`.
        images: Likewise.
        batch_size: Corrupted images per pass.
        workers: Processes that read images.
        device: Where to compute.
        show_progress: Show a progress bar.

    Raises:
        ValueError: As :func:`volution.infer.evaluate`.
    """
    shares, broken, count = dict[str, tuple[float, ...]](), list[str](), 0
    for name in CORRUPTIONS:
        counters = [Accuracy(len(classifier.classes)) for _ in SEVERITIES]

        def seen(logits: Tensor, labels: Tensor, counters: list[Accuracy] = counters) -> None:
            for i, counter in enumerate(counters):
                counter.update(logits[i :: len(counters)], labels[i :: len(counters)])

        found = look(
            classifier,
            images,
            _Severities(classifier.input, name),
            seen,
            batch_size=max(1, batch_size // len(SEVERITIES)),
            workers=workers,
            device=device,
            show_progress=show_progress,
            description=name.replace("_", " "),
        )
        shares[name] = tuple(counter.top1 for counter in counters)
        broken, count = found.broken, counters[0].count
    return Robustness(count, shares, broken)
