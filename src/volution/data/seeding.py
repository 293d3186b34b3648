"""Chance that depends on nothing but a seed, an epoch and a sample."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["sample_seed", "seed_all", "undisturbed"]


def sample_seed(seed: int, epoch: int, position: int, repeat: int = 0) -> int:
    """Return the seed of one sample's augmentation.

    It depends on its arguments alone: not on order, workers or ranks.

    Args:
        seed: The run's seed, at least 0.
        epoch: Number of the epoch, from 0.
        position: Position of the sample in the data, or any number of its own.
        repeat: Which of its repetitions within the epoch this is, from 0.

    Example:
        >>> sample_seed(0, 3, 7) == sample_seed(0, 3, 7)
        True
        >>> len({sample_seed(0, epoch, position) for epoch in range(9) for position in range(9)})
        81
    """
    sequence = np.random.SeedSequence((seed, epoch, position, repeat))
    return int(sequence.generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Seed the three generators that transforms draw from."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    # Not torch.manual_seed, which also tells every GPU and takes a millisecond to do so.
    torch.default_generator.manual_seed(seed)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave the three generators as they were before.

    That takes longer than seeding them, so it goes around many samples rather than each.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
