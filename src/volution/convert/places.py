"""Which layers of a network can be replaced, and why the others cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from timm.layers import Conv2dSame, ScaledStdConv2dSame, StdConv2dSame
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from volution.convert import tokens
from volution.convert.replacement import Place
from volution.ops import DepthwiseConv2d

__all__ = ["Slot", "convolution_misfit", "place_of", "slots"]

# They choose their padding when they run.
_TENSORFLOW_PADDED = (Conv2dSame, StdConv2dSame, ScaledStdConv2dSame)


@dataclass
class Slot:
    """A child of a module, with all the paths that lead there.

    Args:
        parent: The module whose child it is.
        name: The child's name.
        module: The child.
        network: The nearest :class:`VisionTransformer` around it.
        owner: The nearest operator of volution around it.
        paths: Where it is found from the root; more than one if the parent is shared.
    """

    parent: nn.Module
    name: str
    module: nn.Module
    network: VisionTransformer | None = None
    owner: nn.Module | None = None
    paths: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        """All paths, for messages."""
        return self.paths[0] + "".join(f", also {path}" for path in self.paths[1:])

    @property
    def is_attention(self) -> bool:
        """Whether this is attention between tokens."""
        return tokens.is_token_attention(self.module)

    @property
    def is_convolution(self) -> bool:
        """Whether this is a convolution of maps."""
        return isinstance(self.module, nn.Conv2d)


def slots(model: nn.Module) -> list[Slot]:
    """Return every child of every module, in the order of the network; each slot once."""
    found: dict[tuple[int, str], Slot] = {}
    for path, slot in _walk(model, "", None, None, (model,)):
        found.setdefault((id(slot.parent), slot.name), slot).paths.append(path)
    return list(found.values())


def _walk(
    module: nn.Module,
    prefix: str,
    network: VisionTransformer | None,
    owner: nn.Module | None,
    above: tuple[nn.Module, ...],
) -> Iterator[tuple[str, Slot]]:
    if isinstance(module, VisionTransformer):
        network = module
    if type(module).__module__.startswith("volution.ops."):
        owner = module
    # Not named_children(): it leaves out a child that stands under two names.
    for name, child in module._modules.items():
        if child is None or any(child is one for one in above):
            continue
        yield prefix + name, Slot(module, name, child, network, owner)
        yield from _walk(child, f"{prefix}{name}.", network, owner, (*above, child))


def place_of(slot: Slot) -> Place:
    """Return what a replacement of a convolution or attention has to fit."""
    module = slot.module
    tensor = next(module.parameters())
    kind = tensor.device, tensor.dtype
    if isinstance(module, nn.Conv2d):
        widths = module.in_channels, module.out_channels
        return Place(module, *widths, module.stride[0], module.dilation[0], *kind)
    first, last = module.get_submodule("qkv"), module.get_submodule("proj")
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    return Place(module, first.in_features, last.out_features, 1, 1, *kind)


def misfit(slot: Slot) -> str | None:
    """Return why a convolution has to stay, or None."""
    if slot.owner is not None:
        return f"it is part of {type(slot.owner).__name__}, an operator itself"
    assert isinstance(slot.module, nn.Conv2d)
    return convolution_misfit(slot.module)


def convolution_misfit(conv: nn.Conv2d) -> str | None:
    """Return why nothing else can do what a convolution does to the shape of a map, or None."""
    rows, columns = conv.kernel_size
    size, stride, dilation = conv.kernel_size[0], conv.stride[0], conv.dilation[0]
    if rows != columns:
        return f"its kernel is {rows} by {columns}, not square"
    if size == 1:
        return "its kernel is 1 by 1: it mixes channels, not pixels"
    if size % 2 == 0:
        return f"its kernel has an even side, {size}, and no centre"
    if len(set(conv.stride)) > 1 or len(set(conv.dilation)) > 1:
        steps = f"stride {conv.stride}, dilation {conv.dilation}"
        return f"it treats rows and columns differently: {steps}"
    if conv.padding_mode != "zeros":
        return f"it pads with {conv.padding_mode!r}, not with zeros"
    if _pads_when_it_runs(conv):
        if stride > 1:
            return f"{type(conv).__name__} with stride {stride} pads one side more than the other"
    elif conv.padding != "same":
        centred = dilation * (size // 2)
        if conv.padding != (centred, centred):
            return f"its padding is {conv.padding}, not the {centred} that keeps the size"
    if isinstance(conv, DepthwiseConv2d) and conv.activation is not None:
        return f"it has an activation inside, {conv.activation!r}"
    if conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks:
        return "it has hooks, which would be lost"
    return None


def _pads_when_it_runs(conv: nn.Conv2d) -> bool:
    return isinstance(conv, _TENSORFLOW_PADDED) and getattr(conv, "same_pad", True)
