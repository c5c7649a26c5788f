"""Whole or absent: a write is stopped, killed or fails at every call that it makes to the system."""

from __future__ import annotations

import errno
import fnmatch
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import checkpoint_of, values_of

from wtool import stage as staging
from wtool.api import open_checkpoint, save_checkpoint
from wtool.checkpoint import Checkpoint
from wtool.errors import DiskFullError, NotFoundError, OutputExistsError, WriteError, WtoolError
from wtool.stage import Stage

CALLS = (
    "open",
    "mkdir",
    "posix_fallocate",
    "ftruncate",
    "pwrite",
    "posix_fadvise",
    "fsync",
    "fchmod",
    "link",
    "rename",
    "unlink",
    "close",
)
CHANGING = ("open", "mkdir", "posix_fallocate", "pwrite", "fsync", "link", "rename", "unlink")


@dataclass(frozen=True)
class Case:
    """One way to lay out an output: the target, the options, and how many bytes of tensors a shard holds, old and new."""

    target: str
    old: int | None = None
    new: int | None = None
    to: str | None = None

    def save(self, folder: Path, seed: int, *, force: bool = False, jobs: int = 1) -> None:
        shard = self.old if seed == OLD else self.new
        save_checkpoint(made(seed), folder / self.target, to=self.to, max_shard=shard, force=force, jobs=jobs)

    @property
    def several(self) -> bool:
        return self.old is not None or self.new is not None or self.to == "tensorflow"


OLD, NEW = 1, 2


def made(seed: int) -> Checkpoint:
    return checkpoint_of(seed, elements=1000 + seed)  # another size: the two indexes differ


CASES = {
    "file": Case("m.safetensors"),
    "folder": Case("out", 5000, 5000),
    "folder-cut-otherwise": Case("out", 5000, 9000),
    "folder-from-one-file": Case("out", 99999, 5000),
    "folder-to-one-file": Case("out", 5000, 99999),
    "beside": Case("m.safetensors", 5000, 5000),
    "tensorflow": Case("m.ckpt", to="tensorflow"),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
old_or_fresh = pytest.mark.parametrize("force", [False, True], ids=["fresh", "force"])
unnamed_or_named = pytest.mark.parametrize("unnamed", [True, False], ids=["unnamed", "named"])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def leftovers(folder: Path) -> list[str]:
    names = [name for path in folder.rglob("*") for name in [str(path.relative_to(folder))]]
    return [name for name in names if any(part.startswith(".") for part in name.split("/"))]


def state(folder: Path, case: Case) -> str:
    """What a reader sees at the target: "old", "new", "none" (an error), or "mixed"."""
    target = folder / case.target
    if case.several and case.to is None and case.target != "out":
        target = folder / f"{case.target}.index.json"
    try:
        seen = values_of(open_checkpoint(target))
    except WtoolError:
        return "none"
    return "old" if seen == values_of(made(OLD)) else "new" if seen == values_of(made(NEW)) else "mixed"


@dataclass
class Ground:
    """A folder with a bystander and, perhaps, the old output."""

    folder: Path
    case: Case
    before: dict[str, bytes]

    def check(self, *, killed: bool) -> str:
        """The state of the target, after having checked all that must hold in any state."""
        now = files(self.folder)
        found = state(self.folder, self.case)
        assert found != "mixed"
        dots = leftovers(self.folder)
        assert all(any(fnmatch.fnmatch(part, ".*.wtool-tmp-*") for part in name.split("/")) for name in dots)
        if not killed:
            assert dots == []
        for name in self.before:
            if name.endswith("config.json"):
                assert now[name] == self.before[name]
        index = [name for name in self.before if name.endswith((".index", ".index.json"))]
        if index and now.get(index[0]) == self.before[index[0]]:  # an old index stands beside old data
            assert all(now[name] == content for name, content in self.before.items())
        if found == "none":
            assert set(self.before.values()) <= set(now.values())  # nothing of the old is lost
        return found


def ground(folder: Path, case: Case, force: bool) -> Ground:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    if force:
        case.save(folder, OLD)
        if case.target == "out":
            (folder / "out" / "config.json").write_text('{"of": "the folder"}')
    return Ground(folder, case, files(folder))


def wrapped(name: str, act: Callable[[str], None]) -> Callable[..., Any]:
    real = getattr(os, name)

    def call(*args: Any, **options: Any) -> Any:
        if name == "close":
            real(*args, **options)
            act(name)
            return None
        act(name)
        return real(*args, **options)

    return call


class Countdown:
    """Acts at the n-th of the calls; `met` says which that was, None that there were fewer."""

    def __init__(self, number: int, act: Callable[[], None]) -> None:
        self.left, self.act, self.met = number, act, None
        self.me = os.getpid()

    def __call__(self, name: str) -> None:
        if self.left == 0:
            self.left -= 1
            self.met = name
            self.act()
        else:
            self.left -= 1


def patched(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], act: Callable[[str], None]) -> None:
    for name in names:
        monkeypatch.setattr(os, name, wrapped(name, act))


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without O_TMPFILE."""
    without_unnamed(monkeypatch)


def without_unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)


def every_moment(tmp_path: Path, case: Case, force: bool) -> Iterator[tuple[int, Ground]]:
    """Fresh ground for the 0th, 1st, ... call; the consumer stops when a write makes no further call."""
    for number in range(2000):
        yield number, ground(tmp_path / str(number), case, force)
    raise AssertionError("a write of three tensors makes no 2000 calls")


@every_case
@old_or_fresh
@unnamed_or_named
def test_killed_at_every_call(tmp_path: Path, case: Case, force: bool, unnamed: bool) -> None:
    seen = set()
    for number, place in every_moment(tmp_path, case, force):
        child = os.fork()
        if child == 0:
            try:
                signal.alarm(30)
                monkeypatch = pytest.MonkeyPatch()
                if not unnamed:
                    without_unnamed(monkeypatch)
                countdown = Countdown(number, lambda: os.kill(os.getpid(), signal.SIGKILL))
                patched(monkeypatch, CHANGING, countdown)
                case.save(place.folder, NEW, force=force)
                os._exit(0)
            finally:
                os._exit(3)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            assert place.check(killed=False) == "new"
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        seen.add(place.check(killed=True))
    absent = "old" if force else "none"
    assert absent in seen
    if not case.several or (not force and case.target == "out"):
        assert seen <= {absent, "new"}


@every_case
@old_or_fresh
@unnamed_or_named
def test_an_error_at_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case, force: bool, unnamed: bool
) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    for number, place in every_moment(tmp_path, case, force):
        fds = len(os.listdir("/proc/self/fd"))
        failed = False
        with monkeypatch.context() as patch:
            if not unnamed:
                without_unnamed(patch)
            countdown = Countdown(number, fail)
            patched(patch, CALLS, countdown)
            try:
                case.save(place.folder, NEW, force=force)
            except WriteError as error:
                failed = True
                assert error.path and "Input/output error" in error.message
        assert len(os.listdir("/proc/self/fd")) == fds
        found = place.check(killed=countdown.met == "unlink")
        if failed:
            assert found == ("old" if force else "none")
            assert countdown.met == "unlink" or files(place.folder) == place.before
        else:
            assert found == "new"
            assert countdown.met in {None, "posix_fallocate", "posix_fadvise", "fchmod", "fsync", "open", "close", "unlink"}
        if countdown.met is None:
            break


@every_case
@old_or_fresh
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_stopped_at_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case, force: bool, number: signal.Signals
) -> None:
    before = signal.signal(number, signal.default_int_handler)
    try:
        for moment, place in every_moment(tmp_path, case, force):
            stopped = False
            with monkeypatch.context() as patch:
                countdown = Countdown(moment, lambda: signal.raise_signal(number))
                patched(patch, CHANGING, countdown)
                try:
                    case.save(place.folder, NEW, force=force)
                except KeyboardInterrupt:
                    stopped = True
            assert signal.getsignal(number) is signal.default_int_handler
            found = place.check(killed=False)
            assert found in ({"old", "new"} if force else {"none", "new"})
            if countdown.met is None:
                assert found == "new" and not stopped
                break
            assert stopped
    finally:
        signal.signal(number, before)


@every_case
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync", "link"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case, code: int, call: str) -> None:
    place = ground(tmp_path / "here", case, True)

    def full(_: str) -> None:
        raise OSError(code, os.strerror(code))

    patched(monkeypatch, (call,), full)
    with pytest.raises(DiskFullError, match="no room"):
        case.save(place.folder, NEW, force=True)
    assert files(place.folder) == place.before


def test_no_fallocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_: str) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    patched(monkeypatch, ("posix_fallocate",), unsupported)
    CASES["file"].save(tmp_path, NEW)
    assert state(tmp_path, CASES["file"]) == "new"


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
@every_case
@old_or_fresh
def test_a_file_system_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case, force: bool, code: int, named: None
) -> None:
    place = ground(tmp_path / "here", case, force)

    def refuse(_: str) -> None:
        raise OSError(code, os.strerror(code))

    patched(monkeypatch, ("link",), refuse)
    case.save(place.folder, NEW, force=force)
    assert place.check(killed=False) == "new"


def test_on_the_disk_before_it_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    fsync, rename, pwrite = os.fsync, os.rename, os.pwrite

    def kind(fd: int) -> str:
        return "folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"

    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(("fsync", kind(fd))), fsync(fd))[1])
    monkeypatch.setattr(os, "pwrite", lambda fd, *rest: (done.append(("pwrite", "")), pwrite(fd, *rest))[1])
    monkeypatch.setattr(os, "rename", lambda *names: (done.append(("rename", "")), rename(*names))[1])
    CASES["file"].save(tmp_path, OLD)
    assert done[-2:] == [("fsync", "file"), ("fsync", "folder")]
    done.clear()
    CASES["file"].save(tmp_path, NEW, force=True)
    assert done[-3:] == [("fsync", "file"), ("rename", ""), ("fsync", "folder")]
    done.clear()
    CASES["folder"].save(tmp_path, NEW)
    assert done[-7:] == [*[("fsync", "file")] * 4, ("fsync", "folder"), ("rename", ""), ("fsync", "folder")]
    assert all(call == "pwrite" for call, _ in done[:-7])


def test_the_index_appears_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, shown = os.link, []
    monkeypatch.setattr(os, "link", lambda a, b, **options: (shown.append(os.path.basename(b)), link(a, b, **options))[1])
    CASES["beside"].save(tmp_path, NEW)
    assert [name for name in shown if not name.startswith(".")] == [
        "m-00001-of-00003.safetensors",
        "m-00002-of-00003.safetensors",
        "m-00003-of-00003.safetensors",
        "m.safetensors.index.json",
    ]


@every_case
@unnamed_or_named
def test_a_file_that_appears_meanwhile_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case, unnamed: bool
) -> None:
    if not unnamed:
        without_unnamed(monkeypatch)
    case.save(tmp_path, NEW)
    for name in files(tmp_path):
        place = ground(tmp_path / f"for-{name.replace('/', '-')}", case, False)
        foreign = place.folder / name

        def appear(path: Path = foreign) -> None:
            path.parent.mkdir(exist_ok=True)
            path.write_text("foreign")

        with monkeypatch.context() as patch:
            patched(patch, ("fsync",), Countdown(0, appear))
            with pytest.raises(OutputExistsError, match="appeared"):
                case.save(place.folder, NEW)
        assert files(place.folder) == {**place.before, name: b"foreign"}
        assert leftovers(place.folder) == []


def test_a_file_that_appears_meanwhile_is_replaced_by_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m.safetensors"
    with monkeypatch.context() as patch:
        patched(patch, ("fsync",), Countdown(0, lambda: target.write_text("foreign") and None))
        CASES["file"].save(tmp_path, NEW, force=True)
    assert state(tmp_path, CASES["file"]) == "new"


def test_a_folder_keeps_all_that_is_not_of_the_set(tmp_path: Path) -> None:
    case = CASES["folder-cut-otherwise"]
    case.save(tmp_path, OLD)
    out = tmp_path / "out"
    out.chmod(0o750)
    for name in ("config.json", "tokenizer.model", "adapter_model.safetensors", "sub/model.safetensors"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(name)
    number = out.stat().st_ino
    case.save(tmp_path, NEW, force=True)
    assert out.stat().st_ino == number and stat.S_IMODE(out.stat().st_mode) == 0o750
    assert sorted(files(out)) == [
        "adapter_model.safetensors",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "sub/model.safetensors",
        "tokenizer.model",
    ]
    assert (out / "adapter_model.safetensors").read_text() == "adapter_model.safetensors"


def test_an_empty_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    save_checkpoint(made(NEW), ".", to="safetensors", max_shard=5000)
    assert os.path.samefile(".", out)
    assert state(tmp_path, CASES["folder"]) == "new"


def test_a_trailing_slash(tmp_path: Path) -> None:
    save_checkpoint(made(NEW), f"{tmp_path}/out/", max_shard=5000)
    assert state(tmp_path, CASES["folder"]) == "new"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
@unnamed_or_named
def test_modes_follow_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int, unnamed: bool) -> None:
    if not unnamed:
        without_unnamed(monkeypatch)
    before = os.umask(mask)
    try:
        CASES["file"].save(tmp_path, NEW)
        CASES["folder"].save(tmp_path, NEW)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes.pop("out") == 0o777 & ~mask
    assert set(modes.values()) == {0o666 & ~mask}


@pytest.mark.parametrize("case", [CASES["file"], CASES["tensorflow"]], ids=["file", "tensorflow"])
def test_what_was_private_stays_private(tmp_path: Path, case: Case) -> None:
    case.save(tmp_path, OLD)
    for path in tmp_path.iterdir():
        path.chmod(0o600)
    case.save(tmp_path, NEW, force=True)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_is_replaced_and_its_target_untouched(tmp_path: Path, dangling: bool) -> None:
    blob = tmp_path / "blob"
    if not dangling:
        blob.write_text("shared by other snapshots")
    target = tmp_path / "m.safetensors"
    target.symlink_to("blob")
    with pytest.raises(OutputExistsError):
        CASES["file"].save(tmp_path, NEW)
    CASES["file"].save(tmp_path, NEW, force=True)
    assert not target.is_symlink()
    assert state(tmp_path, CASES["file"]) == "new"
    assert dangling is not blob.exists()
    assert dangling or blob.read_text() == "shared by other snapshots"


def test_a_folder_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    for seed in (OLD, NEW):
        CASES["folder"].save(tmp_path, seed, force=seed == NEW)
    assert (tmp_path / "out").is_symlink()
    assert state(tmp_path, CASES["folder"]) == "new"
    assert leftovers(tmp_path) == []


def test_two_dots_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "far" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/inner")
    save_checkpoint(made(NEW), f"{tmp_path}/link/../m.safetensors", force=True)
    assert [path.name for path in (tmp_path / "far").iterdir() if path.is_file()] == ["m.safetensors"]


@unnamed_or_named
def test_the_longest_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool) -> None:
    if not unnamed:
        without_unnamed(monkeypatch)
    for stem in ("a" * 243, "ä" * 121):
        for _ in range(2):
            save_checkpoint(made(NEW), tmp_path / f"{stem}.safetensors", force=True)
    assert len(files(tmp_path)) == 2
    with pytest.raises(WriteError):
        save_checkpoint(made(NEW), tmp_path / ("a" * 300 + ".safetensors"))


@every_case
def test_two_writers_at_once(tmp_path: Path, case: Case) -> None:
    case.save(tmp_path, OLD)
    failures: list[BaseException] = []

    def write(seed: int) -> None:
        try:
            for _ in range(15):
                case.save(tmp_path, seed, force=True)
        except BaseException as error:  # carried to the test's thread
            failures.append(error)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in (OLD, NEW)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert state(tmp_path, case) in {"old", "new"}
    assert leftovers(tmp_path) == []


@every_case
def test_two_new_writers_at_once(tmp_path: Path, case: Case) -> None:
    outcomes: list[type | None] = []
    gate = threading.Barrier(2)

    def write(seed: int) -> None:
        try:
            gate.wait()
            case.save(tmp_path, seed)
            outcomes.append(None)
        except WtoolError as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=write, args=(seed,)) for seed in (OLD, NEW)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes, key=str) == [OutputExistsError, None]
    assert state(tmp_path, case) in {"old", "new"}
    assert leftovers(tmp_path) == []


def test_waiting_for_another_writer_can_be_stopped(tmp_path: Path) -> None:
    import fcntl

    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    told, ready = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(holder)
            signal.alarm(30)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            flock = fcntl.flock
            fcntl.flock = lambda *args: (os.write(ready, b"."), flock(*args))[1]
            CASES["beside"].save(tmp_path, NEW)
        except KeyboardInterrupt:
            os._exit(0)
        finally:
            os._exit(3)
    os.close(ready)
    assert os.read(told, 1) == b"."
    os.kill(child, signal.SIGINT)
    _, status = os.waitpid(child, 0)
    os.close(holder)
    os.close(told)
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
    assert files(tmp_path) == {}


def test_nothing_to_write_into(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="folder does not exist"), Stage([str(tmp_path / "no" / "m")], [10]):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError), Stage([str(tmp_path / "file" / "m")], [10]):
        pass
    assert sorted(files(tmp_path)) == ["file"]


def test_leaving_without_publishing(tmp_path: Path) -> None:
    for folder in (None, str(tmp_path / "out")):
        base = Path(folder or tmp_path)
        with Stage([str(base / "a"), str(base / "b")], [10, 0], folder=folder) as stage:
            assert len(stage.fds) == 2
        assert list(tmp_path.iterdir()) == []


def test_the_families_of_names() -> None:
    family = staging._family
    assert family("model-00001-of-00002.safetensors") == family("model.safetensors.index.json") == "model.safetensors"
    assert family("m.ckpt.data-00001-of-00002") == family("m.ckpt.data-00000-of-00001") != family("m.ckpt.index")
    assert family("model.fp16-00001-of-00002.safetensors") != "model.safetensors"


def test_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        open_checkpoint(tmp_path / "m.safetensors")
