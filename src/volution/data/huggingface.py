"""Datasets of the Hugging Face Hub, or in its formats in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from volution._support.extras import needs
from volution.data.decoding import MAX_PIXELS, decode_image, open_image
from volution.data.division import VALIDATION_SHARE, split
from volution.data.images import ImageData

__all__ = ["HubImages", "huggingface"]

_VALIDATION_SPLITS = ("validation", "valid", "val", "test")
_IMAGE_NAMES, _LABEL_NAMES = ("image", "img"), ("label", "labels", "fine_label")


@dataclass(frozen=True)
class HubImages:
    """Images of a split of a dataset of the datasets library.

    Args:
        records: The split, with nothing but its images, not decoded.
        labels: Class numbers.
        column: Where the images are.
        where: What to call the split in messages.
        max_pixels: Larger images are refused.
    """

    records: Any
    labels: Sequence[int]
    column: str
    where: str
    max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> Image.Image:
        record = self.records[index][self.column]
        if record is None:
            raise ValueError(f"{self.where}#{index} has no image")
        if record["bytes"] is None:
            return open_image(Path(record["path"]), max_pixels=self.max_pixels)
        return decode_image(record["bytes"], self._name(index, record), max_pixels=self.max_pixels)

    def name(self, index: int) -> str:
        return self._name(index, self.records[index][self.column] or {})

    def _name(self, index: int, record: Mapping[str, Any]) -> str:
        path = record.get("path")
        return f"{self.where}#{index}" + (f" ({path})" if path else "")


def huggingface(name: str, place: str, max_pixels: int) -> ImageData:
    """Return the images of ``hf:PLACE``, see :func:`volution.data.load`."""
    with needs("hf"):
        import datasets
    splits = _load(name, place)
    if not isinstance(splits, Mapping):  # a single split that was saved
        splits = {"train": splits}
    held_out = next((s for s in _VALIDATION_SPLITS if s in splits), None)
    if "train" not in splits and held_out is None:
        raise ValueError(
            f"data {name} has the splits {', '.join(splits)}; it takes train, or one of "
            f"{', '.join(_VALIDATION_SPLITS)}"
        )
    features = next(iter(splits.values())).features
    image = _column(name, features, datasets.Image, _IMAGE_NAMES)
    label = _column(name, features, datasets.ClassLabel, _LABEL_NAMES)

    def images(split_name: str, positions: Sequence[int] | None = None) -> HubImages:
        records = splits[split_name]
        if positions is not None:
            records = records.select(positions)
        labels = list(records.select_columns([label])[label])
        undecoded = records.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        return HubImages(undecoded, labels, image, f"{name}/{split_name}", max_pixels)

    if held_out is None:
        every = list(splits["train"].select_columns([label])[label])
        train, val = (images("train", part) for part in split(every, VALIDATION_SHARE))
    else:
        val = images(held_out)
        train = images("train") if "train" in splits else images(held_out, [])
    return ImageData(name, tuple(features[label].names), 3, train, val)


def _load(name: str, place: str) -> Any:
    """Return what the datasets library makes of a place: splits by name, or a single one."""
    import datasets

    here = Path(place).expanduser()
    load: Callable[[], Any]
    if here.is_dir():
        saved = (here / "dataset_dict.json").is_file() or (here / "state.json").is_file()
        reader = datasets.load_from_disk if saved else datasets.load_dataset
        place, load = str(here), lambda: reader(str(here))
    else:
        repository, _, config = place.partition(":")
        load = lambda: datasets.load_dataset(repository, config or None)  # noqa: E731
    try:
        return load()
    # The library and those below it have no error in common.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"data {name}: cannot be loaded ({reason}); without network give a folder: hf:FOLDER"
        ) from error


def _column(name: str, features: Mapping[str, Any], kind: type, usual: Sequence[str]) -> str:
    """Return the column of a kind; of several the one with a usual name."""
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    chosen = next((column for column in usual if column in found), None)
    if chosen is None and len(found) == 1:
        chosen = found[0]
    if chosen is None:
        have = ", ".join(f"{c} ({type(f).__name__})" for c, f in features.items())
        raise ValueError(
            f"data {name}: needs one column of {kind.__name__}, or one called {usual[0]}; it has "
            f"{have}"
        )
    return chosen
