"""Overlapping spatial-reduction attention as a module.

Paper: https://arxiv.org/abs/2310.19380, authors' code: LMMMEng/TransXNet. Differences:
memory bounded at any size, :meth:`OSRA.fuse`, no projection of the output that is never used.
Parameters have the authors' names.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volution.ops import _checks, _library
from volution.ops._shared.depthwise import DepthwiseConv2d, depthwise_conv2d
from volution.ops._shared.folding import fold_batch_norm, with_affine_output
from volution.ops._shared.layout import is_channels_last
from volution.ops.dmixer.attention import biased_attention
from volution.ops.dmixer.position import PositionTable

# One call each in traced graphs, so that symbolic tracing does not stop at their checks.
torch.fx.wrap("depthwise_conv2d")
torch.fx.wrap("attend")
torch.fx.wrap("reduce")


class OSRA(nn.Module):
    r"""Overlapping spatial-reduction attention: every pixel looks at a reduced map.

    Queries are made from the map, keys and values from a smaller one, whose pixels overlap in
    what they have seen: a depthwise convolution of side ``sr_ratio + 3`` and stride ``sr_ratio``
    (BatchNorm, GELU, a factor for each channel, BatchNorm), and a 3 by 3 depthwise convolution
    added to its own input. The output is not projected: a mixer does that.

    Args:
        dim: Channels ``C`` of input and output.
        num_heads: Heads of the attention; they divide ``dim``.
        sr_ratio: How many times smaller the map of the keys is on each side, rounded up; 1 or
            even.
        attn_drop: Probability of leaving out a key, in training.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, C, H, W)`` and a :class:`PositionTable`, or None, to ``(N, C, H, W)``.

    Raises:
        ValueError: If an argument is not positive, ``num_heads`` does not divide ``dim``,
            ``sr_ratio`` is odd and not 1, or ``attn_drop`` is no probability; in the forward
            pass, if the table has another number of heads.

    Checkpoints of the authors' layer (``q``, ``sr.0.conv``, ..., ``local_conv``, ``kv``) load as
    they are. The attention needs no memory for all pairs of queries and keys, in training
    neither, see :func:`volution.ops.dmixer.attention.biased_attention`.

    Example:
        >>> layer = OSRA(32, num_heads=2, sr_ratio=4)
        >>> position = PositionTable(num_heads=2, size=16, sr_ratio=4)
        >>> layer(torch.randn(1, 32, 14, 10), position).shape
        torch.Size([1, 32, 14, 10])

    References:
        Lou et al., "TransXNet: Learning Both Global and Local Dynamics with a Dual Dynamic Token
        Mixer for Visual Recognition", TNNLS 2025. https://arxiv.org/abs/2310.19380
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        sr_ratio: int = 1,
        attn_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("num_heads", num_heads), ("sr_ratio", sr_ratio)):
            _checks.check_positive(name, value)
        _checks.check_divides("num_heads", num_heads, "dim", dim)
        if sr_ratio > 1 and sr_ratio % 2:
            raise ValueError(
                f"sr_ratio must be 1 or even, so that the kernel of side sr_ratio + 3 has a "
                f"centre, got {sr_ratio}"
            )
        if not 0 <= attn_drop < 1:
            raise ValueError(f"attn_drop must be at least 0 and below 1, got {attn_drop}")
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.attn_drop = attn_drop
        self.scale = (dim // num_heads) ** -0.5
        self.q = nn.Conv2d(dim, dim, 1, **where)
        self.kv = nn.Conv2d(dim, 2 * dim, 1, **where)
        self.sr = nn.Sequential()
        if sr_ratio > 1:
            self.sr.append(_DepthwiseNorm(dim, sr_ratio + 3, sr_ratio, gelu=True, **where))
            self.sr.append(_DepthwiseNorm(dim, 1, **where))
        self.local_conv = DepthwiseConv2d(dim, 3, **where)

    def forward(self, x: Tensor, position: PositionTable | None = None) -> Tensor:
        reduced = self.sr(x)
        weight, bias = self.local_conv.weight, self.local_conv.bias
        reduced = depthwise_conv2d(reduced, weight, bias, shortcut=True)
        dropout = self.attn_drop if self.training else 0.0
        return attend(
            _project(x, self.q),
            _project(reduced, self.kv),
            position,
            heads=self.num_heads,
            scale=self.scale,
            dropout=dropout,
            like=x,
        )

    def fuse(self) -> OSRA:
        """Return a copy whose norms and scale are folded into its convolutions.

        Raises:
            ValueError: If a norm is in training mode.
        """
        fused = copy.deepcopy(self)
        for i, layer in enumerate(self.sr):
            if isinstance(layer, _DepthwiseNorm):
                fused.sr[i] = layer.fuse()
        dim = self.q.out_channels
        fused.q = with_affine_output(self.q, torch.full((dim,), self.scale, dtype=torch.float64))
        fused.scale = 1.0
        return fused

    def extra_repr(self) -> str:
        shown = f"num_heads={self.num_heads}, sr_ratio={self.sr_ratio}"
        return shown + (f", attn_drop={self.attn_drop}" if self.attn_drop else "")


def attend(
    q: Tensor,
    kv: Tensor,
    position: PositionTable | None,
    *,
    heads: int,
    scale: float,
    dropout: float,
    like: Tensor,
) -> Tensor:
    """Attend from the pixels of one map to those of another.

    Args:
        q: Queries, shape ``(N, H, W, C)``.
        kv: Keys, then values, shape ``(N, h, w, 2C)``.
        position: The table to add, or None.
        heads: Into how many the channels are cut.
        scale: Of the products of queries and keys.
        dropout: Probability of leaving out a key.
        like: A map whose memory format the result takes over.

    Returns:
        Tensor of shape ``(N, C, H, W)``.
    """
    n, height, width, channels = q.shape
    split = (heads, channels // heads)
    # The heads of a pixel lie beside each other, as attention takes them: nothing moves.
    queries = q.reshape(n, height * width, *split).transpose(1, 2)
    pairs = kv.flatten(1, 2).unflatten(2, (2, *split))  # N M 2 H E
    keys, values = pairs.permute(2, 0, 3, 1, 4).unbind(0)
    out = biased_attention(queries, keys, values, position, scale=scale, dropout=dropout)
    out = out.transpose(1, 2).reshape(n, height, width, channels).permute(0, 3, 1, 2)
    return out if is_channels_last(like) else out.contiguous()


def _project(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return what a 1 by 1 convolution makes of a map, ``(N, H, W, D)``.

    A mixer's half of the channels lies apart in memory. Convolutions of PyTorch's CPU library copy
    such a map first, matrix products do not: with few channels, half the time in both passes.
    """
    return F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias)


class _DepthwiseNorm(nn.Module):
    """A depthwise convolution without bias, BatchNorm, GELU if asked; the authors' names."""

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        stride: int = 1,
        gelu: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = DepthwiseConv2d(dim, kernel_size, stride, bias=False, **where)
        self.bn = nn.BatchNorm2d(dim, **where)
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(reduce(x, self.conv.weight, self.conv.stride[0]))
        return F.gelu(x) if self.gelu else x

    def fuse(self) -> nn.Module:
        conv, norm = fold_batch_norm(self.conv, self.bn)
        if norm is self.bn:
            return copy.deepcopy(self)
        if self.gelu and isinstance(conv, DepthwiseConv2d):
            conv.activation = "gelu"
        return conv


def reduce(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Filter each channel at one pixel of ``stride`` by ``stride``.

    Where gradients are recorded, by PyTorch: at strides of 4 and 8 its backward pass on the CPU
    takes a fifth of the time of ours, which visits every pixel for every tap.
    """
    recorded = torch.is_grad_enabled() and not _library.wants_plain()
    if stride > 1 and recorded and x.device.type == "cpu":
        padding = weight.shape[2] // 2
        return F.conv2d(x, weight, None, stride, padding, groups=weight.shape[0])
    return depthwise_conv2d(x, weight, stride=stride)
