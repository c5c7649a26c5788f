"""A record of work that must not be done twice: JSON lines, only ever added to, on the disk before the next step begins."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from wtool.errors import CorruptError, UnreadableError, UsageError, WriteError

_LARGEST = 1 << 30


class Journal:
    """An open journal, locked against other processes. The first line is `{"schema": SCHEMA}`, each other line an entry.

    A process that was killed may leave part of a last line, which is cut off when the journal is opened again. Nothing else in
    it is ever changed, and a file that is no journal of this schema is refused and left as it is.
    """

    def __init__(self, path: str, schema: str) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        self._fd = -1
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            self._fd = os.open(path, flags, 0o666)
            self._lock()
            data = _contents(self._fd, path)
            self.entries, whole = _entries(data, path, schema)
            if whole < len(data):
                os.ftruncate(self._fd, whole)
            if not whole:
                self._write({"schema": schema})
                _sync_folder(os.path.dirname(path) or ".")
        except OSError as error:
            self.close()
            raise WriteError(f"the journal cannot be written: {error.strerror}", path=path) from None
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return  # a file system without locks
            raise UsageError("another run is writing this journal", path=self.path, hint="wait for it, or stop it") from None

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add an entry. When this returns, it is on the disk. WriteError."""
        try:
            self._write(entry)
        except OSError as error:
            raise WriteError(f"the journal cannot be written: {error.strerror}", path=self.path) from None
        self.entries.append(dict(entry))

    def _write(self, entry: Mapping[str, Any]) -> None:
        line = memoryview(json.dumps(entry, allow_nan=False).encode() + b"\n")
        while line:
            line = line[os.write(self._fd, line) :]
        os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_journal(path: str, schema: str) -> list[dict[str, Any]]:
    """The entries, without opening the journal for writing; none where there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnreadableError(f"the journal cannot be read: {error.strerror}", path=path) from None
    try:
        return _entries(_contents(fd, path), path, schema)[0]
    finally:
        os.close(fd)


def _contents(fd: int, path: str) -> bytes:
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise UnreadableError("is no regular file", path=path)
    if info.st_size > _LARGEST:
        raise _stranger(path)
    found = bytearray()
    while len(found) < info.st_size:
        piece = os.pread(fd, info.st_size - len(found), len(found))
        if not piece:
            break
        found += piece
    return bytes(found)


def _entries(data: bytes, path: str, schema: str) -> tuple[list[dict[str, Any]], int]:
    """The entries, and how many bytes the whole lines take."""
    head = json.dumps({"schema": schema}).encode() + b"\n"
    if not data.startswith(head):
        if head.startswith(data):  # killed in its first line
            return [], 0
        raise _stranger(path)
    whole = data.rfind(b"\n") + 1
    found = []
    for number, line in enumerate(data[len(head) : whole].splitlines(), 2):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict):
            raise CorruptError(f"line {number} is no entry of a journal", path=path, hint="take the line or the file away")
        found.append(entry)
    return found, whole


def _stranger(path: str) -> UsageError:
    return UsageError("is there, and no journal of this kind", path=path, hint="--journal FILE names another")


def _sync_folder(path: str) -> None:
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
