"""Pictures of what a network learned and how: SVG in bytes, for files and reports."""

from volution.analysis.confusion import confusion_picture
from volution.analysis.curves import curves_picture
from volution.analysis.kernels import KernelMaps, kernel_maps, kernels_picture
from volution.analysis.samples import samples_picture

__all__ = [
    "KernelMaps",
    "confusion_picture",
    "curves_picture",
    "kernel_maps",
    "kernels_picture",
    "samples_picture",
]
