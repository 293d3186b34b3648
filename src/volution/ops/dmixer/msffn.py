"""The multi-scale feed-forward network: a wide map, filtered at four scales at once.

Paper: https://arxiv.org/abs/2310.19380, authors' code: LMMMEng/TransXNet, where it is
called Mlp. Differences: the four convolutions, their shortcut and the activation are one pass, and
large batches go through in parts where nothing is recorded. Parameters have the authors' names.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from volution.ops import _checks
from volution.ops._shared.depthwise import DepthwiseConv2d, mixed_depthwise_conv2d
from volution.ops._shared.folding import (
    fold_batch_norm,
    fold_batch_norm_before,
    is_fixed_affine,
)
from volution.ops._shared.pointwise import add_scaled, images_at_once, pointwise
from volution.ops.dmixer.norm import ChannelAffine, apply_fixed, fixed
from volution.ops.dmixer.recompute import pays, recompute

# One call each in traced graphs, so that symbolic tracing does not stop at their choices.
torch.fx.wrap("_plus")
torch.fx.wrap("mixed_depthwise_conv2d")
torch.fx.wrap("pointwise")
torch.fx.wrap("run_msffn")


class MultiScaleDWConv(nn.Module):
    """Depthwise convolutions of several sizes on slices of the channels, in one pass.

    Args:
        dim: Channels ``C`` of input and output.
        kernel_sizes: Sides of the kernels, odd, one for each slice. The slices are equal; the
            first one takes the remainder too.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, C, H, W)`` to the same.

    Raises:
        ValueError: If there are fewer channels than slices, or a side is not odd.

    Example:
        >>> layer = MultiScaleDWConv(30)
        >>> [(conv.out_channels, conv.kernel_size[0]) for conv in layer.proj]
        [(9, 1), (7, 3), (7, 5), (7, 7)]
    """

    def __init__(
        self,
        dim: int,
        kernel_sizes: Sequence[int] = (1, 3, 5, 7),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _checks.check_positive("dim", dim)
        count = len(kernel_sizes)
        if not 1 <= count <= dim:
            raise ValueError(
                f"kernel_sizes must have 1 to dim = {dim} entries, got {tuple(kernel_sizes)}"
            )
        each = dim // count
        first = dim - each * (count - 1)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.proj = nn.ModuleList(
            DepthwiseConv2d(each if i else first, side, **where)
            for i, side in enumerate(kernel_sizes)
        )

    def forward(
        self, input: Tensor, shortcut: bool = False, activation: str | None = None
    ) -> Tensor:
        weights, biases = [[getattr(m, p) for m in self.proj] for p in ("weight", "bias")]
        return mixed_depthwise_conv2d(
            input, weights, biases, shortcut=shortcut, activation=activation
        )


class MSFFN(nn.Module):
    """Multi-scale feed-forward network: widen, filter at four scales, narrow.

    A 1 by 1 convolution, GELU and BatchNorm; depthwise convolutions of sides 1, 3, 5 and 7 on a
    quarter of the channels each, plus their input, GELU and BatchNorm; a 1 by 1 convolution and
    BatchNorm. The 1 by 1 convolutions have no bias.

    Args:
        in_features: Channels ``C`` of input and output.
        hidden_features: Channels between, at least 4; as many as ``in_features`` if None.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, C, H, W)``, and a map of that shape to add to the result or None, to
        ``(N, C, H, W)``.

    Raises:
        ValueError: If a width is not positive, or there are fewer hidden channels than scales.

    Checkpoints of the authors' layer (``fc1``, ``dwconv.proj``, ``norm``, ``fc2``) load as they
    are. Where nothing is recorded, images go through a few at a time if the wide maps of all of
    them would be large.

    Example:
        >>> MSFFN(24, 96)(torch.randn(2, 24, 9, 8)).shape
        torch.Size([2, 24, 9, 8])

    References:
        Lou et al., "TransXNet: Learning Both Global and Local Dynamics with a Dual Dynamic Token
        Mixer for Visual Recognition", TNNLS 2025. https://arxiv.org/abs/2310.19380
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _checks.check_positive("in_features", in_features)
        hidden = in_features if hidden_features is None else hidden_features
        _checks.check_positive("hidden_features", hidden)
        if hidden < 4:
            raise ValueError(
                f"hidden_features must be at least 4, one for each scale, got {hidden}"
            )
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        widen = nn.Conv2d(in_features, hidden, 1, bias=False, **where)
        narrow = nn.Conv2d(hidden, in_features, 1, bias=False, **where)
        self.fc1 = nn.Sequential(widen, nn.GELU(), nn.BatchNorm2d(hidden, **where))
        self.dwconv = MultiScaleDWConv(hidden, **where)
        self.norm = nn.BatchNorm2d(hidden, **where)
        self.fc2 = nn.Sequential(narrow, nn.BatchNorm2d(in_features, **where))

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        widen, narrow = self.fc1[0], self.fc2[0]
        norms = self.fc1[2], self.norm, self.fc2[1]
        layers = (
            (widen.weight, widen.bias),
            tuple(conv.weight for conv in self.dwconv.proj),
            tuple(conv.bias for conv in self.dwconv.proj),
            (narrow.weight, narrow.bias),
        )
        known = [fixed(norm) for norm in norms]
        if any(norm is None for norm in known):
            return _run(input, residual, layers, norms)
        return run_msffn(input, residual, layers, known)

    def fuse(self) -> MSFFN:
        """Return a copy whose norms are folded, but the first, which is a scale and a shift.

        After that one the map is padded with zeros, not with its shift, so no convolution can
        take it in. It is applied in the memory of the wide map.

        Raises:
            ValueError: If a norm is in training mode.
        """
        fused = copy.deepcopy(self)
        narrow, norm = self.fc2
        if is_fixed_affine(self.fc1[2]):
            fused.fc1[2] = ChannelAffine(self.fc1[2])
        before, narrow = fold_batch_norm_before(self.norm, narrow)
        fused.add_module("norm", before)
        fused.fc2[0], fused.fc2[1] = fold_batch_norm(narrow, norm)
        return fused


def run_msffn(input: Tensor, residual: Tensor | None, layers: Any, norms: Sequence[Any]) -> Tensor:
    """Run an :class:`MSFFN` in evaluation, on a few images at a time.

    Args:
        input: The map.
        residual: What to add to the result, or None.
        layers: Weight and bias of the first convolution, weights and biases of those of several
            sizes, weight and bias of the last one.
        norms: What the three norms do, see :func:`volution.ops.dmixer.norm.fixed`.
    """
    step = images_at_once(input, layers[0][0].shape[0])
    if step >= input.shape[0]:
        return _run(input, residual, layers, norms)
    rests = [None] * len(input) if residual is None else residual.split(step)
    parts = zip(input.split(step), rests, strict=False)
    return torch.cat([_run(x, rest, layers, norms) for x, rest in parts])


def _run(x: Tensor, residual: Tensor | None, layers: Any, norms: Sequence[Any]) -> Tensor:
    widen, weights, biases, narrow = layers
    first, second, last = norms

    def widened(x: Tensor) -> Tensor:
        x = _normalised(first, pointwise(x, *widen, activation="gelu"))
        x = mixed_depthwise_conv2d(x, weights, biases, shortcut=True, activation="gelu")
        return _normalised(second, x)

    known = [norm if isinstance(norm, tuple) else None for norm in norms]
    x = recompute(widened, x) if pays(x, widen[0].shape[0], known) else widened(x)
    if isinstance(last, tuple) and not last:
        return pointwise(x, *narrow, residual=residual)
    x = _normalised(last, pointwise(x, *narrow))
    return _plus(x, residual)


def _plus(x: Tensor, residual: Tensor | None) -> Tensor:
    return x if residual is None else add_scaled(residual, x, None)


def _normalised(norm: Any, x: Tensor) -> Tensor:
    return apply_fixed(x, norm) if isinstance(norm, tuple) else norm(x)
