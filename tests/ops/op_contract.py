"""What every operator must pass, written once: inherit :class:`OpContract` in a test class.

An operator here is linear in each of its two tensors, its *operands*. Three opinions of one number
are compared: the definition (plain loops, in each operator's own tests), the reference, and the
kernels. Oracles run in float64 through PyTorch's own derivatives of the reference, so they share
neither the kernels nor the registered derivative rules with the subject.

Tolerances are bounds, not experience: a sum of n products in an arithmetic of precision eps is off
by at most ``n * eps * sum(|products|)``, and that last sum is the operator itself applied to
absolute values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from volution.ops import _library, _native

CUDA = torch.cuda.is_available()
DEVICES = ["cpu", *(["cuda"] if CUDA else [])]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# (device, implementation); without a GPU Triton runs in its interpreter, on CPU tensors.
IMPLEMENTATIONS = [
    ("cpu", "reference"),
    ("cpu", "native"),
    ("cuda" if CUDA else "cpu", "triton"),
    *([("cuda", "reference")] if CUDA else []),
]
INTERPRETED = ("cpu", "triton")
# What PyTorch itself says when forward mode is first used.
JIT_IS_DEPRECATED = "ignore:`torch.jit.script`"
LAYOUTS = ["contiguous", "channels_last", "sliced", "sliced_channels_last", "transposed"]


def identify(value: Any) -> str | None:
    """Name a parameter in the log of the tests."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, tuple) and all(isinstance(part, str) for part in value):
        return "-".join(value)
    return getattr(value, "id", None)


def force(implementation: str) -> Any:
    """Force an implementation, or skip the test if it was not built."""
    if implementation == "native" and _native.library is None:
        pytest.skip(_native.reason)
    if implementation == "triton":
        pytest.importorskip("triton", reason="triton is not installed")
    return _library.forced_implementation(implementation)


def supports(implementation: str, dtype: torch.dtype) -> bool:
    """Return whether an implementation lists the dtype."""
    return implementation != "native" or dtype in _native.DTYPES


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """Return an equal tensor with other strides, cut out of NaN where it is a slice."""
    # Maps have their channels second, kernels their groups and taps.
    inner = (0, 2, 3, 1) if tensor.dim() == 4 else (0, tensor.dim() - 2, tensor.dim() - 1)
    inner += tuple(axis for axis in range(tensor.dim()) if axis not in inner)
    order = {
        "channels_last": inner,
        "sliced_channels_last": inner,
        "transposed": (*range(tensor.dim() - 2), tensor.dim() - 1, tensor.dim() - 2),
    }.get(layout, tuple(range(tensor.dim())))
    margin = 3 if layout.startswith("sliced") else 0
    shape = [tensor.shape[axis] + 2 * margin for axis in order]
    buffer = torch.full(shape, torch.nan, dtype=tensor.dtype, device=tensor.device)
    back = [order.index(axis) for axis in range(tensor.dim())]
    view = buffer.permute(back)
    for axis, size in enumerate(tensor.shape):
        view = view.narrow(axis, margin, size)
    return view.copy_(tensor)


def check_results(results: Sequence[Tensor], wanted: Sequence[Tensor], bounds: Sequence[Tensor]):
    """Assert that output and gradients stay within their bounds; the message names them."""
    names = ["output", "gradient of the first operand", "gradient of the second operand"]
    for name, result, want, bound in zip(names, results, wanted, bounds, strict=False):
        assert result.shape == want.shape, f"{name}: shape {result.shape}, not {want.shape}"
        excess = (result.double().cpu() - want).abs() - bound
        # A NaN is no number below zero, so it fails too.
        assert bool((excess <= 0).all()), (
            f"{name}: beyond its bound by {excess.max():.1e} of a largest value of "
            f"{want.abs().max():.1e}, {int((~(excess <= 0)).sum())} of {excess.numel()} elements"
        )


class OpContract:
    """Tests of one operator; the attributes and the first methods say which."""

    cases: Sequence[Any]
    small: Any  # a case of few elements, for numerical derivatives
    interpreted: int = 3  # how many cases the slow interpreter runs in float64
    dynamic: Any  # no two sizes equal: the compiler takes equal sizes for the same size

    def apply(self, case: Any, first: Tensor, second: Tensor) -> Tensor:
        """Call the public function."""
        raise NotImplementedError

    def expected(self, case: Any, first: Tensor, second: Tensor) -> Tensor:
        """Call the reference."""
        raise NotImplementedError

    def operands(self, case: Any) -> tuple[Tensor, Tensor]:
        """Draw the operands in float64 on the CPU."""
        raise NotImplementedError

    def registered(self, case: Any, first: Tensor, second: Tensor) -> tuple[Any, tuple[Any, ...]]:
        """Return the dispatcher's overload and its arguments."""
        raise NotImplementedError

    def resized(self, case: Any) -> Any:
        """Return the case with another batch and image size."""
        raise NotImplementedError

    def summands(self, case: Any) -> int:
        """Return the most products in one sum, of the output or of a gradient."""
        raise NotImplementedError

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        # The parameters depend on the inheriting class, so decorators cannot give them.
        values = {"layout": LAYOUTS, "device": DEVICES, "where": IMPLEMENTATIONS}
        if "dtype" in metafunc.fixturenames:
            metafunc.parametrize(("case", "where", "dtype"), self.combinations(), ids=identify)
            del values["where"]
        for name in [name for name in values if name in metafunc.fixturenames]:
            metafunc.parametrize(name, values[name], ids=identify)

    def combinations(self) -> list[tuple[Any, tuple[str, str], torch.dtype]]:
        """Return every case, implementation and dtype; fewer where the slow interpreter runs."""

        def cases(where: tuple[str, str], dtype: torch.dtype) -> Sequence[Any]:
            if where != INTERPRETED:
                return self.cases
            return self.cases[: self.interpreted if dtype == torch.float64 else 2]

        return [
            (case, where, dtype)
            for where in IMPLEMENTATIONS
            for dtype in DTYPES
            if supports(where[1], dtype)
            for case in cases(where, dtype)
        ]

    def drawn(self, case: Any, device: str = "cpu", dtype: torch.dtype = torch.float64):
        """Return fresh operands as leaves that record gradients."""
        return [x.to(device, dtype).requires_grad_() for x in self.operands(case)]

    def oracle(self, case: Any, operands: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list]:
        """Return a cotangent, what is wanted, and the sums of the absolute products.

        ``wanted`` is the output and the two gradients, in float64 on the CPU.
        """
        exact = [x.detach().double().cpu().requires_grad_() for x in operands]
        output = self.expected(case, *exact)
        cotangent = torch.randn(output.shape, dtype=torch.float64).to(operands[0].dtype)
        wanted = [output, *torch.autograd.grad(output, exact, cotangent.double())]
        sizes = [x.detach().abs().requires_grad_() for x in exact]
        output = self.expected(case, *sizes)
        absolute = [output, *torch.autograd.grad(output, sizes, cotangent.double().abs())]
        return cotangent, [x.detach() for x in wanted], [x.detach() for x in absolute]

    def bounds(self, case: Any, dtype: torch.dtype, wanted: list[Tensor], absolute: list[Tensor]):
        """Return how far a result in ``dtype`` may be off, for each of its elements."""
        info = torch.finfo(dtype)
        inner = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
        # The summands, a product's own rounding, and the oracle's own error in float64.
        sums = 2 * (self.summands(case) + 2) * inner.eps
        smallest = info.smallest_normal * info.eps
        return [
            info.eps * w.abs() + sums * a + smallest for w, a in zip(wanted, absolute, strict=True)
        ]

    def run(self, case: Any, operands: Sequence[Tensor], cotangent: Tensor, implementation: str):
        """Return the output and the two gradients."""
        with force(implementation):
            output = self.apply(case, *operands)
            cotangent = cotangent.to(output.device).expand(output.shape)
            return [output, *torch.autograd.grad(output, operands, cotangent)]

    def test_outputs_and_gradients_match_reference(self, case, where, dtype, poisoned_empty):
        device, implementation = where
        operands = self.drawn(case, device, dtype)
        cotangent, wanted, absolute = self.oracle(case, operands)
        results = self.run(case, operands, cotangent, implementation)
        assert {x.dtype for x in results} == {dtype}
        assert {x.device.type for x in results} == {device}
        check_results(results, wanted, self.bounds(case, dtype, wanted, absolute))

    def test_views_and_channels_last(self, layout, where, poisoned_empty):
        device, implementation = where
        case = self.cases[0]
        plain = self.operands(case)
        operands = [lay_out(x.to(device), layout).requires_grad_() for x in plain]
        cotangent, wanted, absolute = self.oracle(case, plain)
        results = self.run(case, operands, lay_out(cotangent, layout), implementation)
        check_results(results, wanted, self.bounds(case, torch.float64, wanted, absolute))

    def test_expanded_operands(self, where, poisoned_empty):
        device, implementation = where
        case = self.cases[0]
        plain = [x[:1].expand_as(x) for x in self.operands(case)]
        operands = [x.to(device).requires_grad_() for x in plain]
        _, wanted, absolute = self.oracle(case, plain)
        # What sum().backward() sends: one number seen everywhere, all strides zero.
        ones = torch.ones((), dtype=torch.float64)
        results = self.run(case, operands, ones, implementation)
        check_results(results[:1], wanted, self.bounds(case, torch.float64, wanted, absolute))
        dense = [x.detach().contiguous().requires_grad_() for x in operands]
        again = self.run(case, dense, torch.ones(results[0].shape).double(), implementation)
        torch.testing.assert_close(results, again, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
    def test_only_wanted_gradients(self, wanted, where):
        device, implementation = where
        operands = [x.to(device) for x in self.operands(self.small)]
        for x, flag in zip(operands, wanted, strict=True):
            x.requires_grad_(flag)
        with force(implementation):
            output = self.apply(self.small, *operands)
            assert output.requires_grad == any(wanted)
            if any(wanted):
                output.sum().backward()
        assert [x.grad is not None for x in operands] == list(wanted)

    def test_empty_batch(self, where):
        device, implementation = where
        case = self.cases[0]
        operands = [x[:0].to(device).requires_grad_() for x in self.operands(case)]
        with force(implementation):
            output = self.apply(case, *operands)
            output.sum().backward()
        assert output.shape == (0, *self.apply(case, *self.operands(case)).shape[1:])
        assert [x.grad.shape for x in operands] == [x.shape for x in operands]

    def test_is_deterministic_and_leaves_inputs_alone(self, where):
        device, implementation = where
        case = self.cases[0]
        operands = self.drawn(case, device, torch.float32)
        before = [x.detach().clone() for x in operands]
        cotangent, *_ = self.oracle(case, operands)
        results = [self.run(case, operands, cotangent, implementation) for _ in range(2)]
        assert all(map(torch.equal, *results))
        assert all(map(torch.equal, operands, before))

    @pytest.mark.filterwarnings(JIT_IS_DEPRECATED)
    def test_gradcheck(self, where):
        device, implementation = where

        def function(*operands: Tensor) -> Tensor:
            return self.apply(self.small, *operands)

        with force(implementation):
            operands = self.drawn(self.small, device)
            if where == INTERPRETED:
                # The interpreter is slow: one random direction, and the derivative rules, which
                # are the same for all implementations, are left to the others.
                assert gradcheck(function, operands, fast_mode=True)
                return
            batched = {"check_batched_grad": True}
            assert gradcheck(
                function,
                operands,
                check_forward_ad=True,
                check_batched_forward_grad=True,
                **batched,
            )
            assert gradgradcheck(
                function, operands, fast_mode=True, check_fwd_over_rev=True, **batched
            )

    @pytest.mark.parametrize("derivative", [torch.func.grad, torch.func.jacfwd])
    def test_third_derivative(self, device, derivative):
        """Bilinear, so squared along a line it is a polynomial of degree four."""
        operands = [x.to(device) for x in self.operands(self.small)]
        steps = [torch.randn_like(x) for x in operands]

        def along_a_line(t: Tensor) -> Tensor:
            moved = (x + t * step for x, step in zip(operands, steps, strict=True))
            return self.apply(self.small, *moved).square().sum()

        third = along_a_line
        for _ in range(3):
            third = derivative(third)
        t = torch.tensor(0.5, dtype=torch.float64, device=device)
        # The fourth difference quotient of a polynomial of degree four is exact.
        points = [along_a_line(t + h).item() for h in (-2.0, -1.0, 1.0, 2.0)]
        quotient = (points[3] - 2 * points[2] + 2 * points[1] - points[0]) / 2
        assert third(t).item() == pytest.approx(quotient, rel=1e-9)

    def test_vmap_and_per_sample_gradients(self, where):
        device, implementation = where
        case = self.small
        first, second = (x.to(device) for x in self.operands(case))
        pair = [torch.stack([x, 2 * x, -x]) for x in (first, second)]

        def apply(a: Tensor, b: Tensor) -> Tensor:
            return self.apply(case, a, b)

        def loss(a: Tensor, b: Tensor) -> Tensor:
            return apply(a, b).square().sum()

        with force(implementation):
            y = apply(first, second)
            both = torch.func.vmap(apply)(*pair)
            torch.testing.assert_close(both, torch.stack([y, 4 * y, y]))
            one = torch.func.vmap(apply, (None, 0))(first, pair[1])
            torch.testing.assert_close(one, torch.stack([y, 2 * y, -y]))
            moved = torch.func.vmap(apply, (1, None), 1)(pair[0].movedim(0, 1), second)
            torch.testing.assert_close(moved, torch.stack([y, 2 * y, -y], 1))
            grad = torch.func.grad(loss)(first, second)
            grads = torch.func.vmap(torch.func.grad(loss), (0, None))(pair[0], second)
            torch.testing.assert_close(grads, torch.stack([grad, 2 * grad, -grad]))

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("index", [0, 1, 2])
    def test_meta_tensors_tell_shape_and_strides(self, index, memory_format, where):
        device, implementation = where
        case = self.cases[index]
        operands = [x.to(device) for x in self.operands(case)]
        operands = [x.to(memory_format=memory_format) if x.dim() == 4 else x for x in operands]
        meta = self.apply(case, *(x.to("meta") for x in operands))
        with force(implementation):
            real = self.apply(case, *operands)
        assert (meta.shape, meta.dtype) == (real.shape, real.dtype)
        # Nobody steps along a dimension of size 1.
        pairs = zip(meta.shape, meta.stride(), real.stride(), strict=True)
        assert all(size == 1 or ours == theirs for size, ours, theirs in pairs)

    # opcheck looks at the gradients of its own copies.
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
    def test_registration(self, device):
        overload, args = self.registered(self.cases[0], *self.drawn(self.cases[0], device))
        torch.library.opcheck(overload, args)

    def test_compiles_without_graph_break(self, device):
        """One graph for two sizes, with its backward, equal to eager."""

        def function(case: Any, first: Tensor, second: Tensor) -> Tensor:
            return 2 * self.apply(case, first.sin(), second)

        torch._dynamo.reset()
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
        # The case is the same object for both sizes: a constant of the graph.
        for index, sizes in enumerate((self.dynamic, self.resized(self.dynamic))):
            operands = self.drawn(sizes, device)
            with torch._dynamo.config.patch(error_on_recompile=index > 0):
                got = self.with_gradients(compiled, operands)
            torch.testing.assert_close(got, self.with_gradients(function, operands))

    def with_gradients(self, function: Callable[..., Tensor], operands: list[Tensor]):
        """Return output and gradients."""
        output = function(self.dynamic, *operands)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), operands)]

    @pytest.mark.parametrize("how", ["torch.export", "reference_ops"])
    def test_exports_to_plain_aten(self, how, device):
        contract, case = self, self.cases[0]

        class Module(torch.nn.Module):
            def forward(self, first: Tensor, second: Tensor) -> Tensor:
                return contract.apply(case, first, second)

        operands = tuple(x.to(device) for x in self.operands(case))
        with _library.reference_ops() if how == "reference_ops" else nullcontext():
            program = torch.export.export(Module(), operands)
        called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert called
        assert all(name.startswith("aten.") for name in called), called
        torch.testing.assert_close(program.module()(*operands), Module()(*operands))

    def test_autocast_casts_both_operands(self, device):
        first, second = self.drawn(self.cases[0], device, torch.float32)
        with torch.autocast(device, torch.bfloat16):
            output = self.apply(self.cases[0], first, second)
            mixed = self.apply(self.cases[0], first, second.bfloat16())
        assert output.dtype == mixed.dtype == torch.bfloat16
        assert torch.equal(output, mixed)
        output.float().square().sum().backward()
        for x in (first, second):
            assert x.grad.dtype == torch.float32
            assert x.grad.isfinite().all()

    def test_runs_in_inference_mode(self, where):
        device, implementation = where
        operands = [x.to(device) for x in self.operands(self.small)]
        with force(implementation):
            wanted = self.apply(self.small, *operands)
            with torch.inference_mode():
                got = self.apply(self.small, *operands)
        assert torch.equal(got, wanted)
