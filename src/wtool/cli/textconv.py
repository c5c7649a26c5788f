"""`wtool git textconv`: what git shows in the place of a checkpoint's bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Annotated, BinaryIO

import typer

from wtool.cli import options, repository
from wtool.cli.console import Console
from wtool.errors import UnreadableError, WtoolError

_TEXT = 8000  # bytes without a zero in which git itself takes a file for text
_PASSING = ("unreadable", "not-found", "memory")  # faults of the moment: git must not remember them


def textconv(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What git hands over: a checkpoint or an LFS pointer.")],
    jobs: options.Jobs = None,
) -> int:
    """Print what git shows of a checkpoint.

    Sorted lines, one for each tensor, after those of what stands beside them. What is no checkpoint is told by its size and
    digest, or as it is if it is text.
    """
    console = Console()
    for text in _answer(file, options.worker_count(jobs)):
        console.out(text)
    return 0


def _answer(path: str, jobs: int) -> Iterator[str]:
    from wtool.lfs import LONGEST, local_object, parse_pointer

    if not os.path.isfile(path):  # a folder, or a prefix of TensorFlow's: asked by a person
        yield from _lined(_listed(path, jobs))
        return
    pointer = parse_pointer(_head(path, LONGEST + 1))
    if pointer is None:
        yield from _shown(path, path, jobs)
        return
    there = local_object(pointer, repository.lfs_store())
    if there is not None:
        yield from _shown(there, path, jobs)
        return
    _forget_nothing()
    yield from _lined(
        (
            f"# Git LFS: {pointer.size:,} bytes, sha256 {pointer.oid}",
            "# not fetched, so it cannot be shown: `git lfs fetch --all` brings it",
        )
    )


def _forget_nothing() -> None:
    """Turn the cache off that would go on saying that an object is missing when it has come."""
    where = ("config", "--local", "diff.wtool.cachetextconv")
    try:
        if repository.git(*where, check=False) == "true":
            repository.git(*where, "false", check=False)
    except WtoolError:
        pass  # no git: nothing remembers


def _shown(path: str, name: str, jobs: int) -> Iterator[str]:
    """The listing; of what is no checkpoint its text, or what is wrong beside its size and digest. `name` is git's for it."""
    from wtool.errors import UnknownFormatError

    if name.endswith(".index"):
        # Never with its data shards: git has them beside the file of the working tree only, and the two would not compare.
        from wtool.formats.tensorflow.reader import index_lines

        lines = index_lines(path)
        if lines:
            yield from _lined(lines)
            return
    try:
        yield from _lined(_listed(path, jobs))
    except WtoolError as error:
        if error.code in _PASSING:
            raise
        if isinstance(error, UnknownFormatError) and b"\0" not in _head(path, _TEXT):
            yield from _text(path)
            return
        # Without the digest, two files that nobody can read would look the same.
        yield from _lined((f"# no checkpoint that can be shown: {error.message}", _fingerprint(path)))


def _listed(path: str, jobs: int) -> list[str]:
    """All lines at once: a file that breaks off half-way is told as such, not shown in part."""
    from wtool.analysis.listing import listing
    from wtool.api import open_checkpoint

    checkpoint = open_checkpoint(path, section="all")
    return [f"# {checkpoint.source.format} {checkpoint.source.variant}", *listing(checkpoint, jobs)]


def _fingerprint(path: str) -> str:
    from hashlib import blake2b

    state = blake2b(digest_size=8)
    size = 0
    with _opened(path) as file:
        while block := file.read(1 << 20):
            state.update(block)
            size += len(block)
    return f"# {size:,} {'byte' if size == 1 else 'bytes'}, blake2b {state.hexdigest()}"


def _text(path: str) -> Iterator[str]:
    with open(path, encoding="utf-8", errors="backslashreplace", newline="") as file:
        while text := file.read(1 << 20):
            yield text


def _head(path: str, count: int) -> bytes:
    with _opened(path) as file:
        return file.read(count)


def _opened(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}", path=path) from None


def _lined(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield line + "\n"
