"""From settings to what is trained: the network, its input, its batches."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.utils.data import DataLoader

from volution import data, tasks
from volution._support.console import log
from volution.train import parallel
from volution.train.config import TrainConfig
from volution.train.freezing import apply_freezing
from volution.train.ranks import is_first
from volution.train.synchronised import synchronise

__all__ = ["images", "input_config", "loaders", "network"]


def images(config: TrainConfig, *, show_progress: bool = True) -> data.ImageData:
    """Return the dataset, every image of it read once if the configuration says so."""
    found = data.load(config.data, max_pixels=config.max_pixels)
    if not len(found.train):
        raise ValueError(f"data {config.data} has no images to learn from, only to measure with")
    if config.check_data:
        # The processes of one run need not all read everything.
        parallel.decided_by_first(_check_images, config, found, show_progress)
    return found


def _check_images(config: TrainConfig, found: data.ImageData, show_progress: bool) -> None:
    if not is_first():
        return
    for name, part in (("train", found.train), ("val", found.val)):
        broken = data.check_images(part, workers=config.workers, show_progress=show_progress)
        if len(broken) == len(part):
            raise ValueError(f"data {config.data}: no image of {name} can be read; {broken[0]}")
        if broken:
            log.print(
                f"{len(broken)} of {len(part)} images of {name} cannot be read, and are left out:"
            )
            for problem in broken:
                log.print(f"  {problem}", markup=False, soft_wrap=True)


def network(config: TrainConfig, images: data.ImageData) -> nn.Module:
    """Return the network that is trained, with the weights it starts from."""
    model_args = dict(config.model_args)
    if config.drop_path_rate is not None:
        model_args["drop_path_rate"] = config.drop_path_rate
    net = tasks.create_model(
        config.model,
        num_classes=len(images.classes),
        in_chans=images.channels,
        pretrained=config.pretrained,
        model_args=model_args,
    )
    size = input_config(config, net, images).image_size
    if config.weights is not None:
        tasks.start_from(net, config.weights, size)
    elif config.pretrained or tasks.needs_size(net):
        stored = tasks.set_image_size(net, size)
        if config.pretrained:
            tasks.tell_resized(net, stored, size)
    apply_freezing(net, config)
    if config.grad_checkpointing:
        _checkpoint_gradients(net, config.model)
    if config.sync_bn and config.ranks > 1:
        net = synchronise(net, gpu=parallel.on_gpu(config))
    return net.to(memory_format=torch.channels_last)


def _checkpoint_gradients(net: nn.Module, name: str) -> None:
    try:
        net.set_grad_checkpointing(True)  # type: ignore[operator]
    # timm's networks that cannot do it have the method, with an assertion in it.
    except (AttributeError, AssertionError):
        raise ValueError(
            f"grad_checkpointing: {name} cannot compute its blocks a second time; leave it out"
        ) from None


def input_config(config: TrainConfig, net: nn.Module, images: data.ImageData) -> data.InputConfig:
    """Return how the network's images are prepared."""
    inputs = tasks.input_config(net, images, config.image_size)
    return inputs if config.crop_pct is None else replace(inputs, crop_pct=config.crop_pct)


def loaders(
    config: TrainConfig,
    images: data.ImageData,
    inputs: data.InputConfig,
    rank: int = 0,
    ranks: int = 1,
) -> tuple[DataLoader[data.Batch], DataLoader[data.Batch]]:
    """Return the batches to learn from and those to measure with, the parts of one rank."""
    augmentation = replace(
        images.augmentation,
        auto_augment=config.auto_augment,
        random_erasing=config.random_erasing,
    )
    if config.color_jitter is not None:
        augmentation = replace(augmentation, color_jitter=config.color_jitter)
    if config.crop_scale is not None:
        augmentation = replace(augmentation, scale=(config.crop_scale, 1.0))
    load = partial(
        data.loader, batch_size=config.batch_size, workers=config.workers, rank=rank, ranks=ranks
    )
    return (
        load(
            images.train,
            inputs.training_transform(augmentation),
            shuffle_seed=config.seed,
            repeats=config.repeats,
        ),
        load(images.val, inputs.transform()),
    )
