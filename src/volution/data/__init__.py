"""Pictures to learn from: the digits that come with scikit-learn, or a folder of one's own.

>>> data = load("digits")
>>> len(data.train), len(data.val), len(data.classes)
(1438, 359, 10)
"""

from volution.data.check import check_images
from volution.data.decoding import decode_image, open_image
from volution.data.division import split
from volution.data.images import ImageArrays, ImageData, ImageFiles, Images, find_images
from volution.data.loader import Batch, loader, set_position
from volution.data.shard_writing import ShardReport, write_shards
from volution.data.shards import load_shards, open_shards
from volution.data.sources import load
from volution.data.stream import Stream
from volution.data.transforms import Augmentation, InputConfig

__all__ = [
    "Augmentation",
    "Batch",
    "ImageArrays",
    "ImageData",
    "ImageFiles",
    "Images",
    "InputConfig",
    "ShardReport",
    "Stream",
    "check_images",
    "decode_image",
    "find_images",
    "load",
    "load_shards",
    "loader",
    "open_image",
    "open_shards",
    "set_position",
    "split",
    "write_shards",
]
