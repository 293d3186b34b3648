"""The optimizer and the schedule of its learning rate, both timm's."""

from __future__ import annotations

from typing import Any

from timm.optim import (
    create_optimizer_v2,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn
from torch.optim import Optimizer

from volution.train.config import TrainConfig

__all__ = ["optimizer", "scheduler"]


def optimizer(config: TrainConfig, model: nn.Module) -> Optimizer:
    """Return the optimizer of a network's weights.

    Weight decay leaves out norms, biases of any shape, and what the network's ``no_weight_decay``
    names, with layer decay as without.
    """
    named = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    settings: dict[str, Any] = {
        "weight_decay": config.weight_decay,
        "no_weight_decay_list": {*named, "*.bias"},
    }
    if config.layer_decay is None:
        groups = param_groups_weight_decay(model, **settings)
    else:
        groups = param_groups_layer_decay(model, layer_decay=config.layer_decay, **settings)
    return create_optimizer_v2(
        groups,
        opt=config.optimizer,
        lr=config.scaled_lr,
        momentum=config.momentum,
        weight_decay=0.0,  # the groups have their own
    )


def scheduler(config: TrainConfig, optimizer: Optimizer, steps_per_epoch: int) -> Scheduler:
    """Return the schedule of a run's learning rate; it is told of each step."""
    falling = config.epochs - config.cooldown_epochs
    schedules: dict[str, tuple[str, dict[str, Any]]] = {
        "cosine": ("cosine", {}),
        "linear": ("poly", {"decay_rate": 1.0}),  # the power of the polynomial
        "step": ("step", {"decay_epochs": max(1.0, falling / 3), "decay_rate": 0.1}),
        "constant": ("step", {"decay_epochs": 1, "decay_rate": 1.0}),
    }
    name, extra = schedules[config.schedule]
    lr = config.scaled_lr
    found: Scheduler | None = create_scheduler_v2(
        optimizer,
        sched=name,
        num_epochs=falling,
        min_lr=config.min_lr,
        warmup_epochs=min(config.warmup_epochs, falling - 1),
        warmup_lr=lr / 100 if config.warmup_lr is None else config.warmup_lr,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
        **extra,
    )[0]
    assert found is not None
    return found
