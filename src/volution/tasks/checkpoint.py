"""A trained classifier in one file: weights, and all that is needed to use them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor, nn

from volution import hub, models
from volution.data import InputConfig
from volution.hub.transfer import CONFIG, WEIGHTS
from volution.tasks.classification import create_model, input_config
from volution.tasks.repository import Description, read_description
from volution.tasks.resolution import fit_tables, needs_size, set_image_size, tell_resized

__all__ = [
    "Classifier",
    "find_weights",
    "load_classifier",
    "load_official_classifier",
    "metadata_of",
    "save_classifier",
    "start_from",
]

# What training writes into the folder of a run.
_BEST = "best.safetensors"


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
    path: str | os.PathLike[str],
    classifier: Classifier,
    *,
    weights: Mapping[str, Tensor] | None = None,
    **remarks: str | int | float,
) -> None:
    """Write a classifier as safetensors, with what is needed to use it in the file's metadata.

    Args:
        path: The file; its folder must exist.
        classifier: What to write.
        weights: Weights to write instead of those that the network has now.
        **remarks: Further metadata, such as the accuracy that was measured.
    """
    metadata = {**metadata_of(classifier), **{key: str(value) for key, value in remarks.items()}}
    state = classifier.model.state_dict() if weights is None else weights
    hub.write_checkpoint(path, state, metadata)


def metadata_of(classifier: Classifier) -> dict[str, str]:
    """Return what a file of weights says of its network."""
    return {
        "model": classifier.name,
        "model_args": json.dumps(classifier.model_args),
        "classes": json.dumps(classifier.classes),
        "input": classifier.input.to_json(),
    }


def load_classifier(path: str | os.PathLike[str], model: str | None = None) -> Classifier:
    """Read a classifier, in evaluation mode.

    Args:
        path: A file of :func:`save_classifier`; the folder of a run, whose best weights are then
            taken; a folder in timm's layout, such as ``volution push`` writes, or
            ``hf-hub:USER/NAME``; or any other checkpoint, whose network must then be named, and
            whose classes are called by their numbers.
        model: The network to load the weights into; None takes what the file says.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, of another architecture (the message says which keys), or
            does not say its network and ``model`` does not either.
        OSError: If it has to be fetched, and cannot be.
    """
    weights_file, described = find_weights(path)
    weights = hub.read_checkpoint(weights_file)
    if described is None and weights_file.is_file():
        described = _metadata(weights_file)
    if described is None and model is None:
        raise ValueError(f"{path} does not say which network it is of; name it (--model)")
    if described is None or model not in (None, described.name):
        net = create_model(str(model))
        models.load_official(net, weights)
        names = tuple(str(i) for i in range(int(net.num_classes)))  # type: ignore[arg-type]
        return Classifier(net.eval(), str(model), names, input_config(net))
    net = create_model(
        described.name,
        num_classes=len(described.classes),
        in_chans=described.input.channels,
        model_args=described.model_args,
    )
    if needs_size(net):
        set_image_size(net, described.input.image_size)
    models.load_official(net, weights)
    return Classifier(net.eval(), **vars(described))


def load_official_classifier(
    name: str, checkpoint: str | os.PathLike[str] | None = None
) -> Classifier:
    """Return a network with its authors' weights and the input they were made for.

    Args:
        name: The network's name in timm, such as ``van_b0`` or ``hornet_large_gf.in22k``.
        checkpoint: A file with the weights; None downloads them, where the authors keep them at
            an address that can be downloaded.

    Raises:
        ValueError: If there is no such network, or ``checkpoint`` is damaged or of another one.
        OSError: If the weights cannot be found or fetched; the message says where they are kept.
    """
    if checkpoint is not None:
        return load_classifier(checkpoint, name)
    net = create_model(name, pretrained=True)
    names = tuple(str(i) for i in range(int(net.num_classes)))  # type: ignore[arg-type]
    return Classifier(net.eval(), name, names, input_config(net))


def start_from(
    model: nn.Module, path: str | os.PathLike[str], image_size: int | None = None
) -> None:
    """Load a file's weights into a network that is about to be trained further.

    Tables of positions and global filters that are stored for another size of images are resized
    for ``image_size``, and a line on standard error says so.

    Args:
        model: The network. Its classifier stays as it is where the file has none, or one of
            another number of classes.
        path: A checkpoint, ours or the authors'; or a folder or repository, as in
            :func:`load_classifier`.
        image_size: Side of the images it will be trained on; None leaves the tables as they come.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it has to be fetched, and cannot be.
        ValueError: If it is damaged, or of another architecture; the network has then none of its
            weights. Likewise if it cannot be set to ``image_size``.
    """
    state = models.official.official_state(hub.read_checkpoint(find_weights(path)[0]), model)
    stored = {name: tuple(weight.shape) for name, weight in state.items()}
    if image_size is not None and needs_size(model):
        set_image_size(model, image_size)
    state = fit_tables(model, state)
    classifier = model.get_classifier()  # type: ignore[operator]
    prefix = next(name for name, module in model.named_modules() if module is classifier)
    own = {k: v for k, v in model.state_dict().items() if k.startswith(f"{prefix}.")}
    if any(key not in state or state[key].shape != own[key].shape for key in own):
        state.update(own)
        stored = {name: shape for name, shape in stored.items() if name not in own}
    models.load_official(model, state)
    if image_size is not None:
        set_image_size(model, image_size)
        tell_resized(model, stored, image_size)


def find_weights(path: str | os.PathLike[str]) -> tuple[Path, Description | None]:
    """Return the file with the weights, and what its folder says of them."""
    place = hub.locate(path)
    if not place.is_dir():
        return place, None
    if (place / CONFIG).is_file():
        return place / WEIGHTS, read_description(place)
    if (place / _BEST).is_file():
        return place / _BEST, None
    raise ValueError(f"{place} holds neither {CONFIG} (a pushed network) nor {_BEST} (a run)")


def _metadata(path: Path) -> Description | None:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = dict(file.metadata() or {})
    except safetensors.SafetensorError:
        return None  # read_checkpoint could read it, so it is of another format
    if not {"model", "model_args", "classes", "input"} <= found.keys():
        return None
    return Description(
        found["model"],
        tuple(json.loads(found["classes"])),
        InputConfig.from_json(found["input"]),
        json.loads(found["model_args"]),
    )
