"""The hostile corpus: every file gets the right answer, under watch, in little time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import CASES

HERE = Path(__file__).parent
FREE = 64 << 20
TIMES = 8
Watch = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    """Opens a path in a child of a process that has everything imported."""
    warm = tmp_path_factory.mktemp("warm")
    paths = []
    for number, name in enumerate(
        (
            "benign deflated",
            "index true",
            "tensorflow true",
            "legacy true",
            "tar true",
            "text",
            "nothing there",
            "torch error of many lines",
        )
    ):
        folder = warm / str(number)
        folder.mkdir()
        paths.append(str(CASES[name].build(folder)))
    process = subprocess.Popen(
        [sys.executable, str(HERE / "hostile" / "child.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdin and process.stdout
    process.stdin.write("".join(json.dumps(path) + "\n" for path in paths) + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "ready\n"

    def ask(path: Path) -> dict[str, Any]:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(str(path)) + "\n")
        process.stdin.flush()
        return dict(json.loads(process.stdout.readline()))

    yield ask
    process.stdin.close()
    process.wait()


def weight(path: Path) -> int:
    """Bytes of the files that were given."""
    base = path if path.is_dir() else path.parent
    return sum(one.lstat().st_size for one in base.rglob("*") if one.is_file() and not one.is_symlink())


@pytest.mark.parametrize("name", CASES)
def test_answer(name: str, tmp_path: Path, watch: Watch) -> None:
    path = CASES[name].build(tmp_path)
    answer = watch(path)
    assert answer["outcome"] in CASES[name].expect, answer
    assert not answer["events"]
    assert answer["peak"] <= FREE + TIMES * weight(tmp_path), f"{answer['peak'] >> 20} MiB"
    if "message" in answer:
        assert "\n" not in answer["message"] and answer["message"]
        assert answer["path"] and str(tmp_path) in answer["path"]
        assert len(answer["message"]) < 2000
    else:
        assert answer["values"] in ("read", "corrupt", "truncated", "limit", "unsupported"), answer["values"]
