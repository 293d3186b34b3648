"""The chance of a step: dropout, drop path and mixing, whatever came before."""

from __future__ import annotations

import random

import numpy as np
import torch

__all__ = ["seed_step"]


def seed_step(
    seed: int, epoch: int, batch: int, rank: int, device: torch.device | str = "cpu"
) -> None:
    """Seed all generators that a training step draws from.

    A step then depends on nothing before it: a run that was interrupted there repeats it.

    Args:
        seed: The run's seed.
        epoch: Number of the epoch, from 0.
        batch: Number of the batch in it, from 0.
        rank: Number of the process; each has a chance of its own.
        device: Where the step computes.

    Example:
        >>> seed_step(0, 3, 7, 0)
        >>> first = torch.rand(1)
        >>> seed_step(0, 3, 7, 0)
        >>> torch.equal(torch.rand(1), first)
        True
    """
    # The last word keeps it apart from what the samples' augmentation draws.
    words = np.random.SeedSequence((seed, epoch, batch, rank, 1)).generate_state(3).tolist()
    random.seed(words[0])
    np.random.seed(words[1])  # noqa: NPY002 - what timm mixes with
    # Not torch.manual_seed, which tells every device there is and takes a millisecond to do so.
    torch.default_generator.manual_seed(words[2])
    device = torch.device(device)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(words[2])
