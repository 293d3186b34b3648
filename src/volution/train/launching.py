"""The other processes of a run on one machine: started with it, watched, ended with it.

Launchers that run on several machines (torchrun, srun) start every process with the same command.
On one machine the first process decides everything (the settings, the folder, what to go on from)
and starts the others with just that.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed

from volution._support.console import log
from volution.train.config import TrainConfig, write_config
from volution.train.ranks import launch
from volution.train.trouble import TrainingError, how_to_continue

__all__ = ["PARENT", "REPORTS", "RankFailed", "others", "watch_parent"]

PARENT = "VOLUTION_RANK_OF"
"""Variable with the process that started this one for a run of its."""

REPORTS = "VOLUTION_RANK_REPORTS"
"""Variable with the folder in which a process that fails says why."""

# How long a process may take to see by itself that another one is gone.
_GRACE = 10.0
# How long the others may take to end after the first.
_FAREWELL = 60.0
_POLL = 0.2
_LOST = re.compile(r"gloo|NCCL|ProcessGroup|Connection (closed|reset)")
_CONSEQUENCE = "the connection to another process was lost"


class RankFailed(TrainingError):
    """Another process of the run ended too early."""


@contextmanager
def others(config: TrainConfig, folder: Path, resume: Path | None) -> Iterator[None]:
    """Have the other processes of a run beside this one, its first, while the block lasts.

    Nothing is done for a run of one process, or where a launcher started all of them.

    Args:
        config: The settings of the run.
        folder: Its folder.
        resume: What it goes on from.

    Raises:
        RankFailed: If one of them ends before the block does; the message says which, and why.
    """
    if config.ranks == 1 or launch() is not None:
        with _lost_connections():
            yield
        return
    with tempfile.TemporaryDirectory(prefix="volution-") as place, _environment(config) as env:
        reports = Path(place)
        write_config(config, reports / "config.yaml")
        words = [sys.executable, "-m", "volution.train.rank", str(reports / "config.yaml")]
        words += [str(folder), *([str(resume)] if resume is not None else [])]
        crew = _Crew(config.ranks, reports, folder)
        try:
            for rank in range(1, config.ranks):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank), PARENT: str(os.getpid())}
                own[REPORTS] = str(reports)
                crew.start(words, {**env, **own})
            crew.watch()
            yield
            crew.farewell()
        except BaseException as error:
            # What torch.distributed raises; anything else this process has found by itself.
            failure = crew.failure(wait=True) if isinstance(error, RuntimeError) else None
            if failure is not None:
                raise RankFailed(failure) from error
            raise
        finally:
            crew.end()
            if distributed.is_initialized():
                distributed.destroy_process_group()


@contextmanager
def _lost_connections() -> Iterator[None]:
    """Say what it means when an operation that all processes share breaks off."""
    try:
        yield
    except RuntimeError as error:
        broken = isinstance(error, distributed.DistError) or _LOST.search(str(error))
        if isinstance(error, TrainingError) or not broken:
            raise
        raise RankFailed(f"{_CONSEQUENCE} ({str(error).strip().splitlines()[0]})") from error


class _Crew:
    """The processes that this one started."""

    def __init__(self, ranks: int, reports: Path, folder: Path) -> None:
        self.ranks = ranks
        self.reports = reports
        self.folder = folder
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.done = threading.Event()

    def start(self, words: list[str], env: dict[str, str]) -> None:
        self.processes[int(env["RANK"])] = subprocess.Popen(
            # Ctrl-C is for the first process, which tells the others when a step is finished.
            words,
            env=env,
            start_new_session=True,
        )

    def watch(self) -> None:
        threading.Thread(target=self._watch, name="volution-ranks", daemon=True).start()

    def _watch(self) -> None:
        while not self.done.wait(_POLL):
            if self._failed() is None:
                continue
            # A collective operation with a process that is gone usually raises in the main thread.
            if not self.done.wait(_GRACE):
                text = f"volution: error: {self.failure()}; {how_to_continue(self.folder)}"
                log.print(text, markup=False, soft_wrap=True)
                self.end()
                os._exit(2)  # it never comes back from that operation
            return

    def _failed(self) -> int | None:
        failed = [rank for rank, p in self.processes.items() if p.poll() not in (None, 0)]
        # Those that only lost their connection to another one explain nothing.
        return min(
            failed, key=lambda rank: (_CONSEQUENCE in self._report(rank), rank), default=None
        )

    def _report(self, rank: int) -> str:
        report = self.reports / f"{rank}.txt"
        return report.read_text() if report.is_file() else ""

    def failure(self, *, wait: bool = False) -> str | None:
        """Return what happened to the first process that failed; None if none did."""
        # The end of the other one may still be on its way when its connection is already gone.
        until = time.monotonic() + (2.0 if wait else 0.0)
        while (rank := self._failed()) is None:
            if time.monotonic() >= until:
                return None
            time.sleep(_POLL)
        who = f"process {rank} of the {self.ranks} processes 0 to {self.ranks - 1}"
        report = self._report(rank)
        if report:
            return f"{who} failed: {report}"
        code = int(self.processes[rank].returncode)
        how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
        return f"{who} ended unexpectedly ({how}); the other processes were stopped"

    def farewell(self) -> None:
        """Wait for all to end by themselves."""
        until = time.monotonic() + _FAREWELL
        for process in self.processes.values():
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def end(self) -> None:
        """Stop those that still run."""
        self.done.set()
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()


@contextmanager
def _environment(config: TrainConfig) -> Iterator[dict[str, str]]:
    """Set what the processes find each other by, for the time of the block; yields all of it."""
    before, threads = dict(os.environ), torch.get_num_threads()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    ranks = str(config.ranks)
    addresses = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sizes = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "NODE_RANK": "0"}
    os.environ.update({**addresses, **sizes, "RANK": "0", "LOCAL_RANK": "0"})
    os.environ[PARENT] = str(os.getpid())
    # All of them with all cores would spend their time waiting for each other.
    share = max(1, threads // config.devices)
    torch.set_num_threads(share)
    try:
        yield {**os.environ, "OMP_NUM_THREADS": before.get("OMP_NUM_THREADS", str(share))}
    finally:
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(before)


def watch_parent() -> None:
    """End this process when the one that started it is gone: nobody would wait for its work."""
    parent = int(os.environ[PARENT])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL)
        os._exit(1)

    threading.Thread(target=watch, name="volution-parent", daemon=True).start()
