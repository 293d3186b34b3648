"""The command that predicts: where its rows go, and what of them is seen on the way."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.cells import cell_len
from rich.table import Table

from volution._support.console import Meter, log, out
from volution.infer import Prediction, predict_parts, predict_stream
from volution.infer.broken import BrokenList
from volution.infer.inputs import Inputs
from volution.infer.shares import Share
from volution.infer.streaming import check_numbers, embedding_width
from volution.infer.writing import JsonWriter, Writer, check_output, open_writer
from volution.tasks import Classifier

__all__ = ["PredictionTable", "Settings", "check", "show", "write_parts"]

_HEADS = ("image", "is", "sure", "or else")
_SHOWN = 10  # rows, where all of them go to a file


@dataclass(frozen=True)
class Settings:
    """What is asked of a network, and how; see :func:`volution.infer.predict_stream`."""

    top: int
    embeddings: bool
    batch_size: int
    workers: int
    device: str
    max_pixels: int


def check(
    settings: Settings,
    output: Path | None,
    share: Share,
    *,
    in_parts: bool,
    part_size: int,
    as_json: bool,
) -> None:
    """Raise for settings that cannot be, or a place that rows cannot go to, before any work."""
    check_numbers(
        top=settings.top,
        batch_size=settings.batch_size,
        max_pixels=settings.max_pixels,
        part_size=part_size,
        workers=settings.workers,
    )
    if output is not None and not in_parts:
        check_output(output, embeddings=settings.embeddings)
    if settings.embeddings and output is None and not as_json:
        raise ValueError("embeddings fit in no table; give --output, or --json")
    if in_parts or share.ranks == 1:
        return
    # In a job of SLURM the first process may be the only one that was started.
    if share.rank or not share.by.startswith("SLURM"):
        raise ValueError(
            f"rank {share.rank} of {share.ranks} (by {share.by}): several processes write parts "
            f"to a folder; give one as --output, got {output or 'no output'}"
        )


def show(
    classifier: Classifier,
    inputs: Inputs,
    count: int,
    settings: Settings,
    output: Path | None,
    *,
    as_json: bool,
) -> BrokenList:
    """Predict on images; write all rows to a file if asked, and JSON or a table to the output.

    Returns:
        What was wrong with the images that could not be read.
    """
    stream = predict_stream(classifier, inputs, **asdict(settings))
    table = PredictionTable(only_first=None if output is None else _SHOWN)
    # A bar would run through rows that appear in the same terminal.
    quiet = count == 1 or (sys.stdout.isatty() and (output is None or as_json))
    broken = BrokenList()
    with ExitStack() as stack:
        shown: Writer = JsonWriter(sys.stdout) if as_json else table
        writers = [shown]
        if output is not None:
            width = embedding_width(classifier) if settings.embeddings else None
            top = min(settings.top, len(classifier.classes))
            writers.append(stack.enter_context(open_writer(output, top=top, width=width)))
        meter = stack.enter_context(Meter("predicting", count, show=not quiet))
        for rows in stack.enter_context(closing(stream)):
            for writer in writers:
                writer.write(rows)
            for row in rows:
                if row.error:
                    broken.add(row.error)
            meter.add(len(rows))
    shown.finish()
    if output is not None and not as_json:
        rest = table.count - _SHOWN
        more = f"and {rest:,} more, " if rest > 0 else ""
        log.print(f"{more}{table.count:,} in all, in {output}", markup=False, soft_wrap=True)
    return broken


def write_parts(
    classifier: Classifier,
    inputs: Inputs,
    folder: Path,
    share: Share,
    part_size: int,
    settings: Settings,
    *,
    as_json: bool,
) -> BrokenList:
    """Write a process's parts to a folder, and tell what is there then.

    Returns:
        What was wrong with the images that could not be read.
    """
    if share.ranks > 1:
        log.print(f"share {share.rank} of {share.ranks}, by {share.by}", markup=False)
    found = predict_parts(
        classifier, inputs, folder, share=share, part_size=part_size, **asdict(settings)
    )
    if as_json:
        told = {"folder": str(folder), "rank": share.rank, "ranks": share.ranks}
        counts = {"images": found.count, "earlier": found.earlier, "broken": len(found.broken)}
        out.print(
            json.dumps({**told, **counts, "missing_parts": found.missing}),
            markup=False,
            soft_wrap=True,
        )
        return found.broken
    earlier = f", {found.earlier:,} of them by an earlier run" if found.earlier else ""
    missing = f"; {found.missing} parts of other shares are missing" if found.missing else ""
    out.print(f"{found.count:,} images in {folder}{earlier}{missing}", markup=False, soft_wrap=True)
    return found.broken


class PredictionTable:
    """Shows the likeliest classes of images, batch by batch in one table.

    Args:
        only_first: Show no more than so many, when all have come; None shows each as it comes.

    Attributes:
        count: Predictions so far.
    """

    def __init__(self, only_first: int | None = None) -> None:
        self.count = 0
        self._only_first = only_first
        self._first = list[Prediction]()
        self._widths = [0] * len(_HEADS)
        self._begun = False

    def write(self, rows: Sequence[Prediction]) -> None:
        """Take the next predictions; unreadable images are not shown."""
        good = [row for row in rows if not row.error]
        self.count += len(good)
        if self._only_first is None:
            self._show(good)
        else:
            self._first += good[: self._only_first - len(self._first)]

    def finish(self) -> None:
        """Show what has not been shown yet."""
        self._show(self._first)

    def _show(self, rows: Sequence[Prediction]) -> None:
        if not rows:
            return
        texts = [_texts(row) for row in rows]
        table = Table(box=None, pad_edge=False, show_header=not self._begun, header_style="bold")
        for column, head in enumerate(_HEADS):
            # Columns stay where they are, or move to the right where something longer comes.
            longest = max(cell_len(text[column]) for text in texts)
            self._widths[column] = max(self._widths[column], cell_len(head), longest)
            # A path that is cut cannot be copied.
            table.add_column(
                head,
                justify="right" if head == "sure" else "left",
                overflow="fold",
                min_width=self._widths[column],
            )
        for row in texts:
            table.add_row(*row)
        self._begun = True
        out.print(table)


def _texts(row: Prediction) -> tuple[str, str, str, str]:
    named = list(zip(row.classes, row.probabilities, strict=True))
    others = ", ".join(f"{name} {probability:.0%}" for name, probability in named[1:])
    # The name of a file may be no UTF-8.
    path = row.path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return path, named[0][0], f"{named[0][1]:.1%}", others
