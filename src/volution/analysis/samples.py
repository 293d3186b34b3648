"""Images beside what a network says of them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from volution.analysis.style import BLUE, INK, ORANGE, figure, styled, svg

__all__ = ["samples_picture"]


@styled
def samples_picture(
    images: Sequence[Image.Image],
    truths: Sequence[str],
    answers: Sequence[str],
    probabilities: Sequence[float],
    *,
    columns: int = 8,
) -> bytes:
    """Draw images, each under the answer of a network; wrong answers say what is right.

    Args:
        images: The images.
        truths: What they show.
        answers: What the network takes them for.
        probabilities: How sure it is of that.
        columns: Images in a row.

    Returns:
        SVG.

    Raises:
        ValueError: If there is no image, or the sequences differ in length.
    """
    if not images or not len(images) == len(truths) == len(answers) == len(probabilities):
        raise ValueError(
            f"samples_picture needs as many truths, answers and probabilities as images, at least "
            f"one, got {len(images)} images, {len(truths)}, {len(answers)}, {len(probabilities)}"
        )
    rows = -(-len(images) // columns)
    fig = figure(1.2 * columns, 1.6 * rows)
    grid = fig.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, truth, answer, probability in zip(
        grid.flat, images, truths, answers, probabilities, strict=False
    ):
        axes.imshow(image, cmap="gray")
        right = truth == answer
        # Not by colour alone: a wrong answer has a cross and the right one beside it.
        text = f"✓ {answer}" if right else f"✗ {answer}, is {truth}"
        colour = BLUE if right else ORANGE
        axes.set_title(text, color=colour, fontsize=10, fontweight="bold", pad=4)
        axes.text(
            0.5,
            -0.06,
            f"{probability:.0%} sure",
            transform=axes.transAxes,
            ha="center",
            va="top",
            color=INK,
            fontsize=8.5,
        )
    return svg(fig)
