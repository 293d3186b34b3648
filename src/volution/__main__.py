"""``python -m volution``."""

import sys

from volution.cli import main

if __name__ == "__main__":
    sys.exit(main())
