"""Run the CPU library under the sanitizers: ``make sanitize``. Not a pytest module.

Calls the C functions directly, with ctypes and numpy only, over random problems: every dtype,
window, stride, number of channels and layout, in buffers that end where the data ends, so that a
single element read or written outside is a finding. Outputs start as NaN and have to end without
one.
"""

import argparse
import ctypes
import random
import struct
import sys

import numpy as np

# The operands of a function beside its output; those it does not have are NULL.
OPERANDS = 4
DTYPES = {0: np.float32, 1: np.uint16, 2: np.float64}
NAN = {0: np.nan, 1: 0x7FC0, 2: np.nan}


def int64s(values):
    return (ctypes.c_int64 * len(values))(*values)


def filled(rng, code, shape):
    values = rng.standard_normal(shape)
    if code == 1:
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(DTYPES[code])


def steps(array):
    return [array.strides[axis] // array.itemsize for axis in (0, 1, 2)]


def a_map(rng, code, n, height, width, channels, output):
    """An (n, row, column, channel) array; an input may be a slice of a larger one or expanded."""
    if output:
        return np.full((n, height, width, channels), NAN[code], DTYPES[code])
    kind = rng.integers(3)
    if kind == 0:
        return filled(rng, code, (n, height + 2, width + 1, channels + 3))[:, 1:-1, :-1, 3:]
    if kind == 1:
        row = filled(rng, code, (1, 1, width, channels))
        return np.broadcast_to(row, (n, height, width, channels))
    return filled(rng, code, (n, height, width, channels))


def call(library, name, code, sizes, offsets, operands, result):
    """Call one function, and stop the program if it failed or left elements unwritten."""
    pointers = [None if x is None else ctypes.c_void_p(x.ctypes.data) for x in operands]
    pointers += [None] * (OPERANDS - len(pointers))
    out = ctypes.c_void_p(result.ctypes.data)
    status = getattr(library, f"volution_{name}")(int64s(sizes), int64s(offsets), *pointers, out)
    left = (result == NAN[code]).any() if code == 1 else np.isnan(result).any()
    if status or left:
        raise SystemExit(f"{name} {sizes} {offsets}: status {status}, unwritten elements {left}")


def neighbourhood(library, rng, draw):
    """One problem of gather, scatter or correlate."""
    code, threads = draw.choice((0, 0, 1, 1, 2)), draw.choice((1, 2, 3))
    n, groups, width = (
        draw.choice((0, 1, 2)),
        draw.choice((1, 2, 3)),
        draw.choice((1, 2, 3, 4, 5, 8, 12, 16, 16, 24, 32, 64)),
    )
    height, across, stride = draw.randint(1, 20), draw.randint(1, 20), draw.choice((1, 1, 1, 2, 3))
    if draw.random() < 0.75:
        side, dilation = draw.choice((1, 3, 5, 7, 7, 9)), draw.choice((1, 1, 2, 5))
        reach = [dilation * (i - side // 2) for i in range(side)]
        offsets = [step for row in reach for column in reach for step in (row, column)]
    else:
        offsets = [draw.randint(-25, 25) for _ in range(2 * draw.randint(1, 21))]
    taps, channels = len(offsets) // 2, groups * width
    h, w = -(-height // stride), -(-across // stride)
    name = draw.choice(("gather", "scatter", "correlate"))
    full = a_map(rng, code, n, height, across, channels, name == "scatter")
    small = a_map(rng, code, n, h, w, channels, name == "gather")
    kernel = a_map(rng, code, n, h, w, groups * taps, name == "correlate")
    sizes = [code, threads, n, channels, height, across, groups, taps, h, w, stride]
    sizes += steps(full) + steps(small) + steps(kernel)
    order = {"gather": (full, kernel, small), "scatter": (small, kernel, full)}
    *operands, result = order.get(name, (small, full, kernel))
    call(library, name, code, sizes, offsets, operands, result)


def a_weight(rng, code, batch, channels, side):
    """A (batch, channel, row, column) array in one of the layouts that reach the C side."""
    kind = rng.integers(4)
    if kind == 0:  # channels adjacent
        return filled(rng, code, (batch, side, side, channels)).transpose(0, 3, 1, 2)
    if kind == 1:  # cut out of a larger one
        return filled(rng, code, (batch, channels + 1, side + 2, side + 1))[:, 1:, 1:-1, 1:]
    if kind == 2:  # one number seen everywhere
        return np.broadcast_to(filled(rng, code, (1, 1, 1, 1)), (batch, channels, side, side))
    return filled(rng, code, (batch, channels, side, side))


def depthwise(library, rng, draw):
    """One problem of the depthwise convolution or its adjoints."""
    code, threads = draw.choice((0, 0, 1, 1, 2)), draw.choice((1, 2, 3))
    n, height, across = draw.choice((0, 1, 2, 3)), draw.randint(1, 24), draw.randint(1, 24)
    # Python pads maps of fewer channels than the narrowest vector.
    least = (4, 8, 2)[code]
    channels = draw.choice((least, least + 1, draw.randint(least, 70), 64, 100))
    side, stride = draw.choice((1, 3, 5, 7, 7, 9, 11, 31)), draw.choice((1, 1, 1, 2, 3, 4, 8, 30))
    dilation, batch = draw.choice((1, 1, 2, 3, 3, 6, 30)), draw.choice((1, n or 1))
    h, w = -(-height // stride), -(-across // stride)
    name = draw.choice(("depthwise_conv2d", "depthwise_conv2d_input", "depthwise_conv2d_weight"))
    full = a_map(rng, code, n, height, across, channels, name.endswith("input"))
    small = a_map(rng, code, n, h, w, channels, name.endswith("2d"))
    weight = a_weight(rng, code, batch, channels, side)
    bias = gate = None
    gelu, scale = 0, 1.0
    if name.endswith("2d"):
        gelu, scale = draw.choice((0, 1)), draw.choice((1.0, 1 / 3))
        if draw.random() < 0.5:
            bias = filled(rng, code, (draw.choice((1, n or 1)), channels))
        if draw.random() < 0.5:
            gate = a_map(rng, code, n, h, w, draw.randint(1, channels), False)
    if name.endswith("weight"):
        weight = np.full((batch, side, side, channels), NAN[code], DTYPES[code])
    sizes = [code, threads, n, channels, height, across, h, w, side, stride, dilation, batch]
    sizes += [
        0 if gate is None else gate.shape[3],
        gelu,
        *struct.unpack("q", struct.pack("d", scale)),
        int(stride == 1 and not name.endswith("weight") and draw.random() < 0.3),
    ]
    sizes += steps(full) + steps(small) + ([0, 0, 0] if gate is None else steps(gate))
    sizes += [step // weight.itemsize for step in weight.strides]
    sizes.append(channels if bias is not None and bias.shape[0] > 1 else 0)
    order = {
        "depthwise_conv2d": (full, weight, bias, gate, small),
        "depthwise_conv2d_input": (small, weight, full),
        "depthwise_conv2d_weight": (small, full, weight),
    }
    *operands, result = order[name]
    call(library, name, code, sizes, [], operands, result)


def static_dynamic(library, rng, draw):
    """One problem of the convolution with a static and a dynamic kernel."""
    code, threads = draw.choice((0, 0, 1, 1, 2)), draw.choice((1, 2, 3))
    # Python takes another way where groups do not fill the narrowest vectors.
    least = (4, 8, 2)[code]
    n, groups = draw.choice((0, 1, 2)), draw.choice((1, 2, 3))
    channels = groups * least * draw.choice((1, 2, 3, 4, 8, 9))
    height, across, stride = draw.randint(1, 16), draw.randint(1, 16), draw.choice((1, 1, 1, 2, 3))
    side, dilation = draw.choice((0, 1, 3, 3, 5, 7, 9)), draw.choice((1, 1, 2, 5))
    window = side if side and draw.random() < 0.5 else draw.choice((3, 5, 7, 9))
    reach = [i - window // 2 for i in range(window)]
    offsets = [step for row in reach for column in reach for step in (row, column)]
    if draw.random() < 0.3:
        offsets = [draw.randint(-20, 20) for _ in range(2 * draw.randint(1, 21))]
    taps = len(offsets) // 2
    h, w = -(-height // stride), -(-across // stride)
    full = a_map(rng, code, n, height, across, channels, False)
    small = a_map(rng, code, n, h, w, channels, True)
    kernel = a_map(rng, code, n, h, w, groups * taps, False)
    residual = a_map(rng, code, n, h, w, channels, False) if draw.random() < 0.5 else None
    rows = filled(rng, code, (side * side + 2, channels))
    sizes = [code, threads, n, channels, height, across, groups, taps, h, w, stride]
    sizes += steps(full) + steps(small) + steps(kernel) + [side, dilation]
    sizes += [0, 0, 0, 0] if residual is None else [1, *steps(residual)]
    operands = (full, kernel, rows, residual)
    call(library, "static_dynamic_conv2d", code, sizes, offsets, operands, small)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("library")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    library = ctypes.CDLL(arguments.library)
    library.volution_select_isa.restype = ctypes.c_char_p
    for isa in (b"baseline", b"avx2", b"avx512", b"neon", b"wide"):
        if library.volution_select_isa(isa) is None:
            sys.stdout.write(f"{isa.decode()}: not built or not on this processor, left out\n")
            continue
        rng, draw = np.random.default_rng(arguments.seed), random.Random(arguments.seed)
        for _ in range(arguments.count):
            draw.choice((neighbourhood, depthwise, static_dynamic))(library, rng, draw)
        sys.stdout.write(f"{isa.decode()}: {arguments.count} problems, no finding\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
