"""Put an operator into somebody else's network."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, overload
from warnings import warn

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from volution._support.console import out
from volution.convert import places, tokens
from volution.convert.cost import count_macs, count_params, usual_image_size
from volution.convert.matching import Where, select
from volution.convert.places import Slot
from volution.convert.replacement import Replacement, check_shape, settle
from volution.convert.report import Conversion, Row, describe

__all__ = ["convert"]


@overload
def convert(
    model: nn.Module,
    where: Where,
    to: object = None,
    *,
    inplace: bool = False,
    dry_run: Literal[False] = False,
    quiet: bool = False,
    image_size: int | tuple[int, int] | None = None,
) -> nn.Module: ...


@overload
def convert(
    model: nn.Module,
    where: Where,
    to: object = None,
    *,
    inplace: bool = False,
    dry_run: Literal[True],
    quiet: bool = False,
    image_size: int | tuple[int, int] | None = None,
) -> Conversion: ...


def convert(
    model: nn.Module,
    where: Where,
    to: object = None,
    *,
    inplace: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    image_size: int | tuple[int, int] | None = None,
) -> nn.Module | Conversion:
    """Replace convolutions, or the attention of a plain ViT, by operators of volution.

    The network may be timm's, torchvision's or your own. A replacement has the channels, stride,
    dilation, device, dtype, memory format and mode (training or evaluation) of what it replaces,
    so all shapes stay; its parameters are trained also where those it replaces were frozen. What
    cannot be replaced without breaking a shape is kept, and the printed table says why.

    Convolutions are replaced that are square, odd, larger than 1 by 1, and pad with as many zeros
    as keep the size. In a timm ``VisionTransformer`` the image tokens become a map and the prefix
    tokens (class, registers) pass through as they are. Only attention brings the image to the
    class token: a network that classifies by it should keep its last attention, or be made with
    ``global_pool="avg"``; a warning says where that matters.

    Args:
        model: The network.
        where: What to replace. A pattern for the paths of modules (as in
            ``model.named_modules()``, with shell-style wildcards, of which ``*`` stands for dots
            too), several of them, or a function of path and module that returns whether to
            replace it. Or a mapping from patterns to replacements, of which the first that
            matches decides; ``to`` is then left out.
        to: What to put there: ``Involution2d``, ``GnConv``, ``LKA``, ``DMixer`` or
            ``Xvolution2d``; one of them with settings, as ``volution.convert.xvolution(heads=4)``
            and its like return it; or a function from the old layer to the new one, which returns
            None to keep it. The new layer maps ``(N, C_in, H, W)`` to
            ``(N, C_out, ceil(H / stride), ceil(W / stride))``, also where it is to stand in for
            attention.
        inplace: Change ``model`` itself. By default a copy is changed and returned.
        dry_run: Change nothing, and return what would be done.
        quiet: Do not print the table.
        image_size: Height and width of the images that multiplications are counted for; those
            the network is made for by default.

    Returns:
        The converted network; with ``dry_run`` a :class:`Conversion`, the table itself.

    Raises:
        ValueError: If a pattern matches nothing (the message has the nearest paths), nothing of
            what it matches can be replaced, an attention is not that of a plain ViT, or a
            function returned a layer of another shape; the message names the module's path.
        TypeError: If ``where`` and ``to`` do not go together, or are of another kind.

    Weights are carried over where the function stays: ``Xvolution2d`` starts as the convolution
    it replaces; ``LKA`` does where that convolution only scales its channels. All else starts
    anew, the table says which. A state dict loads into a network that was converted alike.

    Example:
        >>> import timm, torch, volution
        >>> from volution.convert import involution
        >>> net = timm.create_model("resnet18", num_classes=10)
        >>> net = volution.convert(net, {"layer4.*.conv2": involution(kernel_size=5)}, quiet=True)
        >>> type(net.layer4[1].conv2).__name__, net(torch.randn(2, 3, 64, 64)).shape
        ('Involution2d', torch.Size([2, 10]))
    """
    _check_initialised(model)
    before = model
    if dry_run or not inplace:
        model = copy.deepcopy(model)
    size = usual_image_size(model) if image_size is None else _pair(image_size)
    macs_before, uncounted = count_macs(before, size)
    params_before = count_params(model)
    with _untouched_generators(model) if dry_run else nullcontext():
        chosen = select(places.slots(model), where, to)
        plan, rows = _plan(chosen)
        if not plan:
            raise ValueError(
                f"nothing can be replaced; {_reasons(rows)}. Choose other modules, or settings "
                f"that fit these"
            )
        _install(plan)
    macs_after, uncounted_after = count_macs(model, size)
    found = Conversion(
        tuple(rows),
        params_before,
        count_params(model),
        macs_before,
        macs_after,
        size,
        uncounted or uncounted_after,
    )
    if not quiet:
        found.print(out)
    _warn_of_idle_blocks(model, [slot for slot, _ in plan])
    return found if dry_run else model


def _plan(
    chosen: Iterable[tuple[Slot, Replacement]],
) -> tuple[list[tuple[Slot, nn.Module]], list[Row]]:
    """Make all replacements before one is put in, so that an error leaves the network whole."""
    plan, rows = [], []
    # One layer in two places becomes one layer in two places.
    made: dict[tuple[int, int], tuple[nn.Module, bool] | str] = {}
    for slot, replacement in chosen:
        key = id(slot.module), id(replacement)
        if key not in made:
            made[key] = _make(slot, replacement)
        result = made[key]
        before, params = describe(slot.module), count_params(slot.module)
        if isinstance(result, str):
            rows.append(Row(slot.path, before, None, params, params, why=result))
            continue
        layer, carried = result
        plan.append((slot, layer))
        rows.append(Row(slot.path, before, describe(layer), params, count_params(layer), carried))
    return plan, rows


def _make(slot: Slot, replacement: Replacement) -> tuple[nn.Module, bool] | str:
    """Return the new layer and whether it computes what the old one did, or why to keep it."""
    if slot.is_attention:
        reason = tokens.misfit(slot.module, slot.network)
        if reason is not None:
            raise ValueError(
                f"{slot.path} ({type(slot.module).__name__}) cannot be replaced: {reason}; leave "
                f"it out of where"
            )
    else:
        reason = places.misfit(slot)
        if reason is not None:
            return reason
    place = places.place_of(slot)
    try:
        result = replacement.build(place)
    except ValueError as error:
        if replacement.custom:
            raise ValueError(f"{slot.path}: {error}") from error
        return str(error)
    except TypeError as error:
        raise TypeError(f"{slot.path}: {error}") from error
    if result is None:
        return f"{replacement.name} returned none"
    layer, carried = result
    settle(layer, place)
    try:
        check_shape(layer, place, describe(slot.module))
    except ValueError as error:
        raise ValueError(f"{slot.path}: the layer of {replacement.name} {error}") from error
    return layer, carried


def _install(plan: Iterable[tuple[Slot, nn.Module]]) -> None:
    grids: dict[int, tokens.TokenGrid] = {}
    for slot, layer in plan:
        if slot.is_attention:
            assert slot.network is not None
            network = slot.network
            if id(network) not in grids:
                grids[id(network)] = tokens.grid_of(network)
            layer = tokens.TokenMap(layer, grids[id(network)], network.num_prefix_tokens)
            layer.train(slot.module.training)
        setattr(slot.parent, slot.name, layer)


def _warn_of_idle_blocks(model: nn.Module, slots: Sequence[Slot]) -> None:
    networks = {id(slot.network): slot.network for slot in slots if slot.is_attention}
    for network in networks.values():
        idle = tokens.unseen_blocks(network) if isinstance(network, VisionTransformer) else []
        if idle:
            warn(
                f"the class token, by which this network classifies, sees nothing of the image "
                f"in and after blocks {', '.join(map(str, idle))}: prefix tokens pass an operator "
                f"by. Keep the last attention, or make the network with global_pool='avg'",
                stacklevel=3,
            )


def _reasons(rows: Sequence[Row]) -> str:
    paths: dict[str, list[str]] = {}
    for row in rows:
        paths.setdefault(row.why, []).append(row.path)
    parts = [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {why}"
        for why, names in paths.items()
    ]
    return "; ".join(parts[:5]) + ("; and so on" if len(parts) > 5 else "")


def _check_initialised(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise ValueError(
                f"model must have all its parameters, got {name} without a shape; run the network "
                f"on an image once before converting it"
            )


def _pair(image_size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height < 1 or width < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    return height, width


def _untouched_generators(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context after which random numbers go on as if nothing had been drawn inside."""
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    context: AbstractContextManager[None] = torch.random.fork_rng(list(devices))
    return context
