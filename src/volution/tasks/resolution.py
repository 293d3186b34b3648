"""Networks that are made for one size of images, and how they come to another."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from volution._support.console import log

__all__ = ["fit_tables", "needs_size", "set_image_size", "tell_resized"]

Shapes = dict[str, tuple[int, ...]]


def needs_size(net: nn.Module) -> bool:
    """Return whether a network takes images of one size only, until it is set to another.

    Volution's own networks take any size: what they learned for each place is resized for every
    image. Those of timm that have such tables refuse.
    """
    return type(net).__module__.startswith("timm.")


def set_image_size(net: nn.Module, image_size: int) -> Shapes:
    """Make a network one for images of another size: its tables of places are resized.

    Args:
        net: The network; where it has no such tables nothing is done.
        image_size: Side of the images.

    Returns:
        The shapes that its parameters had before, of those that were resized.

    Raises:
        ValueError: If the network cannot be made one for such images.

    Example:
        >>> import timm, volution
        >>> net = timm.create_model("transxnet_t", image_size=64, device="meta")
        >>> set_image_size(net, 96)["stage1.position.weight"]
        (1, 1, 256, 4)
        >>> net.stage1.position.weight.shape
        torch.Size([1, 1, 576, 9])
    """
    before = {name: tuple(p.shape) for name, p in net.named_parameters()}
    if hasattr(net, "set_input_size"):
        try:
            net.set_input_size(img_size=(image_size, image_size))  # type: ignore[operator]
        except (ValueError, AssertionError, RuntimeError) as error:
            raise ValueError(
                f"image_size: {type(net).__name__} cannot be set to {image_size}: {error}"
            ) from error
    else:
        _check_fixed_size(net, image_size)
    return {name: before[name] for name, p in net.named_parameters() if before.get(name) != p.shape}


def fit_tables(net: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with the tables of places that a network of timm has, by timm's own rule."""
    rule: Any = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if not needs_size(net) or rule is None:
        return dict(state)
    return dict(rule(dict(state), net))


def tell_resized(net: nn.Module, stored: Shapes, image_size: int) -> None:
    """Say what was resized from the shapes that were stored, if anything was."""
    own = {name: tuple(p.shape) for name, p in net.named_parameters()}
    found = [name for name, shape in stored.items() if name in own and own[name] != shape]
    if found:
        name, more = found[0], f" and {len(found) - 1} more" if len(found) > 1 else ""
        log.print(
            f"weights: resized for images of {image_size} by {image_size}: {name} from "
            f"{stored[name]} to {own[name]}{more}",
            markup=False,
            soft_wrap=True,
        )


def _check_fixed_size(net: nn.Module, image_size: int) -> None:
    cfg: Any = getattr(net, "pretrained_cfg", None) or {}
    # What the network was made with counts more than what it was published with.
    own = getattr(getattr(net, "patch_embed", None), "img_size", None)
    made_for = tuple(own or cfg.get("input_size", ())[1:])
    if cfg.get("fixed_input_size") and made_for != (image_size, image_size):
        raise ValueError(
            f"image_size: {type(net).__name__} takes images of {made_for[0]} by {made_for[1]} "
            f"only, got {image_size}"
        )
