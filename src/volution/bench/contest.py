"""What cases share: the forms a peer may take, the gate before the clock, and the pairing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from volution.bench import runner

__all__ = [
    "LAYOUTS",
    "Wanted",
    "WrongResultError",
    "against_each_mode",
    "check_close",
    "dtype_name",
    "forms",
]

Wanted = Callable[[str], bool]
"""Says by its name whether a case is to be measured."""

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class WrongResultError(RuntimeError):
    """A contestant does not compute what it should; its time would mean nothing."""


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def check_close(what: str, got: Tensor, want: Tensor, allowed: float) -> None:
    """Raise :class:`WrongResultError` if a value is off by more than a share of the largest."""
    error = ((got.double() - want).abs().max() / want.abs().max()).item()
    if not error <= allowed:
        raise WrongResultError(
            f"{what}: error {error:.1e} of the largest value, allowed {allowed:.0e}"
        )


def forms(
    function: Callable[..., Tensor],
    operands: Sequence[Tensor],
    work: Callable[..., runner.Work],
    *,
    compiled: bool,
) -> dict[str, runner.Work]:
    """Return a peer's work in each memory format, eager and, if wanted, compiled.

    Args:
        function: The peer.
        operands: Its tensors.
        work: Makes the work of a function and operands that are laid out.
        compiled: Add the compiled forms, which are compiled by the time this returns.
    """
    found = {}
    for name, layout in LAYOUTS.items():
        laid_out = [t.contiguous(memory_format=layout) if t.dim() == 4 else t for t in operands]
        found[f"{name}, eager"] = work(function, *laid_out)
        if compiled:
            torch._dynamo.reset()
            found[f"{name}, compiled"] = work(torch.compile(function, dynamic=False), *laid_out)
            found[f"{name}, compiled"]()
    return found


def against_each_mode(
    ours: runner.Work, peers: dict[str, runner.Work], label: str, device: str, budget: float
) -> dict[str, Any]:
    """Pair ours with the peer's fastest eager and fastest compiled form.

    Returns:
        The times against the fastest of all, and under ``peers`` those against each mode.
    """
    rivals = list(_rivals(ours, peers, label, device, budget))
    closest = min(rivals, key=lambda rival: rival["ratio"]["median"])
    return {**closest, "peers": rivals}


def _rivals(
    ours: runner.Work, peers: dict[str, runner.Work], label: str, device: str, budget: float
) -> Iterator[dict[str, Any]]:
    for mode in ("eager", "compiled"):
        candidates = {name: work for name, work in peers.items() if name.endswith(mode)}
        if candidates:
            best = runner.fastest(candidates, device)
            times = runner.paired(ours, candidates[best], device, budget=budget)
            yield {"peer": f"{label}, {best}", **times}
