"""The page that the quickstart ends with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from volution import analysis
from volution._support.environment import environment
from volution.report.page import Page

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
        f"A RedNet-26, narrowed to {_millions(result)} million parameters, learned from "
        f"{len(result.images.train):,} scans of handwritten digits and was then asked about "
        f"{len(result.images.val)} others. Its spatial operator is involution: every pixel gets "
        f"a kernel of its own.",
    )
    page.cards(_cards(result, goal))
    page.section("How it learned").picture(
        analysis.curves_picture(result.run.history, goal=goal),
        "Two line charts over the epochs: the loss in training and validation, and the share of "
        "validation images that are right.",
    )
    page.section(
        "What it says", "The first images it never saw in training, and its answer to each."
    ).picture(_samples(result), "Sixteen digits, each with the network's answer and certainty.")
    _add_kernels(page, result)
    page.section(
        "Where it errs", "Each row is a digit as it is, each column what it was taken for."
    ).picture(
        analysis.confusion_picture(result.evaluation.confusion, result.classifier.classes),
        f"Confusion matrix of {result.evaluation.count} digits.",
    )
    _add_details(page, result)
    # Whole or not at all, as everything else in the folder.
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(page.html(), encoding="utf-8")
    unfinished.replace(path)


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
def _samples(result: Quickstart) -> bytes:
    classes, val = result.classifier.classes, result.images.val
    best = result.classifier.model(result.samples).softmax(1).max(1)
    count = len(result.samples)
    return analysis.samples_picture(
        [val.open(i) for i in range(count)],
        [classes[val.labels[i]] for i in range(count)],
        [classes[i] for i in best.indices.tolist()],
        best.values.tolist(),
    )


def _add_kernels(page: Page, result: Quickstart) -> None:
    maps = analysis.kernel_maps(result.classifier.model, result.samples[0], _PIXELS)
    size = maps.kernels.shape[-1]
    page.section(
        "What involution does",
        f"A convolution would use one kernel everywhere. An involution makes one from each "
        f"pixel's own feature: here the {size} by {size} kernels that {maps.layer} makes for "
        f"pixel A and for pixel B (dashed: the neighbours they reach). Purple adds a neighbour, "
        f"orange subtracts it. The channels of a group share a kernel.",
    ).picture(
        analysis.kernels_picture(maps, result.images.val.open(0)),
        "A digit with two marked pixels, and heat maps of the kernels of both.",
    )


def _add_details(page: Page, result: Quickstart) -> None:
    page.section("How long each step took").table(
        ["step", "seconds"],
        [[name, f"{seconds:.1f}"] for name, seconds in result.seconds.items()],
    )
    made_with = environment()
    page.section(
        "Which kernels ran", "What the dispatcher picks on this machine, and why."
    ).table(
        ["operator", "device", "implementation", "why"],
        [[row[k] for k in ("operator", "device", "implementation", "why")]
         for row in made_with["kernels"]],
    )  # fmt: skip
    page.section("What to do next", "Look at your own images, in one folder for each class.").code(
        "volution train --model rednet26 --data folder:PATH --out runs/mine\n"
        "volution predict runs/mine/best.safetensors PHOTO.jpg"
    )
    machine, versions = made_with["machine"], made_with["versions"]
    page.footer(
        f"volution {versions['volution']}, commit {made_with['commit'] or 'unknown'}; torch "
        f"{versions['torch']}, Python {versions['python']}; {machine['processor']}, "
        f"{machine['threads']} threads."
    )


def _millions(result: Quickstart) -> str:
    return f"{sum(p.numel() for p in result.classifier.model.parameters()) / 1e6:.1f}"
