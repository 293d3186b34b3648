"""The freedom people take with options, brought to the one form that the parser knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from volution.train import TrainConfig

__all__ = ["as_written"]

_TAKES_CHECKPOINT = ("eval", "predict")
_SWITCHES = {
    "--overwrite",
    *(f"--{field.name}" for field in fields(TrainConfig) if field.type in (bool, "bool")),
}


def as_written(words: Sequence[str]) -> list[str]:
    """Return the words with underscores in option names, switches with values, files in place.

    Example:
        >>> as_written(["train", "--check-data", "--lr=0.1"])
        ['train', '--check_data=true', '--lr=0.1']
        >>> as_written(["eval", "--data", "digits", "--checkpoint", "best.safetensors"])
        ['eval', 'best.safetensors', '--data', 'digits']
    """
    plain = [_underscores(word) for word in words]
    if plain[:1] == ["train"]:
        plain = [_with_value(plain, i) for i in range(len(plain))]
    return _checkpoint_first(plain) if plain and plain[0] in _TAKES_CHECKPOINT else plain


def _underscores(word: str) -> str:
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name[:2] == "--" else word


def _with_value(words: Sequence[str], i: int) -> str:
    """Return a word; a switch that stands alone is switched on."""
    following = words[i + 1].lower() if i + 1 < len(words) else ""
    alone = words[i] in _SWITCHES and following not in ("true", "false")
    return f"{words[i]}=true" if alone else words[i]


def _checkpoint_first(words: list[str]) -> list[str]:
    """Let ``--checkpoint FILE`` stand for the file in its place."""
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--checkpoint":
            file = [value] if equals else words[i + 1 : i + 2]
            return [words[0], *file, *words[1:i], *words[i + (1 if equals else 2) :]]
    return words
