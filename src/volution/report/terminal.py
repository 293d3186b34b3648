"""Results as tables for people and as JSON for programs, on standard output."""

from __future__ import annotations

from typing import Any

import timm
import torch

from volution import analysis, models, tasks
from volution._support.console import out
from volution._support.environment import environment
from volution.report.tables import make_table, print_json

__all__ = [
    "show_environment",
    "show_models",
    "show_network",
]


def show_models(pattern: str, *, as_json: bool) -> int:
    """Show the networks whose names match a pattern.

    Raises:
        ValueError: If none does.
    """
    names = models.list_models(pattern)
    if not names:
        raise ValueError(f"no model matches {pattern!r}; known: {', '.join(models.list_models())}")
    rows = [_model(name) for name in names]
    if as_json:
        return print_json(rows)
    table = make_table("model", "family", "parameters, M", "reported top-1, %")
    for row in rows:
        top1 = "-" if row["top1"] is None else f"{row['top1']:.2f}"
        table.add_row(row["name"], row["family"], f"{row['params'] / 1e6:.1f}", top1)
    out.print(table)
    return 0


def show_environment(*, as_json: bool) -> int:
    """Show versions, machine and kernels."""
    found = environment()
    if as_json:
        return print_json(found)
    versions, machine = found["versions"], found["machine"]
    facts = make_table()
    for name, version in versions.items():
        facts.add_row(name, version or "[dim]not installed[/]")
    facts.add_row("commit", found["commit"] or "[dim]unknown[/]")
    facts.add_row("processor", f"{machine['processor']}, {machine['cores']} cores")
    facts.add_row("GPU", ", ".join(machine["gpus"]) or "[dim]none[/]")
    out.print(facts)
    kernels = make_table("operator", "device", "implementation", "dtypes", "why")
    for row in found["kernels"]:
        kernels.add_row(*row.values())
    out.print(kernels)
    return 0


def show_network(name: str, image_size: int | None, *, as_json: bool) -> int:
    """Show what a network costs, what it takes and where it comes from.

    Raises:
        ValueError: If there is no such network, or the image is too small for it.
    """
    cost = analysis.network_cost(name, image_size)
    cfg: dict[str, Any] = cost.model.pretrained_cfg  # type: ignore[assignment]
    wanted = tasks.input_config(cost.model)
    found = {
        "name": name,
        "family": type(cost.model).__name__,
        "params": cost.params,
        "image_size": cost.image_size,
        "macs": cost.macs,
        "stages": [vars(stage) for stage in cost.stages],
        "input": vars(wanted),
        "weights": {
            "license": cfg.get("license"),
            "origin": cfg.get("origin_url"),
            "paper": cfg.get("paper_name"),
            "paper_ids": cfg.get("paper_ids"),
            "reported_top1": models.reported_top1(name),
        },
    }
    if as_json:
        return print_json(found)
    facts = make_table()
    for title, text in _facts(found).items():
        facts.add_row(title, text)
    out.print(facts)
    if cost.stages:
        stages = make_table("stage", "channels", "map")
        for stage in cost.stages:
            stages.add_row(stage.module, str(stage.channels), f"{stage.height} x {stage.width}")
        out.print(stages)
    return 0


def _facts(found: dict[str, Any]) -> dict[str, str]:
    """Put what is known of a network into words."""
    height, width = found["image_size"]
    wanted, weights = found["input"], found["weights"]
    top1 = weights["reported_top1"]
    paper = [str(weights[key]) for key in ("paper", "paper_ids") if weights[key]]
    return {
        found["family"]: found["name"],
        "parameters": f"{found['params']:,} ({found['params'] / 1e6:.1f} M)",
        "MACs": f"{found['macs'] / 1e9:.3f} G for one image of {height} x {width}",
        "input": f"{wanted['channels']} channels, {wanted['image_size']} x {wanted['image_size']}, "
        f"{wanted['interpolation']}, crop {wanted['crop_pct']}",
        "mean": ", ".join(f"{value:.4g}" for value in wanted["mean"]),
        "std": ", ".join(f"{value:.4g}" for value in wanted["std"]),
        "paper": ", ".join(paper) or "-",
        "weights": f"{weights['origin'] or '-'}, licence {weights['license'] or 'unknown'}",
        "top-1": "-" if top1 is None else f"{top1} % as reported by the authors, not measured here",
    }


def _model(name: str) -> dict[str, Any]:
    with torch.device("meta"):
        net = timm.create_model(name)
    return {
        "name": name,
        "family": type(net).__name__,
        "params": sum(parameter.numel() for parameter in net.parameters()),
        "top1": models.reported_top1(name),
    }
