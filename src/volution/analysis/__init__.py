"""What a network costs, and pictures of what it learned and how: SVG in bytes."""

from volution.analysis.confusion import confusion_picture
from volution.analysis.cost import Cost, Stage, network_cost
from volution.analysis.curves import curves_picture, schedule_picture
from volution.analysis.filters import Filters, filters_picture, has_filters, widest_filters
from volution.analysis.kernels import KernelMaps, kernel_maps, kernels_picture
from volution.analysis.large_kernels import border_effect, large_kernel_picture
from volution.analysis.receptive import effective_receptive_field, receptive_field_picture
from volution.analysis.samples import samples_picture
from volution.analysis.shifts import receptive_fields, shift_picture
from volution.analysis.training_memory import TrainingMemory, training_memory

__all__ = [
    "Cost",
    "Filters",
    "KernelMaps",
    "Stage",
    "TrainingMemory",
    "border_effect",
    "confusion_picture",
    "curves_picture",
    "effective_receptive_field",
    "filters_picture",
    "has_filters",
    "kernel_maps",
    "kernels_picture",
    "large_kernel_picture",
    "network_cost",
    "receptive_field_picture",
    "receptive_fields",
    "samples_picture",
    "schedule_picture",
    "shift_picture",
    "training_memory",
    "widest_filters",
]
