"""What every operator must pass, written once: inherit :class:`OpContract` in a test class.

An operator takes any number of tensors, its *operands*; those a case does without are None. Three
opinions of one number are compared: the definition (plain loops, in each operator's own tests), the
reference, and the kernels. Oracles run in float64 through PyTorch's own derivatives of the
reference, so they share neither the kernels nor the registered derivative rules with the subject.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from implementations import INTERPRETED, force, lay_out
from op_problem import Operands, OpProblem, each, present
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from volution.ops import _library

# What PyTorch itself says when forward mode is first used.
JIT_IS_DEPRECATED = "ignore:`torch.jit.script`"


class OpContract(OpProblem):
    """The tests of one operator."""

    def test_outputs_and_gradients_match_reference(self, case, where, dtype, poisoned_empty):
        device, implementation = where
        operands = self.drawn(case, device, dtype)
        cotangent, wanted = self.oracle(case, operands)
        results = self.run(case, operands, cotangent, implementation)
        assert {x.dtype for x in results} == {dtype}
        assert {x.device.type for x in results} == {device}
        self.check(case, operands, results, cotangent, wanted)

    def test_views_and_channels_last(self, layout, where, poisoned_empty):
        device, implementation = where
        case = self.cases[0]
        plain = self.operands(case)
        operands = each(lambda x: lay_out(x.to(device), layout).requires_grad_(), plain)
        cotangent, wanted = self.oracle(case, plain)
        results = self.run(case, operands, lay_out(cotangent, layout), implementation)
        self.check(case, plain, results, cotangent, wanted)

    def test_expanded_operands(self, where, poisoned_empty):
        device, implementation = where
        case = self.cases[0]
        plain = each(lambda x: x[:1].expand_as(x), self.operands(case))
        operands = each(lambda x: x.to(device).requires_grad_(), plain)
        cotangent, wanted = self.oracle(case, plain)
        # What sum().backward() sends: one number seen everywhere, all strides zero.
        ones = torch.ones((), dtype=torch.float64)
        results = self.run(case, operands, ones, implementation)
        self.check(case, plain, results[:1], cotangent, wanted)
        dense = each(lambda x: x.detach().contiguous().requires_grad_(), operands)
        again = self.run(case, dense, torch.ones(results[0].shape).double(), implementation)
        torch.testing.assert_close(results, again, rtol=1e-12, atol=1e-12)

    def test_only_wanted_gradients(self, index, where):
        device, implementation = where
        operands = each(lambda x: x.to(device), self.operands(self.small))
        present(operands)[index].requires_grad_()
        with force(implementation):
            output = self.apply(self.small, *operands)
            assert output.requires_grad
            output.sum().backward()
        assert [x.grad is not None for x in present(operands)].count(True) == 1
        assert present(operands)[index].grad is not None

    def test_nothing_is_recorded_unasked(self, where):
        device, implementation = where
        with force(implementation):
            operands = each(lambda x: x.to(device), self.operands(self.small))
            assert not self.apply(self.small, *operands).requires_grad

    def test_empty_batch(self, where):
        device, implementation = where
        case = self.cases[0]
        plain = self.without_batch(self.operands(case))
        operands = each(lambda x: x.to(device).requires_grad_(), plain)
        with force(implementation):
            output = self.apply(case, *operands)
            output.sum().backward()
        shape = self.apply(case, *self.operands(case)).shape
        assert output.shape == self.shape_without_batch(shape)
        for x in present(operands):
            assert x.grad.shape == x.shape
            assert not x.grad.count_nonzero()

    def test_is_deterministic_and_leaves_inputs_alone(self, where):
        device, implementation = where
        case = self.cases[0]
        operands = self.drawn(case, device, torch.float32)
        before = [x.detach().clone() for x in present(operands)]
        cotangent, _ = self.oracle(case, operands)
        results = [self.run(case, operands, cotangent, implementation) for _ in range(2)]
        assert all(map(torch.equal, *results))
        assert all(map(torch.equal, present(operands), before))

    @pytest.mark.filterwarnings(JIT_IS_DEPRECATED)
    def test_gradcheck(self, where):
        device, implementation = where
        with force(implementation):
            drawn = self.drawn(self.small, device)
            function, operands = self.packed(self.small, drawn), present(drawn)
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
        """Linear in up to three operands, so squared along a line it has degree six at most."""
        case = self.polynomial or self.small
        operands = each(lambda x: x.to(device), self.operands(case))
        steps = each(torch.randn_like, operands)

        def along_a_line(t: Tensor) -> Tensor:
            pairs = zip(operands, steps, strict=True)
            moved = (None if x is None else x + t * step for x, step in pairs)
            return self.apply(case, *moved).square().sum()

        third = along_a_line
        for _ in range(3):
            third = derivative(third)
        t = torch.tensor(0.5, dtype=torch.float64, device=device)
        # This difference quotient of a polynomial of degree six is exact.
        weights = {-3: 1, -2: -8, -1: 13, 1: -13, 2: 8, 3: -1}
        quotient = sum(k * along_a_line(t + h).item() for h, k in weights.items()) / 8
        assert third(t).item() == pytest.approx(quotient, rel=1e-9)

    def test_vmap_and_per_sample_gradients(self, where):
        device, implementation = where
        drawn = each(lambda x: x.to(device), self.operands(self.small))
        apply, operands = self.packed(self.small, drawn), present(drawn)
        stacks = [torch.stack([x, 2 * x, -x]) for x in operands]

        def loss(*operands: Tensor) -> Tensor:
            return apply(*operands).square().sum()

        with force(implementation):
            wanted = torch.stack([apply(*slices) for slices in zip(*stacks, strict=True)])
            torch.testing.assert_close(torch.func.vmap(apply)(*stacks), wanted)
            for k, stack in enumerate([] if where == INTERPRETED else stacks):
                one = [*operands[:k], stack, *operands[k + 1 :]]
                where_in = tuple(0 if other == k else None for other in range(len(operands)))
                wanted = torch.stack([apply(*operands[:k], x, *operands[k + 1 :]) for x in stack])
                torch.testing.assert_close(torch.func.vmap(apply, where_in)(*one), wanted)
            one = [stacks[0].movedim(0, 1), *operands[1:]]
            where_in = tuple(1 if other == 0 else None for other in range(len(operands)))
            wanted = torch.stack([apply(x, *operands[1:]) for x in stacks[0]], 1)
            torch.testing.assert_close(torch.func.vmap(apply, where_in, 1)(*one), wanted)
            # Per-sample gradients: every sample sees the same other operands.
            grad = torch.func.grad(loss)
            wanted = torch.stack([grad(x, *operands[1:]) for x in stacks[0]])
            where_in = (0, *(None for _ in operands[1:]))
            grads = torch.func.vmap(grad, where_in)(stacks[0], *operands[1:])
            torch.testing.assert_close(grads, wanted)

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_meta_tensors_tell_shape_and_strides(self, number, memory_format, where):
        device, implementation = where
        case = self.cases[number]
        operands = each(lambda x: x.to(device), self.operands(case))
        operands = each(
            lambda x: x.to(memory_format=memory_format) if x.dim() == 4 else x, operands
        )
        meta = self.apply(case, *each(lambda x: x.to("meta"), operands))
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

        def function(case: Any, first: Tensor, *rest: Tensor | None) -> Tensor:
            return 2 * self.apply(case, first.sin(), *rest)

        torch._dynamo.reset()
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
        # The case is the same object for both sizes: a constant of the graph.
        for number, sizes in enumerate((self.dynamic, self.resized(self.dynamic))):
            operands = self.drawn(sizes, device)
            with torch._dynamo.config.patch(error_on_recompile=number > 0):
                got = self.with_gradients(compiled, operands)
            torch.testing.assert_close(got, self.with_gradients(function, operands))

    def with_gradients(self, function: Callable[..., Tensor], operands: Operands):
        """Return output and gradients."""
        output = function(self.dynamic, *operands)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), present(operands))]

    @pytest.mark.parametrize("how", ["torch.export", "reference_ops"])
    def test_exports_to_plain_aten(self, how, device):
        drawn = each(lambda x: x.to(device), self.operands(self.cases[0]))
        apply = self.packed(self.cases[0], drawn)

        class Module(torch.nn.Module):
            def forward(self, *operands: Tensor) -> Tensor:
                return apply(*operands)

        operands = tuple(present(drawn))
        with _library.reference_ops() if how == "reference_ops" else nullcontext():
            program = torch.export.export(Module(), operands)
        called = {node.target for node in program.graph.nodes if node.op == "call_function"}
        called -= {operator.getitem}  # one of several results
        assert called
        assert all(str(target).startswith("aten.") for target in called), called
        torch.testing.assert_close(program.module()(*operands), Module()(*operands))

    def test_autocast_casts_all_operands(self, device):
        operands = self.drawn(self.cases[0], device, torch.float32)
        mixed = [operands[0], *each(Tensor.bfloat16, operands[1:])]
        with torch.autocast(device, torch.bfloat16):
            output = self.apply(self.cases[0], *operands)
            again = self.apply(self.cases[0], *mixed)
        assert output.dtype == again.dtype == torch.bfloat16
        assert torch.equal(output, again)
        output.float().square().sum().backward()
        for x in present(operands):
            assert x.grad.dtype == torch.float32
            assert x.grad.isfinite().all()

    def test_runs_in_inference_mode(self, where):
        device, implementation = where
        operands = each(lambda x: x.to(device), self.operands(self.small))
        with force(implementation):
            wanted = self.apply(self.small, *operands)
            with torch.inference_mode():
                got = self.apply(self.small, *operands)
        assert torch.equal(got, wanted)
