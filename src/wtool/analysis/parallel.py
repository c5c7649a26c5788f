"""Ask the same of every tensor, several at once, of tied ones only once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from wtool.tensor import LazyTensor

Answer = TypeVar("Answer")


def ask(tensors: Mapping[str, LazyTensor], question: Callable[[LazyTensor], Answer], jobs: int) -> dict[str, Answer]:
    """Key -> answer in the order of the tensors. The first error ends it. Tensors are taken in order by `jobs` threads."""
    first: dict[object, str] = {}
    same = {key: key if (who := tensor.identity) is None else first.setdefault(who, key) for key, tensor in tensors.items()}
    todo = deque(dict.fromkeys(same.values()))
    answers: dict[str, Answer] = {}

    def work() -> None:
        try:
            while todo:
                try:
                    key = todo.popleft()
                except IndexError:  # another thread took the last
                    return
                answers[key] = question(tensors[key])
        except BaseException:
            todo.clear()
            raise

    threads = min(jobs, len(todo))
    if threads <= 1:
        work()
    else:
        with ThreadPoolExecutor(threads) as pool:
            try:
                for done in [pool.submit(work) for _ in range(threads)]:
                    done.result()
            finally:
                todo.clear()
    return {key: answers[representative] for key, representative in same.items()}
