"""Where bytes come from. Readers ask a ByteSource for ranges; nothing but this file opens anything.

Today: local regular files and bytes in memory. An HTTP range or an object store only has to answer the same three calls.
"""

from __future__ import annotations

import errno
import os
import stat
from os import PathLike
from typing import Any, Protocol

from wtool.errors import NotFoundError, TruncatedError, UnreadableError

_KINDS = (
    (stat.S_ISDIR, "is a folder, not a file"),
    (stat.S_ISFIFO, "is a pipe; wtool needs a file that it can read at any place"),
    (stat.S_ISCHR, "is a device, not a file"),
    (stat.S_ISBLK, "is a device, not a file"),
)


class ByteSource(Protocol):
    """Random access to a run of bytes. Safe to use from several threads."""

    @property
    def name(self) -> str:
        """The path or URL, for messages."""
        ...

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def pread(self, offset: int, nbytes: int) -> bytes:
        """Exactly `nbytes` bytes from `offset`; TruncatedError if the source ends before."""
        ...

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole writable `buffer` (of bytes) from `offset`; TruncatedError if the source ends before."""
        ...


class LocalFile:
    """A local regular file, held open. Two objects on the same file (device, inode) are equal."""

    __slots__ = ("__weakref__", "_fd", "_identity", "name", "size")

    def __init__(self, path: str | PathLike[str]) -> None:
        self.name = os.fspath(path)
        self._fd = -1
        try:
            # O_NONBLOCK: opening a FIFO without a writer would wait for ever.
            self._fd = os.open(self.name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            info = os.fstat(self._fd)
        except FileNotFoundError:
            raise NotFoundError("no such file", path=path) from None
        except ValueError:
            raise NotFoundError("not a valid path", path=path) from None
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise UnreadableError("is a socket or a missing device, not a file", path=path) from None
            raise UnreadableError(f"cannot be read: {error.strerror}", path=path) from None
        if not stat.S_ISREG(info.st_mode):
            os.close(self._fd)
            self._fd = -1
            why = next((text for test, text in _KINDS if test(info.st_mode)), "is no regular file")
            raise UnreadableError(why, path=path)
        self.size = info.st_size
        self._identity = (info.st_dev, info.st_ino)

    def fileno(self) -> int:
        return self._fd

    def pread(self, offset: int, nbytes: int) -> bytes:
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise self._short(offset, nbytes)
        try:
            data = os.pread(self._fd, nbytes, offset)
            while len(data) < nbytes:
                more = os.pread(self._fd, nbytes - len(data), offset + len(data))
                if not more:
                    raise self._short(offset, nbytes)
                data += more
        except OSError as error:
            raise UnreadableError(f"cannot be read at byte {offset}: {error.strerror}", path=self.name) from None
        return data

    def readinto(self, offset: int, buffer: memoryview) -> None:
        nbytes = len(buffer)
        if offset < 0 or offset + nbytes > self.size:
            raise self._short(offset, nbytes)
        done = 0
        try:
            while done < nbytes:
                got = os.preadv(self._fd, [buffer[done:]], offset + done)
                if not got:
                    raise self._short(offset, nbytes)
                done += got
        except OSError as error:
            raise UnreadableError(f"cannot be read at byte {offset}: {error.strerror}", path=self.name) from None

    def _short(self, offset: int, nbytes: int) -> TruncatedError:
        return TruncatedError(f"ends at byte {self.size}, but bytes {offset} to {offset + nbytes} are needed", path=self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalFile) and other._identity == self._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        return f"LocalFile({self.name!r})"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return LocalFile, (self.name,)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)


class MemoryBytes:
    """Bytes that are in memory already, such as a small array inside a pickle. Equal only to itself."""

    __slots__ = ("_data", "name")

    def __init__(self, data: bytes, name: str = "memory") -> None:
        self._data = data
        self.name = name

    @property
    def size(self) -> int:
        return len(self._data)

    def pread(self, offset: int, nbytes: int) -> bytes:
        if offset < 0 or nbytes < 0 or offset + nbytes > len(self._data):
            raise TruncatedError(
                f"ends at byte {self.size}, but bytes {offset} to {offset + nbytes} are needed",
                path=self.name,
            )
        return self._data[offset : offset + nbytes]

    def readinto(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.pread(offset, len(buffer))
