"""Files that are whole or absent: written where nobody sees them, then put in place.

A file is an unnamed inode (O_TMPFILE) where the file system has them, else a `.NAME.wtool-tmp-*` beside the target. A folder
that is not there yet is built as `.NAME.wtool-tmp-*` and renamed. Until `publish` nothing at the target has changed; a process
killed before that leaves at most those dot names, and none at all for unnamed inodes.

One file replaces another by one rename. For several files no such call exists: the old ones are moved aside, the index first,
then the new ones appear, the index last, so that no moment shows old and new together and a failure moves the old ones back.
A process killed between these renames, which take microseconds, leaves the old files whole under their dot names.

A symbolic link at the place of a file is replaced, as `mv` does, and what it points to is untouched: the blobs of a Hugging
Face cache are shared. A folder that is a link stays a link.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import signal
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from wtool.bytesource import ByteSource
from wtool.errors import DiskFullError, OutputExistsError, WriteError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_THERE = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}
_PIECE = 1 << 20
_NUMBER = re.compile(r"-\d{5}-of-\d{5}")


def write_failure(error: OSError, path: str) -> WriteError:
    """What an OSError of the output means to a person."""
    if error.errno in _FULL:
        return DiskFullError(f"no room to write: {error.strerror}", path=path, hint="nothing was left behind")
    if isinstance(error, FileNotFoundError):
        return WriteError("its folder does not exist", path=path, hint="make the folder first")
    return WriteError(f"cannot be written: {error.strerror or error}", path=path)


class Stage:
    """The output files of one write, open for writing, not yet visible.

    `paths` are final paths in the order in which they are to appear. With `folder`, they all lie in that folder: a new one is
    put in place whole; in one that exists the set's older shards and index are replaced and all other files are left alone.
    Only `force` replaces anything. Use as a context manager: leaving it without `publish` removes everything.
    """

    def __init__(self, paths: Sequence[str], sizes: Sequence[int], *, folder: str | None = None, force: bool = False) -> None:
        self.paths, self.sizes, self.force = list(paths), list(sizes), force
        self.folder = None if folder is None else folder.rstrip(os.sep) or os.sep
        self.fds: list[int] = []
        self._names: list[str | None] = []  # temporary names; None for an unnamed inode
        self._staged: str | None = None  # the folder under its temporary name, if it is a new one

    def __enter__(self) -> Stage:
        path = self.folder or self.paths[0]
        try:
            if self.folder is not None and not os.path.isdir(self.folder):
                self._staged = _temporary(self.folder)
                os.mkdir(self._staged)
            for path, size in zip(self.paths, self.sizes, strict=True):
                self._open(path)
                if size:
                    _reserve(self.fds[-1], size)
        except OSError as error:
            self.discard()
            raise write_failure(error, path) from None
        except BaseException:
            self.discard()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def _open(self, path: str) -> None:
        if self._staged is not None:
            name = os.path.join(self._staged, os.path.basename(path))
        else:
            fd = _unnamed(os.path.dirname(path) or ".")
            if fd is not None:
                self._names.append(None)
                self.fds.append(fd)
                return
            name = _temporary(path)
        self._names.append(name)
        self.fds.append(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))

    def fill(self, number: int, source: ByteSource) -> None:
        """Write one of the files from first to last. WriteError, and the source's own errors."""
        for start in range(0, self.sizes[number], _PIECE):
            data = source.pread(start, min(_PIECE, self.sizes[number] - start))
            try:
                done = 0
                while done < len(data):
                    done += os.pwrite(self.fds[number], data[done:], start + done)
            except OSError as error:
                raise write_failure(error, self.paths[number]) from None

    def publish(self) -> None:
        """Bring everything to the disk, then put it in place in order. OutputExistsError if something came in between.

        After an error the target is as it was.
        """
        try:
            for fd in self.fds:
                os.fsync(fd)
            if self._staged is not None:
                with _undisturbed():
                    self._publish_folder(self._staged)
            elif self.folder is None and len(self.paths) == 1:
                with _undisturbed():
                    self._publish_file(self.paths[0])
            else:
                with _alone(os.path.dirname(self.paths[-1]) or "."), _undisturbed():
                    self._publish_files()
        except OSError as error:
            path = self.folder or self.paths[-1]
            if error.errno in _THERE:
                raise OutputExistsError("appeared while wtool was writing", path=path, hint="--force overwrites it") from None
            raise write_failure(error, path) from None

    def _publish_folder(self, staged: str) -> None:
        assert self.folder is not None
        _sync_folder(staged)
        os.rename(staged, self.folder)
        self._staged, self._names = None, []
        _sync_folder(os.path.dirname(self.folder) or ".")

    def _publish_file(self, path: str) -> None:
        if self.force:
            _copy_mode(path, self.fds[0])
            os.rename(self._name(0), path)
        elif self._names[0] is None:
            _link(self.fds[0], path)
        else:
            _move(self._names[0], path)
        self._names = []
        _sync_folder(os.path.dirname(path) or ".")

    def _publish_files(self) -> None:
        stale = self._stale()
        if len(self.paths) == 1 and not stale:
            self._publish_file(self.paths[0])
            return
        # Give every inode a name first: from here on only renames are left, which need no room.
        names = [self._name(number) for number in range(len(self.fds))]
        moved: list[tuple[str, str]] = []
        placed: list[str] = []
        try:
            if self.force:
                for path in (*reversed(self.paths), *stale):
                    if os.path.isdir(path) and not os.path.islink(path):
                        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                    if os.path.lexists(path):
                        if path in self.paths:
                            _copy_mode(path, self.fds[self.paths.index(path)])
                        aside = _temporary(path)
                        os.rename(path, aside)
                        moved.append((path, aside))
            for name, path in zip(names, self.paths, strict=True):
                _move(name, path)
                placed.append(path)
        except OSError:
            for path in reversed(placed):
                with suppress(OSError):
                    os.unlink(path)
            for path, aside in reversed(moved):
                with suppress(OSError):
                    _move(aside, path)
            raise
        self._names = []
        for parent in dict.fromkeys(os.path.dirname(path) or "." for path in self.paths):
            _sync_folder(parent)
        for _, aside in moved:
            with suppress(OSError):
                os.unlink(aside)

    def _name(self, number: int) -> str:
        """The temporary name of a file, which an unnamed inode is given now."""
        name = self._names[number]
        if name is None:
            name = self._names[number] = _temporary(self.paths[number])
            _link(self.fds[number], name)
        return name

    def _stale(self) -> list[str]:
        """Shards and indexes of the set that is replaced which the new one, cut otherwise, has no namesake for."""
        if not self.force or (self.folder is None and len(self.paths) == 1):
            return []
        mine = {os.path.basename(path) for path in self.paths}
        families = {_family(name) for name in mine}
        parent = os.path.dirname(self.paths[-1])
        there = (name for name in sorted(os.listdir(parent or ".")) if name not in mine and _family(name) in families)
        found = [os.path.join(parent, name) for name in there]
        return [path for path in sorted(found, key=lambda path: not path.endswith(".json")) if os.path.isfile(path)]

    def discard(self) -> None:
        """Close and remove whatever has not been published."""
        for fd in self.fds:
            with suppress(OSError):
                os.close(fd)
        self.fds = []
        for name in self._names:
            if name is not None:
                with suppress(OSError):
                    os.unlink(name)
        self._names = []
        if self._staged is not None:
            shutil.rmtree(self._staged, ignore_errors=True)
            self._staged = None


def _family(name: str) -> str:
    """What the files of one set have in common: `model-00001-of-00002.safetensors`, its index and `model.safetensors`."""
    return _NUMBER.sub("", name).removesuffix(".index.json")


def _temporary(path: str) -> str:
    """A name beside `path` that no reader takes for a checkpoint; cut where a name of 255 bytes could not grow."""
    parent, base = os.path.split(path)
    return os.path.join(parent, f".{base if len(os.fsencode(base)) < 200 else base[:50]}.wtool-tmp-{secrets.token_hex(4)}")


def _unnamed(parent: str) -> int | None:
    """An inode without a name in this folder, or None where there is no such thing or no way to name it later."""
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.open(parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in _NO_TMPFILE and os.path.isdir(parent):
            return None
        raise


def _reserve(fd: int, size: int) -> None:
    """Give the file its size, with blocks where the system can: a full disk is known before the first byte."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as error:
            if error.errno in _FULL:
                raise
    os.ftruncate(fd, size)


@contextmanager
def _opened(folder: str) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        with suppress(OSError):  # nothing was written through it
            os.close(fd)


def _link(fd: int, path: str) -> None:
    """Give an unnamed inode a name. A directory fd makes Python call linkat, which alone follows the link in /proc."""
    with _opened("/proc/self/fd") as proc:
        os.link(str(fd), path, src_dir_fd=proc, follow_symlinks=True)


def _move(name: str, path: str) -> None:
    """Rename that never replaces: FileExistsError. Without hard links there is a moment between looking and renaming."""
    try:
        os.link(name, path, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(name, path)
        return
    try:
        os.unlink(name)
    except OSError:
        os.unlink(path)
        raise


def _copy_mode(old: str, fd: int) -> None:
    """A file that is replaced keeps its permissions: what was private stays private."""
    with suppress(OSError):
        info = os.lstat(old)
        if stat.S_ISREG(info.st_mode):
            os.fchmod(fd, stat.S_IMODE(info.st_mode) & 0o777)


def _sync_folder(path: str) -> None:
    with suppress(OSError), _opened(path) as fd:
        os.fsync(fd)


@contextmanager
def _alone(parent: str) -> Iterator[None]:
    """One wtool at a time puts several files into a folder, else two could mix their shards."""
    import fcntl

    with _opened(parent) as fd:
        with suppress(OSError):  # network file systems that cannot lock a folder
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back while names change: the moment between two renames is not one to stop in.

    By handlers and not by a mask: a signal that the main thread masks goes to any other thread, and Python runs its handler in
    the main thread all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not None:  # None: set by another language, and could not be put back
            before[number] = signal.signal(number, lambda got, _: held.append(got))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for got in dict.fromkeys(held):
            signal.raise_signal(got)
