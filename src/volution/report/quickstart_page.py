"""The page that the quickstart ends with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from volution._support.environment import environment
from volution.report import family, parts
from volution.report.page import Page, Photo

if TYPE_CHECKING:
    from volution.report.quickstart import Quickstart

__all__ = ["write_page"]

# Row and column, as shares of the image: in the stroke of the first sample, and beside it.
_PIXELS = ((0.47, 0.47), (0.72, 0.16))


def write_page(result: Quickstart, path: Path, goal: float) -> None:
    """Write the quickstart's report.

    Args:
        result: What the quickstart found out.
        path: The HTML file.
        goal: Share of validation images that should be right.
    """
    page = Page(
        "A RedNet reads handwritten digits",
        f"A RedNet-26, narrowed to {parts.millions(result.classifier.model)} parameters, learned "
        f"from {len(result.images.train):,} scans of handwritten digits and was then asked about "
        f"{len(result.images.val)} others. Its spatial operator is involution: every pixel gets "
        f"a kernel of its own.",
    )
    page.cards(_cards(result, goal))
    parts.add_curves(page.section("How it learned"), result.run.history, goal=goal)
    page.section(
        "What it says", "The first images it never saw in training, and its answer to each."
    ).gallery(_samples(result))
    image = result.images.val.open(0)
    family.add_involution_kernels(page, result.classifier.model, result.samples[0], image, _PIXELS)
    parts.add_confusion(page, result.evaluation.confusion, result.classifier.classes)
    _add_details(page, result)
    page.write(path)


def _cards(result: Quickstart, goal: float) -> list[tuple[str, str, str, bool | None]]:
    evaluation, onnx = result.evaluation, result.onnx
    total = sum(result.seconds.values())
    return [
        ("Right answers", f"{evaluation.top1:.2%}", f"goal {goal:.0%}", evaluation.top1 >= goal),
        ("Training", f"{result.seconds['train']:.0f} s", f"{total:.0f} s with all the rest", None),
        ("Evaluation", f"{evaluation.images_per_second:,.0f}", "images per second", None),
        (
            "ONNX against PyTorch",
            f"{onnx.max_difference:.0e}",
            "greatest difference of an output",
            onnx.passed,
        ),
    ]


@torch.inference_mode()
def _samples(result: Quickstart) -> list[Photo]:
    classes, val = result.classifier.classes, result.images.val
    best = result.classifier.model(result.samples).softmax(1).max(1)
    answers = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        parts.photo(val.open(i), classes[val.labels[i]], classes[answer], probability)
        for i, (answer, probability) in enumerate(answers)
    ]


def _add_details(page: Page, result: Quickstart) -> None:
    page.section("How long each step took").table(
        ["step", "seconds"],
        [[name, f"{seconds:.1f}"] for name, seconds in result.seconds.items()],
    )
    made_with = environment()
    page.section("Which kernels ran", "What the dispatcher picks on this machine, and why.")
    parts.add_kernel_table(page, made_with)
    page.section("What to do next", "Look at your own images, in one folder for each class.").code(
        "volution train --model rednet26 --data folder:PATH --out runs/mine\n"
        "volution predict runs/mine/best.safetensors PHOTO.jpg"
    )
    parts.add_footer(page, made_with)
