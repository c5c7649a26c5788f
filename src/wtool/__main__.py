"""`python -m wtool` and the `wtool` command."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    # A header of 100,000 tensors is a million objects and no garbage, and nothing here makes cycles: looking for some would
    # be a fifth of the time.
    gc.disable()
    from wtool.cli.app import run

    sys.exit(run())


if __name__ == "__main__":
    main()
