"""Multiplications of any network, without memory or arithmetic."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["count_macs", "count_params", "usual_image_size"]


def count_params(module: nn.Module) -> int:
    """Return how many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(model: nn.Module, image_size: tuple[int, int]) -> tuple[int | None, str]:
    """Return the multiplications for one image, or None and why they cannot be counted.

    Convolutions, matrix products and the operators of volution count, as in
    :func:`volution.analysis.network_cost`.
    """
    counter = FlopCounterMode(display=False)
    # A network of unknown make may refuse an image, or the meta device, with any exception; that
    # costs a number in a table and must not cost the conversion.
    try:
        twin = _without_numbers(model).eval()
        image = torch.empty(1, _input_channels(model), *image_size, device="meta")
        with torch.no_grad(), counter:
            twin(image)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        return None, f"{type(error).__name__}: {reason}"
    return counter.get_total_flops() // 2, ""


def usual_image_size(model: nn.Module) -> tuple[int, int]:
    """Return height and width of the images a network is made for; 224 if it does not say."""
    fixed = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if fixed is not None:
        return int(fixed[0]), int(fixed[1])
    config = getattr(model, "pretrained_cfg", None)
    size = config.get("input_size") if isinstance(config, dict) else None
    return (int(size[1]), int(size[2])) if size else (224, 224)


def _input_channels(model: nn.Module) -> int:
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    first = next(convolutions, None)
    return 3 if first is None else first.in_channels


def _without_numbers(model: nn.Module) -> nn.Module:
    """Return a copy on the meta device; no tensor is copied on the way."""
    memo: dict[int, Tensor] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        empty = torch.empty_like(tensor, device="meta", dtype=_counted(tensor))
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    return copy.deepcopy(model, memo)


def _counted(tensor: Tensor) -> torch.dtype:
    # One dtype throughout, so that the image fits a network in half precision.
    return torch.float32 if tensor.is_floating_point() else tensor.dtype
