"""The involution layer: a kernel generator and the involution that applies its kernels.

Paper: https://arxiv.org/abs/2103.06255, authors' code: d-li14/involution (MIT). Differences:
- odd sizes at stride 2 work: the pooling rounds up, as the involution does;
- any number of channels works, see ``group_channels``;
- the kernel generator is a module of its own and can be replaced.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from volution.ops import _checks
from volution.ops._shared.folding import fold_child_norm
from volution.ops.involution.op import involution2d

# One call in traced graphs, so that symbolic tracing does not stop at the argument checks.
torch.fx.wrap("involution2d")


class KernelGenerator(nn.Module):
    """Make involution kernels from each pixel's own feature: pool, reduce, normalise, expand.

    Args:
        channels: Channels ``C`` of the input.
        groups: Kernels per pixel ``G``.
        kernel_size: Side ``K`` of a kernel, odd.
        stride: Step between output pixels; above 1 the input is average-pooled first.
        reduction: The hidden width is ``max(1, C // reduction)``.
        norm_layer: Makes the normalisation of the hidden map from its width.
        act_layer: Makes the activation of the hidden map.

    Shape:
        ``(N, C, H, W)`` to ``(N, G * K * K, ceil(H / stride), ceil(W / stride))``: group, then
        kernel row, then kernel column.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        kernel_size: int,
        stride: int = 1,
        reduction: int = 4,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        act_layer: Callable[[], nn.Module] = nn.ReLU,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        # ceil_mode: the involution has ceil(H / stride) rows, so the pooled map must have as many.
        self.pool = nn.AvgPool2d(stride, stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.conv1 = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(channels, hidden, 1, bias=False, **where),
                bn=norm_layer(hidden).to(**where),
                act=act_layer(),
            )
        )
        self.conv2 = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(hidden, groups * kernel_size**2, 1, **where))
        )

    def forward(self, input: Tensor) -> Tensor:
        return self.conv2(self.conv1(self.pool(input)))  # type: ignore[no-any-return]

    def fuse(self) -> KernelGenerator:
        """Return a copy whose norm, where it is a BatchNorm, is folded into its convolution."""
        fused = copy.deepcopy(self)
        fold_child_norm(fused.conv1, "conv", "bn")
        return fused


class Involution2d(nn.Module):
    """Generate a kernel for every pixel and mix the pixel's neighbourhood with it.

    A drop-in for a padded square convolution that keeps the number of channels. The parameters
    grow with ``channels ** 2 / reduction`` and not with the window, so wide windows are cheap.

    Args:
        channels: Channels ``C`` of input and output.
        kernel_size: Side ``K`` of the window, odd.
        stride: Step between output pixels; the output side is ``ceil(side / stride)``.
        dilation: Step between window taps.
        groups: Number ``G`` of kernels per pixel; divides ``channels``. By default the largest
            divisor of ``channels`` that gives every group at least ``group_channels`` channels
            (at least one group): 64 channels make 4 groups of 16, 40 make 2 groups of 20, 24 or
            7 make a single group.
        group_channels: Least width of a group, where ``groups`` is not given.
        reduction: Width ratio of the kernel generator's hidden layer.
        norm_layer: Makes the generator's normalisation from its width.
        act_layer: Makes the generator's activation.
        kernel_generator: A module to use instead of :class:`KernelGenerator`. It maps
            ``(N, C, H, W)`` to ``(N, G * K * K, H_out, W_out)`` or
            ``(N, G, K, K, H_out, W_out)``; ``reduction``, ``norm_layer`` and ``act_layer`` are
            then unused.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, C, H, W)`` to ``(N, C, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: If an argument is not positive, ``kernel_size`` is even, or ``groups`` does
            not divide ``channels``.

    Checkpoints of the authors' layer (``conv1.conv.weight`` and so on) load as they are.

    Example:
        >>> layer = Involution2d(64, kernel_size=7, stride=2)
        >>> layer(torch.randn(1, 64, 15, 15)).shape
        torch.Size([1, 64, 8, 8])

    References:
        Li et al., "Involution: Inverting the Inherence of Convolution for Visual Recognition",
        CVPR 2021. https://arxiv.org/abs/2103.06255
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        stride: int = 1,
        dilation: int = 1,
        groups: int | None = None,
        group_channels: int = 16,
        reduction: int = 4,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        act_layer: Callable[[], nn.Module] = nn.ReLU,
        kernel_generator: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _checks.check_positive("kernel_size", kernel_size, odd=True)
        for name, value in (
            ("channels", channels),
            ("stride", stride),
            ("dilation", dilation),
            ("group_channels", group_channels),
            ("reduction", reduction),
        ):
            _checks.check_positive(name, value)
        if groups is None:
            groups = _default_groups(channels, group_channels)
        _checks.check_positive("groups", groups)
        _checks.check_divides("groups", groups, "channels", channels)
        self.channels = channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.dilation = dilation
        self.groups = groups
        if kernel_generator is None:
            kernel_generator = KernelGenerator(
                channels,
                groups,
                kernel_size,
                stride,
                reduction,
                norm_layer,
                act_layer,
                device=device,
                dtype=dtype,
            )
        self.kernel_generator = kernel_generator
        self.register_load_state_dict_pre_hook(_rename_official_keys)  # type: ignore[no-untyped-call]

    def forward(self, input: Tensor) -> Tensor:
        kernel = self.kernel_generator(input)
        # A view: also in channels-last, where the kernel of a pixel lies in one piece.
        kernel = kernel.reshape(
            kernel.shape[0],
            self.groups,
            self.kernel_size,
            self.kernel_size,
            kernel.shape[-2],
            kernel.shape[-1],
        )
        return involution2d(input, kernel, stride=self.stride, dilation=self.dilation)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"dilation={self.dilation}, groups={self.groups}"
        )


def _default_groups(channels: int, group_channels: int) -> int:
    most = max(1, channels // group_channels)
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def _rename_official_keys(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    """Accept the authors' names, in which the generator's layers sit in the involution itself."""
    for key in [
        key for key in state_dict if key.startswith((f"{prefix}conv1.", f"{prefix}conv2."))
    ]:
        state_dict[f"{prefix}kernel_generator.{key[len(prefix) :]}"] = state_dict.pop(key)
