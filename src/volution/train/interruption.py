"""Signals: they are remembered, and acted on when a step is finished."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from volution._support.console import log
from volution.train.ranks import is_first

__all__ = ["Interrupted", "Interruption", "Stop", "job_id", "keep_reading", "requeue", "stopping"]


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop, and stopped after its state was saved.

    Args:
        signum: The signal that asked.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; the state is saved")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What a process returns after this signal.

        Example:
            >>> Interrupted(signal.SIGTERM).exit_code
            143
        """
        return 128 + self.signum


class Stop(Exception):
    """Inside the training loop: the run was asked to stop and its state is saved.

    Args:
        signum: The signal that asked.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


def _names(*names: str) -> tuple[signal.Signals, ...]:
    return tuple(signal.Signals[name] for name in names if name in signal.Signals.__members__)


class Interruption:
    """Takes the signals that end a run, from :meth:`take` until the end of a ``with`` block.

    The first is only remembered in :attr:`received`. A second Ctrl-C leaves at once, with
    ``KeyboardInterrupt``; other signals that follow change nothing.

    Args:
        told: Whether to say on standard error what is going to happen.
    """

    # USR1 and USR2 are what batch systems are asked to send before the time is over.
    REQUEUE = _names("SIGUSR1", "SIGUSR2")
    SIGNALS = (*_names("SIGINT", "SIGTERM", "SIGHUP"), *REQUEUE)

    def __init__(self, *, told: bool = True) -> None:
        self.told = told
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in self.SIGNALS}
        self.take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            # None: set by code that is not Python's, and cannot be set again.
            if handler is not None:
                signal.signal(number, handler)
        self._before = {}

    def take(self) -> None:
        """Take the signals, also from others that took them meanwhile."""
        for number, before in self._before.items():
            # What nohup switched off stays so.
            if before is not signal.SIG_IGN:
                signal.signal(number, self._remember)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = signum
        if self.told:
            again = "; Ctrl-C again leaves at once" if signum == signal.SIGINT else ""
            text = f"\n{signal.Signals(signum).name}: this step is finished and saved{again}\n"
            # Not through a buffer, whose owner may be in the middle of writing.
            os.write(2, text.encode())


def keep_reading(worker: int) -> None:
    """Let a process that reads images outlast the signals that its group gets.

    The step under way needs its images; the process ends when there is no more to read. It also
    ends at the second SIGTERM: that is how it is made to, if nothing else helps.

    Args:
        worker: Its number among the others.
    """
    seen: list[int] = []

    def once(signum: int, frame: FrameType | None) -> None:
        seen.append(signum)
        if len(seen) > 1:
            os._exit(0)

    for number in Interruption.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, once)


@contextmanager
def stopping(interruption: Interruption) -> Iterator[None]:
    """Let a stop come out as what asked for it: :class:`Interrupted`, or ``KeyboardInterrupt``."""
    try:
        yield
    except Stop as stop:
        if stop.signum in interruption.REQUEUE and is_first():
            outcome = requeue()
            if outcome is not None:
                log.print(outcome, markup=False, soft_wrap=True)
        raise Interrupted(stop.signum) from None
    except SystemExit as error:
        # Lightning exits with code 1 instead, as from a failure.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise


def job_id(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return what SLURM calls this job, or this task of an array; None outside of SLURM.

    Example:
        >>> job_id({"SLURM_JOB_ID": "12"}), job_id({})
        ('12', None)
        >>> job_id({"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "2"})
        '12_2'
    """
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environ.get("SLURM_JOB_ID")


def requeue() -> str | None:
    """Ask SLURM to run this job again; return what came of it, None outside of SLURM."""
    job = job_id()
    if job is None:
        return None
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"SLURM job {job} was not requeued: {error}"
    if done.returncode:
        reason = done.stderr.strip() or f"scontrol returned {done.returncode}"
        return f"SLURM job {job} was not requeued: {reason}"
    return f"SLURM job {job} is requeued"
