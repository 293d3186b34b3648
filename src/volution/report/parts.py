"""Sections that several reports have."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from volution import analysis
from volution.data import InputConfig
from volution.report.page import Page, Photo

__all__ = [
    "add_classes",
    "add_confusion",
    "add_curves",
    "add_footer",
    "add_kernel_table",
    "duration",
    "millions",
    "photo",
    "picture_of",
]

# More classes make a matrix that nobody can read.
_MOST_IN_MATRIX = 25
_MOST_PAIRS = 25
# Of many classes, how many of the worst stand in sight.
_WORST_CLASSES = 20
_LONGEST_NAME = 24
_THUMBNAIL = 176

Rows = Sequence[Mapping[str, float]]


def add_curves(page: Page, history: Rows, *, steps: Rows = (), goal: float | None = None) -> None:
    """Add losses and accuracy over the epochs to the open section."""
    page.picture(
        analysis.curves_picture(history, goal, steps=steps),
        "Two line charts over the epochs: the loss in training and validation, and the share of "
        "validation images that are right.",
    )


def add_confusion(page: Page, confusion: Tensor, classes: Sequence[str]) -> None:
    """Add a section: which classes are taken for which."""
    count = int(confusion.sum())
    if len(classes) <= _MOST_IN_MATRIX:
        page.section(
            "Where it errs", "Each row is an image as it is, each column what it was taken for."
        ).picture(
            analysis.confusion_picture(confusion, [_short(name) for name in classes]),
            f"Confusion matrix of {count} images.",
        )
        return
    wrong = confusion.clone().fill_diagonal_(0)
    total = int(wrong.sum())
    page.section(
        "Where it errs",
        f"{total:,} mistakes in {count:,}. Of {len(classes)} classes, these are taken for each "
        f"other most often."
        if total
        else f"No mistake in {count:,}.",
    )
    most = wrong.flatten().topk(min(_MOST_PAIRS, int((wrong > 0).sum())))
    rows = []
    for times, place in zip(most.values.tolist(), most.indices.tolist(), strict=True):
        row, column = divmod(place, len(classes))
        share = times / int(confusion[row].sum())
        rows.append([classes[row], classes[column], f"{times:,}", f"{share:.0%}"])
    if rows:
        page.table(["is", "taken for", "times", "share of its images"], rows)


def add_classes(page: Page, confusion: Tensor, classes: Sequence[str]) -> None:
    """Add a section: how good each class is, the worst first."""
    counts, right = confusion.sum(1).tolist(), confusion.diagonal().tolist()
    wrong = confusion.clone().fill_diagonal_(0)
    rows = []
    for place in sorted(range(len(classes)), key=lambda i: right[i] / max(counts[i], 1)):
        if not counts[place]:
            continue
        mistaken = int(wrong[place].argmax())
        times = int(wrong[place, mistaken])
        other = f"{classes[mistaken]} ({times:,})" if times else "-"
        share = right[place] / counts[place]
        rows.append([classes[place], f"{counts[place]:,}", f"{share:.1%}", other])
    missing = sum(count == 0 for count in counts)
    head = ["class", "images", "right", "most often taken for"]
    page.section("Class by class", "The worst first.").table(head, rows[:_WORST_CLASSES])
    if rows[_WORST_CLASSES:]:
        rest = rows[_WORST_CLASSES:]
        page.table(head, rest, folded=f"the other {len(rest)} classes")
    if missing:
        which = "1 class has" if missing == 1 else f"{missing} classes have"
        page.text(f"{which} no image here.")


def photo(
    image: Image.Image, truth: str, answer: str, probability: float, remark: str = ""
) -> Photo:
    """Return an image under the answer of a network; a wrong answer says what is right."""
    right = truth == answer
    content, kind = _encoded(image)
    # Not by colour alone: a wrong answer has a cross and the right one beside it.
    head = f"{'✓' if right else '✗'} {answer}"
    alt = f"{truth}." if right else f"{truth}, taken for {answer}."
    sure = f"{probability:.0%} sure" + (f", {remark}" if remark else "")
    small = sure if right else f"is {truth}; {sure}"
    return Photo(content, kind, alt, head, small, right)


def picture_of(pixels: Tensor, inputs: InputConfig) -> Image.Image:
    """Return what a network saw as an image.

    Args:
        pixels: ``(C, H, W)``, as prepared.
        inputs: How they were prepared.
    """
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (inputs.mean, inputs.std))
    values = (pixels.float() * std + mean).clamp(0, 1).mul(255).round().byte().numpy()
    if inputs.channels == 1:
        return Image.fromarray(values[0])
    return Image.fromarray(np.ascontiguousarray(values[:3].transpose(1, 2, 0)))


def add_kernel_table(page: Page, made_with: Mapping[str, Any], *, folded: str = "") -> None:
    """Add which kernel each operator got, to the open section."""
    names = ("operator", "device", "implementation", "why")
    rows = [[row[name] for name in names] for row in made_with.get("kernels", ())]
    page.table(names, rows, folded=folded)


def duration(seconds: float) -> str:
    """Return a time in words, two units at most.

    Example:
        >>> duration(3.21), duration(75), duration(7260), duration(200_000)
        ('3.2 s', '1 min 15 s', '2 h 1 min', '2 d 7 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    left, words = round(seconds), list[str]()
    for name, size in units:
        count, left = divmod(left, size)
        if count or words:
            words.append(f"{count} {name}")
    return " ".join(words[:2])


def millions(model: nn.Module) -> str:
    """Return how many parameters a network has.

    Example:
        >>> millions(nn.Linear(1000, 1230, bias=False))
        '1.23 M'
    """
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M"


def add_footer(page: Page, made_with: Mapping[str, Any]) -> None:
    """Add versions and machine as small print."""
    machine, versions = made_with["machine"], made_with["versions"]
    page.footer(
        f"volution {versions['volution']}, commit {made_with['commit'] or 'unknown'}; torch "
        f"{versions['torch']}, Python {versions['python']}; {machine['processor']}, "
        f"{machine['threads']} threads."
    )


def _encoded(image: Image.Image) -> tuple[bytes, str]:
    image = image.convert("L" if image.mode == "L" else "RGB")
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    content = io.BytesIO()
    if max(image.size) <= 64:
        # Browsers would blur what is enlarged.
        scale = _THUMBNAIL // max(image.size)
        size = (image.width * scale, image.height * scale)
        image.resize(size, Image.Resampling.NEAREST).save(content, "PNG", optimize=True)
        return content.getvalue(), "image/png"
    image.save(content, "JPEG", quality=85)
    return content.getvalue(), "image/jpeg"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
