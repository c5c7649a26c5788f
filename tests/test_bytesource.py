"""Where bytes come from: exact ranges, one error for everything that is no regular file."""

from __future__ import annotations

import gc
import os
import pickle
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtool.bytesource import ByteSource, LocalFile, MemoryBytes
from wtool.errors import NotFoundError, TruncatedError, UnreadableError, WtoolError

DATA = bytes(range(256)) * 4


@pytest.fixture(scope="module", params=["file", "memory"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ByteSource:
    if request.param == "memory":
        return MemoryBytes(DATA)
    path = tmp_path_factory.mktemp("source") / "data"
    path.write_bytes(DATA)
    return LocalFile(path)


@given(offset=st.integers(-5, 1030), nbytes=st.integers(-5, 1030))
def test_ranges(source: ByteSource, offset: int, nbytes: int) -> None:
    assert source.size == len(DATA)
    if offset >= 0 and nbytes >= 0 and offset + nbytes <= len(DATA):
        assert source.pread(offset, nbytes) == DATA[offset : offset + nbytes]
        room = bytearray(nbytes)
        source.readinto(offset, memoryview(room))
        assert room == DATA[offset : offset + nbytes]
        return
    with pytest.raises(TruncatedError, match=f"ends at byte {len(DATA)}"):
        source.pread(offset, nbytes)
    if nbytes >= 0:
        with pytest.raises(TruncatedError):
            source.readinto(offset, memoryview(bytearray(nbytes)))


@pytest.mark.parametrize("huge", [1 << 40, 1 << 62, 1 << 63, 1 << 64, 1 << 200])
def test_numbers_from_a_file_may_be_anything(source: ByteSource, huge: int) -> None:
    for offset, nbytes in ((huge, 1), (0, huge), (huge, huge), (-huge, huge), (-huge, 1), (0, -huge)):
        with pytest.raises(TruncatedError):
            source.pread(offset, nbytes)
    with pytest.raises(TruncatedError):
        source.readinto(huge, memoryview(bytearray(1)))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may have 108 bytes
    try:
        server.bind(path.name)
    finally:
        os.chdir(here)
        server.close()


ODD: dict[str, tuple[Callable[[Path], object], type[WtoolError], str]] = {
    "missing": (lambda path: None, NotFoundError, "no such file"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), NotFoundError, "no such file"),
    "folder": (Path.mkdir, UnreadableError, "is a folder"),
    "pipe": (fifo, UnreadableError, "is a pipe"),
    "link to a pipe": (lambda path: (fifo(Path(f"{path}.f")), path.symlink_to(f"{path}.f")), UnreadableError, "is a pipe"),
    "socket": (listening, UnreadableError, "is a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), UnreadableError, "is a device"),
    "terminal": (lambda path: path.symlink_to("/dev/null"), UnreadableError, "is a device"),
    "loop": (lambda path: path.symlink_to(path), UnreadableError, "cannot be read"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    make, error, words = ODD[name]
    path = tmp_path / "x.pth"
    make(path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(error, match=words) as caught:
        LocalFile(path)
    assert caught.value.path == str(path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", [name for name in ODD if name not in {"missing", "dangling link", "folder"}])
def test_a_checkpoint_that_is_no_file(tmp_path: Path, name: str) -> None:
    from wtool.api import open_checkpoint

    make, error, _ = ODD[name]
    make(tmp_path / "x.pth")
    with pytest.raises(error):
        open_checkpoint(tmp_path / "x.pth")


def test_paths_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, error in (
        (f"{tmp_path}/a\0b", NotFoundError),
        (f"{tmp_path}/{'a' * 300}", UnreadableError),
        (f"{tmp_path}/file/inside", UnreadableError),
        ("", NotFoundError),
    ):
        with pytest.raises(error):
            LocalFile(path)


def test_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UnreadableError, match="cannot be read: Permission denied"):
        LocalFile(tmp_path / "x.pth")


def test_an_io_error_names_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(DATA)
    source = LocalFile(tmp_path / "x")

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    monkeypatch.setattr(os, "preadv", broken)
    for read in (lambda: source.pread(7, 2), lambda: source.readinto(7, memoryview(bytearray(2)))):
        with pytest.raises(UnreadableError, match="at byte 7: Input/output error") as caught:
            read()
        assert caught.value.path == str(tmp_path / "x")


@pytest.mark.parametrize("most", [1, 3, 100])
def test_the_system_may_give_less_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    (tmp_path / "x").write_bytes(DATA)
    source = LocalFile(tmp_path / "x")
    pread, preadv = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda fd, nbytes, at: pread(fd, min(nbytes, most), at))
    monkeypatch.setattr(os, "preadv", lambda fd, rooms, at: preadv(fd, [rooms[0][:most]], at))
    room = bytearray(500)
    source.readinto(3, memoryview(room))
    assert source.pread(3, 500) == room == DATA[3:503]


def test_a_file_cut_while_open(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(DATA)
    source = LocalFile(path)
    os.truncate(path, 100)
    with pytest.raises(TruncatedError):
        source.pread(90, 20)
    with pytest.raises(TruncatedError):
        source.readinto(90, memoryview(bytearray(20)))


def test_equality_is_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    (tmp_path / "b").write_bytes(DATA)
    os.link(tmp_path / "a", tmp_path / "hard")
    (tmp_path / "soft").symlink_to("a")
    a, b = LocalFile(tmp_path / "a"), LocalFile(tmp_path / "b")
    for name in ("a", "hard", "soft"):
        assert LocalFile(tmp_path / name) == a and hash(LocalFile(tmp_path / name)) == hash(a)
    assert a != b and a != "a"
    assert MemoryBytes(DATA) != MemoryBytes(DATA)


def test_pickled(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    source = LocalFile(tmp_path / "a")
    again = pickle.loads(pickle.dumps(source))
    assert again == source and again.fileno() != source.fileno() and again.pread(5, 9) == DATA[5:14]
    assert pickle.loads(pickle.dumps(MemoryBytes(DATA, "m"))).pread(5, 9) == DATA[5:14]


def test_closed_when_no_one_holds_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    sources = [LocalFile(tmp_path / "a") for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before + 5
    sources.clear()
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_share_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    source = LocalFile(tmp_path / "a")
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda n: source.pread(n, 16), range(1000)))
    assert parts == [DATA[n : n + 16] for n in range(1000)]
