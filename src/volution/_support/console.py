"""The two streams: results go to ``out``, progress and remarks to ``log``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from datetime import timedelta
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["Meter", "log", "out"]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # The command decides what that means; rich would end the process, as failed.
        raise


out = _Console(highlight=False)
log = _Console(stderr=True, highlight=False)


class Meter:
    """A progress bar that counts images and knows how fast they pass; a context manager.

    In a terminal it moves; in a file or a pipe only its last state is written.

    Args:
        description: What is going on.
        total: How many images there are.
        show: False makes a silent one, which still measures.
        done: How many of them were done before, by an earlier part of the work.

    Attributes:
        count: Images so far, without those done before.

    Example:
        >>> with Meter("read", total=3, show=False) as meter:
        ...     for _ in range(3):
        ...         meter.add(1)
        >>> meter.count, meter.rate > 0
        (3, True)
    """

    def __init__(self, description: str, total: int, *, show: bool = True, done: int = 0) -> None:
        self.count = 0
        self._progress = _Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[rate]}", style="green"),
            _TimeLeft(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", style="dim"),
            console=log,
            disable=not show,
            # Results may leave while it moves; redirected, they would end up in the terminal.
            redirect_stdout=False,
        )
        self._task = self._progress.add_task(
            description, total=total, completed=done, rate="", note="", detail="", left=None
        )

    @property
    def rate(self) -> float:
        """Images per second since the start."""
        return self.count / max(time.perf_counter() - self._start, 1e-9)

    def add(
        self,
        images: int,
        note: str = "",
        *,
        rate: float | None = None,
        left: float | None = None,
        detail: str = "",
    ) -> None:
        """Count images that are done.

        Args:
            images: How many.
            note: What stands at the end of the line.
            rate: Images per second, if the mean since the start is not what matters.
            left: Seconds to the end, if they do not follow from the images alone.
            detail: A second line.
        """
        self.count += images
        shown = self.rate if rate is None else rate
        self._progress.update(
            self._task,
            advance=images,
            rate=f"{shown:,.0f} images/s",
            note=note,
            left=left,
            detail=detail,
        )

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


class _TimeLeft(TimeRemainingColumn):
    """The time to the end: as the task says, or from how fast it goes."""

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        if left is None or task.finished:
            return super().render(task)
        return Text(str(timedelta(seconds=math.ceil(left))), style="progress.remaining")


class _Bar(Progress):
    """A progress bar with a second line below it, where there is something to say."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields.get("detail"):
                yield Text(f"  {task.fields['detail']}", style="dim", overflow="ellipsis")
