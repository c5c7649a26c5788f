"""`python -m wtool` and the `wtool` command."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    # A header of 100,000 tensors is a million objects and no garbage: without this, half of the time goes into looking for some.
    gc.set_threshold(200_000, 50, 50)
    from wtool.cli.app import run

    sys.exit(run())


if __name__ == "__main__":
    main()
