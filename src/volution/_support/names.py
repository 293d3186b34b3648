"""Spelling help for names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["unknown"]


def unknown(kind: str, name: str, known: Iterable[str], *, more: str = "") -> str:
    """Return the message for a name that does not exist, with the nearest that do.

    Args:
        kind: What the name should have been the name of.
        name: What came.
        known: Names that exist.
        more: Where to find the others.

    Example:
        >>> unknown("optimizer", "adamx", ["adam", "adamw", "sgd"])
        "unknown optimizer 'adamx'; nearest: adam, adamw"
        >>> unknown("device", "toaster", ["cpu", "cuda"])
        "unknown device 'toaster'; known: cpu, cuda"
    """
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if nearest:
        hint = f"nearest: {', '.join(nearest)}"
    elif len(known) <= 25:
        hint = f"known: {', '.join(known)}"
    else:
        hint = f"{len(known)} are known"
    return f"unknown {kind} {name!r}; {hint}" + (f" ({more})" if more else "")
