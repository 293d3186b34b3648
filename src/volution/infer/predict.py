"""What a classifier says of a few pictures, all at once."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from volution._support.console import Meter
from volution.data.decoding import MAX_PIXELS
from volution.infer.inputs import find_inputs
from volution.infer.streaming import Prediction, predict_stream
from volution.infer.writing import CsvWriter, JsonWriter
from volution.tasks import Classifier

__all__ = ["Predictions", "predict"]


@dataclass(frozen=True)
class Predictions:
    """Predictions for images, in the order of their paths.

    Args:
        rows: One for each image that could be read.
        broken: What was wrong with the others.
    """

    rows: list[Prediction]
    broken: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the predictions as JSON.

        Example:
            >>> print(Predictions([], broken=["b.png is not a readable image"]).to_json())
            {"predictions": [],
            "broken": ["b.png is not a readable image"]}
        """
        text = io.StringIO()
        writer = JsonWriter(text)
        writer.write(self._all())
        writer.finish()
        return text.getvalue().rstrip("\n")

    def to_csv(self) -> str:
        """Return the predictions as CSV, one line for each image.

        Example:
            >>> Predictions([Prediction("a.png", ("cat", "cow"), (0.75, 0.2))]).to_csv().split()
            ['path,class1,probability1,class2,probability2', 'a.png,cat,0.75,cow,0.2']
        """
        text = io.StringIO()
        writer = CsvWriter(text, top=max((len(row.classes) for row in self.rows), default=1))
        writer.write(self._all())
        writer.finish()
        return text.getvalue()

    def _all(self) -> list[Prediction]:
        return [*self.rows, *(Prediction("", error=problem) for problem in self.broken)]


def predict(
    classifier: Classifier,
    names: Sequence[str],
    *,
    top: int = 3,
    embeddings: bool = False,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    max_pixels: int = MAX_PIXELS,
    show_progress: bool = True,
) -> Predictions:
    """Return the likeliest classes of images; for very many, see :func:`predict_stream`.

    Args:
        classifier: The network, its classes and its input. It comes back as it was.
        names: Files, folders and patterns, see :func:`find_paths`; or ``["wds:SHARDS"]``.
        top: Classes to return for each image.
        embeddings: Return the pooled features as well.
        batch_size: Images per pass.
        workers: Processes that read images.
        device: Where to compute.
        max_pixels: Images of more pixels are refused.
        show_progress: Show a progress bar.

    Returns:
        Predictions; images of a batch that cannot be read are listed beside them.

    Raises:
        FileNotFoundError: If a name stands for nothing.
        ValueError: If a folder holds no image, or the only image cannot be read.
    """
    inputs = find_inputs(names)
    count = inputs.survey().count
    stream = predict_stream(
        classifier,
        inputs,
        top=top,
        embeddings=embeddings,
        batch_size=batch_size,
        workers=workers,
        device=device,
        max_pixels=max_pixels,
    )
    rows, broken = list[Prediction](), list[str]()
    with Meter("predicting", count, show=show_progress) as meter:
        for batch in stream:
            rows += [row for row in batch if not row.error]
            broken += [row.error for row in batch if row.error]
            meter.add(len(batch))
    return Predictions(rows, broken)
