"""Processes for tests to kill: forked from one that has imported everything and computed nothing.

Starting Python and importing Lightning takes seconds, and these tests need many processes that
begin afresh. A fork of a process in which no thread was ever started is as good as a new one.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT = 120.0


@dataclass
class Child:
    """A process that runs ``module:function`` with arguments."""

    pid: int
    log: Path
    mother: Nursery

    def send(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def wait(self) -> int:
        """Wait for its end; returns the exit code, negative for a signal."""
        return int(self.mother.ask({"wait": self.pid}))

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, path: Path) -> None:
        """Wait until it has made a file."""
        until = time.monotonic() + TIMEOUT
        while not path.exists():
            assert time.monotonic() < until, f"no {path.name}; {self.output()}"
            time.sleep(0.005)


class Nursery:
    """The process that is forked."""

    def __init__(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )

    def ask(self, question: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question, default=str) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the process that is forked ended; see what it wrote"
        return json.loads(answer)

    def start(
        self, what: str, *args: Any, log: Path, env: dict[str, str] | None = None, **kwargs: Any
    ) -> Child:
        """Start a function of a module in a process of its own; what it writes goes to ``log``."""
        question = {"what": what, "args": args, "kwargs": kwargs, "log": log, "env": env or {}}
        return Child(self.ask(question), log, self)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(TIMEOUT)
        self.process.stdout.close()


@contextlib.contextmanager
def nursery() -> Iterator[Nursery]:
    mother = Nursery()
    try:
        yield mother
    finally:
        mother.close()


def _child(question: dict[str, Any]) -> int:
    os.setsid()  # a signal to its group is to reach its workers, and nobody else
    log = os.open(question["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(question["env"])
    module, _, name = question["what"].partition(":")
    try:
        code = getattr(importlib.import_module(module), name)(
            *question["args"], **question["kwargs"]
        )
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    return int(code or 0)


def _mother() -> None:
    import torch

    import volution.cli.parser
    import volution.train.engine  # noqa: F401 - so that the children need not

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            _, status = os.waitpid(question["wait"], 0)
            answer: int = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                os._exit(_child(question))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _mother()
