"""Using a trained network: how good it is, and what it says of a picture."""

from volution.infer.evaluate import Evaluation, evaluate
from volution.infer.predict import Prediction, Predictions, find_paths, predict

__all__ = ["Evaluation", "Prediction", "Predictions", "evaluate", "find_paths", "predict"]
