"""Compile every Triton kernel for an NVIDIA GPU that need not be here. Not a pytest module.

Calls the launchers as the dispatcher does and compiles, instead of running, what they launch. Exit
code 0 if all compile, and those of the depthwise convolution read channels-last operands in pieces
of more than one number, 77 if this Triton has no compiler for NVIDIA GPUs. One line for each
kernel: name, dtype, layout.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import torch
import triton
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from volution.ops._shared.depthwise import triton_kernels as depthwise
from volution.ops._shared.neighbourhood import triton_kernels as neighbourhood

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16"}
# A load of one 16-bit number: a whole instruction for an eighth of what it could bring.
NARROW = re.compile(r"\bld\.global\S*(?<!v[248])\.[bu]16\b")


def compile_launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> None:
    """Stand in for the launch: make the same specialisation and compile it."""
    signature, fixed, hints = {}, dict(constants), {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
        elif isinstance(value, float):
            signature[name] = "fp64"
        elif value is None or value == 1:
            fixed[name] = value
        else:
            signature[name] = "i64" if value >= 2**31 else "i32"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            hints[(place,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(fixed, "constexpr")
    compiled = triton.compile(ASTSource(kernel, signature, fixed, hints), target=HOPPER)
    dtype, fast = TYPES[args[0].dtype], constants["FAST"]
    sys.stdout.write(f"{kernel.__name__} {dtype} {'channels-last' if fast else 'contiguous'}\n")
    if fast and "depthwise" in kernel.__module__ and NARROW.search(compiled.asm["ptx"]):
        raise SystemExit(f"{kernel.__name__} reads {dtype} channels one by one")


def main() -> int:
    if "nvidia" not in backends:
        sys.stdout.write("this Triton has no compiler for NVIDIA GPUs\n")
        return 77
    JITFunction.run = compile_launch
    kinds = [(torch.bfloat16, torch.channels_last), (torch.float64, torch.contiguous_format)]
    for dtype, layout in kinds:
        x = torch.empty(2, 64, 28, 28, dtype=dtype).to(memory_format=layout)
        kernel = torch.empty(2, 28, 28, 4, 9, dtype=dtype).permute(0, 3, 4, 1, 2)
        window = [step for u in (-1, 0, 1) for v in (-1, 0, 1) for step in (u, v)]
        neighbourhood.gather(x, kernel, window, 1)
        neighbourhood.scatter(x, kernel, window, (28, 28), 1)
        neighbourhood.correlate(x, x, window, 4, 1)
        weight, bias = torch.empty(1, 64, 7, 7, dtype=dtype), torch.empty(1, 64, dtype=dtype)
        depthwise.depthwise_conv2d(x, weight, bias, x, 1, 3, 0.5, True)
        depthwise.depthwise_conv2d_input(x, weight, (56, 55), 2, 3)
        depthwise.depthwise_conv2d_weight(x, x, 1, 7, 1, 3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
