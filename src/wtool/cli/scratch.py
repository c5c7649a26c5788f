"""A folder for files that nobody keeps, beside the output: there is room for them, and no other run takes them for its own."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from wtool.errors import WriteError

_MARK = ".wtool-soup-"


@contextmanager
def scratch(output: str) -> Iterator[str]:
    """A folder that is gone afterwards. A killed process leaves it; the next one for the same output takes it away.

    A lock tells the dead from the living: the system gives it back however a process ends.
    """
    parent, name = os.path.split(output.rstrip(os.sep) or os.sep)
    front = os.path.join(parent, f".{name if len(os.fsencode(name)) < 200 else name[:50]}{_MARK}")
    for old in glob.glob(f"{glob.escape(front)}*"):
        _remove_dead(old)
    path, lock = _made(front)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _made(front: str) -> tuple[str, int]:
    while True:
        path = f"{front}{secrets.token_hex(4)}"
        try:
            os.mkdir(path, 0o700)
            lock = _locked(path)
        except OSError as error:
            raise WriteError(f"no folder for candidates can be made: {error.strerror}", path=path) from None
        if lock is not None and os.path.isdir(path):  # else another run took it for a dead one before it had its lock
            return path, lock
        if lock is not None:
            os.close(lock)


def _remove_dead(path: str) -> None:
    with suppress(OSError):
        lock = _locked(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _locked(path: str) -> int | None:
    """The folder, open and locked; None if another process holds it."""
    import fcntl

    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:  # a file system without locks: nothing there is known to be dead
        if path and os.listdir(path):
            os.close(fd)
            return None
    return fd
