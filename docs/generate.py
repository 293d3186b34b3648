"""Write the tables of the documentation anew: python docs/generate.py

What stands between the marks of a page comes from the code; a test holds it equal. The table of
memory takes some minutes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from volution._support.console import Meter
from volution.report import recipes, reproduction

DOCS = Path(__file__).parent


def between(text: str, name: str) -> str:
    """Return what stands between the marks of a name."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"the page has no marks <!-- {name} --> and <!-- /{name} -->")
    return found[1]


def replaced(text: str, name: str, made: str) -> str:
    """Return a page with something else between the marks of a name."""
    return text.replace(
        f"<!-- {name} -->\n{between(text, name)}<!-- /{name} -->",
        f"<!-- {name} -->\n{made}<!-- /{name} -->",
    )


def memory() -> str:
    """Run every network of the papers dry."""
    runs = [(recipe, model) for recipe, names in reproduction.plans() for model in names]
    rows = []
    with Meter("networks", len(runs)) as meter:
        for recipe, model in runs:
            rows.append(reproduction.memory_row(recipe, model))
            meter.add(1, model)
    return reproduction.memory_markdown(rows)


def main() -> None:
    page = DOCS / "recipes.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(replaced(text, "recipes", recipes.recipes_markdown()), encoding="utf-8")
    page = DOCS / "reproduce.md"
    text = replaced(page.read_text(encoding="utf-8"), "commands", reproduction.commands_markdown())
    if "--quick" not in sys.argv:
        text = replaced(text, "memory", memory())
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
