"""How to repeat the papers' runs on several GPUs: settings, commands, expected memory."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from volution import analysis, models
from volution.report.memory import gib
from volution.train.catalogue import Recipe, catalogue

__all__ = ["MACHINES", "Plan", "commands_markdown", "memory_markdown", "memory_row", "plans"]

MACHINES = ((1, 8), (4, 8))
"""Nodes, and GPUs on each, that the documentation has numbers for."""

_HEAD = (
    "| recipe | model | reported top-1, % "
    "| images on a GPU x accumulate, 8 GPUs | GiB in float32 | GiB in bf16 "
    "| the same, 4 x 8 GPUs | GiB in float32 | GiB in bf16 |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|---:|"
)


@dataclass(frozen=True)
class Plan:
    """How a recipe's images of one step are spread over GPUs.

    Args:
        recipe: The recipe.
        nodes: Machines.
        devices: GPUs of each.
        on_each: Images that go through the network at once on one GPU.
        accumulate: Batches of each step.

    Example:
        >>> from volution.train.config import recipes
        >>> from volution.train.catalogue import read_recipe
        >>> plan = Plan.of(read_recipe(recipes()["hornet_imagenet"]), nodes=4, devices=8)
        >>> plan.on_each, plan.accumulate
        (128, 1)
    """

    recipe: Recipe
    nodes: int
    devices: int
    on_each: int
    accumulate: int

    @classmethod
    def of(cls, recipe: Recipe, nodes: int, devices: int) -> Plan:
        """Spread a recipe: as many images on a GPU as it has on one, or fewer."""
        gpus, images = nodes * devices, recipe.config.images_per_step
        on_each = min(recipe.config.batch_size, images // gpus)
        return cls(recipe, nodes, devices, on_each, images // (gpus * on_each))

    @property
    def batch_size(self) -> int:
        """Images that go through the network at once, on all GPUs together."""
        return self.on_each * self.nodes * self.devices

    @property
    def options(self) -> str:
        """The options that make the run this one."""
        nodes = f"--nodes {self.nodes} " if self.nodes > 1 else ""
        return (
            f"--config {self.recipe.name} --data folder:PATH {nodes}--devices {self.devices} "
            f"--batch_size {self.batch_size} --accumulate {self.accumulate}"
        )


def plans() -> list[tuple[Recipe, list[str]]]:
    """Return the recipes that repeat a paper's run on ImageNet, and the networks of each."""
    found = []
    for recipe in catalogue():
        if recipe.config.data.startswith("folder:imagenet") and recipe.config.teacher is None:
            named = re.findall(r"\w+_\w+|rednet\d+", recipe.reported_top1)
            known = [name for name in named if name in models.list_models()]
            found.append((recipe, known or [recipe.config.model]))
    return found


def commands_markdown() -> str:
    """Return a command for each of the runs, on one machine of 8 GPUs and on four.

    Example:
        >>> "--nodes 4 --devices 8" in commands_markdown()
        True
    """
    lines = ["```"]
    for recipe, _ in plans():
        more = " --weights FILE_OF_22K" if recipe.name == "hornet_384_finetune" else ""
        for nodes, devices in MACHINES:
            lines.append(f"volution train {Plan.of(recipe, nodes, devices).options}{more}")
    return "\n".join([*lines, "```"]) + "\n"


def memory_row(recipe: Recipe, model: str) -> str:
    """Return the line of a network in the table of :func:`memory_markdown`."""
    reported = models.reported_top1(model) if recipe.reported_top1 else None
    cells = [f"`{recipe.name}`", f"`{model}`", "-" if reported is None else str(reported)]
    told: dict[tuple[int, str], str] = {}
    for nodes, devices in MACHINES:
        plan = Plan.of(recipe, nodes, devices)
        cells.append(f"{plan.on_each} x {plan.accumulate}")
        for precision in ("32", "bf16"):
            key = (plan.on_each, precision)
            if key not in told:
                told[key] = _memory(recipe, model, plan.on_each, precision)
            cells.append(told[key])
    return f"| {' | '.join(cells)} |"


def memory_markdown(rows: Iterable[str]) -> str:
    """Return the table of expected memory for each GPU, of rows of :func:`memory_row`."""
    return "\n".join([_HEAD, *rows]) + "\n"


def _memory(recipe: Recipe, model: str, images: int, precision: str) -> str:
    config = recipe.config
    memory = analysis.training_memory(
        model,
        batch_size=images,
        image_size=config.image_size,
        optimizer=config.optimizer,
        ema=config.ema_decay is not None,
        precision=precision,  # type: ignore[arg-type]
    )
    return gib(memory.total)
