"""How an implementation is chosen, forced and reported, and what importing costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from implementations import force

from volution.ops import (
    _library,
    _native,
    correlate,
    gather,
    involution2d,
    reference_ops,
    report,
    scatter,
    window_offsets,
)
from volution.ops._shared.layout import as_map
from volution.ops._shared.neighbourhood import native

NAMES = {"gather", "scatter", "correlate"}


def operands(dtype=torch.float32):
    return torch.randn(1, 4, 5, 5).to(dtype), torch.randn(1, 2, 1, 5, 5).to(dtype), (0, 1)


@pytest.fixture
def calls(monkeypatch):
    """Record which implementation of gather runs."""
    seen = []
    operator = _library._OPERATORS["gather"]
    for name in ("native", "reference"):
        kernel = getattr(operator, name)

        def spy(*args, name=name, kernel=kernel):
            seen.append(name)
            return kernel(*args)

        monkeypatch.setattr(operator, name, spy)
    return seen


class TestChoice:
    def test_cpu_takes_the_compiled_library(self, calls):
        gather(*operands())
        assert calls == ["native" if _native.library else "reference"]

    def test_dtypes_the_library_does_not_list_take_the_reference(self, calls):
        gather(*operands(torch.float16))
        assert calls == ["reference"]

    def test_without_the_library_the_reference_runs_and_says_so_once(self, calls, monkeypatch):
        monkeypatch.setattr(_native, "library", None)
        monkeypatch.setattr(_native, "_said_missing", False)
        with pytest.warns(RuntimeWarning, match="volution runs on plain PyTorch") as said:
            gather(*operands())
        assert len(said) == 1
        gather(*operands())  # a second warning would be an error
        assert calls == ["reference", "reference"]

    def test_forcing_nests_and_ends_with_an_error(self, calls):
        def work() -> None:
            with force("reference"):
                gather(*operands())
                with reference_ops():
                    assert _library._forced == "plain"
                assert _library._forced == "reference"
                raise RuntimeError("inside")

        with pytest.raises(RuntimeError, match="inside"):
            work()
        assert _library._forced is None
        assert calls == ["reference"]

    def test_unknown_name_is_refused(self):
        with (
            pytest.raises(ValueError, match="name must be reference, native, triton or plain"),
            _library.forced_implementation("fast"),
        ):
            pass

    def test_reference_ops_keep_gradients_and_autocast(self):
        x, k = torch.randn(1, 4, 5, 5, requires_grad=True), torch.randn(1, 2, 3, 3, 5, 5)
        with reference_ops(), torch.autocast("cpu", torch.bfloat16):
            y = involution2d(x, k)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
        assert x.grad.dtype == torch.float32

    def test_backward_on_another_thread_is_forced_too(self, calls):
        from concurrent.futures import ThreadPoolExecutor

        with force("reference"), ThreadPoolExecutor(1) as pool:
            pool.submit(gather, *operands()).result()
        assert calls == ["reference"]


class TestReport:
    def test_has_a_row_for_each_operator_and_device(self):
        rows = report()
        assert {row["operator"] for row in rows} >= NAMES
        pairs = [(row["operator"], row["device"]) for row in rows]
        assert len(pairs) == len(set(pairs))
        assert {row["device"] for row in rows} == {"cpu", "cuda"}
        keys = {"operator", "device", "implementation", "dtypes", "why"}
        assert all(set(row) == keys and all(row.values()) for row in rows)

    def test_tells_the_truth_about_the_cpu(self, monkeypatch):
        def on_cpu():
            rows = [row for row in report() if row["device"] == "cpu"]
            return {row["implementation"] for row in rows if row["operator"] in kernels}

        kernels = {operator.name for operator in _library.operators() if operator.native}
        assert kernels >= NAMES

        assert on_cpu() == {"native" if _native.library else "reference"}
        with force("reference"):
            assert on_cpu() == {"reference"}
        monkeypatch.setattr(_native, "library", None)
        assert on_cpu() == {"reference"}

    def test_tells_when_triton_is_missing(self, monkeypatch):
        monkeypatch.setattr(_library, "missing_triton", lambda: "triton is not installed")
        kernels = {operator.name for operator in _library.operators() if operator.triton_module}
        assert kernels >= NAMES
        rows = [row for row in report() if row["device"] == "cuda" and row["operator"] in kernels]
        assert {(row["implementation"], row["why"]) for row in rows} == {
            ("reference", "triton is not installed")
        }

    def test_tells_of_operators_without_kernels_of_their_own(self):
        operators = _library.operators()
        bare = {x.name for x in operators if x.native is None and x.triton_module is None}
        rows = [row for row in report() if row["operator"] in bare]
        assert rows
        assert {row["implementation"] for row in rows} == {"reference"}
        assert all("PyTorch's own kernels" in row["why"] for row in rows)


def test_import_is_light():
    """Beyond what timm loads: no kernel language, no extra, no plotting."""
    code = (
        "import sys, timm\n"
        "before = set(sys.modules)\n"
        "import volution\n"
        "heavy = {'triton', 'lightning', 'matplotlib', 'sklearn', 'onnx', 'onnxruntime'}\n"
        "kernels = {name for name in sys.modules if name.endswith('triton_kernels')}\n"
        "print(sorted((set(sys.modules) - before) & heavy | kernels))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_native_module_converts_layouts_once():
    """A contiguous map and a contiguous kernel are what the C side does not take as they are."""
    assert as_map(torch.empty(2, 3, 4, 5)).stride(1) == 1
    kernel = native.as_kernel(torch.empty(2, 3, 9, 4, 5))
    assert (kernel.stride(2), kernel.stride(1)) == (1, 9)


@pytest.mark.skipif(_native.library is None, reason=f"native: {_native.reason}")
def test_threads_do_not_change_the_result():
    """Every pixel is summed by one thread in one order, however many there are."""
    x = torch.randn(3, 32, 17, 13).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(3, 2, 49, 17, 13)
    offsets = window_offsets(7)

    def results() -> list[torch.Tensor]:
        return [
            gather(x, kernel, offsets),
            scatter(x, kernel, offsets, (17, 13)),
            correlate(x, x, offsets, 2),
        ]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results()
        torch.set_num_threads(3)
        together = results()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
