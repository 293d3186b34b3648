"""Commands that look and measure: list, info, recipes, bench, quickstart."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

__all__ = ["bench", "info", "list_", "quickstart", "recipes"]


def list_(pattern: str = "*", *, json: bool = False) -> int:
    """List the networks: size, family, and the accuracy their authors report.

    Args:
        pattern: Wildcards that the names match.
        json: Write JSON.
    """
    from volution.report.terminal import show_models

    return show_models(pattern, as_json=json)


def info(
    name: str | None = None,
    *,
    image_size: int | None = None,
    batch_size: int | None = None,
    optimizer: str = "adamw",
    ema: bool = False,
    precision: Literal["32", "bf16", "fp16"] = "32",
    grad_checkpointing: bool = False,
    json: bool = False,
) -> int:
    """Show versions, machine, and which kernel every operator gets here; or what a network costs.

    Args:
        name: A network, to show its parameters, multiplications, stages and input instead.
        image_size: Side of the image to count for; the network's own if not given.
        batch_size: Show what memory training takes with so many images on a GPU instead.
        optimizer: Optimizer of timm to train with, for that memory.
        ema: A moving average of the weights is kept, likewise.
        precision: Precision of the training, likewise.
        grad_checkpointing: The insides of blocks are computed a second time, likewise.
        json: Write JSON.
    """
    from volution.report.memory import show_training_memory
    from volution.report.terminal import show_environment, show_network

    if name is not None and batch_size is not None:
        return show_training_memory(
            name,
            as_json=json,
            batch_size=batch_size,
            image_size=image_size,
            optimizer=optimizer,
            ema=ema,
            precision=precision,
            grad_checkpointing=grad_checkpointing,
        )
    if ema or grad_checkpointing or (optimizer, precision) != ("adamw", "32"):
        raise ValueError(
            "optimizer, ema, precision and grad_checkpointing are about the memory of training: "
            "volution info NAME --batch_size 128"
        )
    if name is not None:
        return show_network(name, image_size, as_json=json)
    for option, value in (("image_size", image_size), ("batch_size", batch_size)):
        if value is not None:
            raise ValueError(f"{option} goes with a network: volution info NAME --{option} {value}")
    return show_environment(as_json=json)


def recipes(*, json: bool = False) -> int:
    """List the recipes for training: what they reproduce, and what the authors report.

    Args:
        json: Write JSON.
    """
    from volution.report.recipes import show_recipes

    return show_recipes(as_json=json)


def bench(
    what: Literal["ops", "models"] = "ops",
    *,
    out: Path | None = None,
    quick: bool = False,
    only: str = "",
    json: bool = False,
) -> int:
    """Measure speed against the plain formulations, behind a correctness gate.

    Args:
        what: Operators or whole networks.
        out: JSON file to write.
        quick: A rough look, with small images and without compiled forms.
        only: Run the cases whose name contains this, such as 'van_b2' or 'dw7x7 d3*56'.
        json: Write JSON instead of a table.
    """
    from volution import bench as benchmark

    return benchmark.run(what, out=out, quick=quick, only=only, as_json=json)


def quickstart(out: Path = Path("runs/quickstart"), epochs: int = 15) -> int:
    """Train, evaluate, export and picture a small RedNet, in under three minutes.

    Args:
        out: Folder for the results; those of an earlier quickstart are replaced.
        epochs: Passes over the training images.
    """
    from volution.report import quickstart as run

    return run(out, epochs)
