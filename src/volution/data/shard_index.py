"""What lies in a folder of shards: ``index.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from volution.data.remote import RemoteFile, is_remote
from volution.data.transforms import Augmentation

__all__ = [
    "INDEX",
    "JOURNAL",
    "IndexedShard",
    "ShardIndex",
    "beside",
    "from_entry",
    "read_index",
    "refuse_unfinished",
    "to_entry",
]

INDEX = "index.json"
JOURNAL = ".writing.json"
"""What stands in its place until all shards are written."""
_FORMAT = "volution-shards-1"


@dataclass(frozen=True)
class IndexedShard:
    """One shard of a folder.

    Args:
        name: Its file name.
        labels: Class number of each of its samples.
        bytes: Its size.
        sha256: Its digest.
    """

    name: str
    labels: tuple[int, ...]
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """The shards of a folder, and what their images and labels mean.

    Args:
        classes: Names of the classes; a label is a position in it.
        channels: Channels of the images.
        splits: The shards of ``"train"`` and ``"val"``, in their order.
        image_size: As in :class:`volution.data.ImageData`.
        mean: Likewise.
        std: Likewise.
        augmentation: Likewise.
        job: Digest of what was written, and how.
        left_out: Images that could not be read when the shards were written, and why.

    Example:
        >>> shard = IndexedShard("val-000000.tar", labels=(1, 0), bytes=10240, sha256="0" * 64)
        >>> index = ShardIndex(classes=("cat", "cow"), channels=3, splits={"val": (shard,)})
        >>> ShardIndex.from_json(index.to_json()) == index
        True
    """

    classes: tuple[str, ...]
    channels: int
    splits: Mapping[str, tuple[IndexedShard, ...]]
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    job: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def shards(self) -> dict[str, IndexedShard]:
        """All shards by their names."""
        return {shard.name: shard for shards in self.splits.values() for shard in shards}

    def to_json(self) -> str:
        """Return the index as JSON, always the same for the same shards."""
        splits = {name: [to_entry(s) for s in shards] for name, shards in self.splits.items()}
        index = {"format": _FORMAT, **asdict(self), "splits": splits}
        return json.dumps(index, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ShardIndex:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: If it is something else; the message says what is wrong with it.
        """
        try:
            found = json.loads(text)
            if found.pop("format") != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT!r}")
            splits = {
                str(split): tuple(from_entry(shard, len(found["classes"])) for shard in shards)
                for split, shards in found.pop("splits").items()
            }
            tuples = {n: _tuple(found[n]) for n in ("mean", "std", "left_out") if n in found}
            classes = tuple(str(name) for name in found.pop("classes"))
            varied = {k: _tuple(v) for k, v in found.pop("augmentation", {}).items()}
            index = cls(
                classes=classes,
                splits=splits,
                augmentation=Augmentation(**varied),
                **{**found, **tuples},
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"it is damaged or no index of shards: {what}") from error
        return index


def to_entry(shard: IndexedShard) -> dict[str, Any]:
    """Return what JSON holds of a shard."""
    # A million numbers, one to a line, would be no file to look into.
    labels = " ".join(map(str, shard.labels))
    return {**asdict(shard), "samples": len(shard.labels), "labels": labels}


def from_entry(entry: dict[str, Any], classes: int | None = None) -> IndexedShard:
    """Read what :func:`to_entry` made; with ``classes``, labels must be below it.

    Raises:
        ValueError: If something is wrong with it.
        KeyError: If something is missing.
    """
    labels = tuple(int(label) for label in entry["labels"].split())
    shard = IndexedShard(entry["name"], labels, int(entry["bytes"]), entry["sha256"])
    if "/" in shard.name or not labels or len(labels) != entry["samples"]:
        raise ValueError(f"its entry of {shard.name} has not a label for each sample")
    wrong = next((n for n in labels if n < 0 or (classes is not None and n >= classes)), None)
    if wrong is not None:
        raise ValueError(f"its entry of {shard.name} has label {wrong} of {classes} classes")
    return shard


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def read_index(folder: str) -> ShardIndex | None:
    """Return the index of a folder, local or on a web server; None if it has none.

    Raises:
        ValueError: If it is damaged; the message names it.
        OSError: If it cannot be read.
    """
    place = beside(folder, INDEX)
    try:
        if is_remote(place):
            with RemoteFile(place) as file:
                content = file.read()
        else:
            content = Path(place).read_bytes()
        return ShardIndex.from_json(content.decode())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def refuse_unfinished(folder: str) -> None:
    """Raise ``ValueError`` for a local folder whose shards are not all there yet."""
    if not is_remote(folder) and (Path(folder) / JOURNAL).exists():
        raise ValueError(
            f"data folder {folder}: its shards are not all written yet; run volution data shard "
            f"again, it goes on where it stopped"
        )


def beside(folder: str, name: str) -> str:
    """Return the place of a file in a folder.

    Example:
        >>> beside("https://example.org/shards/", "index.json")
        'https://example.org/shards/index.json'
    """
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else str(Path(folder) / name)
