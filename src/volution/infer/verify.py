"""Whether a network is as good here as its authors report."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from volution import models
from volution._support.names import unknown
from volution.infer.evaluate import Evaluation

__all__ = ["Verification", "reported_share", "verify"]


@dataclass(frozen=True)
class Verification:
    """A reported accuracy and a measured one.

    Args:
        name: The network.
        reported: Share of images that are right, as its authors report it.
        rounding: Half a unit of the last digit that they report.
        evaluation: What was measured.
    """

    name: str
    reported: float
    rounding: float
    evaluation: Evaluation

    @property
    def difference(self) -> float:
        """Measured less reported."""
        return self.evaluation.top1 - self.reported

    @property
    def interval(self) -> tuple[float, float]:
        """Shares that would fit what was measured: Wilson's 95 % interval for as many images."""
        return self.evaluation.interval

    @property
    def passed(self) -> bool:
        """Whether a share that rounds to the reported one lies in the interval."""
        low, high = self.interval
        return low <= self.reported + self.rounding and high >= self.reported - self.rounding


def reported_share(name: str) -> tuple[float, float]:
    """Return the top-1 that a network's authors report, and half a unit of its last digit.

    Both as shares. Raises ``ValueError`` if there is no such network, or they report none.

    Example:
        >>> share, rounding = reported_share("van_b0")
        >>> round(share, 4), round(rounding, 6)
        (0.754, 0.0005)
    """
    known = models.list_models()
    base, _, tag = name.partition(".")
    if base not in known:
        raise ValueError(unknown("network of volution", base, known, more="see `volution list`"))
    # What the authors report is of their ImageNet-1k weights, tag in1k.
    top1 = models.reported_top1(base if tag in ("", "in1k") else name)
    if top1 is None:
        raise ValueError(
            f"name: the authors of {name} report no ImageNet-1k top-1 for these weights; see "
            f"`volution list` for the networks that have one"
        )
    digits = -int(Decimal(str(top1)).as_tuple().exponent)
    return top1 / 100, 0.5 * 10 ** -(digits + 2)


def verify(name: str, evaluation: Evaluation) -> Verification:
    """Compare a measurement with what a network's authors report.

    The images measured are taken as a sample: the question is whether the reported accuracy is one
    that could have given this measurement, at 95 %. On the 50,000 validation images of ImageNet
    that allows 0.4 points or so in either direction, plus the rounding of the reported figure.

    Args:
        name: The network's name in timm.
        evaluation: What was measured with its weights.

    Raises:
        ValueError: If there is no such network, or its authors report no accuracy.
    """
    reported, rounding = reported_share(name)
    return Verification(name, reported, rounding, evaluation)
