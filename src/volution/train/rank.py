"""One of the other processes of a run, as the first one starts it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from volution._support.files import write_whole
from volution.train.config import read_config
from volution.train.interruption import Interrupted
from volution.train.launching import REPORTS, watch_parent

__all__ = ["main"]


def main(config: str, folder: str, resume: str | None = None) -> int:
    """Take part in a run; what goes wrong is left where the first process finds it.

    Args:
        config: File of the run's settings.
        folder: The run's folder.
        resume: What the run goes on from.
    """
    from volution.train import engine

    watch_parent()
    try:
        run = engine.Run.build(read_config(Path(config)))
        from_file = None if resume is None else Path(resume)
        run.fit(Path(folder), resume=from_file, show_progress=False)
    except Interrupted:
        return 0  # as the first process asked; how that ends is its to say
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        report = Path(os.environ[REPORTS]) / f"{os.environ['RANK']}.txt"
        write_whole(report, text)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
