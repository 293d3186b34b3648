"""Training, on Lightning; nothing of it is imported before a run begins.

>>> TrainConfig(data="digits").model
'rednet26'
"""

from volution.train.config import TrainConfig
from volution.train.fit import TrainResult, fit, resume

__all__ = ["TrainConfig", "TrainResult", "fit", "resume"]
