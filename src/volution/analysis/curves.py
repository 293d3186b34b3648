"""How a training run went, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from volution.analysis.style import BLUE, ORANGE, QUIET, figure, plain, styled, svg

__all__ = ["curves_picture"]


@styled
def curves_picture(history: Sequence[Mapping[str, float]], goal: float | None = None) -> bytes:
    """Draw losses and accuracy over the epochs.

    Args:
        history: One row for each epoch, as in :class:`volution.train.TrainResult`.
        goal: An accuracy to mark.

    Returns:
        SVG.

    Raises:
        ValueError: If there is no epoch.
    """
    if not history:
        raise ValueError("history must have at least one epoch, it is empty")
    epochs = [row["epoch"] for row in history]
    fig = figure(9.6, 3.4)
    loss, accuracy = fig.subplots(1, 2)
    plain(loss, title="Loss goes down", grid=True)
    for name, label, colour in (
        ("train_loss", "training, smoothed labels", ORANGE),
        ("val_loss", "validation", BLUE),
    ):
        loss.plot(epochs, [row[name] for row in history], color=colour, linewidth=2.2, label=label)
    loss.set_ylim(bottom=0)
    loss.legend(frameon=False, fontsize=9.5)
    best = max(history, key=lambda row: row["val_top1"])
    plain(
        accuracy,
        title=f"Best: {best['val_top1']:.1%} right, after epoch {best['epoch']:.0f}",
        grid=True,
    )
    percent = [100 * row["val_top1"] for row in history]
    accuracy.plot(epochs, percent, color=BLUE, linewidth=2.2)
    accuracy.plot(best["epoch"], 100 * best["val_top1"], "o", color=BLUE, markersize=8)
    if goal is not None:
        accuracy.axhline(100 * goal, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
        where = (epochs[-1], 100 * goal - 1.5)
        accuracy.annotate(f"goal {goal:.0%}", where, ha="right", va="top", color=QUIET)
    accuracy.set_ylim(0, 102)
    accuracy.yaxis.set_major_formatter("{x:.0f} %")
    for axes in (loss, accuracy):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    return svg(fig)
