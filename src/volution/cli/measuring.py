"""Commands that measure a trained network: eval and verify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from volution.cli._common import Device, find_device, tell_broken

if TYPE_CHECKING:
    from volution.data import ImageData
    from volution.tasks import Classifier

__all__ = ["eval_", "verify"]


def eval_(
    checkpoint: str,
    data: str = "digits",
    *,
    model: str | None = None,
    corruptions: bool = False,
    sizes: str | None = None,
    batch_size: int = 64,
    workers: int = 0,
    max_pixels: int = 100_000_000,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Measure a trained network on the validation images of a dataset.

    Args:
        checkpoint: Weights, such as runs/NAME/best.safetensors; the folder of a run or of a pushed
            network; or hf-hub:USER/NAME.
        data: Name of the dataset, such as digits or folder:PATH.
        model: Name of the network, for weights that do not say it themselves.
        corruptions: Measure also under eight corruptions, each of five severities.
        sizes: Measure also with these image sizes, such as 160,192,224.
        batch_size: Images per pass.
        workers: Processes that read images.
        max_pixels: Images of more pixels are refused, unread.
        device: Where to compute; auto takes a GPU if there is one.
        json: Write JSON.
    """
    from volution import data as datasets
    from volution import infer, tasks
    from volution.report.evaluation_tables import show_evaluation

    _check(batch_size=batch_size, workers=workers, max_pixels=max_pixels)
    sides = None if sizes is None else _sides(sizes)
    place = find_device(device)
    classifier = tasks.load_classifier(checkpoint, model)
    images = datasets.load(data, max_pixels=max_pixels)
    classifier = _matched(classifier, images, checkpoint, data)
    given: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "device": place}
    # First, as it refuses sizes that cannot be.
    swept = [] if sides is None else infer.evaluate_sizes(classifier, images.val, sides, **given)
    evaluation = infer.evaluate(classifier, images.val, **given)
    corrupted = infer.evaluate_corrupted(classifier, images.val, **given) if corruptions else None
    show_evaluation(evaluation, classifier.classes, corrupted=corrupted, sizes=swept, as_json=json)
    return tell_broken(evaluation.broken)


def verify(
    name: str,
    *,
    data: str,
    checkpoint: str | None = None,
    batch_size: int = 64,
    workers: int = 0,
    max_pixels: int = 100_000_000,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Measure the authors' weights of a network and compare with the top-1 they report.

    Args:
        name: The network, such as van_b0.
        data: Name of the dataset, such as imagenet:ROOT; its validation images are used.
        checkpoint: File with the authors' weights; without it they are downloaded.
        batch_size: Images per pass.
        workers: Processes that read images.
        max_pixels: Images of more pixels are refused, unread.
        device: Where to compute; auto takes a GPU if there is one.
        json: Write JSON.
    """
    from volution import data as datasets
    from volution import infer, tasks
    from volution.report.evaluation_tables import show_verification

    _check(batch_size=batch_size, workers=workers, max_pixels=max_pixels)
    infer.reported_share(name)
    place = find_device(device)
    images = datasets.load(data, max_pixels=max_pixels)
    classifier = tasks.load_official_classifier(name, checkpoint)
    classifier = _matched(classifier, images, checkpoint or name, data)
    evaluation = infer.evaluate(
        classifier, images.val, batch_size=batch_size, workers=workers, device=place
    )
    found = infer.verify(name, evaluation)
    show_verification(found, classifier.classes, as_json=json)
    return max(tell_broken(evaluation.broken), 0 if found.passed else 1)


def _matched(classifier: Classifier, images: ImageData, source: str, data: str) -> Classifier:
    """Return the classifier with the data's names of classes, if it has none of its own."""
    if classifier.input.channels != images.channels:
        raise ValueError(
            f"{source} takes images of {classifier.input.channels} channels, {data} has "
            f"{images.channels}"
        )
    own, theirs = classifier.classes, images.classes
    if own == theirs:
        return classifier
    if own != tuple(map(str, range(len(own)))):
        raise ValueError(f"{source} knows the classes {_some(own)}; {data} has {_some(theirs)}")
    if len(own) != len(theirs):
        raise ValueError(f"{source} tells {len(own)} classes apart, {data} has {len(theirs)}")
    return replace(classifier, classes=theirs)


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        least = 0 if name == "workers" else 1
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _sides(text: str) -> list[int]:
    try:
        return [int(word) for word in text.strip("[]").split(",")]
    except ValueError:
        raise ValueError(f"sizes must be written like 160,192,224, got {text}") from None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
