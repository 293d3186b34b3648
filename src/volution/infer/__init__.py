"""Using a trained network: how good it is, and what it says of a picture."""

from volution.infer.evaluate import Evaluation, evaluate
from volution.infer.listing import find_paths, walk_paths
from volution.infer.predict import Predictions, predict
from volution.infer.streaming import Prediction, predict_stream

__all__ = [
    "Evaluation",
    "Prediction",
    "Predictions",
    "evaluate",
    "find_paths",
    "predict",
    "predict_stream",
    "walk_paths",
]
