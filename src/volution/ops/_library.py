"""The door to ``torch.library``: one declaration per operator, one kernel per device.

An operator is declared once, with :func:`register`. The dispatcher then owns every choice:

=====================  ===========================================================
dispatch key           what runs
=====================  ===========================================================
Autocast*              casts the operands to the autocast dtype, dispatches again
Autograd               records the operator's own derivative rule
FuncTorchBatched       the operator's ``vmap`` rule
Meta                   shapes and strides only (``torch.compile``, meta tensors)
CPU                    compiled C, or the reference where it is not built
CUDA                   Triton, or the reference where it is not installed
anything else          the reference
=====================  ===========================================================

No other file of the package talks to ``torch.library`` or to ``torch._C``.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.utils.flop_counter import register_flop_formula

from volution.ops import _native

_LIBRARY = torch.library.Library("volution", "DEF")
_OPERATORS: dict[str, Operator] = {}

# The implementation every operator is forced to, or None for the automatic choice. A plain
# global, because autograd runs CUDA backward passes on threads that see no context variables.
_forced: str | None = None


@dataclass
class Operator:
    """What the dispatcher needs to know of one operator."""

    name: str
    check: Callable[..., None]
    reference: Callable[..., Tensor]
    # None for an operator that is made of PyTorch's own kernels on every device.
    native: Callable[..., Tensor] | None
    triton_module: str | None
    native_dtypes: frozenset[torch.dtype]
    tensors: int = 2
    # Filled at the first CUDA call: importing triton takes longer than importing volution.
    triton: Callable[..., Tensor] | None = field(default=None)

    def cpu(self, *args: Any) -> Tensor:
        """Run on the CPU: the forced implementation, else compiled C, else the reference."""
        self.check(*args)
        if _forced is None:
            if self.native is not None and args[0].dtype in self.native_dtypes:
                if _native.library is not None:
                    return self.native(*args)
                _native.say_missing()
            return self.reference(*args)
        return self.implementation(_forced)(*args)

    def cuda(self, *args: Any) -> Tensor:
        """Run on the GPU: the forced implementation, else Triton, else the reference."""
        self.check(*args)
        name = _forced or ("reference" if missing_triton() else "triton")
        return self.implementation(name)(*args)

    def elsewhere(self, *args: Any) -> Tensor:
        """Run on any other device: the reference."""
        self.check(*args)
        return self.reference(*args)

    def implementation(self, name: str) -> Callable[..., Tensor]:
        """Return the function behind an implementation's name."""
        if name == "triton" and self.triton_module is not None:
            if self.triton is None:
                self.triton = getattr(importlib.import_module(self.triton_module), self.name)
            return self.triton
        # "reference" and "plain", and what has no kernel of its own.
        return self.native if name == "native" and self.native else self.reference


def operators() -> list[Operator]:
    """Return every operator, in the order of their registration."""
    return list(_OPERATORS.values())


def forced() -> str | None:
    """Return the implementation that every operator is forced to, if there is one."""
    return _forced


def missing_triton() -> str | None:
    """Return why Triton cannot be used, or None."""
    return None if importlib.util.find_spec("triton") else "triton is not installed"


def register(
    schema: str,
    *,
    check: Callable[..., None],
    reference: Callable[..., Tensor],
    fake: Callable[..., Tensor],
    backward: Callable[..., tuple[Tensor | None, ...]],
    flops: Callable[..., int],
    native: Callable[..., Tensor] | None = None,
    triton_module: str | None = None,
    native_dtypes: Sequence[torch.dtype] = (),
    tensors: int = 2,
    tangents: Callable[..., list[Tensor]] | None = None,
    vmap: Callable[..., tuple[Tensor, int]] | None = None,
) -> torch._ops.OpOverload:
    """Declare an operator and give every device its kernel.

    Without ``tangents`` and ``vmap`` it must be bilinear in two tensors of equal batch size.
    Without ``native`` and ``triton_module`` its reference runs everywhere.

    Args:
        schema: The operator without its namespace; its tensors come first.
        check: Raises for arguments the operator does not take; called before every kernel.
        reference: Plain PyTorch, the specification.
        fake: Returns an empty output of the right shape and strides.
        backward: ``(grad, needs, *tensors, *rest)`` to a gradient for each tensor; ``needs``
            says which of them are wanted.
        flops: Operations, for :class:`torch.utils.flop_counter.FlopCounterMode`.
        native: Calls the compiled CPU library; used for ``native_dtypes`` only.
        triton_module: Module that holds a Triton launcher of the operator's name; imported at
            the first CUDA call.
        native_dtypes: Dtypes the CPU library computes.
        tensors: How many of the arguments are tensors; all but the first may be None.
        tangents: ``(tangents, *args)`` to the summands of the output's tangent, for forward mode.
        vmap: The batching rule, as :func:`torch.library.register_vmap` takes it.

    Returns:
        The overload to call.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    overload: torch._ops.OpOverload = getattr(torch.ops.volution, name).default
    operator = Operator(
        name, check, reference, native, triton_module, frozenset(native_dtypes), tensors
    )
    _OPERATORS[name] = operator
    _LIBRARY.impl(name, operator.cpu, "CPU")
    _LIBRARY.impl(name, operator.cuda, "CUDA")
    _LIBRARY.impl(name, operator.elsewhere, "CompositeExplicitAutograd")

    def checked_fake(*args: Any) -> Tensor:
        check(*args)
        return fake(*args)

    torch.library.register_fake(f"volution::{name}", checked_fake, lib=_LIBRARY)
    torch.library.register_vmap(f"volution::{name}", vmap or _vmap_rule(overload), lib=_LIBRARY)
    forward_mode = tangents or _bilinear_tangents(overload)
    autograd = _autograd_rule(overload, operator, backward, forward_mode)
    _LIBRARY.impl(name, autograd, "Autograd", with_keyset=True)
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, _autocast_rule(overload, device, tensors), f"Autocast{device}")
    register_flop_formula(getattr(torch.ops.volution, name))(flops)
    return overload


def register_composite(schema: str, function: Callable[..., Tensor]) -> None:
    """Give a function that is made of other operators a name in the dispatcher.

    Nothing else is needed: derivatives, devices and tracing are those of the operators it calls.
    """
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(schema.partition("(")[0], function, "CompositeImplicitAutograd")


def _bilinear_tangents(overload: Any) -> Callable[..., list[Tensor]]:
    """Return the forward-mode rule of an operator that is linear in each of two tensors."""

    def tangents(moved: Sequence[Tensor | None], first: Tensor, second: Tensor, *rest: Any) -> Any:
        parts = []
        if moved[0] is not None:
            parts.append(overload(moved[0], second, *rest))
        if moved[1] is not None:
            parts.append(overload(first, moved[1], *rest))
        return parts

    return tangents


def _autograd_rule(
    overload: Any,
    operator: Operator,
    backward: Callable[..., Any],
    tangents: Callable[..., list[Tensor]],
) -> Callable[..., Tensor]:
    """Build the Autograd kernel of an operator, in reverse and in forward mode."""
    count = operator.tensors
    # Where no mode or tracer stands between, the dispatcher would come straight back to Python:
    # going there directly saves a third of the cost of a call.
    direct = {torch._C.DispatchKey.CPU: operator.cpu, torch._C.DispatchKey.CUDA: operator.cuda}

    def below(keyset: Any, *args: Any) -> Tensor:
        keyset = keyset & torch._C._after_autograd_keyset
        kernel = direct.get(keyset.highestPriorityTypeId())
        with torch._C._AutoDispatchBelowAutograd():
            if kernel is not None:
                return kernel(*args)
            result: Tensor = overload.redispatch(keyset, *args)
        return result

    # Single level: by the time this key runs, functorch has taken the other levels off already.
    class Recorded(_SingleLevelFunction):
        @staticmethod
        def forward(keyset: Any, saved: Any, *args: Any) -> Tensor:
            # Nested functorch transforms record their own level further down; autograd.Function
            # has just switched recording off, which would silently drop their derivatives.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                return below(keyset, *args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            _, saved, *args = inputs
            ctx.rest = args[count:]
            ctx.save_for_backward(*saved)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            needs = ctx.needs_input_grad[2 : 2 + count]
            grads = backward(grad, needs, *ctx.saved_tensors, *ctx.rest)
            return None, None, *grads, *(None for _ in ctx.rest)

    def reverse(keyset: Any, saved: Any, *args: Any) -> Tensor:
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in args[:count]):
            with enable_single_level_autograd_function():
                result: Tensor = Recorded.apply(keyset, saved, *args)  # type: ignore[attr-defined]
            return result
        return below(keyset, *args)

    def rule(keyset: Any, *args: Any) -> Tensor:
        saved = args[:count]
        if forward_ad._current_level < 0:
            return reverse(keyset, saved, *args)
        # By hand: the jvp of an autograd.Function runs with forward mode switched off, which
        # drops the outer derivative where jvp is nested in jvp. Saving the dual tensors keeps
        # the tangents of the backward pass.
        pairs = [(x, None) if x is None else forward_ad.unpack_dual(x) for x in saved]
        primals, rest = [primal for primal, _ in pairs], args[count:]
        output = reverse(keyset, saved, *primals, *rest)
        parts = tangents([tangent for _, tangent in pairs], *primals, *rest)
        if not parts:
            return output
        dual: Tensor = forward_ad.make_dual(output, sum(parts[1:], parts[0]))
        return dual

    return rule


def _autocast_rule(overload: Any, device: str, count: int) -> Callable[..., Tensor]:
    """Build the Autocast kernel: operands go to the autocast dtype, as those of a convolution."""
    key = getattr(torch._C.DispatchKey, f"Autocast{device}")
    excluded = torch._C.DispatchKeySet(key)

    def rule(*args: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device.lower())
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            result: Tensor = overload(*(_cast(x, dtype) for x in args[:count]), *args[count:])
        return result

    return rule


def _vmap_rule(overload: Any) -> Callable[..., tuple[Tensor, int]]:
    """Build the batching rule: the mapped dimension joins the batch, and leaves it afterwards."""

    def rule(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        size = info.batch_size
        folded = [
            (arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)).flatten(0, 1)
            for arg, dim in zip(args[:2], in_dims[:2], strict=True)
        ]
        out: Tensor = overload(*folded, *args[2:])
        return out.unflatten(0, (size, -1) if size else (0, args[0].shape[0])), 0

    return rule


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    # float64 is left alone, as in PyTorch's own rules.
    if tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float64:
        return tensor.to(dtype)
    return tensor


def wants_plain() -> bool:
    """Return whether tracers are to see PyTorch's own operators only."""
    return _forced == "plain" or torch.compiler.is_exporting()


def autocasts(device: str) -> bool:
    """Return whether operands on a kind of device are cast now."""
    # The meta device, for one, has no autocast to ask about.
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def runs_directly(tensor: Tensor) -> bool:
    """Return whether what is computed now is seen by nobody but the caller.

    That is: no gradient or tangent is recorded, nothing is traced, transformed or cast on the way.
    Results may then be overwritten, and operators used that have no derivatives.
    """
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or wants_plain()
        or type(tensor) not in (Tensor, torch.nn.Parameter)
        or autocasts(tensor.device.type)
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch.jit.is_tracing()
    )


def call(overload: Any, *args: Any) -> Tensor:
    """Call an operator: through the dispatcher, or as plain PyTorch where that is asked for."""
    if wants_plain():
        operator = _OPERATORS[overload._schema.name.removeprefix("volution::")]
        device = args[0].device.type
        if autocasts(device):
            dtype, count = torch.get_autocast_dtype(device), operator.tensors
            args = (*(_cast(x, dtype) for x in args[:count]), *args[count:])
        operator.check(*args)
        return operator.reference(*args)
    result: Tensor = overload(*args)
    return result


@contextmanager
def forced_implementation(name: str) -> Iterator[None]:
    """Run every operator of the process on one implementation.

    ``"reference"``, ``"native"`` and ``"triton"`` are the kernels behind the dispatcher;
    ``"plain"`` also leaves the dispatcher out, so that tracers see PyTorch's own operators.
    """
    global _forced
    if name not in ("reference", "native", "triton", "plain"):
        raise ValueError(f"name must be reference, native, triton or plain, got {name!r}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


@contextmanager
def other_references(forms: Mapping[str, Callable[..., Tensor]]) -> Iterator[None]:
    """Give operators, by name, another plain PyTorch form of the same function for a while.

    For tracers to which the shape of a graph matters more than what running it takes.
    """
    before = {name: _OPERATORS[name].reference for name in forms}
    try:
        for name, form in forms.items():
            _OPERATORS[name].reference = form
        yield
    finally:
        for name, form in before.items():
            _OPERATORS[name].reference = form


def reference_ops() -> AbstractContextManager[None]:
    """Return a context in which every operator is plain PyTorch, its reference.

    For comparing, debugging and tracing: ``torch.export`` and the ONNX exporters then see
    PyTorch's own operators only. It holds for the whole process, all threads included.

    Example:
        >>> import torch, volution
        >>> with volution.ops.reference_ops():
        ...     y = volution.ops.involution2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 1, 1, 3, 3))
        >>> y.sum().item()
        9.0
    """
    return forced_implementation("plain")
