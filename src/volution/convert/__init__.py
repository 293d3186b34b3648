"""Put an operator into somebody else's network.

>>> import timm, volution
>>> from volution.convert import gnconv
>>> net = timm.create_model("convnext_atto", device="meta")
>>> net = volution.convert(net, {"stages.3.*.conv_dw": gnconv(order=3)}, quiet=True)
>>> net.stages[3].blocks[0].conv_dw.widths
(80, 160, 320)
"""

from volution.convert.operators import dmixer, gnconv, involution, lka, xvolution
from volution.convert.replace import convert
from volution.convert.replacement import Place, Replacement
from volution.convert.report import Conversion, Row
from volution.convert.tokens import TokenMap

__all__ = [
    "Conversion",
    "Place",
    "Replacement",
    "Row",
    "TokenMap",
    "convert",
    "dmixer",
    "gnconv",
    "involution",
    "lka",
    "xvolution",
]
