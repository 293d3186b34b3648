"""How accuracy depends on the size of the image at test time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from volution.data import Images
from volution.infer.evaluate import Evaluation, evaluate
from volution.infer.mode import evaluating
from volution.tasks import Classifier

__all__ = ["SizeResult", "evaluate_sizes"]


@dataclass(frozen=True)
class SizeResult:
    """What came of an image size."""

    size: int
    evaluation: Evaluation


@torch.inference_mode()
def evaluate_sizes(
    classifier: Classifier,
    images: Images,
    sizes: Sequence[int],
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    show_progress: bool = True,
) -> list[SizeResult]:
    """Let a classifier look at labelled images in several sizes.

    The share of the image that the centre crop keeps stays what it is. Position tables and global
    filters adapt to the size, as they do in training.

    Args:
        classifier: As in :func:`volution.infer.evaluate`.
        images: Likewise.
        sizes: Sides of the square image, in pixels.
        batch_size: Images per pass.
        workers: Processes that read images.
        device: Where to compute.
        show_progress: Show a progress bar.

    Returns:
        One result for each size, in the order given.

    Raises:
        ValueError: If there is no size, one is not positive or given twice, or the network does
            not take it; nothing was measured then. Otherwise as :func:`volution.infer.evaluate`.
    """
    _check(classifier, sizes, torch.device(device))
    results = []
    for size in sizes:
        resized = replace(classifier, input=replace(classifier.input, image_size=size))
        evaluation = evaluate(
            resized,
            images,
            batch_size=batch_size,
            workers=workers,
            device=device,
            show_progress=show_progress,
            description=f"at {size} pixels",
        )
        results.append(SizeResult(size, evaluation))
    return results


def _check(classifier: Classifier, sizes: Sequence[int], device: torch.device) -> None:
    if not sizes:
        raise ValueError("sizes must name at least one size")
    for size in sizes:
        if size < 1:
            raise ValueError(f"sizes must be at least 1, got {size}")
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"sizes must differ, got {', '.join(map(str, sizes))}")
    with evaluating(classifier.model, device) as model:
        for size in sizes:
            image = torch.zeros(1, classifier.input.channels, size, size, device=device)
            try:
                model(image)
            # Networks of timm say in any of these ways that they do not take a size.
            except (ValueError, RuntimeError, AssertionError) as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason"
                raise ValueError(
                    f"sizes: {classifier.name} does not take images of {size} by {size}: {reason}"
                ) from error
