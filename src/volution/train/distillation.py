"""Learning from another network besides the labels: the teacher, and what it adds to the loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, kl_div, log_softmax

from volution import tasks
from volution._support.console import log
from volution.data import InputConfig
from volution.train.config import TrainConfig

__all__ = ["Teacher", "distillation_loss", "make_teacher"]

_SHOWN = 3


class Teacher:
    """A trained network that is asked, and never changed.

    It is no module, so the networks that are trained and stored do not contain it.

    Args:
        model: The network; it is put into evaluation mode.
        own: How its images are prepared.
        given: How the images are prepared that it is shown.
        order: For each class of the student the teacher's number of it; None if they are alike.

    Example:
        >>> small, large = (InputConfig(3, side, (0.5,) * 3, (0.5,) * 3) for side in (4, 8))
        >>> teacher = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), large, small)
        >>> teacher(torch.randn(5, 3, 4, 4)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        own: InputConfig,
        given: InputConfig,
        order: Sequence[int] | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.size = own.image_size
        # x * scale + shift undoes the student's normalisation and does the teacher's.
        mean, std = torch.tensor(own.mean), torch.tensor(own.std)
        self._scale = (torch.tensor(given.std) / std)[:, None, None]
        self._shift = ((torch.tensor(given.mean) - mean) / std)[:, None, None]
        self._order = None if order is None else torch.tensor(order)

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits for normalised images, in the student's order of classes."""
        self._move(images.device)
        with torch.no_grad():
            logits: Tensor = self.model(self._prepare(images))
        return logits if self._order is None else logits[:, self._order]

    def _prepare(self, images: Tensor) -> Tensor:
        x = images.float() * self._scale + self._shift
        if x.shape[-2:] != (self.size, self.size):
            side = (self.size, self.size)
            x = interpolate(x, side, mode="bicubic", align_corners=False, antialias=True)
        return x.contiguous(memory_format=torch.channels_last)

    def _move(self, device: torch.device) -> None:
        if self._scale.device != device:
            self.model.to(device)
            self._scale, self._shift = self._scale.to(device), self._shift.to(device)
            self._order = None if self._order is None else self._order.to(device)


def distillation_loss(
    logits: Tensor, taught: Tensor, *, kind: str = "soft", temperature: float = 1.0
) -> Tensor:
    """Return how far a student is from its teacher, the mean over a batch.

    Args:
        logits: The student's, ``(N, classes)``.
        taught: The teacher's, likewise.
        kind: ``"soft"`` compares probabilities, by the divergence of Kullback and Leibler;
            ``"hard"`` takes the teacher's decision for the label.
        temperature: What both are divided by before soft targets are compared. The result is
            multiplied with its square, which keeps the size of the gradients.

    Raises:
        ValueError: If ``kind`` is another.

    Example:
        >>> sure = torch.tensor([[0.0, 100.0]])
        >>> distillation_loss(torch.zeros(1, 2), sure).item()  # doctest: +ELLIPSIS
        0.693...
        >>> distillation_loss(sure, sure, kind="hard").item()
        0.0

    References:
        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
        https://arxiv.org/abs/1503.02531. Touvron et al., "Training data-efficient image
        transformers & distillation through attention", ICML 2021,
        https://arxiv.org/abs/2012.12877.
    """
    logits, taught = logits.float(), taught.float()
    if kind == "hard":
        return cross_entropy(logits, taught.argmax(1))
    if kind != "soft":
        raise ValueError(f"kind must be soft or hard, got {kind!r}")
    ours, theirs = (log_softmax(x / temperature, dim=1) for x in (logits, taught))
    return kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def make_teacher(
    config: TrainConfig, classes: Sequence[str], inputs: InputConfig
) -> Teacher | None:
    """Return the teacher that a configuration asks for, if it does.

    Args:
        config: The run's settings.
        classes: The classes of the data, in order.
        inputs: How the student's images are prepared.

    Raises:
        FileNotFoundError: If there is no such file any more.
        ValueError: If the teacher has other classes or channels, cannot be read, or no weights of
            it are published.
        ConnectionError: If its published weights cannot be fetched.
    """
    if config.teacher is None:
        return None
    if Path(config.teacher).exists() and not timm.is_model(config.teacher):
        return _from_file(config.teacher, classes, inputs)
    return _from_timm(config.teacher, classes, inputs)


def _from_file(teacher: str, classes: Sequence[str], inputs: InputConfig) -> Teacher:
    try:
        found = tasks.load_classifier(teacher)
    except ValueError as error:
        raise ValueError(
            f"teacher must be the file of a trained network, such as best.safetensors of a run: "
            f"{error}"
        ) from error
    if set(found.classes) != set(classes):
        raise ValueError(_other_classes(teacher, found.classes, classes))
    if found.input.channels != inputs.channels:
        raise ValueError(
            f"teacher {teacher} takes images of {found.input.channels} channels, the data has "
            f"{inputs.channels}"
        )
    return Teacher(found.model, found.input, inputs, _order(found.classes, classes))


def _from_timm(teacher: str, classes: Sequence[str], inputs: InputConfig) -> Teacher:
    cfg = timm.get_pretrained_cfg(teacher)
    if cfg is None:
        raise ValueError(f"teacher {teacher}: no weights of it are published; give a file")
    if cfg.num_classes != len(classes):
        raise ValueError(
            f"teacher {teacher} was published with {cfg.num_classes} classes, the data has "
            f"{len(classes)}; train one on the data and give its file"
        )
    if not cfg.has_weights:
        raise ValueError(f"teacher {teacher}: no weights of it are published; give a file")
    net = _published(teacher, inputs.channels)
    own = tasks.input_config(net)
    order = None
    names = ImageNetInfo().label_names() if len(classes) == 1000 else []
    if set(names) == set(classes):
        order = _order(names, classes)
    else:
        log.print(
            f"teacher {teacher}: the names of its classes are not known; taken in the order "
            f"of the data's, the first for {classes[0]}",
            markup=False,
            soft_wrap=True,
        )
    return Teacher(net, own, inputs, order)


def _published(teacher: str, channels: int) -> nn.Module:
    try:
        return tasks.create_model(teacher, in_chans=channels, pretrained=True)
    # What goes wrong on the way to the weights depends on who serves them.
    except Exception as error:
        raise ConnectionError(
            f"teacher {teacher}: its published weights cannot be fetched "
            f"({type(error).__name__}: {error}); where there is no network give a file"
        ) from error


def _order(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
    """Return for each of our classes its number in theirs; None if the order is the same.

    >>> _order(("cat", "dog"), ("dog", "cat"))
    [1, 0]
    """
    places = {name: i for i, name in enumerate(theirs)}
    order = [places[name] for name in ours]
    return None if order == list(range(len(order))) else order


def _other_classes(teacher: str, theirs: Sequence[str], ours: Sequence[str]) -> str:
    only = [sorted(set(a) - set(b)) for a, b in ((theirs, ours), (ours, theirs))]
    told = [
        f"only {owner} has {', '.join(names[:_SHOWN])}"
        + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        for owner, names in zip(("the teacher", "the data"), only, strict=True)
        if names
    ]
    return (
        f"teacher {teacher} knows {len(theirs)} classes, the data has {len(ours)}, and they are "
        f"not the same: {'; '.join(told)}"
    )
