"""What cases share: the forms a peer may take, the gate before the clock, and the pairing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from volution.bench import runner

__all__ = [
    "LAYOUTS",
    "Wanted",
    "WrongResultError",
    "against_each_mode",
    "both_passes",
    "check_close",
    "check_passes",
    "dtype_name",
    "forms",
    "rates",
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


def check_passes(
    name: str,
    contestants: Mapping[str, Callable[..., Tensor]],
    definition: Callable[..., Tensor],
    operands: Sequence[Tensor],
    allowed: Mapping[str, float],
    *,
    slack: int = 1,
) -> None:
    """Raise :class:`WrongResultError` unless every contestant agrees with float64, both ways.

    Args:
        name: The case.
        contestants: Functions of all operands but the last.
        definition: The function in float64.
        operands: The inputs, and the gradient of the output.
        allowed: The error allowed for the output and for each input's gradient, by their names.
        slack: How many times as much is allowed for any other contestant than ``"ours"``.
    """
    want = _results(definition, [t.double() for t in operands])
    for who, function in contestants.items():
        times = 1 if who == "ours" else slack
        found = zip(allowed.items(), _results(function, operands), want, strict=True)
        for (part, share), got, correct in found:
            what = f"{name}, {who}, {part}, {operands[0].dtype}"
            check_close(what, got, correct, times * share)


def _results(function: Callable[..., Tensor], operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    *inputs, grad = (t.detach() for t in operands)
    inputs = [t.clone().requires_grad_() for t in inputs]
    y = function(*inputs)
    return y.detach(), *torch.autograd.grad(y, inputs, grad)


def both_passes(
    ours: Callable[..., Tensor],
    peer: Callable[..., Tensor],
    label: str,
    operands: Sequence[Tensor],
    device: str,
    *,
    budget: float,
    compiled: bool,
) -> Iterator[dict[str, Any]]:
    """Pair ours with a peer in each of its forms, forward and backward for all inputs.

    Args:
        ours: The subject, a function of all operands but the last.
        peer: What it is compared with.
        label: What the peer is called.
        operands: The inputs, and the gradient of the output.
        device: ``"cpu"`` or ``"cuda"``.
        budget: Seconds for each pair of contestants.
        compiled: Let the peer run under :func:`torch.compile` as well, and keep its fastest form.
    """
    for direction in ("forward", "backward"):
        peers = forms(peer, operands, partial(_work, direction), compiled=compiled)
        work = _work(direction, ours, *operands)
        yield {
            "dtype": dtype_name(operands[0].dtype),
            "direction": direction,
            **against_each_mode(work, peers, label, device, budget),
        }


def _work(direction: str, function: Callable[..., Tensor], *operands: Tensor) -> runner.Work:
    *inputs, grad = operands
    if direction == "forward":
        return torch.no_grad()(partial(function, *inputs))
    inputs = [t.detach().requires_grad_() for t in inputs]
    y = function(*inputs)
    return partial(torch.autograd.grad, y, inputs, grad, retain_graph=True)


def rates(moved: int, flops: int, milliseconds: float) -> dict[str, float]:
    """Return the rates of a call that moves so many bytes and does so many operations."""
    return {"gbps": moved / milliseconds / 1e6, "gflops": flops / milliseconds / 1e6}


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
