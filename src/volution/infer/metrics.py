"""How sure a classifier is, whether it may be, and how sure one may be of its accuracy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["BINS", "Calibration", "standard_error", "wilson_interval"]

BINS = 15
"""Bins of equal width into which confidences from 0 to 1 are sorted."""

# Two-sided, 95 %.
_Z = 1.959963984540054


class Calibration:
    """Compares how sure a network is with how often it is right, batch after batch.

    The confidence of a prediction is the greatest softmax probability. It is sorted into 15 bins
    of equal width, the ``b``-th holding confidences in ``((b - 1) / 15, b / 15]``.

    Attributes:
        bins: For each bin the number of images, the sum of their confidences, and the number of
            those that were right, shape ``(15, 3)``.

    Example:
        >>> calibration = Calibration()
        >>> sure = torch.tensor([[0.8, 0.2]]).log()  # sure to 80 %, whatever it is
        >>> for label in (0, 0, 0, 1):
        ...     calibration.update(sure, torch.tensor([label]))
        >>> round(calibration.ece, 3), round(calibration.nll, 3)
        (0.05, 0.57)
    """

    def __init__(self) -> None:
        self.bins = torch.zeros(BINS, 3, dtype=torch.float64)
        self._surprise = 0.0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: ``(N, num_classes)`` and ``(N,)``."""
        if not len(labels):
            return
        labels = labels.cpu()
        # Double precision: the sum over a million images would lose what a single one adds.
        logp = logits.detach().cpu().double().log_softmax(1)
        best, predicted = logp.max(1)
        confidence = best.exp()
        place = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
        seen = torch.stack([torch.ones_like(best), confidence, (predicted == labels).double()], 1)
        self.bins.index_add_(0, place, seen)
        self._surprise -= float(logp.gather(1, labels[:, None]).sum())

    @property
    def count(self) -> int:
        """Images so far."""
        return int(self.bins[:, 0].sum())

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood of the right class, in nats; NaN without images."""
        return self._surprise / self.count if self.count else float("nan")

    @property
    def ece(self) -> float:
        r"""Expected calibration error; NaN without images.

        :math:`\sum_b \frac{n_b}{n} |a_b - c_b|` over the bins, with :math:`n_b` the images of a
        bin, :math:`a_b` the share of them that is right and :math:`c_b` their mean confidence.
        0 is best: of the images it is sure of to 80 %, the network is right on 80 %.
        """
        if not self.count:
            return float("nan")
        return float((self.bins[:, 2] - self.bins[:, 1]).abs().sum() / self.count)


def standard_error(share: float, count: int) -> float:
    """Return the standard error of a share that was counted in independent images.

    Args:
        share: From 0 to 1.
        count: Images it was counted in.

    Example:
        >>> round(100 * standard_error(0.754, 50_000), 3)  # in per cent
        0.193
    """
    return math.sqrt(share * (1 - share) / count) if count else float("nan")


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of Wilson for a share.

    Unlike the share plus or minus two standard errors it holds for few images and for shares near
    0 and 1, and does not leave the range from 0 to 1.

    Args:
        share: From 0 to 1.
        count: Independent images it was counted in.

    Returns:
        Lower and upper end; NaN without images.

    Example:
        >>> low, high = wilson_interval(1.0, 10)
        >>> round(low, 3), round(high, 3)
        (0.722, 1.0)
    """
    if not count:
        return float("nan"), float("nan")
    spread = _Z**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
