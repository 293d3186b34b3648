"""What stays as it is while the rest learns: the first stages, or all but the classifier."""

from __future__ import annotations

from collections.abc import Iterator

from timm.models import group_parameters
from torch import nn

from volution.train.config import TrainConfig

__all__ = ["apply_freezing", "frozen_modules", "stages"]


def stages(net: nn.Module) -> list[list[str]]:
    """Return the names of the parameters of each stage, from the image on.

    Stages are the coarse groups of timm's ``group_matcher``: those of a pyramid, or the blocks of
    a network that has but one width. The stem goes with the first, the head with none.

    Raises:
        ValueError: If the network does not say how its parameters are grouped.

    Example:
        >>> import timm, volution
        >>> [len(names) for names in stages(timm.create_model("van_b0", device="meta"))]
        [72, 72, 116, 50]
    """
    if not hasattr(net, "group_matcher"):
        raise ValueError(f"freeze: {type(net).__name__} does not say what its stages are")
    matcher = net.group_matcher(coarse=True)  # type: ignore[operator]
    named = group_parameters(net, matcher)
    head = {id(p) for layer in _classifiers(net) for p in layer.parameters()}
    own = dict(net.named_parameters())
    # Where there is no classifier, what no pattern matches is still the last group.
    groups = [list(named[i]) for i in sorted(named)]
    if any(id(own[name]) in head for name in groups[-1]):
        groups.pop()
    has_stem = isinstance(matcher, dict) and matcher.get("stem") is not None
    if has_stem and len(groups) > 1:
        groups[:2] = [groups[0] + groups[1]]
    return groups


def apply_freezing(net: nn.Module, config: TrainConfig) -> None:
    """Take from a network's parameters what a configuration freezes; they get no gradients.

    Raises:
        ValueError: If there are not as many stages.
    """
    if config.linear_probe:
        net.requires_grad_(False)
        for layer in _classifiers(net):
            layer.requires_grad_(True)
    elif config.freeze:
        found = stages(net)
        if config.freeze > len(found):
            raise ValueError(
                f"freeze must be at most {len(found)}, the stages of {config.model}, got "
                f"{config.freeze}"
            )
        frozen = {name for names in found[: config.freeze] for name in names}
        for name, parameter in net.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)


def frozen_modules(net: nn.Module) -> Iterator[nn.Module]:
    """Find the largest parts of a network whose parameters are all frozen.

    They belong into evaluation mode: otherwise norms would go on gathering statistics.
    """
    parameters = list(net.parameters())
    if not parameters:
        return
    if not any(parameter.requires_grad for parameter in parameters):
        yield net
        return
    for child in net.children():
        yield from frozen_modules(child)


def _classifiers(net: nn.Module) -> list[nn.Module]:
    found = net.get_classifier()  # type: ignore[operator]
    return list(found) if isinstance(found, tuple | list) else [found]
