"""The moving average of the weights: timm's, with less to do at each step."""

from __future__ import annotations

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

__all__ = ["MovingAverage"]


class MovingAverage(ModelEmaV3):
    """An average of everything in a network, parameters and buffers, that follows it step by step.

    The average stays where the network is, a network shared among devices included.

    Args:
        model: The network; the average starts as its copy.
        decay: How much of the average stays at each step.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> average = MovingAverage(net, decay=0.75)
        >>> start = average.module.weight.item()
        >>> with torch.no_grad():
        ...     _ = net.weight.fill_(start + 1)
        >>> average.update(net)
        >>> round(average.module.weight.item() - start, 4)
        0.25
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, decay=decay)
        self.requires_grad_(False)
        self._pairs: dict[tuple[object, ...], tuple[list[Tensor], list[Tensor]]] | None = None
        self._whole: list[tuple[Tensor, Tensor]] = []

    def settle(self, model: nn.Module) -> None:
        """Look both networks' tensors up: again after any of them was replaced."""
        pairs: dict[tuple[object, ...], tuple[list[Tensor], list[Tensor]]] = {}
        self._whole = []
        theirs = model.state_dict(keep_vars=True)
        for name, mine in self.module.state_dict(keep_vars=True).items():
            if not mine.is_floating_point():
                self._whole.append((mine, theirs[name]))
                continue
            # What goes through one call: of one kind, one type, one place.
            group = pairs.setdefault((isinstance(mine, DTensor), mine.dtype, mine.device), ([], []))
            group[0].append(mine)
            group[1].append(theirs[name])
        self._pairs = pairs

    @torch.no_grad()
    def apply_update_(self, model: nn.Module, decay: float) -> None:
        if self._pairs is None:
            self.settle(model)
        assert self._pairs is not None
        for mine, theirs in self._pairs.values():
            torch._foreach_lerp_(mine, [t.detach() for t in theirs], 1.0 - decay)
        for counter, other in self._whole:
            counter.copy_(other)
