"""The networks: timm models built from the operators, registered on import.

>>> import timm, volution
>>> timm.create_model("rednet26", num_classes=10, device="meta").num_classes
10
"""

from __future__ import annotations

import timm

from volution.models import hornet, rednet, resnet_xvolution, transxnet, van
from volution.models.hornet import HorNet
from volution.models.official import load_official
from volution.models.rednet import RedNet
from volution.models.resnet_xvolution import XvolutionResNet
from volution.models.transxnet import TransXNet
from volution.models.van import VAN

__all__ = [
    "VAN",
    "HorNet",
    "RedNet",
    "TransXNet",
    "XvolutionResNet",
    "hornet",
    "list_models",
    "load_official",
    "rednet",
    "reported_top1",
    "resnet_xvolution",
    "transxnet",
    "van",
]

_FAMILIES = (hornet, rednet, resnet_xvolution, transxnet, van)
_REPORTED_TOP1 = {name: top1 for family in _FAMILIES for name, top1 in family.REPORTED_TOP1.items()}


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of volution's networks, for :func:`timm.create_model`.

    Args:
        pattern: Shell-style wildcards that the names match.

    Returns:
        Names in natural order; empty if none matches.

    Example:
        >>> list_models("rednet1*")
        ['rednet101', 'rednet152']
    """
    return [
        name
        for name in timm.list_models(pattern)
        if timm.model_entrypoint(name).__module__.startswith(f"{__name__}.")
    ]


def reported_top1(name: str) -> float | None:
    """Return a network's ImageNet-1k top-1 in per cent as its authors report it, if they do.

    Example:
        >>> reported_top1("rednet50")
        78.35
    """
    return _REPORTED_TOP1.get(name)
