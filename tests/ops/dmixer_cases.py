"""The layers of the mixer, and parameters at which nothing is switched off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from implementations import lay_out
from torch import Tensor, nn

from volution.ops import MSFFN, STE, DMixer, IDConv

DIM = 32
LAYERS: dict[str, Any] = {
    "idconv": lambda: IDConv(DIM),
    "idconv-no-bias": lambda: IDConv(DIM, 5, 3, bias=False),
    "ste": lambda: STE(DIM),
    "dmixer": lambda: DMixer(DIM, num_heads=2, sr_ratio=2),
    "msffn": lambda: MSFFN(DIM, 50),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def lively(layer: nn.Module) -> nn.Module:
    """In evaluation, with no parameter or statistic at its initial value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, tensor in layer.state_dict().items():
            if not tensor.is_floating_point():
                continue
            z = torch.randn(tensor.shape, generator=generator)
            if key.endswith("running_var"):
                tensor.copy_(0.5 + z.abs())
            elif tensor.dim() > 1:
                tensor.copy_(2 * z / tensor[0].numel() ** 0.5)
            else:
                tensor.copy_(z)
    return layer.eval()


def drawn(dtype: torch.dtype = torch.float32, layout: str = "channels_last") -> Tensor:
    return lay_out(torch.randn(2, DIM, 9, 10, dtype=dtype), layout)
