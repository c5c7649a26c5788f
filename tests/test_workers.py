"""Processes that share work: the same answers, one error, nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_prune_cli import bad, good, random
from test_prune_cli import write as made

from wtool import workers, write
from wtool.analysis.spread import Spread
from wtool.errors import NotFiniteError, WriteError

Captured = pytest.CaptureFixture[str]
pytestmark = [
    pytest.mark.skipif(not workers.available(), reason="only Linux forks"),
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),  # JAX's, if other tests have imported it
]


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Even the smallest work is shared; the processes that were forked."""
    found: list[int] = []
    real = os.fork

    def fork() -> int:
        pid = real()
        if pid:
            found.append(pid)
        return pid

    monkeypatch.setattr(write, "_MUCH", 0)
    monkeypatch.setattr(write, "_BATCH", 1)
    monkeypatch.setattr(os, "fork", fork)
    return found


def gone(pids: list[int]) -> bool:
    """Whether none is left, not even as a zombie."""
    return all(not Path(f"/proc/{pid}").exists() for pid in pids)


@given(st.lists(st.integers(0, 100), max_size=30), st.integers(1, 5))
def test_shares_partition(weights: list[int], count: int) -> None:
    found = workers.shares(weights, weights, count)
    assert sorted(index for one in found for index in one) == list(range(len(weights)))
    loads = [sum(weights[index] for index in one) for one in found]
    assert max(loads) - min(loads) <= max(weights, default=0)


def run(items: list[Any], work: Callable[[Any], Any], count: int = 3, **options: Any) -> list[Any]:
    defaults: dict[str, Any] = {"stop": threading.Event(), "collectors": (), "progress": None}
    given = defaults | options
    return workers.forked(items, [1] * len(items), count, lambda stop, progress: work, **given)


def test_answers_come_in_order(forks: list[int]) -> None:
    found = run(list(range(20)), lambda item: (item * item, os.getpid()))
    assert [square for square, _ in found] == [item * item for item in range(20)]
    assert {pid for _, pid in found} == {os.getpid(), *forks} and len(forks) == 2
    assert gone(forks)


def test_collectors_learn_from_all() -> None:
    spread = Spread(2)

    def work(item: int) -> None:
        spread.add([0, 1], [float(item), 1.0], 1.0)

    run(list(range(10)), work, collectors=[spread])
    assert sorted(spread.squares[0]) == [float(item) for item in range(10)] and len(spread.outcome) == 10


def test_progress_is_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_REPORT", 10)
    told: list[int] = []

    def make(stop: Any, progress: Any) -> Callable[[int], None]:
        return lambda item: progress(item)

    workers.forked([7] * 9, [1] * 9, 3, make, threading.Event(), (), told.append)
    assert sum(told) == 63


@pytest.mark.parametrize("where", ["child", "parent"])
def test_an_error_of_one_ends_all(forks: list[int], where: str) -> None:
    parent, begun = os.getpid(), time.monotonic()

    def work(item: int) -> None:
        if (os.getpid() == parent) == (where == "parent"):
            raise NotFiniteError("'w' holds NaN", path="a.pth", hint="leave it out")
        time.sleep(0.02 if where == "child" else 60)

    with pytest.raises(NotFiniteError, match="'w' holds NaN") as told:
        run(list(range(12)), work)
    assert (told.value.path, told.value.hint) == ("a.pth", "leave it out")
    assert gone(forks) and time.monotonic() - begun < 30


def test_an_error_that_cannot_be_sent_is_told() -> None:
    parent = os.getpid()

    def work(item: int) -> None:
        if os.getpid() != parent:
            raise ValueError(lambda: None)

    with pytest.raises(RuntimeError, match="ValueError"):
        run(list(range(4)), work)


def test_a_process_that_is_killed_is_an_error(forks: list[int]) -> None:
    parent = os.getpid()

    def work(item: int) -> None:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WriteError, match="was killed"):
        run(list(range(4)), work)
    assert gone(forks)


def test_an_interrupted_parent_takes_all_with_it(forks: list[int]) -> None:
    parent = os.getpid()

    def work(item: int) -> None:
        if os.getpid() == parent:
            raise KeyboardInterrupt
        time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        run(list(range(4)), work)
    assert gone(forks)


ORPHAN = """
import os, sys, threading, time
from wtool import workers
parent = os.getpid()
def make(stop, progress):
    def work(item):
        if os.getpid() == parent:
            time.sleep(0.3)
            os.kill(parent, 9)
        print(os.getpid(), flush=True)
        while not stop.is_set():
            time.sleep(0.01)
    return work
workers.forked([0, 1], [1, 1], 2, make, threading.Event(), (), None)
"""


def test_a_process_without_its_parent_stops() -> None:
    done = subprocess.run([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True, timeout=30)
    assert done.returncode == -signal.SIGKILL  # and stdout was closed: the other has ended, too
    assert len(done.stdout.split()) == 1


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_average_in_processes(tmp_path: Path, capsys: Captured, forks: list[int], suffix: str) -> None:
    paths = [made(tmp_path / f"{n}.safetensors", {f"w{k}": random(9 * n + k, 70, 30) for k in range(9)}) for n in range(3)]
    reports = []
    for jobs in ("1", "3"):
        (tmp_path / jobs).mkdir()  # a .pth holds its own name
        report = good(capsys, "average", *paths, "-o", tmp_path / jobs / f"o.{suffix}", "-j", jobs)
        reports.append([row["distance"] for row in report["inputs"]])
    assert len(forks) == 2 and gone(forks)
    assert reports[0] == reports[1]
    assert (tmp_path / "1" / f"o.{suffix}").read_bytes() == (tmp_path / "3" / f"o.{suffix}").read_bytes()


def test_prune_in_processes(tmp_path: Path, capsys: Captured, forks: list[int]) -> None:
    path = made(tmp_path / "m.safetensors", {f"h.{k}.weight": random(k, 40, 30) for k in range(8)})
    reports = []
    for jobs in ("1", "3"):
        out = tmp_path / f"o{jobs}.safetensors"
        report = good(
            capsys, "prune", path, out, "--sparsity", "0.7", "-j", jobs, "--mask-out", tmp_path / f"m{jobs}.safetensors"
        )
        reports.append((report["zeros"], report["energy"], report["dead_rows"], [row["zeros"] for row in report["tensors"]]))
    assert len(forks) == 4 and gone(forks)
    assert reports[0] == reports[1]
    for name in "om":
        assert (tmp_path / f"{name}1.safetensors").read_bytes() == (tmp_path / f"{name}3.safetensors").read_bytes()


def test_an_error_in_a_process_leaves_no_output(tmp_path: Path, capsys: Captured, forks: list[int]) -> None:
    values = {f"w{k}": random(k, 70, 30) for k in range(6)}
    one = made(tmp_path / "a.safetensors", values)
    for k in range(6):  # whoever has it
        values[f"w{k}"] = np.where(np.arange(2100).reshape(70, 30) == 5, np.nan, values[f"w{k}"]).astype("f4")
    two = made(tmp_path / "b.safetensors", values)
    said = bad(capsys, "average", one, two, "-o", tmp_path / "o.safetensors", "-j", "2")
    assert said["code"] == "not-finite" and "b.safetensors" in said["path"]
    assert forks and gone(forks)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
