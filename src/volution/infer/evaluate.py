"""How often a classifier is right, on which classes, and how fast."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from volution._support.console import Meter
from volution.data import Images, loader
from volution.infer.mode import evaluating
from volution.tasks import Accuracy, Classifier

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """What a classifier did with labelled images.

    Args:
        count: Images that were looked at.
        top1: Share of them whose likeliest class was the right one.
        top5: Share of them whose class was among the five likeliest.
        images_per_second: Throughput, reading and preparing included.
        confusion: How many images of a class (row) were taken for a class (column).
        broken: Images that could not be read, and why; they do not count.
    """

    count: int
    top1: float
    top5: float
    images_per_second: float
    confusion: Tensor
    broken: list[str] = field(default_factory=list)


@torch.inference_mode()
def evaluate(
    classifier: Classifier,
    images: Images,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    show_progress: bool = True,
) -> Evaluation:
    """Let a classifier look at labelled images and compare.

    Args:
        classifier: The network, its classes and its input. It comes back as it was: on its
            device, in its mode.
        images: Images whose labels mean the same classes.
        batch_size: Images per pass.
        workers: Processes that read images.
        device: Where to compute.
        show_progress: Show a progress bar.

    Raises:
        ValueError: If a label is not one of the classes, or no image could be read.
    """
    classes = len(classifier.classes)
    if images.labels and max(images.labels) >= classes:
        raise ValueError(
            f"the data has at least {max(images.labels) + 1} classes, the network {classes}"
        )
    accuracy, broken = Accuracy(classes), list[str]()
    transform = classifier.input.transform()
    batches = loader(images, transform, batch_size=batch_size, workers=workers)
    with (
        evaluating(classifier.model, torch.device(device)) as model,
        Meter("evaluating", len(images), show=show_progress) as meter,
    ):
        for batch in batches:
            broken += batch.broken
            if len(batch.labels):
                pixels = batch.images.to(device, memory_format=torch.channels_last)
                accuracy.update(model(pixels), batch.labels)
            meter.add(len(batch.labels) + len(batch.broken))
        rate = meter.rate
    if accuracy.count == 0:
        raise ValueError(f"none of the {len(images)} images could be read; {broken[0]}")
    return Evaluation(
        accuracy.count, accuracy.top1, accuracy.top5, rate, accuracy.confusion, broken
    )
