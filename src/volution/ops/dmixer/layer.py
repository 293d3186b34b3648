"""The dual dynamic mixer and the squeezed token enhancer behind it.

Paper: https://arxiv.org/abs/2310.19380, authors' code: LMMMEng/TransXNet, where the
mixer is called HybridTokenMixer. Differences: activations and shortcuts are part of the pass
before them, and both modules fold for inference. Parameters have the authors' names.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from volution.ops import _checks
from volution.ops._shared.depthwise import DepthwiseConv2d, depthwise_conv2d
from volution.ops._shared.folding import fold_batch_norm, fold_batch_norm_before
from volution.ops._shared.pointwise import add_scaled, pointwise
from volution.ops.dmixer.idconv import IDConv
from volution.ops.dmixer.norm import fixed, normalise
from volution.ops.dmixer.osra import OSRA
from volution.ops.dmixer.position import PositionTable
from volution.ops.dmixer.recompute import pays, recompute

# One call each in traced graphs, so that symbolic tracing does not stop at their choices.
torch.fx.wrap("_halves")
torch.fx.wrap("enhance")


class STE(nn.Sequential):
    """Squeezed token enhancer: exchange between neighbours and channels, cheaply.

    A 3 by 3 depthwise convolution, GELU and BatchNorm; a 1 by 1 convolution to few channels, GELU
    and BatchNorm; a 1 by 1 convolution back and BatchNorm; plus the input. With ``H * W`` pixels
    and ``R`` as the ratio of channels it takes ``H * W * C * (2 * C / R + 9)`` multiplications.

    Args:
        dim: Channels ``C`` of input and output; those between are ``max(16, C // 8)``.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, C, H, W)`` to the same.

    Raises:
        ValueError: If ``dim`` is not positive.

    The layers have the numbers of the authors' ``proj``; the module runs them in fewer passes.

    Example:
        >>> STE(32)(torch.randn(1, 32, 14, 10)).shape
        torch.Size([1, 32, 14, 10])

    References:
        Lou et al., "TransXNet: Learning Both Global and Local Dynamics with a Dual Dynamic Token
        Mixer for Visual Recognition", TNNLS 2025. https://arxiv.org/abs/2310.19380
    """

    def __init__(
        self,
        dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _checks.check_positive("dim", dim)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        narrow = max(16, dim // 8)
        super().__init__(
            DepthwiseConv2d(dim, 3, **where),
            nn.GELU(),
            nn.BatchNorm2d(dim, **where),
            nn.Conv2d(dim, narrow, 1, **where),
            nn.GELU(),
            nn.BatchNorm2d(narrow, **where),
            nn.Conv2d(narrow, dim, 1, **where),
            nn.BatchNorm2d(dim, **where),
        )

    def forward(self, input: Tensor) -> Tensor:
        return self.branch(input, input)

    def branch(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Compute what the shortcut is added to, and add ``residual`` instead, if it is given."""
        near, _, norm1, squeeze, _, norm2, expand, norm3 = self
        return enhance(input, residual, (near, squeeze, expand), (norm1, norm2, norm3))

    def fuse(self) -> STE:
        """Return a copy whose norms are folded into the 1 by 1 convolutions beside them.

        Raises:
            ValueError: If a norm is in training mode.
        """
        fused = copy.deepcopy(self)
        fused[2], fused[3] = fold_batch_norm_before(self[2], self[3])
        fused[5], fused[6] = fold_batch_norm_before(self[5], self[6])
        fused[6], fused[7] = fold_batch_norm(fused[6], self[7])
        return fused


class DMixer(nn.Module):
    """Dual dynamic mixer: half of the channels local, half global, both made for the image.

    The first half goes through :class:`IDConv`, the second one through :class:`OSRA`; both
    results, beside each other, through :class:`STE`.

    Args:
        dim: Channels ``C`` of input and output, even.
        kernel_size: Side of the kernels of :class:`IDConv`, odd.
        num_groups: Learned kernels for each channel, see :class:`IDConv`.
        num_heads: Heads of the attention; they divide ``dim // 2``.
        sr_ratio: How much smaller the map of its keys is, see :class:`OSRA`.
        reduction_ratio: Of the generator of kernels, see :class:`IDConv`.
        attn_drop: Probability of leaving out a key of the attention, in training.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, C, H, W)`` and a :class:`PositionTable` of the attention, or None, to
        ``(N, C, H, W)``.

    Raises:
        ValueError: If ``dim`` is odd, ``num_heads`` does not divide its half, or as the three
            parts say.

    Checkpoints of the authors' layer (``local_unit``, ``global_unit``, ``proj``) load as they are.

    Example:
        >>> layer = DMixer(32, num_heads=2, sr_ratio=2)
        >>> layer(torch.randn(2, 32, 14, 10)).shape
        torch.Size([2, 32, 14, 10])

    References:
        Lou et al., "TransXNet: Learning Both Global and Local Dynamics with a Dual Dynamic Token
        Mixer for Visual Recognition", TNNLS 2025. https://arxiv.org/abs/2310.19380
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 7,
        num_groups: int = 2,
        num_heads: int = 1,
        sr_ratio: int = 1,
        reduction_ratio: int = 4,
        attn_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _checks.check_positive("dim", dim)
        if dim % 2:
            raise ValueError(f"dim must be even, half local and half global, got {dim}")
        half = dim // 2
        _checks.check_positive("num_heads", num_heads)
        _checks.check_divides("num_heads", num_heads, "dim // 2", half)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.local_dim = half
        self.local_unit = IDConv(half, kernel_size, num_groups, reduction_ratio, **where)
        self.global_unit = OSRA(half, num_heads, sr_ratio, attn_drop, **where)
        self.proj = STE(dim, **where)

    def forward(self, input: Tensor, position: PositionTable | None = None) -> Tensor:
        return self.proj(self.mix(input, position))  # type: ignore[no-any-return]

    def mix(self, input: Tensor, position: PositionTable | None = None) -> Tensor:
        """Return both halves beside each other: what the enhancer gets."""
        near, far = _halves(input, self.local_dim)
        return torch.cat([self.local_unit(near), self.global_unit(far, position)], 1)

    def fuse(self) -> DMixer:
        """Return a copy whose parts are folded.

        Raises:
            ValueError: If a norm is in training mode.
        """
        fused = copy.deepcopy(self)
        for name, part in self.named_children():
            setattr(fused, name, part.fuse())  # type: ignore[operator]
        return fused


def _halves(input: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    _checks.check_rank("input", input, "N, C, H, W")
    if input.shape[1] != 2 * channels:
        raise ValueError(
            f"input must have dim = {2 * channels} channels, got {input.shape[1]} in shape "
            f"{tuple(input.shape)}"
        )
    return input[:, :channels], input[:, channels:]


def enhance(
    input: Tensor,
    residual: Tensor | None,
    layers: tuple[Any, Any, Any],
    norms: tuple[nn.Module, nn.Module, nn.Module],
) -> Tensor:
    """Run an :class:`STE`; keep nothing of it for the backward pass where that is worth it.

    Args:
        input: The map.
        residual: What to add to the result, or None.
        layers: The depthwise convolution and the two of 1 by 1.
        norms: The norm behind each of them and its GELU; the last has none.
    """
    (near, squeeze, expand), (norm1, norm2, norm3) = layers, norms

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        x = depthwise_conv2d(x, near.weight, near.bias, activation="gelu")
        x = pointwise(normalise(norm1, x), squeeze.weight, squeeze.bias, activation="gelu")
        x = normalise(norm2, x)
        if isinstance(norm3, nn.Identity):
            return pointwise(x, expand.weight, expand.bias, residual=residual)
        x = normalise(norm3, pointwise(x, expand.weight, expand.bias))
        return x if residual is None else add_scaled(residual, x, None)

    if not pays(input, input.shape[1], [*map(fixed, norms)]):
        return run(input, residual)
    made = recompute(lambda x: run(x, None), input)
    return made if residual is None else made + residual
