"""Keeping images for validation where the data itself sets none apart."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

__all__ = ["VALIDATION_SHARE", "split"]

VALIDATION_SHARE = 0.2
"""How much is kept for validation."""


def split(labels: Sequence[int], share: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Divide positions into two lists, with the same mixture of labels in both.

    Args:
        labels: One label for each position.
        share: How much of each label goes into the second list, at least one if there are two.
        seed: Draws another division.

    Returns:
        Positions in ascending order.

    Example:
        >>> split([0, 0, 0, 0, 1, 1, 1, 1], share=0.25)
        ([0, 1, 2, 4, 5, 6], [3, 7])
    """
    by_label = defaultdict(list)
    for position, label in enumerate(labels):
        by_label[label].append(position)
    rng = random.Random(seed)
    second: set[int] = set()
    for _, positions in sorted(by_label.items()):
        count = round(len(positions) * share) or min(1, len(positions) - 1)
        second.update(rng.sample(positions, count))
    return [i for i in range(len(labels)) if i not in second], sorted(second)
