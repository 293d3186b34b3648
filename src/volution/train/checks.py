"""Which settings work, one by one and together."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import timm
import torch

from volution._support.names import unknown

if TYPE_CHECKING:
    from volution.train.config import TrainConfig

__all__ = ["check"]

_LEAST = {
    "epochs": 1,
    "batch_size": 2,
    "accumulate": 1,
    "warmup_epochs": 0,
    "cooldown_epochs": 0,
    "workers": 0,
    "lr_base_batch": 1,
    "repeats": 1,
    "max_pixels": 1,
    "freeze": 0,
    "devices": 1,
    "nodes": 1,
    "keep": 1,
    "seed": 0,
}
_FILES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
# What is about layers that a linear probe keeps as they are.
_NOT_PROBED = ("freeze", "layer_decay", "drop_path_rate", "sync_bn", "grad_checkpointing")
# NaN passes none of these.
_RANGES: tuple[tuple[tuple[str, ...], str, Callable[[float], bool]], ...] = (
    (("save_steps",), "at least 1", lambda x: x >= 1),
    (
        ("lr", "clip_grad", "save_minutes", "distill_temperature"),
        "above 0 and finite",
        lambda x: 0 < x < math.inf,
    ),
    (
        ("weight_decay", "mixup", "cutmix", "color_jitter"),
        "at least 0",
        lambda x: 0 <= x < math.inf,
    ),
    (("label_smoothing", "random_erasing", "distill_alpha"), "from 0 to 1", lambda x: 0 <= x <= 1),
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


def check(config: TrainConfig) -> None:
    """Raise ``ValueError`` for a setting that cannot work, before anything is done."""
    from timm.optim import list_optimizers

    for name, bound in _LEAST.items():
        if getattr(config, name) < bound:
            raise ValueError(f"{name} must be at least {bound}, got {getattr(config, name)}")
    for names, words, allowed in _RANGES:
        for name in names:
            value = getattr(config, name)
            if value is not None and not allowed(value):
                raise ValueError(f"{name} must be {words}, got {value}")
    _check_rates(config)
    _check_batches(config)
    _check_devices(config)
    _check_teacher(config)
    _check_frozen(config)
    if config.drop_path_rate is not None and "drop_path_rate" in config.model_args:
        raise ValueError("drop_path_rate is given twice; leave it out of model_args")
    optimizers = [str(name) for name in list_optimizers()]
    if config.optimizer not in optimizers:
        raise ValueError(unknown("optimizer", config.optimizer, optimizers))


def _check_rates(config: TrainConfig) -> None:
    lr = config.scaled_lr
    for name in ("warmup_lr", "min_lr"):
        value = getattr(config, name)
        if value is not None and not 0 <= value <= lr:
            raise ValueError(f"{name} must be from 0 to lr = {lr}, got {value}")
    if config.cooldown_epochs >= config.epochs:
        raise ValueError(
            f"cooldown_epochs are the last of all epochs and must be fewer than epochs = "
            f"{config.epochs}, got {config.cooldown_epochs}"
        )
    if config.schedule not in ("cosine", "linear") and (config.min_lr or config.cooldown_epochs):
        raise ValueError(
            f"min_lr and cooldown_epochs go with schedule cosine or linear, got {config.schedule}"
        )


def _check_batches(config: TrainConfig) -> None:
    size, ranks = config.batch_size, config.ranks
    if size % ranks:
        raise ValueError(
            f"batch_size is that of all devices together and must be divisible by devices * nodes "
            f"= {ranks}, got {size}"
        )
    share = size // ranks
    of_each = f" ({share} for each of {ranks} devices)" if ranks > 1 else ""
    if share < 2:
        raise ValueError(f"batch_size must be at least 2 for each device, got {size}{of_each}")
    if (config.mixup or config.cutmix) and share % 2:
        raise ValueError(
            f"mixup and cutmix mix images in pairs: batch_size must be even, got {size}{of_each}"
        )


def _check_devices(config: TrainConfig) -> None:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: there is no CUDA device here; choose cpu or auto")
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    if on_gpu and config.devices > torch.cuda.device_count():
        raise ValueError(
            f"devices must be at most {torch.cuda.device_count()}, the GPUs of this machine, got "
            f"{config.devices}"
        )
    if config.precision == "fp16" and not on_gpu:
        raise ValueError("precision fp16 needs a GPU; choose bf16 or 32")
    if config.precision == "fp16" and config.strategy == "fsdp" and config.ranks > 1:
        raise ValueError(
            "precision fp16 does not go with strategy fsdp, whose shares of the gradients have no "
            "common loss scale; choose bf16"
        )


def _check_teacher(config: TrainConfig) -> None:
    if config.teacher is None:
        given = [
            name
            for name, default in (
                ("distill", "soft"),
                ("distill_alpha", 0.5),
                ("distill_temperature", 1.0),
            )
            if getattr(config, name) != default
        ]
        if given:
            raise ValueError(
                f"{given[0]} is about a teacher; give one, got {getattr(config, given[0])} alone"
            )
        return
    if config.distill == "hard" and config.distill_temperature != 1:
        raise ValueError(
            f"distill_temperature goes with distill soft, got {config.distill_temperature} with "
            f"hard"
        )
    known = timm.is_model(config.teacher) or Path(config.teacher).exists()
    if not known and (Path(config.teacher).suffix in _FILES or "/" in config.teacher):
        raise FileNotFoundError(f"teacher: there is no file {config.teacher}")
    if not known:
        names = timm.list_pretrained()
        raise ValueError(unknown("teacher", config.teacher, names, more="or give a file"))


def _check_frozen(config: TrainConfig) -> None:
    given = (
        config.weights is not None or config.pretrained or "checkpoint_path" in config.model_args
    )
    for name in ("freeze", "linear_probe"):
        if getattr(config, name) and not given:
            raise ValueError(
                f"{name} keeps what a network has learned; give weights or pretrained to start "
                f"from, got {name} {getattr(config, name)} with a new network"
            )
    if not config.linear_probe:
        return
    for name in _NOT_PROBED:
        value = getattr(config, name)
        # False, 0 and None are their defaults.
        if value:
            raise ValueError(
                f"linear_probe trains the classifier alone, which leaves nothing for {name}; "
                f"leave it out, got {value}"
            )
