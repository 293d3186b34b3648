"""Filters that end in a norm give float32 under a GPU's autocast; the gates meet all the same."""

import pytest
import torch
from torch import nn

from volution.ops import GnConv


class InFloat32(nn.Module):
    def forward(self, x):
        return x.float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_filter_may_leave_the_autocast_dtype(dtype):
    layer = GnConv(16, order=2, filter=lambda width: InFloat32(), scale=1 / 3)
    with torch.autocast("cpu", dtype):
        out = layer(torch.randn(2, 16, 5, 5))
    out.float().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
