"""Commands around data: data check."""

from __future__ import annotations

from volution._support.console import out
from volution.cli._common import tell_broken

__all__ = ["check"]


def check(
    source: str, *, workers: int = 0, max_pixels: int = 100_000_000, json: bool = False
) -> int:
    """Read every image of a dataset and list those that cannot be read.

    Args:
        source: Name of the dataset, such as digits or folder:PATH.
        workers: Processes that read images.
        max_pixels: Images of more pixels are refused, unread.
        json: Write JSON.
    """
    from volution import data as datasets
    from volution.report.tables import print_json

    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    if max_pixels < 1:
        raise ValueError(f"max_pixels must be at least 1, got {max_pixels}")
    images = datasets.load(source, max_pixels=max_pixels)
    parts = {"train": images.train, "val": images.val}
    broken = {n: datasets.check_images(part, workers=workers) for n, part in parts.items()}
    problems = [problem for part in broken.values() for problem in part]
    count = sum(len(part) for part in parts.values())
    if json:
        print_json({"data": source, "images": count, "broken": problems})
        return tell_broken(problems)
    sizes = ", ".join(f"{len(part)} {name}" for name, part in parts.items())
    whole = f"{count - len(problems)} of {count} images can be read ({sizes})"
    out.print(f"{whole}, {len(images.classes)} classes", soft_wrap=True)
    return tell_broken(problems)
