"""Which implementation each operator gets on each device, and why."""

from __future__ import annotations

import torch

from volution.ops import _library, _native

_OF_PYTORCH = "made of PyTorch's own kernels, in tiles"


def report() -> list[dict[str, str]]:
    """Return which implementation each operator gets on each device, and why.

    Returns:
        One row per operator and device, with the keys ``operator``, ``device``,
        ``implementation``, ``dtypes`` and ``why``.

    Example:
        >>> import volution
        >>> sorted({row["device"] for row in volution.ops.report()})
        ['cpu', 'cuda']
    """
    rows = []
    for operator in _library.operators():
        for device, describe in (("cpu", _cpu_choice), ("cuda", _cuda_choice)):
            implementation, dtypes, why = describe(operator)
            rows.append(
                {
                    "operator": operator.name,
                    "device": device,
                    "implementation": implementation,
                    "dtypes": dtypes,
                    "why": why,
                }
            )
    return rows


def _cpu_choice(operator: _library.Operator) -> tuple[str, str, str]:
    forced = _library.forced()
    if forced is not None:
        return forced, "all", "forced by a context of this process"
    if operator.native is None:
        return "reference", "all", _OF_PYTORCH
    if _native.library is None:
        return "reference", "all", _native.reason
    names = " ".join(sorted(_short(dtype) for dtype in operator.native_dtypes))
    return "native", names, f"{_native.reason}; other dtypes run on the reference"


def _cuda_choice(operator: _library.Operator) -> tuple[str, str, str]:
    forced = _library.forced()
    if forced is not None:
        return forced, "all", "forced by a context of this process"
    if operator.triton_module is None:
        return "reference", "all", _OF_PYTORCH
    missing = _library.missing_triton()
    if missing:
        return "reference", "all", missing
    present = "found" if torch.cuda.is_available() else "no CUDA device on this machine"
    return "triton", "all", present


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
