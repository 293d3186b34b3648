"""What every table in the terminal looks like, and JSON beside it."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table

from volution._support.console import out

__all__ = ["make_table", "print_json"]

# Heads of columns that hold numbers, beside those that end in a unit.
_NUMERIC = ("sure", "times", "images", "images/s", "size", "1", "2", "3", "4", "5")


def make_table(*heads: str) -> Table:
    """Return an empty table; without heads it has two columns, for names and values."""
    table = Table(box=None, pad_edge=False, show_header=bool(heads), header_style="bold")
    for head in heads or ("", ""):
        numeric = head.endswith((", M", ", %")) or head in _NUMERIC
        # A path that is cut cannot be copied.
        table.add_column(head, justify="right" if numeric else "left", overflow="fold")
    return table


def print_json(value: Any) -> int:
    """Print JSON; returns 0, the exit code."""
    out.print(json.dumps(value, indent=2, ensure_ascii=False), markup=False, soft_wrap=True)
    return 0
