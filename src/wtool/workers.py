"""Share work among processes that are forked from this one, for what Python's lock would make one thread do.

Kernels that compute do it in calls of some ten microseconds, and lose the lock between them: two threads were hardly faster
than one, two processes are nearly twice as fast. A forked process has everything that this one has, open files too. It writes
its share with pwrite, sends back what its items answered and what its collectors learned, and does nothing else.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from wtool.errors import WriteError

_REPORT = 32 << 20  # bytes of progress that are told together

Item = Any
Answer = Any
Work = Callable[[Item], Answer]


class Collector(Protocol):
    """What learns while values go by, such as sums. It is empty before, and safe to use from several threads."""

    def learned(self) -> Any:
        """All of it, to be pickled."""
        ...

    def learn(self, learned: Any) -> None:
        """Add what another of its kind has learned."""
        ...


class Parent:
    """In a forked process, in the place of an event: set when the parent is gone."""

    def __init__(self) -> None:
        self._pid = os.getppid()

    def is_set(self) -> bool:
        return os.getppid() != self._pid


def available() -> bool:
    """Whether this system forks safely: elsewhere its own libraries may not."""
    return sys.platform == "linux"


def shares(items: Sequence[Item], weights: Sequence[int], count: int) -> list[list[int]]:
    """Indexes of items, for each of `count` about the same sum of weights: the heaviest first, each to who has least."""
    found: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for index in sorted(range(len(items)), key=lambda index: (-weights[index], index)):
        least = loads.index(min(loads))
        found[least].append(index)
        loads[least] += weights[index]
    return [sorted(one) for one in found]


def forked(
    items: Sequence[Item],
    weights: Sequence[int],
    count: int,
    make: Callable[[Any, Callable[[int], None] | None], Work],
    stop: threading.Event,
    collectors: Sequence[Collector],
    progress: Callable[[int], None] | None,
) -> list[Answer]:
    """The answers of all items in their order: this process and `count` - 1 others work on a share each.

    `make(stop, progress)` gives what works on one item, and stops when `stop` is set. Answers must be picklable. The first
    error is raised when all have ended; WriteError if a process was killed.
    """
    own, *others = shares(items, weights, count)
    answers: dict[int, Answer] = {}
    errors: list[BaseException] = []
    outcomes: list[tuple[dict[int, Answer], list[Any]]] = []  # of the others
    children: list[tuple[int, threading.Thread]] = []

    def listen(pipe: int) -> None:
        ended = False
        with os.fdopen(pipe, "rb") as file:
            while True:
                try:
                    kind, value = pickle.load(file)  # noqa: S301 - it is this program that wrote it, a moment ago
                except (EOFError, pickle.UnpicklingError, OSError):
                    break
                if kind == "progress" and progress is not None:
                    progress(value)
                elif kind == "error":
                    errors.append(value)
                    stop.set()
                    ended = True
                elif kind == "done":
                    outcomes.append(value)
                    ended = True
        if not ended and not stop.is_set():
            errors.append(
                WriteError("a process of wtool's was killed", hint="--jobs 1 does it in one; there may be too little memory")
            )
            stop.set()

    try:
        for share in others:
            reading, writing = os.pipe()
            sys.stdout.flush()
            sys.stderr.flush()
            with warnings.catch_warnings():  # threads may be there: one shows progress, and a child does not need it
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if not pid:
                _child(writing, items, share, make, collectors, progress is not None)
            os.close(writing)
            thread = threading.Thread(target=listen, args=(reading,), daemon=True)
            children.append((pid, thread))
            thread.start()
        work = make(stop, progress)
        try:
            for index in own:
                answers[index] = work(items[index])
        except BaseException as error:
            errors.insert(len(errors) if stop.is_set() else 0, error)  # if another failed before, that is the one to tell
            stop.set()
        if not stop.is_set():
            for _, thread in children:
                thread.join()
    finally:
        for pid, _ in children:
            if stop.is_set() or sys.exc_info()[0] is not None:
                _kill(pid)
            os.waitpid(pid, 0)
        for _, thread in children:
            thread.join()
    if errors:
        raise errors[0]
    for found, learned in outcomes:  # not before: who is forked later has what was learned by then
        answers.update(found)
        for collector, one in zip(collectors, learned, strict=True):
            collector.learn(one)
    return [answers[index] for index in range(len(items))]


def _portable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:
        return RuntimeError(repr(error))
    return error


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _child(
    pipe: int,
    items: Sequence[Item],
    share: Sequence[int],
    make: Callable[[Any, Callable[[int], None] | None], Work],
    collectors: Sequence[Collector],
    tells: bool,
) -> None:
    """Work on a share, send what came of it, and end without any of the clean-up that is the parent's."""
    code = 1
    try:
        # Ctrl-C goes to all processes of a terminal; the parent decides, and ends this one.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        told = 0

        def send(kind: str, value: Any) -> None:
            data = memoryview(pickle.dumps((kind, value)))
            while data:
                data = data[os.write(pipe, data) :]

        def progress(nbytes: int) -> None:
            nonlocal told
            told += nbytes
            if told >= _REPORT:
                send("progress", told)
                told = 0

        try:
            work = make(Parent(), progress if tells else None)
            found = {index: work(items[index]) for index in share}
            if told:
                send("progress", told)
            send("done", (found, [collector.learned() for collector in collectors]))
            code = 0
        except BaseException as error:
            send("error", _portable(error))
    finally:
        os._exit(code)
