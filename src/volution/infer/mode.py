"""Borrowing a network: in evaluation mode, on a device, given back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["evaluating"]


@contextmanager
def evaluating(model: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """Put a network into evaluation mode and on a device, and back afterwards."""
    home = next((parameter.device for parameter in model.parameters()), device)
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval().to(device)
    finally:
        model.to(home)
        for module, training in modes:
            module.training = training
