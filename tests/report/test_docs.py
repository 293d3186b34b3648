"""What the documentation's pages say of recipes and memory is what the code gives."""

import importlib.util
import re
from pathlib import Path

import pytest

from volution.report import recipes, reproduction

DOCS = Path(__file__).parents[2] / "docs"
# Told again in every run of the tests: the smallest of three families.
QUICK = ("rednet26", "van_b0", "xvolution_resnet34")

spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


def page(name):
    return (DOCS / name).read_text(encoding="utf-8")


def rows():
    lines = generate.between(page("reproduce.md"), "memory").splitlines()[2:]
    return {re.findall(r"`(\w+)`", line)[1]: line for line in lines}


ALL = [(recipe, model) for recipe, names in reproduction.plans() for model in names]


def test_the_table_of_recipes_is_the_codes():
    assert generate.between(page("recipes.md"), "recipes") == recipes.recipes_markdown()


def test_the_commands_are_the_codes():
    assert generate.between(page("reproduce.md"), "commands") == reproduction.commands_markdown()


def test_every_network_of_the_papers_has_its_memory():
    assert list(rows()) == [model for _, model in ALL]
    assert len(ALL) >= 20


@pytest.mark.parametrize(
    ("recipe", "model"),
    [pytest.param(r, m, id=m, marks=() if m in QUICK else pytest.mark.slow) for r, m in ALL],
)
def test_the_memory_is_what_the_dry_run_tells(recipe, model):
    assert rows()[model] == reproduction.memory_row(recipe, model)


@pytest.mark.parametrize(("recipe", "model"), ALL, ids=[m for _, m in ALL])
def test_plans_keep_the_authors_images_per_step(recipe, model):
    for nodes, devices in reproduction.MACHINES:
        plan = reproduction.Plan.of(recipe, nodes, devices)
        assert plan.batch_size * plan.accumulate == recipe.config.images_per_step
        assert plan.batch_size % (nodes * devices) == 0


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="no marks <!-- memory -->"):
        generate.between("nothing", "memory")
