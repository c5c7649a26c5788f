"""Ask the same of many things, several at once; of tied tensors only once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from wtool.tensor import LazyTensor

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def ask(tensors: Mapping[str, LazyTensor], question: Callable[[LazyTensor], Answer], jobs: int) -> dict[str, Answer]:
    """Key -> answer in the order of the tensors. The first error ends it. Tensors are taken in order by `jobs` threads."""
    first: dict[object, str] = {}
    same = {key: key if (who := tensor.identity) is None else first.setdefault(who, key) for key, tensor in tensors.items()}
    keys = list(dict.fromkeys(same.values()))
    answers = dict(zip(keys, each(keys, lambda key: question(tensors[key]), jobs), strict=True))
    return {key: answers[representative] for key, representative in same.items()}


def each(items: Iterable[Item], question: Callable[[Item], Answer], jobs: int) -> list[Answer]:
    """The answers in the order of the items. The first error ends it. Items are taken in order by `jobs` threads."""
    todo = deque(enumerate(items))
    answers: dict[int, Answer] = {}

    def work() -> None:
        try:
            while todo:
                try:
                    place, item = todo.popleft()
                except IndexError:  # another thread took the last
                    return
                answers[place] = question(item)
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
    return [answers[place] for place in sorted(answers)]
