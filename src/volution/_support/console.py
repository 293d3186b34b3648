"""The two streams: results go to ``out``, progress and remarks to ``log``."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Meter", "log", "out"]

out = Console(highlight=False)
log = Console(stderr=True, highlight=False)


class Meter:
    """A progress bar that counts images and knows how fast they pass; a context manager.

    In a terminal it moves; in a file or a pipe only its last state is written.

    Args:
        description: What is going on.
        total: How many images there are.
        show: False makes a silent one, which still measures.

    Attributes:
        count: Images so far.

    Example:
        >>> with Meter("read", total=3, show=False) as meter:
        ...     for _ in range(3):
        ...         meter.add(1)
        >>> meter.count, meter.rate > 0
        (3, True)
    """

    def __init__(self, description: str, total: int, *, show: bool = True) -> None:
        self.count = 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[rate]}", style="green"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", style="dim"),
            console=log,
            disable=not show,
        )
        self._task = self._progress.add_task(description, total=total, rate="", note="")

    @property
    def rate(self) -> float:
        """Images per second since the start."""
        return self.count / max(time.perf_counter() - self._start, 1e-9)

    def add(self, images: int, note: str = "", *, rate: float | None = None) -> None:
        """Count images that are done; ``note`` stands at the end of the line."""
        self.count += images
        shown = self.rate if rate is None else rate
        self._progress.update(self._task, advance=images, rate=f"{shown:,.0f} images/s", note=note)

    def __enter__(self) -> Meter:
        self._start = time.perf_counter()
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
