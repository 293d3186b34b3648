"""Involution: a kernel per pixel, shared across the channels of a group."""

from volution.ops.involution.layer import Involution2d, KernelGenerator
from volution.ops.involution.op import involution2d

__all__ = ["Involution2d", "KernelGenerator", "involution2d"]
