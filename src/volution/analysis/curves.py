"""How a training run went: losses, accuracy and learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from volution.analysis.style import BLUE, GREEN, ORANGE, QUIET, figure, plain, styled, svg

__all__ = ["curves_picture", "schedule_picture"]

# More points than that no screen shows, and the file would grow with the run.
_MOST_POINTS = 600

Rows = Sequence[Mapping[str, float]]


@styled
def curves_picture(history: Rows, goal: float | None = None, *, steps: Rows = ()) -> bytes:
    """Draw losses and accuracy over the epochs.

    Args:
        history: One row for each epoch, as in :class:`volution.train.TrainResult`.
        goal: An accuracy to mark.
        steps: The training loss within epochs, as in a run's ``steps.csv``.

    Returns:
        SVG.

    Raises:
        ValueError: If there is no row at all.
    """
    if not history and not steps:
        raise ValueError("history must have at least one epoch, it is empty")
    fig = figure(9.6, 3.4)
    loss, accuracy = fig.subplots(1, 2)
    plain(loss, title="Loss", grid=True)
    if steps:
        _line(loss, steps, "train_loss", ORANGE, "training, within epochs", alpha=0.45, width=1.2)
    _line(loss, history, "train_loss", ORANGE, "training")
    _line(loss, history, "val_loss", BLUE, "validation")
    loss.set_ylim(bottom=0)
    loss.legend(frameon=False, fontsize=9.5)
    _draw_accuracy(accuracy, history, goal)
    for axes in (loss, accuracy):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    return svg(fig)


@styled
def schedule_picture(rows: Rows) -> bytes:
    """Draw the learning rate over the epochs.

    Args:
        rows: Rows with ``epoch`` and ``lr``, as in a run's ``steps.csv`` or ``metrics.csv``.

    Returns:
        SVG.

    Raises:
        ValueError: If there is no row.
    """
    if not rows:
        raise ValueError("rows must have at least one row, they are empty")
    fig = figure(9.6, 2.3)
    axes = plain(fig.subplots(), title="Learning rate", grid=True)
    _line(axes, rows, "lr", GREEN, "")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    return svg(fig)


def _draw_accuracy(axes: Any, history: Rows, goal: float | None) -> None:
    measured = [row for row in history if math.isfinite(row["val_top1"])]
    best = max(measured, key=lambda row: row["val_top1"], default=None)
    title = "Top-1"
    if best is not None:
        title = f"Best: {best['val_top1']:.1%} right, after epoch {best['epoch']:.0f}"
        axes.plot(best["epoch"], 100 * best["val_top1"], "o", color=BLUE, markersize=8)
    plain(axes, title=title, grid=True)
    percent = [{"epoch": row["epoch"], "top1": 100 * row["val_top1"]} for row in measured]
    _line(axes, percent, "top1", BLUE, "")
    if goal is not None and measured:
        axes.axhline(100 * goal, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
        where = (measured[-1]["epoch"], 100 * goal - 1.5)
        axes.annotate(f"goal {goal:.0%}", where, ha="right", va="top", color=QUIET)
    axes.set_ylim(0, 102)
    axes.yaxis.set_major_formatter("{x:.0f} %")


def _line(
    axes: Any,
    rows: Rows,
    name: str,
    colour: str,
    label: str,
    *,
    alpha: float = 1.0,
    width: float = 2.2,
) -> None:
    points = _thinned([(row["epoch"], row[name]) for row in rows if math.isfinite(row[name])])
    if points:
        # A line of one point would not be seen.
        marker = "o" if len(points) == 1 else ""
        x, y = zip(*points, strict=True)
        style = {"color": colour, "linewidth": width, "alpha": alpha, "marker": marker}
        axes.plot(x, y, label=label or None, **style)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the means of as many neighbours as it takes to be few."""
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = (points[i : i + size] for i in range(0, len(points), max(size, 1)))
    return [tuple(sum(c) / len(c) for c in zip(*group, strict=True)) for group in groups]
