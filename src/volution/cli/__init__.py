"""The ``volution`` command; each command is a function, its options are the arguments.

Exit codes: 0 done, 1 done but something is wrong with the result (an image of many could not be
read, a check failed), 2 not done for a reason that the one line on standard error gives, 130
interrupted by Ctrl-C, others above 128 stopped by another signal. What a command imports, it
imports when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from volution._support.console import log

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        argv: Words after ``volution``; those of the process by default.
    """
    from jsonargparse import ArgumentError

    from volution._support.extras import MissingExtra
    from volution.cli.parser import run
    from volution.train import TrainingError

    try:
        code = run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # here, where it is known what to do if nobody reads it
        return code
    except KeyboardInterrupt:
        log.print("volution: interrupted")
        return 130
    except SystemExit as error:  # after --help and --version
        return int(error.code or 0)
    except BrokenPipeError:  # whoever reads the output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ArgumentError, ValueError, TypeError, OSError, MissingExtra, TrainingError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        log.print(f"volution: error: {text}", markup=False, soft_wrap=True)
        return 2
