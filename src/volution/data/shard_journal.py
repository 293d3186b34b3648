"""What a job that writes shards has done so far."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from volution._support.files import write_whole
from volution.data.shard_index import JOURNAL, IndexedShard, from_entry, read_index, to_entry

__all__ = ["Journal"]


@dataclass
class Journal:
    """The complete shards of an unfinished job, and where it goes on.

    Args:
        folder: Where the shards are.
        job: Digest of what is written, and how.
        shards: The complete ones of each split.
        next: Position in the order of each split that comes next.
        broken: Images before that which were left out, and why.
    """

    folder: Path
    job: str
    shards: dict[str, list[IndexedShard]]
    next: dict[str, int]
    broken: list[str]

    @classmethod
    def begin(cls, folder: Path, job: str) -> Journal | None:
        """Return the journal of a job, new or to be continued; None if the job is finished.

        Raises:
            ValueError: If the folder holds anything of another job, or shards are missing.
            OSError: If it cannot be written.
        """
        other = (
            f"destination: {folder} holds shards of other data or settings; choose another folder"
        )
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"destination must be a folder, {folder} is a file")
        index = read_index(str(folder))
        if index is not None and index.job != job:
            raise ValueError(other)
        if index is not None:
            (folder / JOURNAL).unlink(missing_ok=True)
            return None
        journal = cls._read(folder) or cls(folder, job, {}, {}, [])
        if journal.job != job:
            raise ValueError(f"{other}, or finish that job first")
        known = {shard.name: shard for shards in journal.shards.values() for shard in shards}
        for name, shard in known.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != shard.bytes:
                raise ValueError(
                    f"destination: {path} was changed since it was written; remove {folder}"
                )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"destination: cannot write to {folder}: {reason}") from error
        if not (folder / JOURNAL).exists():
            strange = min(folder.glob("*.tar"), default=None)
            if strange is not None:
                raise ValueError(
                    f"destination: {folder} holds {strange.name} already; choose another one"
                )
            journal.save()
        return journal

    @classmethod
    def _read(cls, folder: Path) -> Journal | None:
        path = folder / JOURNAL
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            shards = {
                split: [from_entry(entry) for entry in entries]
                for split, entries in found["shards"].items()
            }
            return cls(folder, found["job"], shards, found["next"], found["broken"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove {folder}") from error

    def add(self, split: str, shard: IndexedShard, position: int) -> None:
        """Write down that a shard is complete, and where the next one begins."""
        self.shards.setdefault(split, []).append(shard)
        self.next[split] = position
        self.save()

    def save(self) -> None:
        """Write the journal."""
        content = {
            "job": self.job,
            "shards": {
                split: [to_entry(s) for s in shards] for split, shards in self.shards.items()
            },
            "next": self.next,
            "broken": self.broken,
        }
        write_whole(self.folder / JOURNAL, json.dumps(content))

    def remove(self) -> None:
        """The job is finished."""
        (self.folder / JOURNAL).unlink(missing_ok=True)
