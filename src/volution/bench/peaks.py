"""What this machine can do at best: the floors that measured times are held against."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from volution.bench.runner import alone


def measure_peaks(device: str, *, budget: float = 1.0) -> dict[str, Any]:
    """Measure copy bandwidth and matrix-product rate.

    Returns:
        ``copy_gbps``: a copy far larger than the caches, bytes read plus bytes written, best tenth.
        ``gemm_gflops_float32``: the better of a square matrix product and a 1x1 convolution in
        channels-last, which run on different libraries on the CPU.
    """
    size = 2**28 if device == "cuda" else 2**24
    source = torch.randn(size, device=device)
    target = torch.empty_like(source)
    copy_ms = alone(lambda: target.copy_(source), device, budget=budget)["p10"]
    return {
        "copy_gbps": 8 * size / copy_ms / 1e6,
        "gemm_gflops_float32": max(_matmul(device, budget), _pointwise(device, budget)),
    }


def _matmul(device: str, budget: float) -> float:
    n = 8192 if device == "cuda" else 1536
    a = torch.randn(n, n, device=device)
    return float(2e-6 * n**3 / alone(lambda: a @ a, device, budget=budget)["p10"])


def _pointwise(device: str, budget: float) -> float:
    n, c, side = (64, 512, 56) if device == "cuda" else (4, 256, 56)
    x = torch.randn(n, c, side, side, device=device).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(c, c, 1, 1, device=device)
    flops = 2 * n * side * side * c * c
    return 1e-6 * flops / alone(lambda: F.conv2d(x, weight), device, budget=budget)["p10"]
