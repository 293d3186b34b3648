"""Paired timing: two contestants take turns in one process, so that noise hits both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Work = Callable[[], Any]


def timed(work: Work, device: str) -> float:
    """Return the seconds one call takes, its work on the device included."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def settle(work: Work, device: str, seconds: float = 0.1, at_least: int = 2) -> float:
    """Call until caches, pools and clocks have settled; return the seconds of a call by then."""
    spent, calls, last = 0.0, 0, 0.0
    while calls < at_least or spent < seconds:
        last = timed(work, device)
        spent, calls = spent + last, calls + 1
        if spent > 20 * seconds:
            break
    return last


def paired(ours: Work, peer: Work, device: str, *, budget: float, most: int = 60) -> dict[str, Any]:
    """Time both in turns; their order changes from pair to pair.

    Args:
        ours: The subject.
        peer: What it is compared with.
        device: ``"cpu"`` or ``"cuda"``.
        budget: Seconds to spend, about. At least five pairs are run.
        most: Pairs to run at the most.

    Returns:
        ``ours_ms``, ``peer_ms`` and ``ratio`` (peer over ours, pair by pair), each with
        ``median``, ``p10`` and ``p90``; and ``pairs``.
    """
    cost = settle(ours, device) + settle(peer, device)
    pairs = max(5, min(most, int(budget / max(cost, 1e-6))))
    samples: list[tuple[float, float]] = []
    for i in range(pairs):
        if i % 2:
            other = timed(peer, device)
            samples.append((timed(ours, device), other))
        else:
            own = timed(ours, device)
            samples.append((own, timed(peer, device)))
    return {
        "ours_ms": spread([1e3 * own for own, _ in samples]),
        "peer_ms": spread([1e3 * other for _, other in samples]),
        "ratio": spread([other / own for own, other in samples]),
        "pairs": pairs,
    }


def alone(work: Work, device: str, *, budget: float, most: int = 200) -> dict[str, float]:
    """Time one contestant; milliseconds as :func:`spread` gives them."""
    cost = settle(work, device)
    calls = max(10, min(most, int(budget / max(cost, 1e-6))))
    return spread([1e3 * timed(work, device) for _ in range(calls)])


def fastest(contestants: dict[str, Work], device: str) -> str:
    """Return the name of the quickest contestant, by the best of a few calls each.

    One that is twice as slow as another after it has settled is not called again.
    """
    best: dict[str, float] = {}
    for name, work in contestants.items():
        last = settle(work, device)
        calls = 3 if last < 2 * min(best.values(), default=last) else 0
        best[name] = min([last, *(timed(work, device) for _ in range(calls))])
    return min(best, key=lambda name: best[name])


def spread(values: list[float]) -> dict[str, float]:
    """Return the median and the tenth and ninetieth percentile."""
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return {"median": statistics.median(values), "p10": deciles[0], "p90": deciles[8]}
