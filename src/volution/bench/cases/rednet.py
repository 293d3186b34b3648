"""RedNet-50 as people run it: inference and a training step, against unfolding involutions."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional as F

from volution.bench import runner
from volution.bench.cases.involution import WrongResultError
from volution.bench.peers import with_unfold

MODEL = "rednet50"


def build(form: str, device: str, layout: torch.memory_format, *, size: int) -> nn.Module:
    """Return the network with random statistics; ``form`` is ``"ours"`` or ``"unfold"``."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(MODEL, num_classes=1000 if size >= 224 else 10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # the default zeros would switch branches off
            nn.init.uniform_(module.weight, 0.5, 1.0)
    model = with_unfold(model) if form == "unfold" else model
    return model.to(device).to(memory_format=layout)


def measure(device: str, *, size: int, budget: float, compiled: bool) -> Iterator[dict[str, Any]]:
    """Yield inference at batch 4 and a training step at batch 8, at ``size`` by ``size`` pixels."""
    yield from _inference(device, size=size, budget=budget, compiled=compiled)
    yield _training(device, size=size, budget=budget)


def _inference(
    device: str, *, size: int, budget: float, compiled: bool
) -> Iterator[dict[str, Any]]:
    x = torch.randn(4, 3, size, size, device=device)
    contestants = {}
    for form in ("ours", "unfold"):
        for layout in (torch.contiguous_format, torch.channels_last):
            model = build(form, device, layout, size=size).eval()
            images = x.contiguous(memory_format=layout)
            label = f"{form}, {str(layout).removeprefix('torch.').removesuffix('_format')}"
            contestants[f"{label}, eager"] = _forward(model, images)
            # Ours is run as the README advises; the peer may choose its layout compiled as well.
            if compiled and (form == "unfold" or layout == torch.channels_last):
                contestants[f"{label}, compiled"] = _forward(torch.compile(model), images)
    _check_equal(contestants)
    quick = {}
    for form in ("ours", "unfold"):
        for mode in ("eager", "compiled") if compiled else ("eager",):
            chosen = {
                k: v for k, v in contestants.items() if k.startswith(form) and k.endswith(mode)
            }
            quick[form, mode] = runner.fastest(chosen, device)
    for (form, mode), ours in quick.items():
        for (other, peer_mode), peer in quick.items():
            if form == "ours" and other == "unfold":
                times = runner.paired(contestants[ours], contestants[peer], device, budget=budget)
                yield {
                    "case": f"{MODEL} inference, ours {mode}, peer {peer_mode}",
                    "batch": 4,
                    "image_size": size,
                    "dtype": "float32",
                    "direction": "forward",
                    "ours": ours,
                    "peer": peer,
                    **times,
                }


def _forward(model: Any, images: torch.Tensor) -> runner.Work:
    return torch.inference_mode()(partial(model, images))


def _check_equal(contestants: dict[str, runner.Work]) -> None:
    results = {name: work() for name, work in contestants.items()}
    first = next(iter(results.values()))
    for name, result in results.items():
        error = ((result - first).abs().max() / first.abs().max()).item()
        if not error < 1e-4:
            raise WrongResultError(f"{MODEL}, {name}: differs by {error:.1e} of the largest logit")


def _training(device: str, *, size: int, budget: float) -> dict[str, Any]:
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    steps = {
        f"{form}, {label}": training_step(form, device, layout, size=size)
        for form in ("ours", "unfold")
        for label, layout in layouts.items()
    }
    ours, peer = (
        runner.fastest({k: v for k, v in steps.items() if k.startswith(form)}, device)
        for form in ("ours", "unfold")
    )
    times = runner.paired(steps[ours], steps[peer], device, budget=budget)
    memory = {name: _peak_memory(name, device, size) for name in (ours, peer)}
    return {
        "case": f"{MODEL} training step",
        "batch": 8,
        "image_size": size,
        "dtype": "float32",
        "direction": "both",
        "ours": ours,
        "peer": peer,
        **times,
        "ours_peak_mib": memory[ours],
        "peer_peak_mib": memory[peer],
        "memory_share": memory[ours] / memory[peer],
    }


def training_step(form: str, device: str, layout: torch.memory_format, *, size: int) -> runner.Work:
    """Return a call that runs forward, loss, backward and an SGD update at batch 8."""
    model = build(form, device, layout, size=size).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(8, 3, size, size, device=device).contiguous(memory_format=layout)
    labels = torch.arange(8, device=device)

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()

    return step


def _peak_memory(name: str, device: str, size: int) -> float:
    """Return the MiB two training steps add, measured in a process of their own."""
    command = [sys.executable, "-m", "volution.bench.memory", name, device, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["peak_mib"])
