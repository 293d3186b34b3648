"""What a network costs: parameters, multiplications, and the maps its stages make."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.data.config import resolve_data_config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from volution import tasks

__all__ = ["Cost", "Stage", "network_cost"]


@dataclass(frozen=True)
class Stage:
    """One of the maps that a network offers to what is built on it.

    Args:
        module: Name of the child whose output it is.
        channels: Its channels.
        height: Its rows.
        width: Its columns.
    """

    module: str
    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Cost:
    """What one image costs.

    Args:
        model: The network, on the meta device: shapes without numbers.
        image_size: Height and width of the image.
        params: Learned numbers.
        macs: Multiplications, each with its addition, in convolutions, matrix products and the
            operators of volution. Elementwise products, norms, pooling and Fourier transforms
            are not counted, as is the custom.
        stages: The network's taps, in order.
    """

    model: nn.Module
    image_size: tuple[int, int]
    params: int
    macs: int
    stages: tuple[Stage, ...]


def network_cost(name: str, image_size: int | None = None) -> Cost:
    """Count what a network of volution or timm costs, without memory or arithmetic.

    Args:
        name: As in :func:`timm.create_model`.
        image_size: Side of the image; that of the network's published configuration by default.

    Raises:
        ValueError: If there is no such network (the message has the nearest names), or an image
            of that size is too small for it.

    Example:
        >>> cost = network_cost("rednet26")
        >>> cost.params, round(cost.macs / 1e9, 2), cost.image_size
        (9233166, 1.69, (224, 224))
        >>> cost.stages[-1]
        Stage(module='layer4', channels=2048, height=7, width=7)
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    with torch.device("meta"):
        net = tasks.create_model(name).eval()
    channels, *sides = resolve_data_config(model=net)["input_size"]
    height, width = sides if image_size is None else (image_size, image_size)
    image = torch.empty(1, channels, height, width, device="meta")
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad():
            with counter:
                net(image)
            stages = _stages(net, image)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{name} does not take images of {height} by {width}: {error}") from error
    return Cost(
        net,
        (height, width),
        sum(parameter.numel() for parameter in net.parameters()),
        counter.get_total_flops() // 2,
        stages,
    )


def _stages(net: nn.Module, image: torch.Tensor) -> tuple[Stage, ...]:
    """Return the taps; none for a network that does not offer its maps in timm's way."""
    taps = getattr(net, "feature_info", None)
    if not taps or not hasattr(net, "forward_intermediates"):
        return ()
    maps = net.forward_intermediates(image, intermediates_only=True)  # type: ignore[operator]
    if len(maps) != len(taps):
        return ()
    return tuple(Stage(tap["module"], *map.shape[1:]) for tap, map in zip(taps, maps, strict=True))
