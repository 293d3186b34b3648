"""A backbone and a head, and what it means for them to be right: image classification so far."""

from volution.tasks.checkpoint import (
    Classifier,
    load_classifier,
    load_official_classifier,
    save_classifier,
    start_from,
)
from volution.tasks.classification import Accuracy, create_model, input_config
from volution.tasks.resolution import needs_size, set_image_size, tell_resized
from volution.tasks.sharing import pull, push

__all__ = [
    "Accuracy",
    "Classifier",
    "create_model",
    "input_config",
    "load_classifier",
    "load_official_classifier",
    "needs_size",
    "pull",
    "push",
    "save_classifier",
    "set_image_size",
    "start_from",
    "tell_resized",
]
