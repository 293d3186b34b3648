"""Spatial operators beyond convolution and attention, and the networks built from them."""

from volution import models, ops
from volution.convert import convert

__version__ = "0.1.0"

__all__ = ["__version__", "convert", "models", "ops"]
