"""Classifiers go out to a folder or the Hugging Face Hub, and come in from there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from volution import hub
from volution.hub.transfer import CARD, CONFIG, WEIGHTS
from volution.tasks.checkpoint import Classifier, find_weights, load_classifier, metadata_of
from volution.tasks.repository import Description, config_of

__all__ = ["pull", "push"]

_SHOWN = 3


def push(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    model: str | None = None,
    license: str | None = None,
    private: bool = False,
    overwrite: bool = False,
) -> Classifier:
    """Write a trained network as a folder that timm and the Hugging Face Hub understand.

    The folder holds ``model.safetensors``, ``config.json`` in timm's schema and ``README.md``,
    a card with what was measured and how the weights came to be. It names no folder and no
    machine of yours; look at it before it goes out.

    Args:
        source: A run's folder, a file of weights, or a folder written by this function.
        destination: A folder, or ``hf-hub:USER/NAME``.
        model: The network, for weights that do not say it themselves.
        license: The weights' licence, by its identifier on the Hub, such as ``apache-2.0``; the
            one that the authors state, for their weights.
        private: Make a repository on the Hub that only its owner sees.
        overwrite: Replace these three files in a folder that holds files already.

    Returns:
        The classifier that was written.

    Raises:
        ValueError: If ``source`` cannot be read, or ``destination`` holds files already; nothing
            was written then.
        OSError: If ``source`` does not exist, ``destination`` cannot be written, or the Hub
            cannot be reached.
    """
    if not hub.is_remote(destination):
        _check_free(Path(destination), overwrite)
    weights, _ = find_weights(source)
    classifier = load_classifier(source, model)
    given = hub.read_provenance(weights)
    cfg: dict[str, Any] = getattr(classifier.model, "pretrained_cfg", None) or {}
    # Weights that say nothing of a training here are the authors'.
    theirs = cfg.get("license") if not given.remarks and not given.settings else None
    place = str(destination)
    remote = hub.is_remote(destination)
    title = place.removeprefix("hf-hub:").rstrip("/").rpartition("/")[2]
    license = license or (theirs if theirs != "unknown" else None)
    card = hub.write_card(
        title,
        model=classifier.name,
        classes=classifier.classes,
        parameters=sum(p.numel() for p in classifier.model.parameters()),
        input_text=_input_text(classifier),
        source=cfg,
        provenance=given,
        address=place if remote else f"local-dir:{title}",
        license=license,
    )
    if remote:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), classifier, card, given.remarks, license)
            hub.send(Path(folder), place, private=private, message=f"Add {classifier.name}")
        return classifier
    with _placed(Path(destination)) as unfinished:
        _write(unfinished, classifier, card, given.remarks, license)
    return classifier


def pull(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Classifier:
    """Fetch a network into a folder, after it was loaded once to see that it can be.

    Args:
        source: ``hf-hub:USER/NAME``, with ``@REVISION`` for another state than the newest; or a
            folder in the same layout.
        destination: The folder.
        overwrite: Replace the network's files in a folder that holds files already.

    Returns:
        The classifier.

    Raises:
        ValueError: If ``source`` holds no network in timm's layout, or ``destination`` files
            already; nothing was written then.
        OSError: If ``source`` does not exist or cannot be reached, or ``destination`` cannot be
            written.
    """
    if hub.is_remote(destination):
        raise ValueError(f"destination must be a folder, got {destination}; to send, use push")
    folder = Path(destination)
    _check_free(folder, overwrite)
    place = hub.locate(source)
    if not place.exists():
        raise FileNotFoundError(f"no folder at {source}")
    missing = [name for name in (CONFIG, WEIGHTS) if not (place / name).is_file()]
    if missing:
        raise ValueError(
            f"{source} holds no {' and no '.join(missing)}; a run's folder or a file becomes such "
            f"a folder with: volution push"
        )
    classifier = load_classifier(place)
    with _placed(folder) as unfinished:
        for name in (WEIGHTS, CONFIG, CARD):
            if (place / name).is_file():
                shutil.copyfile(place / name, unfinished / name)
    return classifier


def _write(
    folder: Path, classifier: Classifier, card: str, remarks: dict[str, str], license: str | None
) -> None:
    described = Description(
        classifier.name, classifier.classes, classifier.input, classifier.model_args
    )
    config = config_of(described, classifier.model, license=license)
    # Other libraries ask for the format.
    metadata = {**metadata_of(classifier), **remarks, "format": "pt"}
    hub.write_checkpoint(folder / WEIGHTS, classifier.model.state_dict(), metadata)
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")


def _check_free(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"destination: {folder} is a file, a folder is wanted")
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if there and not overwrite:
        more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
        raise ValueError(
            f"destination: {folder} holds files already ({', '.join(there[:_SHOWN])}{more}); "
            f"choose another folder, or add --overwrite to replace {WEIGHTS}, {CONFIG} and {CARD}"
        )


@contextmanager
def _placed(folder: Path) -> Iterator[Path]:
    """Give a folder to write to, which takes its place when all is written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.unfinished")
    try:
        unfinished.mkdir()
        yield unfinished
        if folder.is_dir():
            for path in unfinished.iterdir():
                os.replace(path, folder / path.name)
        else:
            os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _input_text(classifier: Classifier) -> str:
    wanted = classifier.input
    numbers = [", ".join(f"{x:.4g}" for x in values) for values in (wanted.mean, wanted.std)]
    side, channels = wanted.image_size, wanted.channels
    return (
        f"{channels} channel{'s' * (channels > 1)} of {side} by {side} pixels, resized "
        f"{wanted.interpolation}, crop {wanted.crop_pct:g}, mean ({numbers[0]}), std ({numbers[1]})"
    )
