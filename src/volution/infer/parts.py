"""A job of any size: parts in a folder, shared among processes, taken up again where it stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch

from volution._support.console import Meter, log
from volution._support.files import beside
from volution.data.decoding import MAX_PIXELS
from volution.infer.broken import BrokenList
from volution.infer.inputs import Inputs, find_inputs
from volution.infer.job import Job, Part, claim
from volution.infer.mode import evaluating
from volution.infer.parquet import ParquetWriter, read_errors, read_metadata, require_pyarrow
from volution.infer.shares import Share
from volution.infer.streaming import (
    Prediction,
    check_numbers,
    embedding_width,
    predict_stream,
)
from volution.tasks import Classifier

__all__ = ["PartsResult", "predict_parts"]


@dataclass(frozen=True)
class PartsResult:
    """What a process did of a job.

    Args:
        count: Images of its share.
        earlier: How many of them an earlier run had done.
        broken: What was wrong with those that could not be read, earlier ones included.
        missing: Parts of the whole job that are not there yet; those of other processes.
    """

    count: int
    earlier: int
    broken: BrokenList = field(default_factory=BrokenList)
    missing: int = 0


def predict_parts(
    classifier: Classifier,
    images: Sequence[str] | Inputs,
    folder: Path,
    *,
    share: Share | None = None,
    top: int = 3,
    embeddings: bool = False,
    part_size: int = 10_000,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    max_pixels: int = MAX_PIXELS,
    show_progress: bool = True,
) -> PartsResult:
    """Write predictions for a share of the images to parquet files in a folder.

    A share is a run of neighbours among the images, and so is each of its parts. Sorted by their
    names, the parts of all shares hold every image once, in order. A part appears when it is
    complete; a process that was killed, at any moment, goes on after its last complete part.

    Args:
        classifier: The network, its classes and its input. It comes back as it was.
        images: Files, folders and patterns, see :func:`find_paths`; or ``["wds:SHARDS"]``.
        folder: Where the parts go; it is made if need be.
        share: Which images are this process's; all by default.
        top: Classes of each image.
        embeddings: Write the pooled features as well.
        part_size: Images of a part.
        batch_size: Images per pass.
        workers: Processes that read images.
        device: Where to compute.
        max_pixels: Images of more pixels are refused.
        show_progress: Show a progress bar.

    Raises:
        ValueError: If the folder holds another job or other files, or the images were others at
            the end than at the beginning.
        FileNotFoundError: If a name stands for nothing.
        OSError: If a part cannot be written; those before it stay.
        MissingExtra: If pyarrow is not installed.
    """
    require_pyarrow()
    share = share or Share()
    check_numbers(part_size=part_size, top=top, batch_size=batch_size, workers=workers)
    inputs = find_inputs(images) if isinstance(images, Sequence) else images
    survey = inputs.survey()
    width = embedding_width(classifier) if embeddings else None
    top = min(top, len(classifier.classes))
    job = Job.of(classifier, survey, top=top, width=width, ranks=share.ranks, part_size=part_size)
    claim(folder, job, share)
    parts, broken = job.parts(share), BrokenList()
    pending = [part for part in parts if not _complete(folder, part, job, broken)]
    first, end = share.span(job.count)
    left = sum(part.stop - part.start for part in pending)
    with (
        Meter("predicting", left, show=show_progress and left > 0) as meter,
        evaluating(classifier.model, torch.device(device)),
    ):
        for run in _runs(pending):
            stream = predict_stream(
                classifier,
                inputs,
                top=top,
                embeddings=embeddings,
                batch_size=batch_size,
                workers=workers,
                device=device,
                max_pixels=max_pixels,
                start=run[0].start,
                stop=run[-1].stop,
            )
            with closing(stream):
                _write(folder, job, run, stream, broken, meter)
    if pending and inputs.survey() != survey:
        raise ValueError(
            f"the images were others at the end than at the beginning; {folder} cannot be used, "
            f"start again in another folder"
        )
    missing = sum(not (folder / part.name).exists() for part in job.all_parts())
    return PartsResult(end - first, end - first - left, broken, missing)


def _complete(folder: Path, part: Part, job: Job, broken: BrokenList) -> bool:
    """Say whether a part is there and whole; what it could not read is added to ``broken``."""
    path = folder / part.name
    if not path.exists():
        return False
    found = read_metadata(path)
    if found is None or found.rows != part.stop - part.start:
        log.print(f"{path} is damaged and is written again", markup=False, soft_wrap=True)
        return False
    if (found.text.get("job"), found.text.get("start")) != (job.digest, str(part.start)):
        raise ValueError(f"output: {path} is of another job; choose another folder")
    if found.text.get("broken") != "0":
        for error in read_errors(path):
            broken.add(error)
    return True


def _runs(parts: list[Part]) -> Iterator[list[Part]]:
    """Yield parts that follow each other, so that readers start once for all of them."""
    cuts = [i for i, (a, b) in enumerate(pairwise(parts), 1) if a.stop != b.start]
    for start, stop in pairwise([0, *cuts, len(parts)]):
        if start < stop:
            yield parts[start:stop]


def _write(
    folder: Path,
    job: Job,
    parts: list[Part],
    stream: Iterator[list[Prediction]],
    broken: BrokenList,
    meter: Meter,
) -> None:
    rows: list[Prediction] = []
    for part in parts:
        metadata = {"job": job.digest, "start": str(part.start)}
        with (
            beside(folder / part.name) as unfinished,
            ParquetWriter(unfinished, width=job.embedding, metadata=metadata) as writer,
        ):
            left = part.stop - part.start
            while left:
                rows = rows or next(stream, [])
                if not rows:
                    raise ValueError(f"output: {left} images of {part.name} are gone")
                now, rows = rows[:left], rows[left:]
                writer.write(now)
                left -= len(now)
                for row in now:
                    if row.error:
                        broken.add(row.error)
                meter.add(len(now))
