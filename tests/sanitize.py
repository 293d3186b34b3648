"""Run the CPU library under the sanitizers: ``make sanitize``. Not a pytest module.

Calls the C functions directly, with ctypes and numpy only, over random problems: every dtype,
window, stride, group width and layout, in buffers that end where the data ends, so that a single
element read or written outside is a finding. Outputs start as NaN and have to end without one.
"""

import argparse
import ctypes
import random
import sys

import numpy as np

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


def one(library, rng, draw):
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
    arguments = order.get(name, (small, full, kernel))
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in arguments]
    status = getattr(library, f"volution_{name}")(int64s(sizes), int64s(offsets), *pointers)
    result = arguments[-1]
    left = (result == NAN[code]).any() if code == 1 else np.isnan(result).any()
    if status or left:
        raise SystemExit(f"{name} {sizes} {offsets}: status {status}, unwritten elements {left}")


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
            one(library, rng, draw)
        sys.stdout.write(f"{isa.decode()}: {arguments.count} problems, no finding\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
