"""Find, load and describe the compiled CPU library; the only file that speaks to ctypes.

The library is plain C and holds every instruction set it was compiled for; it picks the best one
the processor has. ``VOLUTION_CPU_ISA`` (``baseline``, ``avx2``, ``avx512``, ``neon``) overrides
the pick, and ``VOLUTION_CPU_LIBRARY`` the file, both for tests.

Importing torch first matters: its wheels ship ``libgomp``, and a library loaded later shares that
copy, hence one thread pool.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

_NAMES = {"win32": "volution_cpu.dll", "darwin": "libvolution_cpu.dylib"}
# The operands of a C kernel beside its output; those it does not have are NULL.
_OPERANDS = 4
_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}

DTYPES = tuple(_DTYPE_CODES)
"""Dtypes the compiled kernels compute. bfloat16 accumulates in float32."""


def _find() -> Path | None:
    name = _NAMES.get(sys.platform, "libvolution_cpu.so")
    override = os.environ.get("VOLUTION_CPU_LIBRARY")
    # An editable install has two package folders: the sources, and the build's products.
    package = importlib.util.find_spec("volution")
    places = (package and package.submodule_search_locations) or []
    folders = [Path(place) / "_lib" for place in places]
    candidates = [Path(override)] if override else [folder / name for folder in folders]
    return next((path for path in candidates if path.is_file()), None)


def _load() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None, and the reason."""
    path = _find()
    if path is None:
        return None, "the CPU library was not built (install a C compiler and reinstall)"
    loaded = ctypes.CDLL(str(path))
    loaded.volution_select_isa.argtypes = [ctypes.c_char_p]
    loaded.volution_select_isa.restype = ctypes.c_char_p
    wanted = os.environ.get("VOLUTION_CPU_ISA", "")
    chosen = loaded.volution_select_isa(wanted.encode())
    if chosen is None:
        raise RuntimeError(
            f"VOLUTION_CPU_ISA={wanted!r} is not an instruction set that this library was "
            f"compiled for and this processor has; unset it to pick automatically"
        )
    return loaded, f"compiled C, {chosen.decode()}"


library, reason = _load()
_said_missing = False


def say_missing() -> None:
    """Warn, once in a process, that the CPU runs on the slow reference, and why."""
    global _said_missing
    if not _said_missing:
        _said_missing = True
        warnings.warn(f"volution runs on plain PyTorch: {reason}", RuntimeWarning, stacklevel=4)


@lru_cache(maxsize=1024)
def int64_array(values: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
    """Return a C array that stays alive as long as the cache remembers it."""
    return (ctypes.c_int64 * len(values))(*values)


@lru_cache(maxsize=64)
def _function(name: str) -> Any:
    function = getattr(library, f"volution_{name}")
    function.argtypes = [ctypes.c_void_p] * (3 + _OPERANDS)
    function.restype = ctypes.c_int
    return function


def call(
    name: str,
    geometry: tuple[int, ...],
    offsets: Sequence[int],
    operands: Sequence[torch.Tensor | None],
    out: torch.Tensor,
) -> None:
    """Run one C kernel: its dtype and thread count, then ``geometry``, then the buffers."""
    head = (_DTYPE_CODES[out.dtype], torch.get_num_threads(), *geometry)
    # Locals keep the arrays alive for the length of the call, whatever the cache forgets.
    sizes, taps = int64_array(head), int64_array(tuple(offsets))
    pointers = [None if x is None else x.data_ptr() for x in operands]
    pointers += [None] * (_OPERANDS - len(pointers))
    status = _function(name)(sizes, taps, *pointers, out.data_ptr())
    if status:
        raise MemoryError(f"volution::{name} could not allocate its scratch memory")
