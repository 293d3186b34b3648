"""The recursive gated convolution as a layer, and its global-local filter.

Paper: https://arxiv.org/abs/2207.14284, authors' code: raoyongming/HorNet (MIT). Differences:
- one layer serves backbones and necks: input and output widths may differ, the output projection
  can be left out;
- the first gate is multiplied inside the depthwise convolution, in no pass of its own;
- float16 does not overflow, see :func:`volution.ops.gnconv2d`;
- models in half precision run as a whole, and their Fourier transforms in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volution.ops import _checks
from volution.ops._shared.depthwise import DepthwiseConv2d
from volution.ops._shared.pointwise import pointwise
from volution.ops.gnconv import reference
from volution.ops.gnconv.global_filter import global_filter2d
from volution.ops.gnconv.op import filtered_gnconv2d, gnconv2d

# One call each in traced graphs, so that symbolic tracing does not stop at the argument checks.
torch.fx.wrap("filtered_gnconv2d")
torch.fx.wrap("global_filter2d")
torch.fx.wrap("gnconv2d")
torch.fx.wrap("pointwise")

_EPS = 1e-6


class GlobalLocalFilter(nn.Module):
    """Filter half of the channels with 3 by 3 kernels, the other half in the Fourier domain.

    A LayerNorm over the channels comes before and after; between them the halves are interleaved
    channel by channel, so that every slice of the result has both kinds.

    Args:
        dim: Channels ``C`` of input and output, even.
        h: Height of the complex weight: that of the maps it is trained on.
        w: Width of the complex weight, of the half spectrum: ``W // 2 + 1`` for maps of width
            ``W``. At other sizes of maps the weight is resized.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, C, H, W)`` to the same, channels-last in memory.

    Raises:
        ValueError: If ``dim`` is odd, or an argument is not positive.

    Checkpoints with a complex weight of another size load, and the parameter then has that size:
    the function stays the one that was trained.

    Example:
        >>> layer = GlobalLocalFilter(24, h=14, w=8)
        >>> layer(torch.randn(1, 24, 10, 13)).shape, layer.complex_weight.shape
        (torch.Size([1, 24, 10, 13]), torch.Size([12, 14, 8, 2]))

    References:
        Rao et al., "HorNet: Efficient High-Order Spatial Interactions with Recursive Gated
        Convolutions", NeurIPS 2022. https://arxiv.org/abs/2207.14284
    """

    def __init__(
        self,
        dim: int,
        h: int = 14,
        w: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("h", h), ("w", w)):
            _checks.check_positive(name, value)
        if dim % 2:
            raise ValueError(
                f"dim must be even, to be cut into a local and a global half, got {dim}; "
                f"take {dim - 1} or {dim + 1}"
            )
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim = dim
        self.complex_weight = nn.Parameter(torch.empty(dim // 2, h, w, 2, **where))
        self.dw = DepthwiseConv2d(dim // 2, 3, bias=False, **where)
        self.pre_norm = nn.LayerNorm(dim, _EPS, **where)
        self.post_norm = nn.LayerNorm(dim, _EPS, **where)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the complex weight as the authors do."""
        nn.init.trunc_normal_(self.complex_weight, std=0.02)

    def forward(self, input: Tensor, scale: float = 1.0) -> Tensor:
        """Filter, and multiply with ``scale``; that costs no pass over the map."""
        x = F.layer_norm(
            input.permute(0, 2, 3, 1),
            (self.dim,),
            self.pre_norm.weight,
            self.pre_norm.bias,
            self.pre_norm.eps,
        ).permute(0, 3, 1, 2)
        half = self.dim // 2
        near = self.dw(x.narrow(1, 0, half))
        far = global_filter2d(x.narrow(1, half, half), self.complex_weight)
        pairs = torch.stack([near.permute(0, 2, 3, 1), far.permute(0, 2, 3, 1)], -1)
        norm = self.post_norm
        affine: tuple[Tensor, Tensor] = (norm.weight, norm.bias)
        if scale != 1.0:
            affine = (norm.weight * scale, norm.bias * scale)
        out = F.layer_norm(pairs.flatten(3), (self.dim,), *affine, norm.eps)
        return out.permute(0, 3, 1, 2)

    @torch.no_grad()
    def resize(self, h: int, w: int) -> None:
        """Become the filter of maps of another size, as it was resized for them before.

        Args:
            h: Height of the complex weight.
            w: Its width, ``W // 2 + 1`` for maps of width ``W``.
        """
        weight = self.complex_weight
        if tuple(weight.shape[1:3]) != (h, w):
            resized = reference.resize_spectrum(weight, h, w).to(weight.dtype).contiguous()
            # The parameter stays the same object: optimisers may hold it.
            weight.data, weight.grad = resized, None

    def fits_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether a stored parameter of this name can be taken over in another shape."""
        own = self.complex_weight.shape
        return name == "complex_weight" and len(shape) == 4 and shape[::3] == own[::3]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(f"{prefix}complex_weight")
        if stored is not None and self.fits_shape("complex_weight", tuple(stored.shape)):
            own = self.complex_weight
            if own.shape != stored.shape:
                # The parameter stays the same object: optimisers may hold it.
                own.data, own.grad = own.data.new_empty(stored.shape), None
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        _, h, w, _ = self.complex_weight.shape
        return f"{self.dim}, h={h}, w={w}"


class GnConv(nn.Module):
    """Recursive gated convolution: interactions of order ``n`` for the price of one filter.

    A 1 by 1 convolution makes a first map :math:`p_0` and gates :math:`q_0, ..., q_{n-1}` of
    doubling widths. The gates go through one spatial filter, and :func:`gnconv2d` multiplies
    :math:`p` with one after the other.

    Args:
        dim: Channels of the input.
        order: Number ``n`` of gates. At least 1.
        out_dim: Channels of the output and width of the last gate; ``dim`` if None. The gates
            before it have ``out_dim / 2``, ``out_dim / 4`` and so on, so ``2 ** (n - 1)`` divides
            it.
        proj_out: End with a 1 by 1 convolution.
        filter: What filters the gates: ``"depthwise"``, a depthwise convolution;
            ``"global_local"``, a :class:`GlobalLocalFilter`; or a function that makes a module
            from the sum of the gates' widths, which keeps the shape of its input.
        kernel_size: Side of the depthwise convolution's kernels, odd.
        filter_size: ``(h, w)`` of the global-local filter.
        scale: Number that the filtered gates are multiplied with. The authors' backbones have
            1/3, their necks 1.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, dim, H, W)`` to ``(N, out_dim, H, W)``.

    Raises:
        ValueError: If ``order`` is below 1, or no widths exist for ``out_dim``; the message names
            the nearest ones that have some.

    Checkpoints of the authors' layer load as they are.

    Example:
        >>> layer = GnConv(64, order=3, scale=1 / 3)
        >>> layer(torch.randn(1, 64, 14, 10)).shape, layer.widths
        (torch.Size([1, 64, 14, 10]), (16, 32, 64))

    References:
        Rao et al., "HorNet: Efficient High-Order Spatial Interactions with Recursive Gated
        Convolutions", NeurIPS 2022. https://arxiv.org/abs/2207.14284
    """

    def __init__(
        self,
        dim: int,
        order: int = 5,
        *,
        out_dim: int | None = None,
        proj_out: bool = True,
        filter: str | Callable[[int], nn.Module] = "depthwise",
        kernel_size: int = 7,
        filter_size: tuple[int, int] = (14, 8),
        scale: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_dim = dim if out_dim is None else out_dim
        for name, value in (("dim", dim), ("order", order), ("out_dim", out_dim)):
            _checks.check_positive(name, value)
        # The halves of a global-local filter are whole where the first width is even.
        name = "dim" if out_dim == dim else "out_dim"
        _check_width(name, out_dim, 2 ** (order - (filter != "global_local")), order, filter)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        widths = [out_dim // 2**i for i in reversed(range(order))]
        self.dim = dim
        self.order = order
        self.widths = tuple(widths)
        self.scale = scale
        self.proj_in = nn.Conv2d(dim, 2 * out_dim, 1, **where)
        if filter == "depthwise":
            self.dwconv: nn.Module = DepthwiseConv2d(sum(widths), kernel_size, **where)
        elif filter == "global_local":
            self.dwconv = GlobalLocalFilter(sum(widths), *filter_size, **where)
        elif callable(filter):
            self.dwconv = filter(sum(widths))
        else:
            raise ValueError(
                f"filter must be 'depthwise', 'global_local' or a function that makes a module, "
                f"got {filter!r}"
            )
        self.proj_out = nn.Conv2d(out_dim, out_dim, 1, **where) if proj_out else nn.Identity()
        self.pws = nn.ModuleList(nn.Conv2d(a, b, 1, **where) for a, b in pairwise(widths))

    def forward(self, input: Tensor) -> Tensor:
        first, gates = self.widths[0], sum(self.widths)
        layers = [*self.pws]
        if isinstance(self.proj_out, nn.Conv2d):
            layers.append(self.proj_out)
        weights = [layer.weight for layer in layers]
        biases = [layer.bias for layer in layers]
        if isinstance(self.dwconv, DepthwiseConv2d):
            projected = pointwise(input, self.proj_in.weight, self.proj_in.bias)
            p, q = projected.split([first, gates], 1)
            kernel, bias = self.dwconv.weight, self.dwconv.bias
            return filtered_gnconv2d(p, q, kernel, bias, self.scale, weights, biases)
        # Two products: most filters would have to copy the gates out of a larger map.
        matrix, shift = self.proj_in.weight, self.proj_in.bias
        assert shift is not None
        p = pointwise(input, matrix[:first], shift[:first])
        q = pointwise(input, matrix[first:], shift[first:])
        # Under autocast a filter may end in a norm, which gives float32 on a GPU.
        if isinstance(self.dwconv, GlobalLocalFilter):
            q = self.dwconv(q, self.scale).to(p.dtype)
            return gnconv2d(p, q, weights, biases)
        q = self.dwconv(q).to(p.dtype)
        return gnconv2d(p, q * self.scale if self.scale != 1.0 else q, weights, biases)

    def fuse(self, gain: Tensor | None = None) -> GnConv:
        """Return a copy that computes the same with ``scale`` folded into its parameters.

        Args:
            gain: Numbers to multiply the output channels with, folded as well.

        Raises:
            ValueError: If there is a ``gain`` but no output projection to fold it into.
        """
        fused = copy.deepcopy(self)
        filter = fused.dwconv
        last = filter.post_norm if isinstance(filter, GlobalLocalFilter) else filter
        if isinstance(last, nn.LayerNorm | DepthwiseConv2d):
            _multiply(last, self.scale)
            fused.scale = 1.0
        if gain is not None:
            if not isinstance(fused.proj_out, nn.Conv2d):
                raise ValueError("gain needs an output projection: make the layer with proj_out")
            _multiply(fused.proj_out, gain.detach())
        return fused

    def extra_repr(self) -> str:
        out_dim = "" if self.widths[-1] == self.dim else f", out_dim={self.widths[-1]}"
        return f"{self.dim}, order={self.order}{out_dim}, scale={self.scale:g}"


def _check_width(name: str, width: int, factor: int, order: int, filter: object) -> None:
    if width % factor == 0:
        return
    below, above = width // factor * factor, -(-width // factor) * factor
    nearest = f"{below} or {above}" if below else f"{above}"
    kind = " with a global-local filter" if filter == "global_local" else ""
    raise ValueError(
        f"{name} must be a multiple of {factor} for order {order}{kind}, got {width}; "
        f"the nearest valid widths are {nearest}"
    )


@torch.no_grad()
def _multiply(layer: nn.Module, gain: Tensor | float) -> None:
    """Multiply what a layer gives, by one number or by one for each channel."""
    for tensor in (layer.weight, layer.bias):
        if isinstance(tensor, Tensor):
            shaped = gain
            if isinstance(gain, Tensor):
                shaped = gain.reshape(-1, *(1 for _ in tensor.shape[1:]))
            tensor.mul_(shaped)
