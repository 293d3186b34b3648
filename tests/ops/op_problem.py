"""What the operator contract needs to know of an operator, its oracle and its error bounds.

Tolerances are bounds, not experience: a sum of n products in an arithmetic of precision eps is off
by at most ``n * eps * sum(|products|)``, and where the operator is linear in each operand that last
sum is the operator itself applied to absolute values. Other operators bring their own bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from implementations import (
    DEVICES,
    DTYPES,
    IMPLEMENTATIONS,
    INTERPRETED,
    LAYOUTS,
    check_results,
    force,
    identify,
    supports,
)
from torch import Tensor

# A tensor, or None where a case has none.
Operands = Sequence[Any]


def present(operands: Operands) -> list[Tensor]:
    """Return the operands that a case has."""
    return [x for x in operands if x is not None]


def each(function: Callable[[Tensor], Tensor], operands: Operands) -> list[Any]:
    """Apply a function to the operands that a case has."""
    return [None if x is None else function(x) for x in operands]


class OpProblem:
    """One operator; its attributes and first methods say which. The contract adds the tests."""

    cases: Sequence[Any]
    small: Any  # a case of few elements, for numerical derivatives
    polynomial: Any = None  # one whose square has degree six at most; the small one, if that has
    interpreted: int = 3  # how many cases the slow interpreter runs in float64
    dynamic: Any  # no two sizes equal: the compiler takes equal sizes for the same size
    names: Sequence[str] = ("first operand", "second operand")

    def apply(self, case: Any, *operands: Tensor | None) -> Tensor:
        """Call the public function."""
        raise NotImplementedError

    def expected(self, case: Any, *operands: Tensor | None) -> Tensor:
        """Call the reference."""
        raise NotImplementedError

    def operands(self, case: Any) -> Operands:
        """Draw the operands in float64 on the CPU."""
        raise NotImplementedError

    def registered(self, case: Any, *operands: Tensor | None) -> tuple[Any, tuple[Any, ...]]:
        """Return the dispatcher's overload and its arguments."""
        raise NotImplementedError

    def resized(self, case: Any) -> Any:
        """Return the case with another batch and image size."""
        raise NotImplementedError

    def summands(self, case: Any) -> int:
        """Return the most products in one sum, of the output or of a gradient."""
        raise NotImplementedError

    def without_batch(self, operands: Operands) -> Operands:
        """Return the operands of an empty batch."""
        return each(lambda x: x[:0], operands)

    def shape_without_batch(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the output's shape for an empty batch, given that for a full one."""
        return 0, *shape[1:]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        # The parameters depend on the inheriting class, so decorators cannot give them.
        values = {"layout": LAYOUTS, "device": DEVICES, "where": IMPLEMENTATIONS}
        if "dtype" in metafunc.fixturenames:
            metafunc.parametrize(("case", "where", "dtype"), self.combinations(), ids=identify)
            del values["where"]
        if "index" in metafunc.fixturenames:
            count = len(present(self.operands(self.small)))
            metafunc.parametrize("index", range(count), ids=list(self.operand_names(self.small)))
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

    def operand_names(self, case: Any) -> list[str]:
        """Return the names of the operands that a case has."""
        pairs = zip(self.names, self.operands(case), strict=True)
        return [name for name, x in pairs if x is not None]

    def drawn(self, case: Any, device: str = "cpu", dtype: torch.dtype = torch.float64):
        """Return fresh operands as leaves that record gradients."""
        return each(lambda x: x.to(device, dtype).requires_grad_(), self.operands(case))

    def packed(self, case: Any, operands: Operands) -> Callable[..., Tensor]:
        """Return the public function of those operands only that a case has."""
        places = [x is not None for x in operands]

        def function(*tensors: Tensor) -> Tensor:
            rest = iter(tensors)
            return self.apply(case, *(next(rest) if place else None for place in places))

        return function

    def oracle(self, case: Any, operands: Operands) -> tuple[Tensor, list[Tensor]]:
        """Return a cotangent, and output and gradients in float64 on the CPU."""
        exact = each(lambda x: x.detach().double().cpu().requires_grad_(), operands)
        output = self.expected(case, *exact)
        cotangent = torch.randn(output.shape, dtype=torch.float64).to(operands[0].dtype)
        wanted = [output, *torch.autograd.grad(output, present(exact), cotangent.double())]
        return cotangent, [x.detach() for x in wanted]

    def bounds(self, case: Any, operands: Operands, cotangent: Tensor, wanted: list[Tensor]):
        """Return how far a result in the operands' dtype may be off, for each of its elements."""
        sizes = each(lambda x: x.detach().double().cpu().abs().requires_grad_(), operands)
        output = self.expected(case, *sizes)
        weights = cotangent.double().abs()
        absolute = [output.detach(), *torch.autograd.grad(output, present(sizes), weights)]
        dtype = operands[0].dtype
        info = torch.finfo(dtype)
        inner = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
        # The summands, a product's own rounding, and the oracle's own error in float64.
        sums = 2 * (self.summands(case) + 2) * inner.eps
        smallest = info.smallest_normal * info.eps
        return [
            info.eps * w.abs() + sums * a + smallest for w, a in zip(wanted, absolute, strict=True)
        ]

    def check(
        self, case: Any, operands: Operands, results: list[Tensor], cotangent: Tensor, wanted: Any
    ) -> None:
        """Assert that results are within the bounds for these operands."""
        bounds = self.bounds(case, operands, cotangent, wanted)
        names = ["output", *(f"gradient of the {name}" for name in self.operand_names(case))]
        check_results(results, wanted, bounds, names)

    def run(self, case: Any, operands: Operands, cotangent: Tensor, implementation: str):
        """Return the output and the gradients."""
        with force(implementation):
            output = self.apply(case, *operands)
            cotangent = cotangent.to(output.device).expand(output.shape)
            return [output, *torch.autograd.grad(output, present(operands), cotangent)]
