"""How often a classifier is right, on which classes, how sure it may be, and how fast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from volution._support.console import Meter
from volution.data import Batch, Images, loader
from volution.infer.metrics import Calibration, standard_error, wilson_interval
from volution.infer.mode import evaluating
from volution.tasks import Accuracy, Classifier

__all__ = ["Evaluation", "Look", "evaluate", "look"]


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
        nll: Mean negative log-likelihood of the right class, in nats.
        ece: Expected calibration error over 15 bins, see :class:`volution.infer.Calibration`.
        bins: For each of these bins the number of images, the sum of their confidences, and the
            number of those that were right, shape ``(15, 3)``.
    """

    count: int
    top1: float
    top5: float
    images_per_second: float
    confusion: Tensor
    broken: list[str] = field(default_factory=list)
    nll: float = float("nan")
    ece: float = float("nan")
    bins: Tensor = field(default_factory=lambda: torch.zeros(0, 3))

    @property
    def per_class(self) -> Tensor:
        """Share of each class's images that was right; NaN for classes without images."""
        return self.confusion.diagonal() / self.confusion.sum(1)

    @property
    def standard_error(self) -> float:
        """Standard error of ``top1``: what another sample of as many images would change."""
        return standard_error(self.top1, self.count)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of Wilson for ``top1``."""
        return wilson_interval(self.top1, self.count)


@torch.inference_mode()
def evaluate(
    classifier: Classifier,
    images: Images,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    show_progress: bool = True,
    description: str = "evaluating",
    on_batch: Callable[[Tensor, Batch], None] | None = None,
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
        description: What stands before the bar.
        on_batch: Gets the logits of each batch that is not empty, and the batch.

    Raises:
        ValueError: If a label is not one of the classes, the network's outputs are not finite, or
            no image could be read.
    """
    accuracy, calibration = Accuracy(len(classifier.classes)), Calibration()

    def seen(logits: Tensor, labels: Tensor) -> None:
        accuracy.update(logits, labels)
        calibration.update(logits, labels)

    found = look(
        classifier,
        images,
        classifier.input.transform(),
        seen,
        batch_size=batch_size,
        workers=workers,
        device=device,
        show_progress=show_progress,
        description=description,
        on_batch=on_batch,
    )
    return Evaluation(
        accuracy.count,
        accuracy.top1,
        accuracy.top5,
        found.images_per_second,
        accuracy.confusion,
        found.broken,
        calibration.nll,
        calibration.ece,
        calibration.bins,
    )


@dataclass(frozen=True)
class Look:
    """How a pass over images went: images that could not be read, and images per second."""

    broken: list[str]
    images_per_second: float


def look(
    classifier: Classifier,
    images: Images,
    transform: Callable[..., Tensor],
    seen: Callable[[Tensor, Tensor], None],
    *,
    batch_size: int,
    workers: int,
    device: str | torch.device,
    show_progress: bool,
    description: str = "evaluating",
    on_batch: Callable[[Tensor, Batch], None] | None = None,
) -> Look:
    """Show labelled images to a classifier, and the outputs to a function.

    Args:
        classifier: The network; it comes back as it was.
        images: The images.
        transform: Makes of an image what the network takes; or several versions of it, one after
            the other in the channels.
        seen: Gets logits ``(N, num_classes)`` and labels ``(N,)`` of each batch that is not
            empty; with several versions ``N`` counts all, those of an image in a row.
        batch_size: Images per pass.
        workers: Processes that read images.
        device: Where to compute.
        show_progress: Show a progress bar.
        description: What stands before the bar.
        on_batch: Gets the same logits, and the batch.

    Raises:
        ValueError: As :func:`evaluate`.
    """
    classes, channels = len(classifier.classes), classifier.input.channels
    broken, count = list[str](), 0
    batches = loader(images, transform, batch_size=batch_size, workers=workers)
    with (
        evaluating(classifier.model, torch.device(device)) as model,
        Meter(description, len(images), show=show_progress) as meter,
    ):
        for batch in batches:
            broken += batch.broken
            if len(batch.labels):
                count += len(batch.labels)
                _check_labels(batch.labels, classes)
                versions = batch.images.shape[1] // channels
                pixels = batch.images.reshape(-1, channels, *batch.images.shape[2:])
                logits = model(pixels.to(device, memory_format=torch.channels_last)).float()
                if not torch.isfinite(logits).all():
                    raise ValueError(
                        "the network's outputs are not finite; its weights come from a run that "
                        "went wrong, or are damaged"
                    )
                seen(logits, batch.labels.repeat_interleave(versions))
                if on_batch is not None:
                    on_batch(logits, batch)
            meter.add(len(batch.labels) + len(batch.broken))
        rate = meter.rate
    if count == 0:
        why = f"; {broken[0]}" if broken else ""
        raise ValueError(f"none of the {len(images)} images could be read{why}")
    return Look(broken, rate)


def _check_labels(labels: Tensor, classes: int) -> None:
    least, greatest = int(labels.min()), int(labels.max())
    if greatest >= classes:
        raise ValueError(f"the data has at least {greatest + 1} classes, the network {classes}")
    if least < 0:
        raise ValueError(f"a label must be from 0 to {classes - 1}, the data has {least}")
