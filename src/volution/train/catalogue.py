"""The recipes that come with volution, and what their first lines say of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from volution.train.config import TrainConfig, read_config, recipes

__all__ = ["Recipe", "catalogue", "read_recipe"]

_FIELD = re.compile(r"# ([A-Z][\w -]+): (.*)")
_MORE = re.compile(r"#   +(.*)")
_FIELDS = ("Reproduces", "Paper", "Reported top-1")


@dataclass(frozen=True)
class Recipe:
    """A configuration and what it is for.

    Args:
        name: As in ``volution train --config``.
        config: Its settings.
        reproduces: What of a paper it repeats, in words.
        paper: The paper, with its number in arXiv; empty where there is none.
        reported_top1: What the authors report, not measured here, in words; empty where they
            report nothing.
    """

    name: str
    config: TrainConfig
    reproduces: str
    paper: str
    reported_top1: str

    @property
    def arxiv(self) -> str:
        """The paper's number in arXiv; empty where there is none."""
        found = re.search(r"arXiv:(\d{4}\.\d{5})", self.paper)
        return found[1] if found else ""


def catalogue() -> list[Recipe]:
    """Return the recipes that come with volution, by name.

    Example:
        >>> found = {recipe.name: recipe for recipe in catalogue()}
        >>> found["van_imagenet"].arxiv, found["van_imagenet"].config.images_per_step
        ('2202.09741', 1024)
    """
    return [read_recipe(path) for path in recipes().values()]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe and the fields of its first lines, which are comments.

    A field is a line ``# Name: text``; lines that are indented further go on with it. There are
    ``Reproduces``, ``Paper`` and ``Reported top-1``, where ``none`` says that there is none.

    Raises:
        ValueError: If a field is missing, or the settings are no configuration.
    """
    found: dict[str, str] = {}
    last = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if field := _FIELD.fullmatch(line):
            last = field[1]
            found[last] = field[2]
        elif (more := _MORE.fullmatch(line)) and last:
            found[last] += f" {more[1]}"
        else:
            last = ""
    missing = [name for name in _FIELDS if name not in found]
    if missing:
        raise ValueError(f"{path} must say '# {missing[0]}: ...' in its first lines")
    reproduces, paper, reported = (
        "" if found[name].rstrip(".") == "none" else found[name] for name in _FIELDS
    )
    return Recipe(path.stem, read_config(path), reproduces, paper, reported)
