"""The ``volution`` command; each command is a function, its options are the arguments.

Exit codes: 0 done, 1 done but something is wrong with the result (an image of many could not be
read, a check failed), 2 not done for a reason that the one line on standard error gives, 130
interrupted. What a command imports, it imports when it runs.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_type_hints

import docstring_parser
import jsonargparse
from jsonargparse import ArgumentError

from volution import train as training
from volution._support.console import log, out
from volution._support.extras import MissingExtra
from volution._support.names import unknown
from volution.train import TrainConfig, TrainResult
from volution.train.config import find_config, recipes

__all__ = ["main"]

Device = Literal["auto", "cpu", "cuda"]


def list_(pattern: str = "*", *, json: bool = False) -> int:
    """List the networks: size, family, and the accuracy their authors report.

    Args:
        pattern: Wildcards that the names match.
        json: Write JSON.
    """
    from volution.report.terminal import show_models

    return show_models(pattern, as_json=json)


def info(name: str | None = None, *, image_size: int | None = None, json: bool = False) -> int:
    """Show versions, machine, and which kernel every operator gets here; or what a network costs.

    Args:
        name: A network, to show its parameters, multiplications, stages and input instead.
        image_size: Side of the image to count for; the network's own if not given.
        json: Write JSON.
    """
    from volution.report.terminal import show_environment, show_network

    if name is not None:
        return show_network(name, image_size, as_json=json)
    if image_size is not None:
        raise ValueError("image_size goes with a network: volution info NAME --image_size 384")
    return show_environment(as_json=json)


def train(config: TrainConfig, resume: Path | None = None) -> int:
    """Train a network on images.

    Args:
        config: The settings of the run.
        resume: Continue the run in this folder, with the settings it was begun with.
    """
    try:
        result = training.fit(config) if resume is None else _resume(config, resume)
    except KeyboardInterrupt:
        folder = resume or config.folder
        if (folder / "last.ckpt").exists():
            log.print(f"continue with: volution train --resume {folder}", soft_wrap=True)
        raise
    out.print(f"best top-1 {result.best_top1:.2%}, weights in {result.best}", soft_wrap=True)
    return _tell_broken(result.broken)


def _resume(config: TrainConfig, folder: Path) -> TrainResult:
    # What is left at its default was not asked for; anything else would be ignored silently.
    given = {k for k, v in vars(config).items() if v != getattr(TrainConfig(), k)}
    if given:
        raise ValueError(
            f"resume takes the run's own settings; leave out {', '.join(sorted(given))}"
        )
    return training.resume(folder)


def eval_(
    checkpoint: Path,
    data: str = "digits",
    *,
    model: str | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Measure a trained network on the validation images of a dataset.

    Args:
        checkpoint: Weights, such as runs/NAME/best.safetensors.
        data: digits, or folder:PATH.
        model: Name of the network, for weights that do not say it themselves.
        batch_size: Images per pass.
        workers: Processes that read images.
        device: Where to compute; auto takes a GPU if there is one.
        json: Write JSON.
    """
    from volution import data as datasets
    from volution import infer, tasks
    from volution.report.terminal import show_evaluation

    classifier = tasks.load_classifier(checkpoint, model)
    images = datasets.load(data)
    if classifier.input.channels != images.channels:
        raise ValueError(
            f"{checkpoint} takes images of {classifier.input.channels} channels, {data} has "
            f"{images.channels}"
        )
    if model is None and classifier.classes != images.classes:
        raise ValueError(
            f"{checkpoint} knows the classes {_some(classifier.classes)}; {data} has "
            f"{_some(images.classes)}"
        )
    evaluation = infer.evaluate(
        classifier, images.val, batch_size=batch_size, workers=workers, device=_device(device)
    )
    show_evaluation(evaluation, classifier.classes, as_json=json)
    return _tell_broken(evaluation.broken)


def predict(
    checkpoint: Path,
    images: list[str],
    *,
    top: int = 3,
    output: Path | None = None,
    json: bool = False,
    model: str | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: Device = "auto",
) -> int:
    """Say what is in images.

    Args:
        checkpoint: Weights, such as runs/NAME/best.safetensors.
        images: Files, folders and patterns such as 'photos/**/*.jpg'.
        top: Classes to name for each image.
        output: File to write, .csv or .json.
        json: Write JSON instead of a table.
        model: Name of the network, for weights that do not say it themselves.
        batch_size: Images per pass.
        workers: Processes that read images.
        device: Where to compute; auto takes a GPU if there is one.
    """
    from volution import infer, tasks
    from volution.report.terminal import show_predictions

    if output is not None and output.suffix not in (".csv", ".json"):
        raise ValueError(f"output must end in .csv or .json, got {output}")
    if output is not None and not output.parent.is_dir():
        raise FileNotFoundError(f"output: no folder {output.parent}")
    classifier = tasks.load_classifier(checkpoint, model)
    predictions = infer.predict(
        classifier, images, top=top, batch_size=batch_size, workers=workers, device=_device(device)
    )
    if output is not None:
        text = predictions.to_csv() if output.suffix == ".csv" else predictions.to_json() + "\n"
        output.write_text(text, encoding="utf-8")
    show_predictions(predictions, as_json=json)
    return _tell_broken(predictions.broken)


def bench(
    what: Literal["ops", "models"] = "ops",
    *,
    out: Path | None = None,
    quick: bool = False,
    only: str = "",
    json: bool = False,
) -> int:
    """Measure speed against the plain formulations, behind a correctness gate.

    Args:
        what: Operators or whole networks.
        out: JSON file to write.
        quick: A rough look, with small images and without compiled forms.
        only: Run the cases whose name contains this, such as 'van_b2' or 'dw7x7 d3*56'.
        json: Write JSON instead of a table.
    """
    from volution import bench as benchmark

    return benchmark.run(what, out=out, quick=quick, only=only, as_json=json)


def quickstart(out: Path = Path("runs/quickstart"), epochs: int = 15) -> int:
    """Train, evaluate, export and picture a small RedNet, in under three minutes.

    Args:
        out: Folder for the results; those of an earlier quickstart are replaced.
        epochs: Passes over the training images.
    """
    from volution.report import quickstart as run

    return run(out, epochs)


_COMMANDS: dict[str, Callable[..., int]] = {
    "list": list_,
    "info": info,
    "train": train,
    "eval": eval_,
    "predict": predict,
    "bench": bench,
    "quickstart": quickstart,
}


# Given by their place, not by a name.
_POSITIONAL = ("checkpoint", "images", "name", "pattern", "what")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        argv: Words after ``volution``; those of the process by default.
    """
    try:
        words = list(sys.argv[1:] if argv is None else argv)
        if words and not words[0].startswith("-") and words[0] not in _COMMANDS:
            raise ValueError(unknown("command", words[0], _COMMANDS))
        parser = _parser()
        settings = parser.parse_args(words)
        if settings.command is None:
            parser.print_help()
            return 0
        return _run(settings.command, vars(settings[settings.command]))
    except KeyboardInterrupt:
        log.print("volution: interrupted")
        return 130
    except SystemExit as error:  # after --help and --version
        return int(error.code or 0)
    except BrokenPipeError:  # whoever reads the output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ArgumentError, ValueError, TypeError, OSError, MissingExtra) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        log.print(f"volution: error: {text}", markup=False, soft_wrap=True)
        return 2


def _parser() -> jsonargparse.ArgumentParser:
    import volution

    parser = jsonargparse.ArgumentParser(
        prog="volution",
        description=volution.__doc__,
        version=volution.__version__,
        exit_on_error=False,
    )
    commands = parser.add_subcommands(required=False, dest="command", metavar="COMMAND")
    for name, function in _COMMANDS.items():
        about = docstring_parser.parse(function.__doc__ or "")
        summary = about.short_description or ""
        sub = jsonargparse.ArgumentParser(description=summary, exit_on_error=False)
        _add_arguments(sub, function, {p.arg_name: p.description or "" for p in about.params})
        commands.add_subcommand(name, sub, help=summary)
    return parser


class _ConfigFile(jsonargparse.ActionConfigFile):
    """A configuration file, by its path or as the name of a recipe."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        path = str(find_config(values))
        super().__call__(parser, cfg, path, option_string)  # type: ignore[no-untyped-call]


def _add_arguments(
    parser: jsonargparse.ArgumentParser, function: Callable[..., int], texts: dict[str, str]
) -> None:
    """Add a function's arguments; lists and switches are written as people expect them."""
    if function is train:
        known = ", ".join(recipes())
        about = f"YAML file of settings, or the name of a recipe: {known}."
        parser.add_argument("--config", action=_ConfigFile, help=about)
        parser.add_class_arguments(TrainConfig, as_group=False)
        parser.add_function_arguments(function, as_group=False, skip={"config"})
        return
    by_hand: set[str | int] = set()
    hints = get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, help = hints[name], texts[name]
        if kind is bool:
            parser.add_argument(f"--{name}", action="store_true", help=help)
        elif kind == list[str]:
            parser.add_argument(name, type=str, nargs="+", help=help)
        elif name in _POSITIONAL and parameter.default is parameter.empty:
            parser.add_argument(name, type=kind, help=help)
        elif name in _POSITIONAL:
            parser.add_argument(name, type=kind, nargs="?", default=parameter.default, help=help)
        else:
            continue
        by_hand.add(name)
    parser.add_function_arguments(function, as_group=False, skip=by_hand)


def _run(name: str, settings: dict[str, Any]) -> int:
    if name == "train":
        settings.pop("config")
        resume = settings.pop("resume")
        return train(TrainConfig(**settings), resume)
    return _COMMANDS[name](**settings)


def _tell_broken(broken: Sequence[str]) -> int:
    """List the images that were skipped; return the exit code."""
    if not broken:
        return 0
    log.print(f"{len(broken)} image{'s' * (len(broken) > 1)} could not be read:")
    for problem in broken:
        log.print(f"  {problem}", markup=False, soft_wrap=True)
    return 1


def _device(name: str) -> str:
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("device cuda: there is no CUDA device here; choose cpu or auto")
    return "cuda" if available and name == "auto" else name.replace("auto", "cpu")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
