"""OSRA: parity."""

from __future__ import annotations

import parity
import pytest
import torch
from torch import Tensor, nn

from volution.ops.dmixer.osra import OSRA
from volution.ops.dmixer.position import PositionTable


class WithTable(nn.Module):
    """OSRA that takes its table as a tensor, as the authors' does."""

    def __init__(self, layer: OSRA, meta):
        super().__init__()
        self.layer = layer

    def load_state_dict(self, state, strict=True):
        return self.layer.load_state_dict(state, strict)

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        if table is None:
            return self.layer(x)
        position = PositionTable(table.shape[1], 1)
        del position.weight
        position.weight = table
        return self.layer(x, position)


@parity.needs_fixtures
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", parity.names("transxnet_osra"))
def test_parity(name, dtype):
    f = parity.load(name)
    m = f.meta["construct"]
    layer = OSRA(m["dim"], m["num_heads"], m["sr_ratio"])
    parity.compare(f, WithTable(layer, m), dtype, rename=lambda n: n.removeprefix("layer."))
