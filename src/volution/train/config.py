"""The settings of a run: checked before anything is written, kept in the run's folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import torch

from volution._support.names import unknown

__all__ = ["TrainConfig", "find_config", "read_config", "recipes", "write_config"]

_RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class TrainConfig:
    """What a training run does.

    Args:
        model: Name of a network of volution or timm.
        data: digits, or folder:PATH of images in class folders.
        out: The run's folder; runs/MODEL-DATA if not given.
        epochs: Passes over the training images, warm-up and cool-down included.
        batch_size: Images that go through the network at once.
        accumulate: Batches whose gradients are averaged for one step of the optimizer.
        lr: Learning rate after the warm-up.
        optimizer: Name of an optimizer of timm; its sgd has Nesterov momentum.
        momentum: Momentum, for optimizers that have one.
        weight_decay: Strength of weight decay; norms and biases are left out of it.
        layer_decay: Factor on the learning rate from each block to the one before it.
        clip_grad: Largest norm of all gradients together; longer ones are shortened to it.
        schedule: How the learning rate goes down after the warm-up.
        min_lr: Learning rate at the end of a cosine or linear schedule.
        warmup_epochs: Epochs in which the learning rate goes up.
        warmup_lr: Learning rate at the start of the warm-up; a hundredth of lr if not given.
        cooldown_epochs: Last epochs, all at min_lr.
        ema_decay: Decay of a moving average of the weights, over about 1 / (1 - ema_decay) steps;
            with it the averaged weights are those that are measured and kept as the best.
        label_smoothing: Share of the target that is spread over all classes.
        mixup: Alpha of mixup, 0 for none; together with cutmix each batch gets one of them.
        cutmix: Alpha of cutmix, 0 for none.
        drop_path_rate: Greatest probability of leaving a block out; the network's own if not given.
        image_size: Side of the images; the dataset's or the network's if not given.
        crop_scale: Least share of the area that a random crop keeps; the dataset's if not given.
        crop_pct: Share of the side that the centre crop keeps when not training; the network's if
            not given.
        pretrained: Start from published weights, where there are some.
        weights: File of weights to start from; its classifier is left out where the classes differ.
        model_args: Further arguments of the network, such as '{"global_pool": "max"}'.
        auto_augment: An augmentation policy of timm, such as rand-m9-mstd0.5-inc1.
        random_erasing: Probability of erasing a rectangle of a training image.
        precision: 32 for float32; bf16 computes in bfloat16 where that is safe (autocast).
        seed: Decides weights, order and augmentation.
        workers: Processes that read images.
        device: Where to compute; auto takes a GPU if there is one.
    """

    model: str = "rednet26"
    data: str = "digits"
    out: Path | None = None
    epochs: int = 20
    batch_size: int = 64
    accumulate: int = 1
    lr: float = 1e-3
    optimizer: str = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.05
    layer_decay: float | None = None
    clip_grad: float | None = None
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    min_lr: float = 0.0
    warmup_epochs: int = 1
    warmup_lr: float | None = None
    cooldown_epochs: int = 0
    ema_decay: float | None = None
    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    drop_path_rate: float | None = None
    image_size: int | None = None
    crop_scale: float | None = None
    crop_pct: float | None = None
    pretrained: bool = False
    weights: Path | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    auto_augment: str | None = None
    random_erasing: float = 0.0
    precision: Literal["32", "bf16"] = "32"
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

        for name, bound in _LEAST.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        for names, words, allowed in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not allowed(value):
                    raise ValueError(f"{name} must be {words}, got {value}")
        self._check_together()
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda: there is no CUDA device here; choose cpu or auto")
        optimizers = [str(name) for name in list_optimizers()]
        if self.optimizer not in optimizers:
            raise ValueError(unknown("optimizer", self.optimizer, optimizers))

    def _check_together(self) -> None:
        """Raise ``ValueError`` for settings that are right one by one, but not together."""
        for name in ("warmup_lr", "min_lr"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= self.lr:
                raise ValueError(f"{name} must be from 0 to lr = {self.lr}, got {value}")
        if self.cooldown_epochs >= self.epochs:
            raise ValueError(
                f"cooldown_epochs are the last of all epochs and must be fewer than epochs = "
                f"{self.epochs}, got {self.cooldown_epochs}"
            )
        if self.schedule not in ("cosine", "linear") and (self.min_lr or self.cooldown_epochs):
            raise ValueError(
                f"min_lr and cooldown_epochs go with schedule cosine or linear, got {self.schedule}"
            )
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(
                f"mixup and cutmix mix images in pairs: batch_size must be even, got "
                f"{self.batch_size}"
            )
        if self.drop_path_rate is not None and "drop_path_rate" in self.model_args:
            raise ValueError("drop_path_rate is given twice; leave it out of model_args")


_LEAST = {
    "epochs": 1,
    "batch_size": 2,
    "accumulate": 1,
    "warmup_epochs": 0,
    "cooldown_epochs": 0,
    "workers": 0,
    "seed": 0,
}
# NaN passes none of these.
_RANGES: tuple[tuple[tuple[str, ...], str, Callable[[float], bool]], ...] = (
    (("lr", "clip_grad"), "above 0 and finite", lambda x: 0 < x < math.inf),
    (("weight_decay", "mixup", "cutmix"), "at least 0", lambda x: 0 <= x < math.inf),
    (("label_smoothing", "random_erasing"), "from 0 to 1", lambda x: 0 <= x <= 1),
    (
        ("momentum", "ema_decay", "drop_path_rate"),
        "at least 0 and below 1",
        lambda x: 0 <= x < 1,
    ),
    (
        ("layer_decay", "crop_scale", "crop_pct"),
        "above 0 and at most 1",
        lambda x: 0 < x <= 1,
    ),
)


def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig)
    return parser


def write_config(config: TrainConfig, path: Path) -> None:
    """Write a configuration as YAML, for :func:`read_config` and ``volution train --config``."""
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
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


def recipes() -> dict[str, Path]:
    """Return the recipes that come with volution: configuration files by name.

    Example:
        >>> "van_imagenet" in recipes()
        True
    """
    return {path.stem: path for path in sorted(_RECIPES.glob("*.yaml"))}


def find_config(name: str) -> Path:
    """Return the configuration file of a path, or of the name of a recipe.

    Raises:
        FileNotFoundError: If there is neither; the message has the nearest recipes.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = recipes()
    if name not in known:
        raise FileNotFoundError(unknown("config", name, known, more="a YAML file or a recipe"))
    return known[name]
