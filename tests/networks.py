"""Small and lively copies of registered networks, for tests that run over all of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import volution
from volution.ops import OSRA, PositionTable

SIZE = 64
SHRINK = 4
SHALLOW = 2


@cache
def skeleton(name: str) -> nn.Module:
    """The full-size network without memory behind its parameters; not to be modified."""
    assert name in volution.models.list_models()
    return timm.create_model(name, device="meta")


@cache
def kinds() -> tuple[str, ...]:
    """A network for each set of layer types: of those that differ in numbers only, the smallest."""
    found: dict[frozenset[type], list[str]] = {}
    for name in volution.models.list_models():
        types = frozenset(type(module) for module in skeleton(name).modules())
        found.setdefault(types, []).append(name)

    def size(name: str) -> int:
        return sum(parameter.numel() for parameter in skeleton(name).parameters())

    return tuple(min(names, key=size) for names in found.values())


def one_of_each_kind() -> list[Any]:
    """All networks, as parameters of a test, those marked slow for which another one stands."""
    slow = pytest.mark.slow
    return [
        pytest.param(name, marks=() if name in kinds() else slow)
        for name in volution.models.list_models()
    ]


def narrow(name: str) -> list[int]:
    """A quarter of the channels of each stage, or a little more, for heads to divide."""
    return [
        _divided(tap["num_chs"] // SHRINK, name, tap) for tap in skeleton(name).feature_info[-4:]
    ]


def _divided(width: int, name: str, tap: dict[str, Any]) -> int:
    stage = skeleton(name).get_submodule(tap["module"])
    # Half of the channels go to the heads.
    unit = max((2 * m.num_heads for m in stage.modules() if isinstance(m, OSRA)), default=1)
    return -(-width // unit) * unit


def depths(name: str) -> list[int]:
    """The blocks of each stage; the children of a stage that are blocks have numbers for names."""
    stages = (skeleton(name).get_submodule(tap["module"]) for tap in skeleton(name).feature_info)
    counts = [sum(key.isdigit() for key, _ in stage.named_children()) for stage in stages]
    return counts[-4:]


def small(name: str) -> dict[str, list[int]]:
    """Arguments that make the network narrow; also shallow, where another stands for its kind."""
    sizes = {"widths": narrow(name)}
    if name not in kinds():
        sizes["depths"] = [min(SHALLOW, depth) for depth in depths(name)]
    return sizes


def twin(name: str, seed: int = 0, **kwargs: Any) -> nn.Module:
    """A small copy of the network, see :func:`small`, in eval mode, with nothing switched off.

    Every network of volution takes ``widths`` and ``depths``, of its four stages.
    """
    kwargs.setdefault("num_classes", 7)
    return liven(timm.create_model(name, **{**small(name), **kwargs}), seed)


def images(count: int = 2, channels: int = 3, size: int = SIZE, seed: int = 0) -> Tensor:
    """Normal noise, the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=generator)


def liven(net: nn.Module, seed: int = 0) -> nn.Module:
    """Fill parameters and running statistics so that a mistake anywhere shows in the output.

    Default initialisations hide mistakes: zero last norms and layer scales of 1e-6 switch whole
    branches off. Statistics are taken from a batch, which keeps deep networks in range, and are
    then shaken. Works in place; returns the network in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, tensor in net.named_parameters():
            tensor.copy_(_drawn(name, normal(tensor)))
        for table in (m for m in net.modules() if isinstance(m, PositionTable)):
            # Its numbers are not summed, but added one by one to logits.
            table.weight.copy_(normal(table.weight))
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        net.train()(images(8, getattr(net, "in_chans", 3), seed=seed + 1))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.running_mean += 0.1 * norm.running_var.sqrt() * normal(norm.running_mean)
            norm.running_var *= 1 + 0.1 * normal(norm.running_var).abs()
    return net.eval()


def _drawn(name: str, z: Tensor) -> Tensor:
    if name.endswith("bias"):
        return 0.1 * z
    if z.dim() < 2:
        return 1 + 0.1 * z
    return z / z[0].numel() ** 0.5
