"""The public names are frozen: a name that appears or vanishes does so on purpose, here."""

from __future__ import annotations

import pytest

import volution

OPS = {
    "LKA",
    "MSFFN",
    "OSRA",
    "PSSA",
    "STE",
    "DMixer",
    "DepthwiseConv2d",
    "FoldedXvolution2d",
    "GlobalLocalFilter",
    "GnConv",
    "IDConv",
    "Involution2d",
    "LKAttention",
    "PositionTable",
    "Xvolution2d",
    "correlate",
    "depthwise_conv2d",
    "dynamic_depthwise_conv2d",
    "gather",
    "global_filter2d",
    "gnconv2d",
    "involution2d",
    "lka2d",
    "mixed_depthwise_conv2d",
    "pssa2d",
    "reference_ops",
    "report",
    "scatter",
    "static_dynamic_conv2d",
    "window_offsets",
}


def test_ops():
    assert set(volution.ops.__all__) == OPS


def test_package():
    assert isinstance(volution.__version__, str)
    assert set(volution.__all__) == {"__version__", "convert", "models", "ops"}


@pytest.mark.parametrize("name", sorted(OPS))
def test_public_operators_are_documented(name):
    thing = getattr(volution.ops, name)
    assert thing.__doc__
    assert thing.__module__.startswith("volution.ops")
