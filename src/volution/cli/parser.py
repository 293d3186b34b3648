"""From words to a call: a parser made of the signatures and docstrings of the commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, get_type_hints

import docstring_parser
import jsonargparse

from volution._support.names import unknown
from volution.cli import data, measuring, reporting, sharding, sharing, showing, training, using
from volution.cli.words import as_written
from volution.train import TrainConfig
from volution.train.config import find_config, recipes

__all__ = ["COMMANDS", "build", "run"]

Command = Callable[..., int]

# A command, or a word with several commands under it.
COMMANDS: dict[str, Command | dict[str, Command]] = {
    "list": showing.list_,
    "info": showing.info,
    "recipes": showing.recipes,
    "train": training.train,
    "eval": measuring.eval_,
    "verify": measuring.verify,
    "predict": using.predict,
    "push": sharing.push,
    "pull": sharing.pull,
    "data": {"check": data.check, "shard": sharding.shard},
    "report": reporting.report,
    "runs": reporting.runs,
    "bench": showing.bench,
    "quickstart": showing.quickstart,
}

# What stands under a word of several commands.
_GROUPS: dict[str, str] = {
    "data": "Check datasets before they are needed, write them as shards.",
}

# Given by their place, not by a name, unless the function takes them by name only.
_POSITIONAL = ("checkpoint", "destination", "images", "name", "pattern", "run", "source", "what")


def run(words: Sequence[str]) -> int:
    """Do what the words after ``volution`` say; returns the exit code."""
    words = as_written(words)
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise ValueError(unknown("command", words[0], COMMANDS))
    group = COMMANDS.get(words[0]) if words else None
    second = words[1] if len(words) > 1 and not words[1].startswith("-") else None
    if isinstance(group, dict) and second is not None and second not in group:
        raise ValueError(unknown(f"command {words[0]}", second, group))
    parser = build(words[:1])
    settings = parser.parse_args(list(words))
    if settings.command is None:
        parser.print_help()
        return 0
    chosen, inner = COMMANDS[settings.command], settings[settings.command]
    if isinstance(chosen, dict):
        if inner.command is None:
            raise ValueError(f"{settings.command} needs one of: {', '.join(chosen)}")
        chosen, inner = chosen[inner.command], inner[inner.command]
    if chosen is training.train:
        # The words once more, without what nobody asked for.
        return _train(vars(inner), vars(parser.parse_args(list(words), defaults=False).train))
    return chosen(**vars(inner))


def build(chosen: Sequence[str] = ()) -> jsonargparse.ArgumentParser:
    """Return the parser of the whole command.

    Args:
        chosen: The commands whose options are needed; the others are only named, which is what
            keeps ``volution --help`` quick. Empty for a list of the commands alone.
    """
    import volution

    parser = jsonargparse.ArgumentParser(
        prog="volution",
        description=volution.__doc__,
        version=volution.__version__,
        exit_on_error=False,
    )
    _add_commands(parser, COMMANDS, chosen)
    return parser


def _add_commands(
    parser: jsonargparse.ArgumentParser,
    commands: Mapping[str, Command | dict[str, Command]],
    chosen: Sequence[str] | None,
) -> None:
    """Add commands to a parser; with all their options if ``chosen`` is None."""
    added = parser.add_subcommands(required=False, dest="command", metavar="COMMAND")
    for name, command in commands.items():
        wanted = chosen is None or name in chosen
        if isinstance(command, dict):
            summary = _GROUPS[name]
            sub = jsonargparse.ArgumentParser(description=summary, exit_on_error=False)
            # The outer one first: jsonargparse wants to know where it stands.
            added.add_subcommand(name, sub, help=summary)
            if wanted:
                _add_commands(sub, command, None)
        else:
            about = docstring_parser.parse(command.__doc__ or "")
            summary = about.short_description or ""
            sub = jsonargparse.ArgumentParser(description=summary, exit_on_error=False)
            if wanted:
                texts = {p.arg_name: p.description or "" for p in about.params}
                _add_arguments(sub, command, texts)
            added.add_subcommand(name, sub, help=summary)


class _ConfigFile(jsonargparse.ActionConfigFile):
    """A configuration file, by its path or as the name of a recipe."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        path = str(find_config(values))
        super().__call__(parser, cfg, path, option_string)  # type: ignore[no-untyped-call]


def _add_arguments(
    parser: jsonargparse.ArgumentParser, function: Command, texts: dict[str, str]
) -> None:
    """Add a function's arguments; lists and switches are written as people expect them."""
    if function is training.train:
        known = ", ".join(recipes())
        about = f"YAML file of settings, or the name of a recipe: {known}."
        parser.add_argument("--config", action=_ConfigFile, help=about)
        parser.add_class_arguments(TrainConfig, as_group=False)
        parser.add_function_arguments(function, as_group=False, skip={"config", "given"})
        return
    by_hand: set[str | int] = set()
    hints = get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, help = hints[name], texts[name]
        if kind is bool:
            parser.add_argument(f"--{name}", action="store_true", help=help)
        elif kind in (list[str], list[str] | None):
            many = "+" if parameter.default is parameter.empty else "*"
            parser.add_argument(name, type=str, nargs=many, help=help)
        elif parameter.kind is parameter.KEYWORD_ONLY or name not in _POSITIONAL:
            continue
        elif parameter.default is parameter.empty:
            parser.add_argument(name, type=kind, help=help)
        else:
            parser.add_argument(name, type=kind, nargs="?", default=parameter.default, help=help)
        by_hand.add(name)
    parser.add_function_arguments(function, as_group=False, skip=by_hand)


def _train(settings: dict[str, Any], given: dict[str, Any]) -> int:
    names = {field.name for field in fields(TrainConfig)}
    own = {name: value for name, value in settings.items() if name in names}
    rest = {name: settings[name] for name in settings.keys() - names - {"config"}}
    return training.train(TrainConfig(**own), **rest, given=sorted(names & given.keys()))
