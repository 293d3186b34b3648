"""Check the operators on this machine's GPU and measure them: one command, one JSON.

    python tests/gpu_check.py --out gpu.json

Runs from the source tree: nothing is installed, built or downloaded. Needs torch, triton, timm,
numpy, safetensors and pytest. The operators' whole contract runs on CUDA, then the benchmark in
float32 and bfloat16, and only behind green tests. Exit code 0 if all is well, 1 if a test failed,
2 without a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["torch", "triton", "timm", "numpy", "safetensors", "pytest"]


class Counter:
    """A pytest plugin that counts outcomes and keeps the names of what failed."""

    def __init__(self) -> None:
        self.counts = {"passed": 0, "failed": 0, "skipped": 0, "error": 0, "on_cuda": 0}
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            broken = report.outcome == "failed" and report.when != "call"
            self.counts["error" if broken else report.outcome] += 1
            self.counts["on_cuda"] += report.outcome == "passed" and "cuda" in report.nodeid
        if report.outcome == "failed":
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.counts["error"] += 1
            self.failed.append(report.nodeid)


def run_tests(extra: list[str]) -> dict[str, Any]:
    """Run the operators' tests, without plugins and without the settings of pyproject.toml."""
    import pytest

    counter = Counter()
    began = time.perf_counter()
    # pytest's own file of settings may ask for plugins or options that are not here.
    arguments = ["-c", os.devnull, "--rootdir", str(ROOT), "-p", "no:cacheprovider", "-q"]
    arguments += ["-o", "pythonpath=" + str(ROOT / "tests"), "-m", "not slow", "-W", "ignore"]
    arguments += ["--tb=short", "--show-capture=no", *extra, str(ROOT / "tests" / "ops")]
    code = int(pytest.main(arguments, plugins=[counter]))
    seconds = round(time.perf_counter() - began, 1)
    return {"exit_code": code, "seconds": seconds, **counter.counts, "failures": counter.failed}


def run_benchmark() -> dict[str, Any]:
    """Measure the operators in float32 and bfloat16."""
    from volution import bench

    return bench.run_gpu(dtypes=("float32", "bfloat16"))


def describe() -> dict[str, Any]:
    """Name the machine, the versions and the commit."""
    import torch

    gpu = torch.cuda.get_device_properties(0)
    versions = {
        name: getattr(importlib.import_module(name), "__version__", "") for name in PACKAGES
    }
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    return {
        "gpu": gpu.name,
        "compute_capability": f"{gpu.major}.{gpu.minor}",
        "memory_gib": round(gpu.total_memory / 2**30, 1),
        "multiprocessors": gpu.multi_processor_count,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": versions,
        # A copied tree may come without its history.
        "commit": commit.stdout.strip() or "unknown",
        "uncommitted_changes": bool(changed.stdout.strip()) if commit.returncode == 0 else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Check and measure the operators on a GPU.")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="file to write")
    parser.add_argument("--no-bench", action="store_true", help="leave the benchmark out")
    known, extra = parser.parse_known_args()

    # cuBLAS must know before CUDA starts that it is to be deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    # Subprocesses of the tests have to find the package too.
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    import torch

    if not torch.cuda.is_available():
        sys.stdout.write("gpu-check: this machine has no CUDA GPU that torch can use\n")
        return 2
    known.out.touch()  # an unwritable place is better known before the tests than after
    result: dict[str, Any] = {"machine": describe(), "tests": run_tests(extra)}
    failed = result["tests"]["exit_code"] != 0 or result["tests"]["on_cuda"] == 0
    if not failed and not known.no_bench:
        result["benchmark"] = run_benchmark()
    known.out.write_text(json.dumps(result, indent=2) + "\n")
    counts = {key: value for key, value in result["tests"].items() if key != "failures"}
    sys.stdout.write(f"gpu-check: {counts}, written to {known.out}\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
