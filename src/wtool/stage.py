"""Files that are whole or absent: written where nobody sees them, then put in place.

One file is an unnamed inode (O_TMPFILE) where the file system has them, else a `.NAME.wtool-tmp-*` beside the target. A folder
is built as `.NAME.wtool-tmp-*` and renamed. Until `publish` nothing at the target has changed; a process killed before that
leaves at most those dot names, and none at all for unnamed inodes.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from wtool.errors import DiskFullError, OutputExistsError, WriteError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_failure(error: OSError, path: str) -> WriteError:
    """What an OSError of the output means to a person."""
    if error.errno in _FULL:
        return DiskFullError(f"no room to write: {error.strerror}", path=path, hint="nothing was left behind")
    if isinstance(error, FileNotFoundError):
        return WriteError("its folder does not exist", path=path, hint="make the folder first")
    return WriteError(f"cannot be written: {error.strerror}", path=path)


class Stage:
    """The output files of one write, open for writing, not yet visible.

    `paths` are final paths in the order in which they are to appear. With `folder`, they all lie in that folder, which is put
    in place whole; other files that stand in an existing folder are kept. Use as a context manager: leaving it without
    `publish` removes everything.
    """

    def __init__(self, paths: Sequence[str], sizes: Sequence[int], *, folder: str | None = None, force: bool = False) -> None:
        self.paths, self.sizes, self.folder, self.force = list(paths), list(sizes), folder, force
        self.fds: list[int] = []
        self._names: list[str | None] = []  # temporary names; None for an unnamed inode
        self._staged: str | None = None
        self._replaced = {path for path in self.paths if os.path.lexists(path)}

    def __enter__(self) -> Stage:
        try:
            if self.folder is not None:
                parent, name = os.path.split(os.path.abspath(self.folder))
                self._staged = os.path.join(parent, f".{name}.wtool-tmp-{secrets.token_hex(4)}")
                os.mkdir(self._staged)
            for path, size in zip(self.paths, self.sizes, strict=True):
                self._open(path, size)
        except OSError as error:
            self.discard()
            raise write_failure(error, self.folder or self.paths[len(self.fds) - 1 if self.fds else 0]) from None
        except BaseException:
            self.discard()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def _open(self, path: str, size: int) -> None:
        if self._staged is not None:
            name = os.path.join(self._staged, os.path.basename(path))
            self._names.append(name)
            self.fds.append(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        else:
            parent, base = os.path.split(os.path.abspath(path))
            try:
                fd = os.open(parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
                self._names.append(None)
            except (AttributeError, IsADirectoryError, OSError) as error:
                no_tmpfile = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
                if isinstance(error, OSError) and (error.errno not in no_tmpfile or not os.path.isdir(parent)):
                    raise
                name = os.path.join(parent, f".{base}.wtool-tmp-{secrets.token_hex(4)}")
                fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                self._names.append(name)
            self.fds.append(fd)
        if size:
            _reserve(self.fds[-1], size)

    def publish(self) -> None:
        """Bring everything to the disk, then put it in place in order. OutputExistsError if something came in between."""
        try:
            for fd in self.fds:
                os.fsync(fd)
            with _undisturbed():
                if self._staged is not None:
                    self._publish_folder()
                else:
                    self._publish_files()
        except FileExistsError:
            raise OutputExistsError("appeared while wtool was writing", path=self.folder or self.paths[-1]) from None
        except OSError as error:
            raise write_failure(error, self.folder or self.paths[-1]) from None

    def _publish_files(self) -> None:
        names: list[str | None] = []
        if self._replaced or len(self.fds) > 1:
            # Give every inode a name first: from here on only renames are left, which need no room.
            for number, (fd, path) in enumerate(zip(self.fds, self.paths, strict=True)):
                if self._names[number] is None:
                    parent, base = os.path.split(os.path.abspath(path))
                    self._names[number] = os.path.join(parent, f".{base}.wtool-tmp-{secrets.token_hex(4)}")
                    _link(fd, self._names[number] or "")
        names = self._names
        if len(self.paths) > 1 and self.paths[-1] in self._replaced:
            os.unlink(self.paths[-1])  # an old index never stands beside new data
        for number, path in enumerate(self.paths):
            name = names[number]
            if name is None:
                _link(self.fds[number], path)
            elif path in self._replaced or self.force:
                os.rename(name, path)
            else:
                os.link(name, path)
                os.unlink(name)
            self._names[number] = None
        for parent in dict.fromkeys(os.path.dirname(os.path.abspath(path)) for path in self.paths):
            _sync_folder(parent)

    def _publish_folder(self) -> None:
        assert self._staged is not None and self.folder is not None
        target, aside = os.path.abspath(self.folder), None
        if os.path.isdir(target):
            mine = {os.path.basename(path) for path in self.paths}
            for entry in os.listdir(target):
                if entry not in mine and not _is_shard(entry):
                    _carry(os.path.join(target, entry), os.path.join(self._staged, entry))
            aside = f"{self._staged}-old"
        _sync_folder(self._staged)
        if aside is not None:
            os.rename(target, aside)
            try:
                os.rename(self._staged, target)
            except OSError:
                os.rename(aside, target)
                raise
        else:
            os.rename(self._staged, target)
        self._staged = None
        self._names = [None] * len(self._names)
        _sync_folder(os.path.dirname(target))
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)

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
        if self._staged is not None:
            shutil.rmtree(self._staged, ignore_errors=True)
            self._staged = None


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


def _link(fd: int, path: str) -> None:
    os.link(f"/proc/self/fd/{fd}", path, follow_symlinks=True)


def _sync_folder(path: str) -> None:
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _is_shard(name: str) -> bool:
    """Whether a file of an old folder is a shard or an index that the new one replaces."""
    return name.endswith((".safetensors", ".safetensors.index.json"))


def _carry(old: str, new: str) -> None:
    """Keep a bystander (config.json, a tokenizer) of a replaced folder: linked, else copied."""
    if os.path.isdir(old) and not os.path.islink(old):
        shutil.copytree(old, new, symlinks=True, copy_function=_carry_file)
    else:
        _carry_file(old, new)


def _carry_file(old: str, new: str) -> None:
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError:
        shutil.copy2(old, new, follow_symlinks=False)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back while names change: the moment between two renames is not one to stop in."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
