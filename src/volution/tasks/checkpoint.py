"""A trained classifier in one file: weights, and all that is needed to use them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
from torch import nn

from volution import hub, models
from volution.data import InputConfig
from volution.tasks.classification import create_model, input_config

__all__ = ["Classifier", "load_classifier", "save_classifier", "start_from"]


@dataclass(frozen=True)
class Classifier:
    """A network and what its numbers mean.

    Args:
        model: The network.
        name: Its name in timm.
        classes: Names of the classes, in the order of its outputs.
        input: How its images are prepared.
        model_args: Arguments it was made with, beyond ``num_classes`` and ``in_chans``.
    """

    model: nn.Module
    name: str
    classes: tuple[str, ...]
    input: InputConfig
    model_args: dict[str, Any] = field(default_factory=dict)


def save_classifier(
    path: str | os.PathLike[str], classifier: Classifier, **remarks: str | int | float
) -> None:
    """Write a classifier as safetensors, with what is needed to use it in the file's metadata.

    Args:
        path: The file; its folder must exist.
        classifier: What to write.
        **remarks: Further metadata, such as the accuracy that was measured.
    """
    metadata = {
        "model": classifier.name,
        "model_args": json.dumps(classifier.model_args),
        "classes": json.dumps(classifier.classes),
        "input": classifier.input.to_json(),
        **{key: str(value) for key, value in remarks.items()},
    }
    hub.write_checkpoint(path, classifier.model.state_dict(), metadata)


def load_classifier(path: str | os.PathLike[str], model: str | None = None) -> Classifier:
    """Read a classifier, in evaluation mode.

    Args:
        path: A file of :func:`save_classifier`; or any other checkpoint, whose network must then
            be named, and whose classes are called by their numbers.
        model: The network to load the weights into; None takes what the file says.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, of another architecture (the message says which keys), or
            does not say its network and ``model`` does not either.
    """
    weights = hub.read_checkpoint(path)
    metadata = _metadata(Path(path))
    known = {"model", "model_args", "classes", "input"} <= metadata.keys()
    if not known and model is None:
        raise ValueError(f"{path} does not say which network it is of; name it (--model)")
    if not known or model not in (None, metadata["model"]):
        net = create_model(str(model))
        models.load_official(net, weights)
        names = tuple(str(i) for i in range(int(net.num_classes)))  # type: ignore[arg-type]
        return Classifier(net.eval(), str(model), names, input_config(net))
    classes, args = tuple(json.loads(metadata["classes"])), json.loads(metadata["model_args"])
    config = InputConfig.from_json(metadata["input"])
    net = create_model(
        metadata["model"], num_classes=len(classes), in_chans=config.channels, model_args=args
    )
    models.load_official(net, weights)
    return Classifier(net.eval(), metadata["model"], classes, config, args)


def start_from(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a file's weights into a network that is about to be trained further.

    Args:
        model: The network. Its classifier stays as it is where the file has none, or one of
            another number of classes.
        path: A checkpoint, ours or the authors'.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or of another architecture; the network is then as it was.
    """
    state = models.official.official_state(hub.read_checkpoint(path), model)
    classifier = model.get_classifier()  # type: ignore[operator]
    prefix = next(name for name, module in model.named_modules() if module is classifier)
    own = {k: v for k, v in model.state_dict().items() if k.startswith(f"{prefix}.")}
    if any(key not in state or state[key].shape != own[key].shape for key in own):
        state.update(own)
    models.load_official(model, state)


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError:
        return {}  # read_checkpoint could read it, so it is of another format
