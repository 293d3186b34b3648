"""Training, on Lightning; nothing of it is imported before a run begins.

>>> TrainConfig(data="digits").model
'rednet26'
"""

from volution.train.config import TrainConfig
from volution.train.fit import TrainResult, can_resume, fit, resume
from volution.train.interruption import Interrupted
from volution.train.trouble import TrainingError

__all__ = [
    "Interrupted",
    "TrainConfig",
    "TrainResult",
    "TrainingError",
    "can_resume",
    "fit",
    "resume",
]
