"""Self-attention of all pixels with all, the attention branch that does not fold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volution.ops import _checks
from volution.ops.xvolution.projection import apply_value, every, linear


class GlobalAttention(nn.Module):
    """Self-attention of all pixels with all: what the others approximate. It does not fold.

    Time grows with the square of the number of pixels under ``normalize="softmax"``, the usual
    form. With ``"none"``, the form the paper starts from, keys and values are summed first.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        heads: int = 1,
        groups: int = 1,
        qk_channels: int | None = None,
        scale: float | None = None,
        normalize: str = "softmax",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        wide = out_channels if qk_channels is None else qk_channels
        _checks.check_divides("heads", heads, "qk_channels", wide)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.stride = stride
        self.heads = heads
        self.scale = (wide // heads) ** -0.5 if scale is None else scale
        self.normalize = normalize
        self.query = nn.Conv2d(in_channels, wide, 1, **where)
        self.key = nn.Conv2d(in_channels, wide, 1, **where)
        self.value = linear(in_channels, out_channels, groups, **where)

    def forward(self, input: Tensor) -> Tensor:
        q: Tensor = self.query(every(input, self.stride))
        size = q.shape[-2:]
        k, v = self.key(input), apply_value(self.value, input)
        q, k, v = (x.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3) for x in (q, k, v))
        if self.normalize == "none":
            out = (self.scale * q) @ (k.transpose(2, 3) @ v)
        else:
            out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        result: Tensor = out.transpose(2, 3).flatten(1, 2).unflatten(2, size)
        return result

    def extra_repr(self) -> str:
        numbers = f"stride={self.stride}, heads={self.heads}, scale={self.scale:.4g}"
        return f"{numbers}, normalize={self.normalize!r}"
