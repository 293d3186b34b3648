"""Predictions as a stream: batch after batch, in order, none of them kept."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from volution.data.decoding import MAX_PIXELS, decode_image, open_image
from volution.infer.inputs import Inputs, Item, find_inputs
from volution.infer.mode import evaluating
from volution.infer.reading import ReadBatch, read_batches
from volution.tasks import Classifier

__all__ = ["Prediction", "check_numbers", "embedding_width", "predict_stream"]


@dataclass(frozen=True)
class Prediction:
    """What a network says of an image.

    Args:
        path: The image's file, or its name in a shard.
        classes: The likeliest classes, the likeliest first; none if it could not be read.
        probabilities: Theirs.
        embedding: Pooled features, the classifier's input, in float32; None if not asked for.
        error: Why the image could not be read; empty if it could.
    """

    path: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    embedding: NDArray[np.float32] | None = field(default=None, compare=False)
    error: str = ""


def predict_stream(
    classifier: Classifier,
    images: Sequence[str] | Inputs,
    *,
    top: int = 3,
    embeddings: bool = False,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    max_pixels: int = MAX_PIXELS,
    start: int = 0,
    stop: int | None = None,
) -> Generator[list[Prediction], None, None]:
    """Yield predictions batch by batch, in the order of the images.

    Memory does not grow with the number of images. An image that cannot be read is in its place,
    with its ``error``.

    Args:
        classifier: The network, its classes and its input. It comes back as it was when the
            stream ends or is closed.
        images: Files, folders and patterns, in the order of :func:`walk_paths`; or
            ``["wds:SHARDS"]``.
        top: Classes to return for each image.
        embeddings: Return the pooled features as well.
        batch_size: Images per pass.
        workers: Processes that read images ahead.
        device: Where to compute.
        max_pixels: Images of more pixels are refused.
        start: Position of the first image.
        stop: Position after the last image; None for all.

    Raises:
        FileNotFoundError: If a name stands for nothing.
        ValueError: If a number is too small, a folder holds no image, or the only
            image of all cannot be read.
        TypeError: If embeddings are asked of a network without ``forward_features``.
        OSError: If a worker died.

    Example:
        >>> import tempfile
        >>> from volution import data, tasks
        >>> net = tasks.create_model("rednet26", num_classes=2, model_args={"widths": (8,) * 4})
        >>> config = data.InputConfig(3, 32, (0.5,) * 3, (0.5,) * 3)
        >>> colours = tasks.Classifier(net, "rednet26", ("red", "blue"), config)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i in range(3):
        ...         Image.new("RGB", (40, 30), "red").save(f"{folder}/{i}.png")
        ...     for rows in predict_stream(colours, [folder], top=1, batch_size=2):
        ...         print([Path(row.path).name for row in rows], len(rows[0].classes))
        ['0.png', '1.png'] 1
        ['2.png'] 1
    """
    check_numbers(top=top, batch_size=batch_size, max_pixels=max_pixels, workers=workers)
    if embeddings:
        _check_features(classifier)
    inputs = find_inputs(images) if isinstance(images, Sequence) else images
    alone = start == 0 and stop is None and inputs.is_single()
    batches = read_batches(
        inputs.items(start, stop),
        _Open(classifier.input.channels, max_pixels),
        classifier.input.transform(),
        batch_size=batch_size,
        workers=0 if alone else workers,
    )
    rows = _predict(classifier, batches, top, embeddings, torch.device(device))
    return _only_image(rows) if alone else rows


def check_numbers(*, workers: int = 0, **others: int) -> None:
    """Raise ``ValueError`` for a number that is too small."""
    for name, value in others.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")


def embedding_width(classifier: Classifier) -> int:
    """Return how many numbers an embedding has."""
    _check_features(classifier)
    size = classifier.input.image_size
    with evaluating(classifier.model, torch.device("cpu")) as model, torch.inference_mode():
        return int(
            _forward(model, torch.zeros(1, classifier.input.channels, size, size))[1].shape[1]
        )


class _Open:
    """Reads an item; a class, as workers may have to be sent it."""

    def __init__(self, channels: int, max_pixels: int) -> None:
        self.channels = channels
        self.max_pixels = max_pixels

    def __call__(self, item: Item) -> Image.Image:
        if item.content is None:
            return open_image(Path(item.name), self.channels, self.max_pixels)
        name = f"{item.shard}: {item.name}"
        return decode_image(item.content, name, self.channels, self.max_pixels)


def _check_features(classifier: Classifier) -> None:
    if not hasattr(classifier.model, "forward_head"):
        raise TypeError(
            f"embeddings need a network with forward_features and forward_head, "
            f"{classifier.name} has none"
        )


def _only_image(rows: Iterator[list[Prediction]]) -> Generator[list[Prediction], None, None]:
    """Let the fault of the only image be an error: it is all there is."""
    for batch in rows:
        if batch[0].error:
            raise ValueError(batch[0].error)
        yield batch


def _predict(
    classifier: Classifier,
    batches: Iterator[ReadBatch],
    top: int,
    embeddings: bool,
    device: torch.device,
) -> Generator[list[Prediction], None, None]:
    top = min(top, len(classifier.classes))
    with evaluating(classifier.model, device) as model:
        for batch in batches:
            found: Iterator[Prediction] = iter(())
            if len(batch.images):
                found = _rows(classifier.classes, model, batch, top, embeddings, device)
            yield [
                Prediction(name, error=problem) if problem else next(found)
                for name, problem in zip(batch.names, batch.problems, strict=True)
            ]


def _rows(
    classes: tuple[str, ...],
    model: nn.Module,
    batch: ReadBatch,
    top: int,
    embeddings: bool,
    device: torch.device,
) -> Iterator[Prediction]:
    """Yield the predictions for the images of a batch that could be read."""
    with torch.inference_mode():
        pixels = batch.images.to(device, memory_format=torch.channels_last, non_blocking=True)
        logits, pooled = _forward(model, pixels) if embeddings else (model(pixels), None)
        best = logits.float().softmax(1).topk(top, dim=1)
        if best.values.isnan().any():
            raise ValueError("the network's output is not a number; are its weights damaged?")
        vectors = None if pooled is None else pooled.float().cpu().numpy()
    names = (name for name, problem in zip(batch.names, batch.problems, strict=True) if not problem)
    values, places = best.values.tolist(), best.indices.tolist()
    for i, name in enumerate(names):
        likeliest = tuple(classes[place] for place in places[i])
        vector = None if vectors is None else vectors[i]
        yield Prediction(name, likeliest, tuple(values[i]), vector)


def _forward(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and pooled features, the trunk computed once."""
    features = model.forward_features(pixels)  # type: ignore[operator]
    pooled = model.forward_head(features, pre_logits=True)  # type: ignore[operator]
    return model.forward_head(features), pooled  # type: ignore[operator]
