"""What people run today instead: plain PyTorch formulations, checked before they are timed."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn import functional as F

from volution.ops import Involution2d


def unfold_involution2d(
    input: Tensor, kernel: Tensor, *, stride: int = 1, dilation: int = 1
) -> Tensor:
    """Involution by :func:`torch.nn.functional.unfold`: every patch is written out, then summed.

    Needs ``K * K`` times the memory of ``input``.
    """
    n, c, _, _ = input.shape
    groups, side, _, h, w = kernel.shape[1:]
    patches = F.unfold(input, side, dilation, dilation * (side // 2), stride)
    patches = patches.view(n, groups, c // groups, side * side, h, w)
    weights = kernel.reshape(n, groups, 1, side * side, h, w)
    return (patches * weights).sum(3).view(n, c, h, w)


def unfold_pssa2d(q: Tensor, k: Tensor, v: Tensor, *, heads: int, kernel_size: int) -> Tensor:
    """Pixel shift self-attention by :func:`torch.nn.functional.unfold` of keys and values.

    Needs ``2 * K * K`` times the memory of a map.
    """
    n, c, h, w = q.shape
    taps = (n, heads, c // heads, kernel_size**2, h, w)
    keys, values = (F.unfold(t, kernel_size, 1, kernel_size // 2).view(taps) for t in (k, v))
    queries = q.reshape(n, heads, c // heads, 1, h, w)
    scale: float = (c // heads) ** -0.5
    weights = scale * (queries * keys).sum(2, keepdim=True)  # N heads 1 K*K h w
    return (weights * values).sum(3).view(n, c, h, w)


class UnfoldInvolution2d(Involution2d):
    """An :class:`~volution.ops.Involution2d` that applies its kernels by unfolding."""

    def __init__(self, layer: Involution2d) -> None:
        super().__init__(
            layer.channels,
            layer.kernel_size,
            layer.stride,
            layer.dilation,
            layer.groups,
            kernel_generator=layer.kernel_generator,
        )

    def forward(self, input: Tensor) -> Tensor:
        layout = (self.groups, self.kernel_size, self.kernel_size)
        kernel = self.kernel_generator(input).unflatten(1, layout)
        return unfold_involution2d(input, kernel, stride=self.stride, dilation=self.dilation)


def with_unfold(model: nn.Module) -> nn.Module:
    """Return a copy of ``model``, same weights, whose involutions unfold."""
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Involution2d):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, UnfoldInvolution2d(layer))
    return model
