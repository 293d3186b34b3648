"""How good a classifier is, with the images that it does worst and best on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from volution.data import Batch, Images
from volution.infer.evaluate import Evaluation, evaluate
from volution.tasks import Classifier

__all__ = ["Review", "Sample", "review"]


@dataclass(frozen=True)
class Sample:
    """An image and what a classifier says of it.

    Args:
        position: Where it is in the data.
        truth: Number of its class.
        answer: Number of the likeliest class.
        probability: Probability of the answer.
        loss: Negative logarithm of the probability of the truth.
        pixels: What the network saw, ``(C, H, W)``.
    """

    position: int
    truth: int
    answer: int
    probability: float
    loss: float
    pixels: Tensor


@dataclass(frozen=True)
class Review:
    """An evaluation, and the images at its ends.

    Args:
        evaluation: Of all images.
        worst: Images of the highest loss, the highest first.
        best: Images of the lowest, the lowest first.
    """

    evaluation: Evaluation
    worst: list[Sample]
    best: list[Sample]


def review(
    classifier: Classifier,
    images: Images,
    *,
    samples: int = 12,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    show_progress: bool = True,
) -> Review:
    """Evaluate a classifier, and keep the images with the highest and the lowest loss.

    Args:
        classifier: As in :func:`volution.infer.evaluate`.
        images: Likewise.
        samples: How many images to keep of each kind.
        batch_size: Images per pass.
        workers: Processes that read images.
        device: Where to compute.
        show_progress: Show a progress bar.

    Raises:
        ValueError: If ``samples`` is not positive; and as :func:`volution.infer.evaluate`.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    worst, best = list[Sample](), list[Sample]()

    def seen(logits: Tensor, batch: Batch) -> None:
        logp = logits.float().log_softmax(1).cpu()
        losses = -logp.gather(1, batch.labels.cpu()[:, None])[:, 0]
        likeliest, answers = logp.max(1)
        for kept, sign in ((worst, -1.0), (best, 1.0)):
            order = (sign * losses).argsort(stable=True)[:samples].tolist()
            kept += [
                Sample(
                    int(batch.indices[i]),
                    int(batch.labels[i]),
                    int(answers[i]),
                    float(likeliest[i].exp()),
                    float(losses[i]),
                    batch.images[i].cpu().clone(),
                )
                for i in order
            ]
            kept.sort(key=lambda sample: sign * sample.loss)
            del kept[samples:]

    evaluation = evaluate(
        classifier,
        images,
        batch_size=batch_size,
        workers=workers,
        device=device,
        show_progress=show_progress,
        on_batch=seen,
    )
    return Review(evaluation, worst, best)
