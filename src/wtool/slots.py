"""Writes into the slots of staged files: straight on, in runs, or turned."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from wtool.quantized import Part
from wtool.stage import Stage, write_failure

Progress = Callable[[int], None]

_WRITE_BEHIND = 16 << 20  # bytes after which the kernel is told to begin writing
_LONG = 256 << 10  # bytes of a scattered run of which the same is true at once: hardly any page is shared with another


class Stopped(Exception):
    """Another job failed: give up quietly."""


class Out:
    """Sequential writes into one file from one place on, with its checksum, progress and write-behind."""

    def __init__(
        self, stage: Stage, file: int, at: int, checksum: str | None, progress: Progress | None, stop: threading.Event
    ) -> None:
        self._fd, self._path, self._at, self._begun = stage.fds[file], stage.paths[file], at, at
        self._progress, self._stop = progress, stop
        self._extend = _checksum(checksum)
        self.sum = 0

    def write(self, view: memoryview) -> None:
        if self._stop.is_set():
            raise Stopped
        if self._extend is not None:
            self.sum = self._extend(self.sum, view)
        nbytes = len(view)
        pwrite(self._fd, view, self._at, self._path)
        self._at += nbytes
        if self._at - self._begun >= _WRITE_BEHIND:
            self.flush()
        if self._progress is not None:
            self._progress(nbytes)

    def scatter(self, places: Sequence[int], view: memoryview) -> None:
        """Write runs of one length, one behind the other in `view`, to places counted from the beginning. No checksum."""
        if self._stop.is_set():
            raise Stopped
        nbytes = len(view) // len(places)
        for number, place in enumerate(places):
            pwrite(self._fd, view[number * nbytes : (number + 1) * nbytes], self._at + place, self._path)
            if self._extend is None and nbytes >= _LONG:
                self._begin(self._at + place, nbytes)
        if self._progress is not None:
            self._progress(len(view))

    def finish(self, nbytes: int, block: int) -> None:
        """After the last run was scattered: sum up what is there (the kernel still has it) if there is a checksum."""
        end = self._at + nbytes
        while self._extend is not None and self._at < end:
            if self._stop.is_set():
                raise Stopped
            try:
                data = os.pread(self._fd, min(block, end - self._at), self._at)
            except OSError as error:
                raise write_failure(error, self._path) from None
            assert data, "the file has its full length"
            self.sum = self._extend(self.sum, memoryview(data))
            self._at += len(data)
            if self._at - self._begun >= _WRITE_BEHIND:
                self.flush()
        self._at = end
        self.flush()

    def flush(self) -> None:
        self._begin(self._begun, self._at - self._begun)
        self._begun = self._at

    def _begin(self, at: int, nbytes: int) -> None:
        """Ask the kernel to begin writing what is there; POSIX_FADV_DONTNEED does that and does not wait."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # advice: where it is not taken, fsync does it all
                os.posix_fadvise(self._fd, at, nbytes, os.POSIX_FADV_DONTNEED)


class Turned:
    """Rows of a part whose transpose is written: they are gathered, and go out as runs, a piece of each of its rows.

    `low`: the byte of the part with which they begin; `room`: bytes to gather.
    """

    sum = 0  # there is none: slots with checksums are written from first to last

    def __init__(self, out: Out, part: Part, low: int, room: int) -> None:
        import numpy as np

        self._out, self._unit = out, part.dtype.numpy()
        self._tall, self._wide = part.shape
        self._at = low // (self._wide * self._unit.itemsize)
        self._room = np.empty((self._wide, min(self._tall, max(room // (self._wide * self._unit.itemsize), 1))), self._unit)
        self._held = 0

    def write(self, view: memoryview) -> None:
        import numpy as np

        rows = np.frombuffer(view, self._unit).reshape(-1, self._wide)
        while len(rows):
            some = min(self._room.shape[1] - self._held, len(rows))
            self._room[:, self._held : self._held + some] = rows[:some].T
            self._held += some
            rows = rows[some:]
            if self._held == self._room.shape[1]:
                self.flush()

    def flush(self) -> None:
        import numpy as np

        if not self._held:
            return
        runs = np.ascontiguousarray(self._room[:, : self._held])
        item = self._unit.itemsize
        all_of_it = self._held == self._tall
        places = (0,) if all_of_it else range(self._at * item, (self._at + self._wide * self._tall) * item, self._tall * item)
        self._out.scatter(places, runs.reshape(-1).view(np.uint8).data)
        self._at += self._held
        self._held = 0


def pwrite(fd: int, view: memoryview, at: int, path: str) -> None:
    """All of `view`: the system may take less at once. Raises WriteError."""
    done = 0
    try:
        while done < len(view):
            done += os.pwrite(fd, view[done:], at + done)
    except OSError as error:
        raise write_failure(error, path) from None


def _checksum(name: str | None) -> Callable[[int, memoryview], int] | None:
    if name is None:
        return None
    if name == "crc32":
        from zlib import crc32

        return lambda value, view: crc32(view, value)
    assert name == "crc32c", name
    from google_crc32c import extend

    return lambda value, view: extend(value, bytes(view))
