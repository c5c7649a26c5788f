"""Every file of every format, cut anywhere or with any byte changed: one clear error or an answer, and nothing else."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from wtool.api import open_checkpoint
from wtool.errors import WtoolError

FIXTURES = Path(__file__).parent.parent / "fixtures"
CASES = sorted(path.parent for path in FIXTURES.glob("*/*/expected.json"))
ROUNDS = 60


def attempt(path: Path) -> None:
    """Open and read all; a WtoolError of one line that names a file is an answer too."""
    try:
        checkpoint = open_checkpoint(path, section="all")
        assert checkpoint.nbytes < 1 << 40
        if checkpoint.nbytes < 1 << 26:
            for tensor in checkpoint.values():
                for _ in tensor.blocks():
                    pass
    except WtoolError as error:
        assert "\n" not in error.message
        assert error.path, error.message
        assert error.exit_code == 2


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_damaged(case: Path, tmp_path: Path) -> None:
    import json

    expected = json.loads((case / "expected.json").read_text())
    copy = tmp_path / case.name
    shutil.copytree(case, copy)
    target = copy / expected["source"]
    files = [path for path in sorted(copy.rglob("*")) if path.is_file() and path.name != "expected.json"]
    dice = random.Random(case.name)
    for file in files:
        whole = file.read_bytes()
        if not whole:
            continue
        for _ in range(max(ROUNDS // len(files), 10)):
            file.write_bytes(whole[: dice.randrange(len(whole))])
            attempt(target)
            damaged = bytearray(whole)
            # Headers and directories lie at the ends: aim there half of the time.
            for _ in range(dice.choice((1, 1, 1, 4))):
                place = dice.choice(
                    (dice.randrange(len(whole)), dice.randrange(min(len(whole), 400)), -dice.randrange(1, 300))
                )
                if -len(whole) <= place < len(whole):
                    damaged[place] = dice.choice((0, 1, 255, 128, dice.randrange(256)))
            file.write_bytes(damaged)
            attempt(target)
        file.write_bytes(whole)
