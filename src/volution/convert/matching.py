"""Which replacement goes where: patterns and predicates over the paths of modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from volution._support.names import unknown
from volution.convert.operators import resolve
from volution.convert.places import Slot
from volution.convert.replacement import Replacement

__all__ = ["Predicate", "Where", "select"]

Predicate = Callable[[str, nn.Module], bool]
Where = Mapping[str, object] | str | Sequence[str] | Predicate


def select(all_slots: Sequence[Slot], where: Where, to: object) -> list[tuple[Slot, Replacement]]:
    """Return the convolutions and attentions that are chosen, each with what is to replace it.

    Raises:
        TypeError: If ``where`` and ``to`` do not go together.
        ValueError: If a pattern or the predicate chooses none.
    """
    if isinstance(where, Mapping):
        if to is not None:
            raise TypeError(f"to must be left out where a mapping has the replacements, got {to!r}")
        return _by_pattern(all_slots, {key: resolve(value) for key, value in where.items()})
    if to is None:
        raise TypeError(
            "to is missing: what to put there, for instance to=volution.convert.involution(); or "
            "give a mapping from patterns to replacements"
        )
    replacement = resolve(to)
    if isinstance(where, str):
        return _by_pattern(all_slots, {where: replacement})
    if callable(where):
        return _by_predicate(all_slots, where, replacement)
    return _by_pattern(all_slots, dict.fromkeys(where, replacement))


def _by_pattern(
    all_slots: Sequence[Slot], rules: Mapping[str, Replacement]
) -> list[tuple[Slot, Replacement]]:
    if not rules:
        raise ValueError("where must have a pattern at least, got none")
    chosen: dict[int, tuple[Slot, Replacement]] = {}
    for pattern, replacement in rules.items():
        if not isinstance(pattern, str):
            raise TypeError(f"where must have strings for patterns, got {pattern!r}")
        matched = [slot for slot in all_slots if any(fnmatchcase(p, pattern) for p in slot.paths)]
        if not matched:
            paths = [path for slot in all_slots for path in slot.paths]
            raise ValueError(unknown("module or pattern", pattern, paths, more="nothing matches"))
        for index in _replaceable(matched, f"pattern {pattern!r} matches"):
            slot = matched[index]
            # The first pattern that matches decides.
            chosen.setdefault(id(slot), (slot, replacement))
    return [chosen[id(slot)] for slot in all_slots if id(slot) in chosen]


def _by_predicate(
    all_slots: Sequence[Slot], predicate: Predicate, replacement: Replacement
) -> list[tuple[Slot, Replacement]]:
    matched = [
        slot for slot in all_slots if any(predicate(path, slot.module) for path in slot.paths)
    ]
    if not matched:
        raise ValueError(
            f"where must choose a module at least; the predicate returned False for all "
            f"{len(all_slots)} modules"
        )
    indices = _replaceable(matched, "the predicate chooses")
    return [(matched[index], replacement) for index in indices]


def _replaceable(matched: Sequence[Slot], words: str) -> list[int]:
    """Return which of the modules are of a replaceable kind; raise if none is."""
    indices = [
        index for index, slot in enumerate(matched) if slot.is_convolution or slot.is_attention
    ]
    if not indices:
        raise ValueError(
            f"{words} {_count(matched)}, but no convolution and no attention of a plain ViT: "
            f"{_kinds(matched)}{_advice(matched)}"
        )
    return indices


def _count(matched: Sequence[Slot]) -> str:
    return "one module" if len(matched) == 1 else f"{len(matched)} modules"


def _kinds(matched: Iterable[Slot]) -> str:
    first: dict[str, str] = {}
    for slot in matched:
        first.setdefault(type(slot.module).__name__, slot.paths[0])
    shown = [f"{path} is a {kind}" for kind, path in first.items()]
    return ", ".join(shown[:3]) + (", and others" if len(shown) > 3 else "")


def _advice(matched: Sequence[Slot]) -> str:
    for slot in matched:
        if any(isinstance(child, nn.Conv2d) for child in slot.module.modules()):
            return f"; to reach the convolutions inside, match {slot.paths[0] + '.*'!r}"
    return ""
