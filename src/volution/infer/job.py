"""What a folder of predictions is of: pinned in a manifest, so that two jobs never mix."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from volution._support.files import beside
from volution.infer.inputs import Survey
from volution.infer.shares import Share
from volution.tasks import Classifier

__all__ = ["MANIFEST", "Job", "Part", "claim"]

# Readers of a folder of parquet files pass over names that begin like this.
MANIFEST = "_job.json"

_WORDS = {"network": "another network", "images": "other images"}


@dataclass(frozen=True)
class Part:
    """A file of a job: its name, and the positions of its first image and after its last."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Job:
    """What a folder of parts holds.

    Args:
        network: Digest of weights, classes and input of the network.
        images: Digest of the names of the images, in their order.
        count: How many there are.
        top: Classes of each image.
        embedding: Width of the embeddings; None if there are none.
        ranks: How many shares the images are divided into.
        part_size: Images of a part; the last of a share may have fewer.
    """

    network: str
    images: str
    count: int
    top: int
    embedding: int | None
    ranks: int
    part_size: int

    @classmethod
    def of(
        cls,
        classifier: Classifier,
        survey: Survey,
        *,
        top: int,
        width: int | None,
        ranks: int,
        part_size: int,
    ) -> Job:
        """Return the job of a network and images."""
        network = _network_digest(classifier)
        return cls(network, survey.digest, survey.count, top, width, ranks, part_size)

    @property
    def digest(self) -> str:
        """A digest of all of it, which every part carries."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    def parts(self, share: Share) -> list[Part]:
        """Return the parts of a share, in order."""
        first, end = share.span(self.count)
        return [
            Part(
                f"part-{share.rank:05d}-{number:05d}.parquet",
                start,
                min(start + self.part_size, end),
            )
            for number, start in enumerate(range(first, end, self.part_size))
        ]

    def all_parts(self) -> Iterator[Part]:
        """Yield the parts of all shares, in order."""
        for rank in range(self.ranks):
            yield from self.parts(Share(rank, self.ranks))


def claim(folder: Path, job: Job, share: Share) -> None:
    """Make a folder a job's, or see that it is; remove what a killed process of the share left.

    Raises:
        ValueError: If it holds another job or other files, cannot be written, or the parts are so
            many that their names would lose their order.
    """
    if len(job.parts(share)) > 100_000 or job.ranks > 100_000:
        raise ValueError(
            f"part_size {job.part_size} makes more than 100,000 parts of {job.count:,} images; "
            f"take a larger one"
        )
    manifest = folder / MANIFEST
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not manifest.exists():
            # Whoever is first writes it; others of the same job may do so at the same moment.
            others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
            if others and MANIFEST not in others:
                raise ValueError(
                    f"output: {folder} holds other files, such as {min(others)}; choose a new "
                    f"folder"
                )
            with beside(manifest) as unfinished:
                unfinished.write_text(json.dumps(asdict(job), indent=2) + "\n")
        for left in folder.glob(f".part-{share.rank:05d}-*.unfinished"):
            left.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"output: cannot write to {folder}: {error.strerror or error}") from error
    _compare(folder, job)


def _compare(folder: Path, job: Job) -> None:
    try:
        found = json.loads((folder / MANIFEST).read_text())
        differing = [name for name, value in asdict(job).items() if found[name] != value]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"output: {folder / MANIFEST} is damaged; choose another folder"
        ) from error
    if differing:
        told = [_WORDS.get(n) or f"{n} {found[n]}, not {getattr(job, n)}" for n in differing]
        raise ValueError(
            f"output: {folder} holds another job ({'; '.join(told)}); choose another folder"
        )


def _network_digest(classifier: Classifier) -> str:
    digest = hashlib.sha256()
    about = [classifier.name, list(classifier.classes), classifier.input.to_json()]
    digest.update(json.dumps([*about, classifier.model_args], sort_keys=True).encode())
    for name, value in classifier.model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        plain = value.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()
