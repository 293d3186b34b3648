"""The quickstart: everything volution does with a network, once, on real data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from volution import data, deploy, infer, tasks
from volution._support.console import log, out
from volution.report.quickstart_page import write_page
from volution.train import TrainConfig, TrainResult, fit

if TYPE_CHECKING:
    from volution.data import ImageData

__all__ = ["GOAL", "Quickstart", "config", "quickstart"]

GOAL = 0.97
"""Share of validation images that must be right."""

_SAMPLES = 16


@dataclass
class Quickstart:
    """What a quickstart found out, gathered step by step."""

    images: ImageData
    run: TrainResult
    classifier: tasks.Classifier
    evaluation: infer.Evaluation
    samples: Tensor
    reload_difference: float
    onnx: deploy.OnnxCheck
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the network is good enough and its copies are the same."""
        return self.evaluation.top1 >= GOAL and self.reload_difference == 0 and self.onnx.passed


def config(folder: Path, epochs: int = 15) -> TrainConfig:
    """Return what the quickstart trains: a RedNet-26, narrowed, on the digits."""
    return TrainConfig(
        model="rednet26",
        data="digits",
        out=folder,
        epochs=epochs,
        lr=6e-3,
        warmup_epochs=2,
        model_args={"widths": [64, 128, 256, 512], "group_channels": 8},
        device="cpu",
    )


def quickstart(folder: Path = Path("runs/quickstart"), epochs: int = 15) -> int:
    """Train, evaluate, save, reload, export, check and picture a small RedNet.

    Args:
        folder: Where the results go; those of an earlier quickstart are replaced.
        epochs: Passes over the 1,438 training images.

    Returns:
        0, or 1 if fewer than 97 % are right or a copy of the network computes something else.
    """
    with _single_thread():
        result = _work(folder, epochs)
        with _timed(result.seconds, "draw the report"), log.status("drawing the report"):
            write_page(result, folder / "report.html", GOAL)
    _summarise(result, folder)
    return 0 if result.passed else 1


def _work(folder: Path, epochs: int) -> Quickstart:
    seconds: dict[str, float] = {}
    log.print("[bold]volution quickstart[/]: a RedNet learns to read handwritten digits\n")
    with _timed(seconds, "train"):
        run = fit(config(folder, epochs), overwrite=True)
    images = data.load("digits")
    classifier = tasks.load_classifier(run.best)
    with _timed(seconds, "evaluate"):
        evaluation = infer.evaluate(classifier, images.val)
    transform = classifier.input.transform()
    samples = torch.stack([transform(images.val.open(i)) for i in range(_SAMPLES)])
    with _timed(seconds, "save and reload"):
        difference = _reload_difference(classifier, samples, folder / "rednet.safetensors")
    with _timed(seconds, "export to ONNX"), log.status("exporting to ONNX"):
        deploy.export_onnx(classifier.model, samples, folder / "rednet.onnx")
    with _timed(seconds, "check in onnxruntime"):
        onnx = deploy.check_onnx(classifier.model, samples, folder / "rednet.onnx")
    return Quickstart(images, run, classifier, evaluation, samples, difference, onnx, seconds)


@torch.inference_mode()
def _reload_difference(classifier: tasks.Classifier, samples: Tensor, path: Path) -> float:
    tasks.save_classifier(path, classifier)
    again = tasks.load_classifier(path)
    return float((again.model(samples) - classifier.model(samples)).abs().max())


@contextmanager
def _single_thread() -> Iterator[None]:
    """Compute on one core: on maps of 8 by 8 pixels, two threads wait longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _summarise(result: Quickstart, folder: Path) -> None:
    def line(good: bool, text: str) -> None:
        out.print(f"{'[green]✓[/]' if good else '[red]✗[/]'} {text}", soft_wrap=True)

    evaluation, onnx = result.evaluation, result.onnx
    out.print()
    line(
        evaluation.top1 >= GOAL,
        f"{evaluation.top1:.2%} of {evaluation.count} digits it never saw are right "
        f"(goal: {GOAL:.0%})",
    )
    line(
        result.reload_difference == 0,
        f"saved and loaded again: differs by {result.reload_difference:g}",
    )
    line(
        onnx.passed,
        f"ONNX in onnxruntime: differs by {onnx.max_difference:.1e} at most, "
        f"in outputs up to {onnx.scale:.1f}",
    )
    out.print(f"  {sum(result.seconds.values()):.0f} s in all\n")
    out.print(f"Open [bold]{folder / 'report.html'}[/] in a browser. Then, for instance:")
    best = folder / "best.safetensors"
    for command in (
        f"volution eval {best} --data digits",
        "volution train --model rednet26 --data folder:PATH_TO_YOUR_IMAGES",
        "volution list",
    ):
        out.print(f"  [bold]{command}[/]", soft_wrap=True)
