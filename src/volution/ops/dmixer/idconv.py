"""Input-dependent depthwise convolution: each image mixes its own kernels from learned ones.

Paper: https://arxiv.org/abs/2310.19380, authors' code: LMMMEng/TransXNet, where it is
called DynamicConv2d. Differences: one pass generates kernels and biases where that is the same
function, pooling and mean are one product of matrices, and any size, known or not, can be exported.
Parameters have the authors' names.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volution.ops import _checks, _library
from volution.ops._shared.folding import fold_child_norm
from volution.ops._shared.layout import accumulation_dtype, is_channels_last
from volution.ops.dmixer import reference
from volution.ops.dmixer.norm import fixed
from volution.ops.dmixer.op import dynamic_depthwise_conv2d

# One call each in traced graphs, so that symbolic tracing does not stop at their choices.
torch.fx.wrap("average_bins")
torch.fx.wrap("dynamic_depthwise_conv2d")
torch.fx.wrap("mix_kernels")
torch.fx.wrap("softmax_over_groups")


class IDConv(nn.Module):
    r"""Filter each channel with a kernel that the image mixes from a few learned ones.

    With :math:`G` learned kernels :math:`w_g` for each channel, and attention :math:`a` generated
    from the map, averaged over :math:`K \times K` bins,

    .. math::
        A = P_2\,\mathrm{GELU}(\mathrm{BN}(P_1 \,\mathrm{pool}_{K \times K}(x))), \qquad
        k_{n,c,u,v} = \sum_{g=1}^{G} \mathrm{softmax}_g(A)_{n,g,c,u,v}\; w_{g,c,u,v},

    and :math:`y` is :func:`volution.ops.dynamic_depthwise_conv2d` of :math:`x` and :math:`k`. The
    bias is mixed in the same way, from the mean over the whole map instead of the bins.

    Args:
        dim: Channels ``C`` of input and output.
        kernel_size: Side ``K`` of the kernels, odd, and of the pooled map.
        num_groups: How many learned kernels ``G`` each channel has, at least 2: of one, the
            softmax is 1, which is a plain :class:`volution.ops.DepthwiseConv2d`.
        reduction_ratio: The generator narrows to ``dim // reduction_ratio`` channels.
        bias: Mix a bias too.
        device: Where the parameters live.
        dtype: What the parameters are.

    Attributes:
        weight: Learned kernels, ``(G, C, K, K)``.
        bias: Learned biases, ``(G, C)``, or None.
        proj: The generator.

    Shape:
        ``(N, C, H, W)`` to the same.

    Raises:
        ValueError: If an argument is not positive, ``kernel_size`` is even, ``num_groups`` is 1,
            or no channel is left of ``dim // reduction_ratio``. In training with a bias, if there
            is one image only: the mean of its map is a single value for each channel, which the
            generator's BatchNorm cannot normalise.

    In training the BatchNorm sees two batches in each pass, the bins of all images and then their
    means, normalises each by itself and updates its running statistics with both, as the authors'
    does. In evaluation both go through in one pass. Half precision takes the softmax in float32.

    Example:
        >>> layer = IDConv(24, kernel_size=7)
        >>> layer(torch.randn(2, 24, 14, 10)).shape
        torch.Size([2, 24, 14, 10])
        >>> kernel, bias = layer.generate(torch.randn(2, 24, 14, 10))
        >>> kernel.shape, bias.shape
        (torch.Size([2, 24, 7, 7]), torch.Size([2, 24]))

    References:
        Lou et al., "TransXNet: Learning Both Global and Local Dynamics with a Dual Dynamic Token
        Mixer for Visual Recognition", TNNLS 2025. https://arxiv.org/abs/2310.19380
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 7,
        num_groups: int = 2,
        reduction_ratio: int = 4,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _checks.check_positive("dim", dim)
        _checks.check_positive("kernel_size", kernel_size, odd=True)
        _checks.check_positive("num_groups", num_groups)
        _checks.check_positive("reduction_ratio", reduction_ratio)
        if num_groups == 1:
            raise ValueError(
                "num_groups must be at least 2, got 1: the softmax over one kernel is 1; take "
                "volution.ops.DepthwiseConv2d"
            )
        hidden = dim // reduction_ratio
        if hidden < 1:
            raise ValueError(
                f"reduction_ratio must be at most dim, got {reduction_ratio=} and {dim=}, which "
                f"leave no channel"
            )
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.kernel_size = kernel_size
        self.num_groups = num_groups
        size = (num_groups, dim, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(size, **where))
        self.bias = nn.Parameter(torch.empty(num_groups, dim, **where)) if bias else None
        squeeze = _Squeeze(dim, hidden, **where)
        self.proj = nn.Sequential(squeeze, nn.Conv2d(hidden, num_groups * dim, 1, **where))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the learned kernels and biases as the authors do."""
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, input: Tensor) -> Tensor:
        kernel, bias = self.generate(input)
        return dynamic_depthwise_conv2d(input, kernel, bias)

    def generate(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the kernels ``(N, C, K, K)`` and biases ``(N, C)`` that the images bring along."""
        side = self.kernel_size
        if self.bias is None:
            return mix_kernels(self._shares(average_bins(input, side)), self.weight), None
        squeeze: Any = self.proj[0]
        norm = squeeze.bn
        # SyncBatchNorm counts the images of all processes.
        alone = norm.training and isinstance(norm, nn.BatchNorm2d)
        pooled = average_bins(input, side, mean=True, refuse_one_image=alone)
        if fixed(norm) is not None:
            shares = self._shares(pooled)
            of_bins, of_mean = shares[:, :side, :side], shares[:, side, side]
        else:
            of_bins = self._shares(pooled[:, :, :side, :side])
            of_mean = self._shares(pooled[:, :, side:, side:])[:, 0, 0]
        bias = (of_mean * self.bias).sum(1)
        return mix_kernels(of_bins, self.weight), bias.to(self.bias.dtype)

    def _shares(self, pooled: Tensor) -> Tensor:
        """Return how much of each learned kernel goes into the mix, (N, h, w, G, C)."""
        layers: list[Any] = list(self.proj)
        squeeze, expand = layers
        # Linear layers: on maps this small, convolutions take longer to start than to compute.
        conv, channels_last = squeeze.conv, (0, 2, 3, 1)
        x = F.linear(pooled.permute(channels_last), conv.weight.flatten(1), conv.bias)
        x = F.gelu(squeeze.bn(x.permute(0, 3, 1, 2)))
        x = F.linear(x.permute(channels_last), expand.weight.flatten(1), expand.bias)
        return softmax_over_groups(x, self.num_groups)

    def fuse(self) -> IDConv:
        """Return a copy whose BatchNorm is folded into the convolution before it."""
        fused = copy.deepcopy(self)
        fold_child_norm(fused.proj[0], "conv", "bn")
        return fused

    def extra_repr(self) -> str:
        groups, dim = self.weight.shape[:2]
        bias = "" if self.bias is not None else ", bias=False"
        return f"{dim}, kernel_size={self.kernel_size}, num_groups={groups}{bias}"


class _Squeeze(nn.Module):
    """A 1 by 1 convolution, BatchNorm and GELU."""

    def __init__(self, dim: int, hidden: int, **where: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, hidden, 1, bias=False, **where)
        self.bn = nn.BatchNorm2d(hidden, **where)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.bn(self.conv(x)))


def average_bins(
    input: Tensor, side: int, mean: bool = False, refuse_one_image: bool = False
) -> Tensor:
    """Average a map over the bins of adaptive pooling.

    Averages over rows and over columns are two products with matrices that only depend on the
    size: faster than pooling, forward and backward, and its form with sizes that are not known.

    Args:
        input: Feature map, shape ``(N, C, H, W)``.
        side: How many bins on a side.
        mean: Add a last row and column, averages over whole columns and rows; in the corner of
            both is the mean over the map.
        refuse_one_image: Raise if that mean is to be normalised by a batch of one image.

    Returns:
        Tensor of shape ``(N, C, side, side)``, or one more each, in the memory format of ``input``.

    Example:
        >>> average_bins(torch.arange(16.0).reshape(1, 1, 4, 4), 2)
        tensor([[[[ 2.5000,  4.5000],
                  [10.5000, 12.5000]]]])
    """
    if refuse_one_image and input.shape[0] == 1:
        raise ValueError(
            "input must have at least 2 images in training, got 1: the bias is made from the mean "
            "of each map, which BatchNorm cannot normalise over a single image; train on a batch "
            "of 2 or more, call eval() on the norm, or build the layer with bias=False"
        )
    n, _, height, width = input.shape
    rows, columns = (_bins(size, side, input, mean) for size in (height, width))
    if not is_channels_last(input):
        return rows @ (input @ columns.mT)
    lines = columns @ input.permute(0, 2, 3, 1)  # N H K C
    pooled = rows @ lines.reshape(n, height, columns.shape[0] * input.shape[1])  # N K K*C
    pooled = pooled.reshape(n, rows.shape[0], columns.shape[0], input.shape[1])
    return pooled.permute(0, 3, 1, 2)


def softmax_over_groups(x: Tensor, groups: int) -> Tensor:
    """Return the softmax of ``(..., G * C)`` over groups, ``(..., G, C)``, in float32 at least."""
    shares: Tensor = x.unflatten(-1, (groups, -1)).softmax(-2, dtype=accumulation_dtype(x.dtype))
    return shares


def mix_kernels(shares: Tensor, weight: Tensor) -> Tensor:
    """Return the sum over groups of ``shares * weight``.

    Args:
        shares: Shape ``(N, K, K, G, C)``.
        weight: Shape ``(G, C, K, K)``.

    Returns:
        Kernels ``(N, C, K, K)``, channels adjacent in memory, in the dtype of ``weight``.
    """
    taps = weight.to(shares.dtype).permute(2, 3, 0, 1)  # K K G C
    first, *rest = zip(shares.unbind(3), taps.unbind(2), strict=True)
    mixed = first[0] * first[1]
    for share, tap in rest:
        mixed = torch.addcmul(mixed, share, tap)
    return mixed.permute(0, 3, 1, 2).to(weight.dtype)


def _bins(size: int, side: int, like: Tensor, mean: bool) -> Tensor:
    # Tensors made while something is traced or transformed belong to that, and cannot be kept.
    if _library.runs_directly(like):
        return _kept_bins(size, side, like.dtype, like.device, mean)
    return reference.bins(size, side, like, mean)


@lru_cache(maxsize=128)
def _kept_bins(
    size: int, side: int, dtype: torch.dtype, device: torch.device, mean: bool
) -> Tensor:
    with torch.inference_mode(False):
        return reference.bins(size, side, torch.empty((), dtype=dtype, device=device), mean)
