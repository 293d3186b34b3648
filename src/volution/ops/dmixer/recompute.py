"""Making maps again in the backward pass instead of keeping them.

Activations, norms and depthwise convolutions are little arithmetic, with a stored map after each.
Where norms are frozen, as detectors have them (with BatchNorm in training a second pass would count
the batch twice), large maps are made again from the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from volution.ops import _library

# Bytes of a map from which memory is worth the time of making it again.
LARGE = 2**21


def pays(x: Tensor, channels: int, known: Sequence[Any]) -> bool:
    """Return whether maps of ``channels`` should be made again rather than kept.

    Args:
        x: The map they are made from.
        channels: Their width.
        known: What each norm on the way does, see :func:`volution.ops.dmixer.norm.fixed`; None
            for a norm that is not frozen.
    """
    n, _, height, width = x.shape
    if not torch.is_grad_enabled() or any(norm is None for norm in known):
        return False
    # Compilers decide for themselves what to keep; functional transforms know no checkpoints.
    watched = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if watched or _library.wants_plain():
        return False
    return n * channels * height * width * x.element_size() >= LARGE


def recompute(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``function(x)``, of which nothing but ``x`` is kept for the backward pass."""
    made: Tensor = checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
    return made
