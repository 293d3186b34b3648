"""The recipes as a table: for the terminal, as JSON, and for the documentation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.padding import Padding
from rich.text import Text

from volution import models
from volution._support.console import out
from volution.train.catalogue import Recipe, catalogue

__all__ = ["recipes_markdown", "show_recipes"]

_NOTE = "top-1 in per cent as reported by the authors, not measured here"


def show_recipes(*, as_json: bool) -> int:
    """Show what recipes there are."""
    found = catalogue()
    if as_json:
        out.print(json.dumps([_row(r) for r in found], indent=2), markup=False, soft_wrap=True)
        return 0
    head = ("recipe", "model", "epochs", "images", "reported")
    rows = [_cells(_row(recipe)) for recipe in found]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    out.print(_line(head, widths), style="bold", soft_wrap=True)
    for recipe, row in zip(found, rows, strict=True):
        out.print(_line(row, widths), markup=False, soft_wrap=True)
        # Below, not beside: a column of sentences would be a word wide in a terminal.
        out.print(Padding(Text(_with_number(recipe), style="dim"), (0, 0, 0, 2)))
    out.print(
        f"images: of one step of the optimizer, on all devices; reported: {_NOTE}; start one with "
        f"volution train --config NAME",
        style="dim",
    )
    return 0


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    reported = "-" if row["reported_of_model"] is None else str(row["reported_of_model"])
    counts = (str(row["epochs"]), str(row["images_per_step"]))
    return (row["name"], row["model"], *counts, reported)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return cells in columns, names on the left, numbers on the right."""
    places = ("<", "<", ">", ">", ">")
    return "  ".join(f"{c:{p}{w}}" for c, p, w in zip(cells, places, widths, strict=True)).rstrip()


def recipes_markdown(found: Sequence[Recipe] | None = None) -> str:
    """Return the table for the documentation.

    Example:
        >>> recipes_markdown().splitlines()[0]
        '| recipe | model | epochs | images per step | reproduces | reported top-1, % |'
    """
    lines = [
        "| recipe | model | epochs | images per step | reproduces | reported top-1, % |",
        "|---|---|---:|---:|---|---|",
    ]
    for recipe in catalogue() if found is None else found:
        config = recipe.config
        cells = (
            f"`{recipe.name}`",
            f"`{config.model}`",
            str(config.epochs),
            str(config.images_per_step),
            _with_number(recipe, link=True),
            recipe.reported_top1 or "-",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _row(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "model": recipe.config.model,
        "epochs": recipe.config.epochs,
        "images_per_step": recipe.config.images_per_step,
        "reproduces": recipe.reproduces,
        "paper": recipe.paper,
        "arxiv": recipe.arxiv,
        "reported_top1": recipe.reported_top1,
        "reported_of_model": models.reported_top1(recipe.config.model)
        if recipe.reported_top1
        else None,
        "measured_here": False,
    }


def _with_number(recipe: Recipe, *, link: bool = False) -> str:
    number = f"arXiv:{recipe.arxiv}" if recipe.arxiv else ""
    if link and number:
        number = f"[{number}](https://arxiv.org/abs/{recipe.arxiv})"
    return ", ".join(part for part in (recipe.reproduces, number) if part) or "-"
