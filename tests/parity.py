"""Comparison with the authors' code through the recorded fixtures.

The fixtures lie beside the repository, in ``../shared/parity``, or in ``$VOLUTION_SHARED/parity``.
Their README defines the measure and the tolerances used here. Where the folder is absent, tests
marked with :data:`needs_fixtures` are skipped and say so.

    @parity.needs_fixtures
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_layer(dtype):
        parity.compare(parity.load("involution_c32_k7_s1"), Involution2d(32), dtype)
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("VOLUTION_SHARED", ROOT.parent / "shared"))
FOLDER = SHARED / "parity"
available = (FOLDER / "det.py").is_file()

needs_fixtures = pytest.mark.skipif(
    not available,
    reason="no parity fixtures: expected in ../shared/parity, or under $VOLUTION_SHARED/parity",
)

_GIVEN = {torch.float64: 3e-7, torch.float32: 5e-6}


@cache
def det() -> ModuleType:
    """The fixtures' generator of weights and inputs."""
    spec = importlib.util.spec_from_file_location("parity_det", FOLDER / "det.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Fixture:
    """One fixture: its description and its stored values."""

    meta: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    @property
    def name(self) -> str:
        return self.meta["fixture"]

    def weights(self) -> dict[str, Tensor]:
        """The authors' state dict, in float32; raises if the generator drew something else."""
        state = det().det_state_dict(self.meta["manifest"])
        _check_sum(self.name, "weights", state.values(), self.meta["checksums"])
        return state

    def inputs(self, dtype: torch.dtype) -> list[Tensor]:
        """The inputs, drawn in float32 and then converted."""
        drawn = [
            torch.from_numpy(det().det_input(name, item["shape"]) * np.float32(item["scale"]))
            for name, item in self.meta["inputs"].items()
        ]
        _check_sum(self.name, "inputs", drawn, self.meta["checksums"])
        return [tensor.to(dtype) for tensor in drawn]

    def cotangent(self, output: Tensor, index: int | None = None) -> Tensor:
        """The gradient that is sent into an output (``index`` counts where there are several)."""
        name = f"{self.name}/cotangent" + ("" if index is None else f"/{index}")
        return torch.from_numpy(det().det_input(name, output.shape)).to(output.dtype)

    def error(self, key: str, tensor: Tensor) -> float:
        """Largest difference over largest reference magnitude, over the stored values."""
        shape = self.meta["tensors"][key]["shape"]
        assert list(tensor.shape) == shape, (
            f"{self.name}: {key} is {list(tensor.shape)}, not {shape}"
        )
        got = tensor.detach().double().contiguous().numpy()
        if key in self.arrays:
            want = self.arrays[key]
        else:
            got = got.reshape(-1)[self.arrays[f"{key}__idx"].astype(np.int64)]
            want = self.arrays[f"{key}__val"]
        difference = np.abs(got - want).max(initial=0.0)
        # max() of numpy, unlike Python's, keeps a NaN, and a NaN passes no comparison below.
        return float(difference) / self._scale(key)

    def allowed(self, key: str, dtype: torch.dtype) -> float:
        """The README's tolerance for one tensor."""
        if dtype == torch.float64:
            return _GIVEN[dtype]
        noise = self.meta["tensors"][key]["noise"]["max_abs"]
        return _GIVEN[dtype] + 20 * noise / self._scale(key)

    def check(self, got: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Assert that every tensor is within tolerance; the message lists all that are not."""
        bad = []
        for key, tensor in got.items():
            error, allowed = self.error(key, tensor), self.allowed(key, dtype)
            if not error <= allowed:
                bad.append(f"  {key}: error {error:.1e}, allowed {allowed:.1e}")
        assert not bad, f"{self.name} in {dtype}:\n" + "\n".join(bad)

    def _scale(self, key: str) -> float:
        info = self.meta["tensors"][key]
        if info["l2"] > 1e-12:
            return max(info["max_abs"], 1e-30)
        # Zero by mathematics: judged on the scale of the largest gradient.
        tensors = self.meta["tensors"].items()
        return max(item["max_abs"] for name, item in tensors if name.startswith("grad"))


@cache
def load(name: str) -> Fixture:
    """Read a fixture of ``operators`` or ``backbones`` by its name."""
    path = next(FOLDER.rglob(f"{name}.json"), None)
    if path is None:
        raise FileNotFoundError(f"no parity fixture is called {name!r}")
    with np.load(path.with_suffix(".npz")) as arrays:
        return Fixture(json.loads(path.read_text()), dict(arrays))


def names(prefix: str) -> list[str]:
    """The operator and block fixtures whose names start so; empty where the folder is absent."""
    return sorted(path.stem for path in FOLDER.glob(f"operators/{prefix}*.json"))


def official_name(name: str) -> str:
    """Our parameter name as the authors' state dict has it."""
    return name.replace("kernel_generator.", "")


def outputs_and_gradients(
    fixture: Fixture,
    module: nn.Module,
    dtype: torch.dtype,
    rename: Callable[[str], str] = official_name,
) -> dict[str, Tensor]:
    """Load the authors' weights, run forward and backward, name the results as the fixture does."""
    module.load_state_dict(fixture.weights(), strict=True)
    module.to(dtype).train(fixture.meta["mode"] == "train")
    inputs = [x.requires_grad_() for x in fixture.inputs(dtype)]
    result = module(*inputs)
    outputs = list(result) if isinstance(result, tuple | list) else [result]
    many = len(outputs) > 1
    cotangents = [fixture.cotangent(y, i if many else None) for i, y in enumerate(outputs)]
    torch.autograd.backward(outputs, cotangents)
    got = {f"output/{i}" if many else "output": y for i, y in enumerate(outputs)}
    for i, x in enumerate(inputs):
        grad = torch.zeros_like(x) if x.grad is None else x.grad
        got[f"grad_input/{i}" if len(inputs) > 1 else "grad_input"] = grad
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            got[f"grad/{rename(name)}"] = parameter.grad
    if module.training:
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point():
                got[f"buffer/{rename(name)}"] = buffer
    return got


def compare(
    fixture: Fixture,
    module: nn.Module,
    dtype: torch.dtype,
    rename: Callable[[str], str] = official_name,
) -> None:
    """Assert that a module computes what the authors' does: outputs, gradients and buffers."""
    got = outputs_and_gradients(fixture, module, dtype, rename)
    missing = fixture.meta["tensors"].keys() - got.keys()
    assert not missing, f"{fixture.name}: not produced: {sorted(missing)}"
    fixture.check(got, dtype)


def _check_sum(name: str, kind: str, tensors: Any, checksums: Mapping[str, Any]) -> None:
    got = det().checksum([tensor.numpy() for tensor in tensors])["sum_of_squares"]
    want = checksums[kind]["sum_of_squares"]
    assert np.isclose(got, want, rtol=1e-6), (
        f"{name}: det.py draws other {kind} on this machine, sum of squares {got} and not {want}"
    )
