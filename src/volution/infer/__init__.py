"""Using a trained network: how good it is, and what it says of a picture."""

from volution.infer.corruptions import CORRUPTIONS, Robustness, corrupt, evaluate_corrupted
from volution.infer.evaluate import Evaluation, evaluate
from volution.infer.listing import find_paths, walk_paths
from volution.infer.metrics import Calibration, standard_error, wilson_interval
from volution.infer.parts import PartsResult, predict_parts
from volution.infer.predict import Predictions, predict
from volution.infer.review import Review, Sample, review
from volution.infer.sizes import SizeResult, evaluate_sizes
from volution.infer.streaming import Prediction, predict_stream
from volution.infer.verify import Verification, reported_share, verify

__all__ = [
    "CORRUPTIONS",
    "Calibration",
    "Evaluation",
    "PartsResult",
    "Prediction",
    "Predictions",
    "Review",
    "Robustness",
    "Sample",
    "SizeResult",
    "Verification",
    "corrupt",
    "evaluate",
    "evaluate_corrupted",
    "evaluate_sizes",
    "find_paths",
    "predict",
    "predict_parts",
    "predict_stream",
    "reported_share",
    "review",
    "standard_error",
    "verify",
    "walk_paths",
    "wilson_interval",
]
