"""What a classifier says of pictures that lie in files."""

from __future__ import annotations

import csv
import glob
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from volution._support.console import Meter
from volution.data import ImageFiles, find_images, loader, open_image
from volution.infer.mode import evaluating
from volution.tasks import Classifier

__all__ = ["Prediction", "Predictions", "find_paths", "predict"]


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image, the likeliest first."""

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


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
            >>> Predictions([], broken=["b.png is not a readable image"]).to_json()
            '{"predictions": [], "broken": ["b.png is not a readable image"]}'
        """
        rows = [
            {
                "path": row.path,
                "classes": [
                    {"name": name, "probability": round(probability, 6)}
                    for name, probability in zip(row.classes, row.probabilities, strict=True)
                ],
            }
            for row in self.rows
        ]
        return json.dumps({"predictions": rows, "broken": self.broken}, ensure_ascii=False)

    def to_csv(self) -> str:
        """Return the predictions as CSV, one line for each image.

        Example:
            >>> Predictions([Prediction("a.png", ("cat", "cow"), (0.75, 0.2))]).to_csv().split()
            ['path,class1,probability1,class2,probability2', 'a.png,cat,0.75,cow,0.2']
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        places = range(1, 1 + max((len(row.classes) for row in self.rows), default=1))
        writer.writerow(["path", *(f"{n}{i}" for i in places for n in ("class", "probability"))])
        for row in self.rows:
            pairs = zip(row.classes, row.probabilities, strict=True)
            writer.writerow([row.path, *(v for n, p in pairs for v in (n, round(p, 6)))])
        return text.getvalue()


def find_paths(names: Sequence[str]) -> list[Path]:
    """Return the image files that names stand for.

    Args:
        names: Files, folders (searched with all folders in them) and patterns such as
            ``photos/**/*.jpg``.

    Returns:
        Files in the order of the names, each once.

    Raises:
        FileNotFoundError: If a name stands for nothing.
        ValueError: If a folder holds no image.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = find_images(path)
            if not inside:
                raise ValueError(f"folder {name} holds no image")
        elif path.is_file():
            inside = [path]
        else:
            # Also a pattern that the shell has left alone, on systems whose shell does.
            inside = sorted(
                p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file()
            )
            if not inside:
                raise FileNotFoundError(f"no image at {name}")
        found.update(dict.fromkeys(inside))
    return list(found)


@torch.inference_mode()
def predict(
    classifier: Classifier,
    names: Sequence[str],
    *,
    top: int = 3,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    show_progress: bool = True,
) -> Predictions:
    """Return the likeliest classes of images.

    Args:
        classifier: The network, its classes and its input. It comes back as it was.
        names: Files, folders and patterns, see :func:`find_paths`.
        top: Classes to return for each image.
        batch_size: Images per pass.
        workers: Processes that read images.
        device: Where to compute.
        show_progress: Show a progress bar.

    Returns:
        Predictions; images of a batch that cannot be read are listed beside them.

    Raises:
        FileNotFoundError: If a name stands for nothing.
        ValueError: If a folder holds no image, or the only image cannot be read.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    paths = find_paths(names)
    if len(paths) == 1:
        open_image(paths[0])  # a single image is all there is: its fault is an error
    files = ImageFiles(paths, [0] * len(paths), classifier.input.channels)
    top = min(top, len(classifier.classes))
    rows, broken = list[Prediction](), list[str]()
    transform = classifier.input.transform()
    with (
        evaluating(classifier.model, torch.device(device)) as model,
        Meter("predicting", len(paths), show=show_progress) as meter,
    ):
        for batch in loader(files, transform, batch_size=batch_size, workers=workers):
            broken += batch.broken
            if len(batch.labels):
                pixels = batch.images.to(device, memory_format=torch.channels_last)
                best = model(pixels).float().softmax(1).topk(top, dim=1)
                for i, values, places in zip(
                    batch.indices.tolist(), best.values.tolist(), best.indices.tolist(), strict=True
                ):
                    names_ = tuple(classifier.classes[place] for place in places)
                    rows.append(Prediction(str(paths[i]), names_, tuple(values)))
            meter.add(len(batch.labels) + len(batch.broken))
    return Predictions(rows, broken)
