"""One replacement by each operator, with settings that fit every width in these tests."""

from __future__ import annotations

from volution.convert import dmixer, gnconv, involution, lka, xvolution
from volution.ops import LKA, DMixer, GnConv, Involution2d, Xvolution2d

REPLACEMENTS = {
    "involution": involution(kernel_size=5),
    "gnconv": gnconv(order=3),
    "lka": lka(),
    "dmixer": dmixer(num_heads=2, sr_ratio=2),
    "xvolution": xvolution(heads=2),
}
LAYERS = {
    "involution": Involution2d,
    "gnconv": GnConv,
    "lka": LKA,
    "dmixer": DMixer,
    "xvolution": Xvolution2d,
}
