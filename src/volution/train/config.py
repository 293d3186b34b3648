"""The settings of a run: checked before anything is written, kept in the run's folder."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import torch

from volution._support.names import unknown

__all__ = ["TrainConfig", "read_config", "write_config"]


@dataclass(frozen=True)
class TrainConfig:
    """What a training run does.

    Args:
        model: Name of a network of volution or timm.
        data: digits, or folder:PATH of images in class folders.
        out: The run's folder; runs/MODEL-DATA if not given.
        epochs: Passes over the training images.
        batch_size: Images per step.
        lr: Learning rate after the warm-up.
        optimizer: Name of an optimizer of timm.
        weight_decay: Strength of weight decay; norms and biases are left out of it.
        schedule: How the learning rate goes down after the warm-up.
        warmup_epochs: Epochs in which the learning rate goes up.
        label_smoothing: Share of the target that is spread over all classes.
        image_size: Side of the images; the dataset's or the network's if not given.
        pretrained: Start from published weights, where there are some.
        model_args: Further arguments of the network, such as '{"drop_path_rate": 0.1}'.
        auto_augment: An augmentation policy of timm, such as rand-m9-mstd0.5.
        random_erasing: Probability of erasing a rectangle of a training image.
        seed: Decides weights, order and augmentation.
        workers: Processes that read images.
        device: Where to compute; auto takes a GPU if there is one.
    """

    model: str = "rednet26"
    data: str = "digits"
    out: Path | None = None
    epochs: int = 20
    batch_size: int = 64
    lr: float = 1e-3
    optimizer: str = "adamw"
    weight_decay: float = 0.05
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    warmup_epochs: int = 1
    label_smoothing: float = 0.1
    image_size: int | None = None
    pretrained: bool = False
    model_args: dict[str, Any] = field(default_factory=dict)
    auto_augment: str | None = None
    random_erasing: float = 0.0
    seed: int = 0
    workers: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def folder(self) -> Path:
        """Return the run's folder.

        Example:
            >>> TrainConfig(data="folder:photos/birds").folder.as_posix()
            'runs/rednet26-birds'
        """
        data = Path(self.data.partition(":")[2]).name or self.data
        return self.out or Path("runs") / f"{self.model}-{data}"

    def check(self) -> None:
        """Raise ``ValueError`` for a setting that cannot work."""
        from timm.optim import list_optimizers

        least = {"epochs": 1, "batch_size": 2, "warmup_epochs": 0, "workers": 0, "seed": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be above 0, got {self.lr}")
        for name in ("label_smoothing", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda: there is no CUDA device here; choose cpu or auto")
        optimizers = [str(name) for name in list_optimizers()]
        if self.optimizer not in optimizers:
            raise ValueError(unknown("optimizer", self.optimizer, optimizers))


def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig)
    return parser


def write_config(config: TrainConfig, path: Path) -> None:
    """Write a configuration as YAML, for :func:`read_config` and ``volution train --config``."""
    settings = asdict(config)
    settings["out"] = None if config.out is None else str(config.out)
    parser = _parser()
    path.write_text(parser.dump(parser.parse_object(settings)))


def read_config(path: Path) -> TrainConfig:
    """Read a configuration; raises ``ValueError`` if it is damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"no configuration at {path}")
    parser = _parser()
    try:
        return TrainConfig(**vars(parser.parse_path(path)))
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"{path} is not a training configuration: {error}") from error
