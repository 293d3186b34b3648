"""What memory training takes, as a table and as JSON."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table

from volution import analysis
from volution._support.console import out

__all__ = ["gib", "show_training_memory"]


def gib(count: int) -> str:
    """Return bytes in words, as GiB.

    Example:
        >>> gib(3 * 2**29), gib(2**20)
        ('1.50', '0.00')
    """
    return f"{count / 2**30:.2f}"


def show_training_memory(name: str, *, as_json: bool, **settings: Any) -> int:
    """Show what a training step of a network takes on one GPU.

    Args:
        name: As in :func:`volution.analysis.training_memory`.
        as_json: Write JSON.
        **settings: Further arguments of that function.

    Raises:
        ValueError: If a setting cannot be.
    """
    memory = analysis.training_memory(name, **settings)
    if as_json:
        found = {"model": name, **settings, **vars(memory), "total": memory.total}
        out.print(json.dumps(found, indent=2), markup=False, soft_wrap=True)
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("training step")
    table.add_column("GiB", justify="right")
    for part, count in {**vars(memory), "total": memory.total}.items():
        table.add_row(part, gib(count))
    out.print(table)
    out.print(
        "Told by a dry run, not measured; a tenth to a fifth more goes to kernels and allocator.",
        style="dim",
    )
    return 0
