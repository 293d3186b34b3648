"""Measure this machine: operators and networks against what people run today, side by side.

Every case first proves that all contestants compute the right thing; a time is only taken after
that. Contestants take turns in one process, and what is reported is the ratio of each pair.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from volution._support.environment import environment
from volution.bench.cases import (
    depthwise,
    dmixer,
    involution,
    large_images,
    networks,
    scaling,
    xvolution,
)
from volution.bench.contest import Wanted, WrongResultError
from volution.bench.peaks import measure_peaks

__all__ = ["WrongResultError", "measure_models", "measure_ops", "run", "run_gpu", "write_results"]

SCHEMA = 1


def measure_ops(
    device: str, dtypes: list[torch.dtype], *, quick: bool = False, only: str = ""
) -> Iterator[dict[str, Any]]:
    """Yield the operator cases; ``quick`` leaves the compiled peers out and spends less time.

    ``only`` is a pattern as of :mod:`fnmatch`, which a part of a case's name has to match.
    """
    batch, wanted = (128 if device == "cuda" else 4), _chooser(only)
    settings: dict[str, Any] = {"batch": batch, "compiled": not quick, "wanted": wanted}
    yield from depthwise.measure(device, dtypes, budget=0.2 if quick else 1.0, **settings)
    several = settings | {"batch": max(batch, dmixer.BATCH)}
    yield from dmixer.measure(device, dtypes, budget=0.2 if quick else 1.0, **several)
    yield from involution.measure(device, dtypes, budget=0.5 if quick else 3.0, **settings)
    yield from xvolution.measure(device, dtypes, budget=0.2 if quick else 2.0, **settings)
    sides = scaling.SIDES[:3] if quick else scaling.SIDES
    yield from scaling.measure(device, budget=0.1 if quick else 1.0, sides=sides, wanted=wanted)


def measure_models(device: str, *, quick: bool = False, only: str = "") -> Iterator[dict[str, Any]]:
    """Yield the network cases; ``quick`` runs small images and leaves compiling out.

    ``only`` is as in :func:`measure_ops`.
    """
    size, budget = (64, 0.5) if quick else (224, 5.0)
    wanted = _chooser(only)
    yield from networks.measure(device, size=size, budget=budget, compiled=not quick, wanted=wanted)
    large = (160, 224) if quick else large_images.SIZE
    yield from large_images.measure(device, size=large, wanted=wanted)


def _chooser(only: str) -> Wanted:
    pattern = f"*{only.lower()}*"
    return lambda name: fnmatch.fnmatchcase(name.lower(), pattern)


def run_gpu(dtypes: Sequence[str] = ("float32", "bfloat16")) -> dict[str, Any]:
    """Measure the operators on the GPU and return peaks and results; needs nothing but torch."""
    return {
        "peaks": measure_peaks("cuda"),
        "results": list(measure_ops("cuda", [getattr(torch, name) for name in dtypes])),
    }


def run(
    what: str = "ops",
    *,
    out: Path | None = None,
    quick: bool = False,
    only: str = "",
    as_json: bool = False,
) -> int:
    """Measure, show a table and write the results.

    Args:
        what: ``"ops"`` or ``"models"``.
        out: File to write; a name made of machine and version in the current folder's
            ``benchmarks/results`` by default.
        quick: A rough look, with small images and without compiled forms.
        only: Run the cases whose name contains this, wildcards allowed, and write nothing unless
            ``out`` is given.
        as_json: Write JSON to standard output instead of the table.

    Returns:
        0, or 1 if a contestant computed something wrong (nothing is written then).

    Raises:
        ValueError: If ``what`` is neither of the two, or no case matches ``only``.
    """
    from volution._support.console import log
    from volution.bench.table import print_json, progress, show

    if what not in ("ops", "models"):
        raise ValueError(f"what must be ops or models, got {what!r}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with log.status("measuring what this machine can do at best"):
        peaks = measure_peaks(device)
    cases = (
        measure_ops(device, [torch.float32, torch.bfloat16], quick=quick, only=only)
        if what == "ops"
        else measure_models(device, quick=quick, only=only)
    )
    results = []
    try:
        with log.status(f"measuring {what}") as status:
            for result in cases:
                results.append(result)
                status.update(f"measuring {what}, {len(results)} done")
                log.print(progress(result), markup=False)
    except WrongResultError as error:
        log.print(f"[red]wrong result, nothing measured:[/] {error}")
        return 1
    if not results:
        raise ValueError(f"only: the name of no case contains {only!r}")
    record = {"what": what, "quick": quick, "device": device, "peaks": peaks, "results": results}
    if as_json:
        print_json({"schema": SCHEMA, **environment(), **record})
    else:
        show(record)
    # A part must not take the place of the whole.
    if out is not None or not only:
        log.print(f"written to {write_results(record, out)}")
    return 0


def write_results(record: dict[str, Any], out: Path | None = None) -> Path:
    """Write a record with the environment it was measured in; return the file."""
    where = environment()
    if out is None:
        gpus = where["machine"]["gpus"]
        machine = gpus[0] if gpus else f"{where['machine']['processor']} {torch.get_num_threads()}t"
        words = f"{record['what']} {machine} {where['versions']['volution']}"
        if record.get("quick"):
            words += " quick"
        out = Path("benchmarks/results") / (re.sub(r"[^a-z0-9.]+", "-", words.lower()) + ".json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"schema": SCHEMA, **where, **record}, indent=1) + "\n")
    return out
