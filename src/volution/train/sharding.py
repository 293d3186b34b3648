"""A network whose parameters are shared out among devices (FSDP), each block on its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

__all__ = ["blocks", "shard", "whole"]


def blocks(net: nn.Module) -> list[nn.Module]:
    """Return the parts of a network that are gathered one at a time.

    They are what the network repeats: the numbered children of its stages, or the ``blocks`` of
    these where stages are numbered themselves.

    Example:
        >>> import timm
        >>> len(blocks(timm.create_model("rednet26", widths=(32, 32, 32, 32))))
        8
    """
    found: list[nn.Module] = []
    for name, child in net.named_children():
        for number, part in child.named_children():
            if name == "stem" or not number.isdigit():
                continue
            inner = getattr(part, "blocks", None)
            if isinstance(inner, nn.Sequential | nn.ModuleList):
                found += list(inner)
            else:
                found.append(part)
    return [part for part in found if any(True for _ in part.parameters())]


def shard(net: nn.Module, mesh: Any) -> None:
    """Leave a share of each parameter on this device; the names stay.

    Args:
        net: The network, in place.
        mesh: The devices.
    """
    for parameter in net.parameters():
        # Weights in channels-last memory are none of the rows that shares are made of.
        parameter.data = parameter.data.contiguous()
    for block in blocks(net):
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """Return a parameter as a whole; all processes must ask at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
