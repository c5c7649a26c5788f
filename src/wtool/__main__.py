"""`python -m wtool` and the `wtool` command."""

from __future__ import annotations

import sys


def main() -> None:
    from wtool.cli.app import run

    sys.exit(run())


if __name__ == "__main__":
    main()
