"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from volution.analysis.style import INK, figure, plain, styled, svg

__all__ = ["confusion_picture"]

_MOST_NUMBERED = 20


@styled
def confusion_picture(confusion: Tensor, classes: Sequence[str]) -> bytes:
    """Draw a confusion matrix, each row in shares of its class.

    Args:
        confusion: Images of a class (row) that were taken for a class (column), ``(C, C)``.
        classes: Names of the classes.

    Returns:
        SVG.

    Raises:
        ValueError: If the matrix is not as wide and high as there are classes.
    """
    count = len(classes)
    if confusion.shape != (count, count):
        raise ValueError(
            f"confusion must be {count} by {count} for {count} classes, "
            f"got {tuple(confusion.shape)}"
        )
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    side = min(10.0, max(4.0, 0.42 * count + 1.4))
    fig = figure(max(side, 5.6), side)
    axes = plain(fig.subplots())
    # At the figure's left, not that of the matrix, where a long name would leave the picture.
    headline = _headline(confusion, classes)
    fig.suptitle(headline, x=0.01, ha="left", fontsize=11.5, fontweight="bold", color=INK)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    rotation = 90 if max(map(len, classes)) > 4 else 0
    axes.set_xticks(range(count), labels=list(classes), rotation=rotation)
    axes.set_yticks(range(count), labels=list(classes))
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    if count <= _MOST_NUMBERED:
        for row, column in confusion.nonzero().tolist():
            # Dark on the light end of the scale, light on the dark end.
            colour = "#ffffff" if shares[row, column] > 0.5 else "#000000"
            axes.text(
                column,
                row,
                str(int(confusion[row, column])),
                ha="center",
                va="center",
                color=colour,
                fontsize=9.5,
            )
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(labelcolor=INK)
    return svg(fig)


def _headline(confusion: Tensor, classes: Sequence[str]) -> str:
    wrong = confusion.clone()
    wrong.fill_diagonal_(0)
    mistakes, total = int(wrong.sum()), int(confusion.sum())
    if mistakes == 0:
        return f"No mistake in {total}"
    row, column = divmod(int(torch.argmax(wrong)), len(classes))
    head, most = f"{mistakes} mistake{'s' * (mistakes > 1)} in {total}", int(wrong[row, column])
    if most == 1:
        return head
    return f"{head}:\n{classes[row]} taken for {classes[column]} {most} times"
