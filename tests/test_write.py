"""Running a plan: threads, failures in the middle, signals, full disks, and output onto input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support import Counting, checkpoint_of, checkpoint_on, covered_once, values_of

from wtool import boxes
from wtool.api import open_checkpoint, plan_save, save, save_checkpoint
from wtool.bytesource import MemoryBytes
from wtool.dtypes import dtype
from wtool.errors import DiskFullError, OutputExistsError, TruncatedError, WriteError
from wtool.kernels.cast import Cast
from wtool.tensor import LazyTensor
from wtool.views import arrange, transpose

MIB = 1 << 20


class Failing(Counting):
    """Raises what it is given once `after` bytes have been asked for."""

    def __init__(self, size: int, after: int, error: BaseException) -> None:
        super().__init__(MemoryBytes(bytes(size), "in.pth"))
        self.after, self.error = after, error

    def readinto(self, offset: int, buffer: memoryview) -> None:
        super().readinto(offset, buffer)
        if self.total > self.after:
            raise self.error


def wtool_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("wtool")]


@pytest.mark.parametrize("jobs", [1, 2, 5])
@pytest.mark.parametrize("target", ["m.safetensors", "m.ckpt", "out"])
def test_every_byte_is_read_once(tmp_path: Path, jobs: int, target: str) -> None:
    values = np.random.default_rng(0).bytes(9 * MIB + 12)
    source = Counting(MemoryBytes(values))
    tensors = {f"layer.{n}.w": ("f32", (MIB // 4 - n,)) for n in range(8)} | {"empty": ("i64", (0, 3)), "one": ("f16", ())}
    given = checkpoint_on(source, tensors)
    save_checkpoint(given, tmp_path / target, jobs=jobs, max_shard=3 * MIB if target == "out" else None)
    assert covered_once(source.ranges, given.nbytes)
    assert values_of(open_checkpoint(tmp_path / target)) == values_of(given)


def test_the_same_bytes_whoever_writes_them(tmp_path: Path) -> None:
    given = checkpoint_of(0, count=7, elements=200_000)
    with ThreadPoolExecutor(3) as pool:
        for target in ("m.safetensors", "m.ckpt"):
            plan = plan_save(given, tmp_path / target, force=True)
            seen = set()
            for options in ({"jobs": 1}, {"jobs": 4}, {"executor": pool}, {"jobs": 2, "memory": 1}, {"memory": 1 << 40}):
                save(plan, **options)
                seen.add(tuple(path.read_bytes() for path in sorted(tmp_path.glob(f"{target}*"))))
            assert len(seen) == 1
        assert pool.submit(int).result() == 0  # the caller's executor is still the caller's


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    seen: list[int] = []
    given = checkpoint_of(0, count=3, elements=500_000)
    save(plan_save(given, tmp_path / "m.safetensors"), jobs=1, progress=seen.append)
    assert sum(seen) == given.nbytes and len(seen) >= given.nbytes // MIB


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    "error",
    [TruncatedError("ends", path="in.pth"), KeyboardInterrupt(), ZeroDivisionError()],
    ids=["truncated", "ctrl-c", "bug"],
)
def test_an_error_in_a_thread_ends_it_all(tmp_path: Path, jobs: int, own: bool, error: BaseException) -> None:
    source = Failing(40 * MIB, 10 * MIB, error)
    given = checkpoint_on(source, {f"k{n}": ("u8", (5 * MIB,)) for n in range(8)})
    with ThreadPoolExecutor(jobs) as pool:
        with pytest.raises(type(error)):
            save(plan_save(given, tmp_path / "m.safetensors"), jobs=jobs, executor=None if own else pool)
        read = source.total
        assert read < 25 * MIB  # the others gave up too
    assert source.total == read
    assert wtool_threads() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_threads_work(tmp_path: Path, number: signal.Signals, own: bool) -> None:
    class Signalling(Failing):
        def readinto(self, offset: int, buffer: memoryview) -> None:
            Counting.readinto(self, offset, buffer)
            if self.total > self.after:
                self.after = 1 << 60
                os.kill(os.getpid(), number)

    source = Signalling(200 * MIB, 10 * MIB, KeyboardInterrupt())
    given = checkpoint_on(source, {f"k{n}": ("u8", (5 * MIB,)) for n in range(40)})
    before = signal.signal(number, signal.default_int_handler)
    try:
        with ThreadPoolExecutor(2) as pool:
            with pytest.raises(KeyboardInterrupt):
                save(plan_save(given, tmp_path / "m.safetensors"), jobs=2, executor=None if own else pool)
            read = source.total
        assert source.total == read < 200 * MIB
    finally:
        signal.signal(number, before)
    assert wtool_threads() == []
    assert list(tmp_path.iterdir()) == []


def test_no_thread_writes_after_the_files_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow thread of the caller's executor must not write into whatever has the file's number by then."""
    slow, pwrite, closed = threading.Event(), os.pwrite, threading.Event()
    late: list[bool] = []

    def write(fd: int, data: memoryview, at: int) -> int:
        if threading.current_thread() is not threading.main_thread() and not slow.is_set():
            slow.set()
            late.append(closed.wait(0.2))
        return pwrite(fd, data, at)

    class AfterSlow(Failing):
        def readinto(self, offset: int, buffer: memoryview) -> None:
            if offset >= 5 * MIB:
                assert slow.wait(10)
                raise TruncatedError("ends")
            super().readinto(offset, buffer)

    monkeypatch.setattr(os, "pwrite", write)
    given = checkpoint_on(AfterSlow(10 * MIB, 1 << 60, ValueError()), {f"k{n}": ("u8", (5 * MIB,)) for n in range(2)})
    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(TruncatedError):
            save(plan_save(given, tmp_path / "m.safetensors"), executor=pool)
        closed.set()
    assert late == [False]


@pytest.mark.parametrize("most", [1, 7, 4096])
def test_the_system_may_take_less_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    given = checkpoint_of(0)
    save_checkpoint(given, tmp_path / "whole.safetensors")
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:most], at))
    save_checkpoint(given, tmp_path / "m.safetensors", jobs=1)
    assert (tmp_path / "m.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_an_error_names_the_file_it_is_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_save(checkpoint_of(0), tmp_path / "m.safetensors", max_shard=5000)
    pwrite = os.pwrite
    calls: list[int] = []

    def write(fd: int, data: memoryview, at: int) -> int:
        calls.append(fd)
        if len(set(calls)) == 3:
            raise OSError(5, "Input/output error")
        return pwrite(fd, data, at)

    monkeypatch.setattr(os, "pwrite", write)
    with pytest.raises(WriteError, match=r"m-00003-of-00003\.safetensors: cannot be written: Input/output error"):
        save(plan, jobs=1)


SAVE = """
import resource, sys, os
sys.path.insert(0, {tests!r})
from support import checkpoint_of
from wtool.api import save_checkpoint
from wtool.errors import WtoolError
given = checkpoint_of(2, count=20, elements=50000)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
def refuse(*args): raise OSError(95, "Operation not supported")
if {plain} >= 1: os.posix_fallocate = refuse
if {plain} >= 2: os.ftruncate = lambda *args: None
try:
    save_checkpoint(given, sys.argv[1], max_shard={shard}, force=True, jobs=2)
except WtoolError as error:
    print(error.code)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("plain", [0, 1, 2], ids=["fallocate", "ftruncate", "neither"])
@pytest.mark.parametrize(("target", "shard"), [("m.safetensors", None), ("m.ckpt", None), ("out", 1_500_000)])
@pytest.mark.parametrize("limit", [0, 10, 4096, 1_000_000])
@pytest.mark.parametrize("force", [True, False])
def test_a_limit_on_the_size_of_files(
    tmp_path: Path, target: str, shard: int | None, limit: int, plain: int, force: bool
) -> None:
    if plain and limit not in {10, 1_000_000}:
        pytest.skip("the same as another")
    if force:
        save_checkpoint(checkpoint_of(1), tmp_path / target)
    before = {str(path): path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    script = SAVE.format(tests=os.path.dirname(__file__), limit=limit, plain=plain, shard=shard)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / target)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, f"{DiskFullError.code}\n", "")
    assert {str(path): path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("way", ["path", "symlink", "hard link", "other spelling"])
@pytest.mark.parametrize("turn", [False, True], ids=["as it is", "reversed"])
def test_output_onto_input(tmp_path: Path, way: str, turn: bool) -> None:
    given = checkpoint_of(0, count=4, elements=100_000)
    source = tmp_path / "m.safetensors"
    save_checkpoint(given, source)
    opened = open_checkpoint(source)
    target = {"symlink": tmp_path / "s.safetensors", "hard link": tmp_path / "h.safetensors"}.get(way, source)
    if way == "symlink":
        target.symlink_to(source)
    elif way == "hard link":
        os.link(source, target)
    elif way == "other spelling":
        (tmp_path / "sub").mkdir()
        target = tmp_path / "sub" / ".." / "m.safetensors"
    with pytest.raises(OutputExistsError):
        save_checkpoint(opened, target)
    names = {f"k{n}": f"k{3 - n if turn else n}" for n in range(4)}
    save_checkpoint(opened.with_tensors(opened[old].renamed(new) for old, new in names.items()), target, force=True)
    expected = values_of(given)
    assert values_of(open_checkpoint(target)) == {new: expected[old] for old, new in names.items()}
    assert values_of(opened) == expected  # what was opened is still what it was
    if way not in {"path", "other spelling"}:
        assert values_of(open_checkpoint(source)) == expected


@pytest.mark.parametrize(("target", "shard"), [("out", 900_000), ("m.ckpt", None)])
def test_several_files_onto_themselves(tmp_path: Path, target: str, shard: int | None) -> None:
    given = checkpoint_of(0, count=4, elements=100_000)
    save_checkpoint(given, tmp_path / target, max_shard=shard)
    opened = open_checkpoint(tmp_path / target)
    turned = opened.with_tensors(opened[f"k{3 - n}"].renamed(f"k{n}") for n in range(4))
    save_checkpoint(turned, tmp_path / target, max_shard=shard and 500_000, force=True)
    again = values_of(open_checkpoint(tmp_path / target))
    assert again == {f"k{3 - n}": value for n, value in enumerate(values_of(given).values())}


class Doubled:
    """A kernel that counts."""

    def dtype(self, stored: object) -> object:
        return stored

    def __call__(self, block: np.ndarray, tally: dict[str, int]) -> np.ndarray:
        tally["seen"] = tally.get("seen", 0) + block.size
        return block * 2


@pytest.mark.parametrize("jobs", [1, 4])
def test_kernels_and_their_tallies(tmp_path: Path, jobs: int) -> None:
    from wtool.stage import Stage
    from wtool.write import run

    given = checkpoint_of(0, count=5, elements=700_001)
    doubled = given.with_tensors(t.map(Doubled()) if t.key != "k3" else t for t in given.tensors.values())
    plan = plan_save(doubled, tmp_path / "m.safetensors")
    with Stage(plan.paths, [file.size for file in plan.plan.layout.files]) as stage:
        written = run(plan.plan, plan.sink, stage, jobs=jobs)
        stage.publish()
    assert written.tallies == {f"k{n}": {"seen": 700_001} for n in (0, 1, 2, 4)}
    result = open_checkpoint(tmp_path / "m.safetensors")
    for key, tensor in given.items():
        assert np.array_equal(result[key].array(), tensor.array() * (1 if key == "k3" else 2))


def test_a_source_that_shrinks(tmp_path: Path) -> None:
    save_checkpoint(checkpoint_of(0), tmp_path / "m.safetensors")
    opened = open_checkpoint(tmp_path / "m.safetensors")
    os.truncate(tmp_path / "m.safetensors", 5000)
    with pytest.raises(TruncatedError) as caught:
        save_checkpoint(opened, tmp_path / "n.safetensors")
    assert caught.value.path == str(tmp_path / "m.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_tensor_of_no_kind_is_left_lazy(tmp_path: Path) -> None:
    source = Counting(MemoryBytes(bytes(400)))
    given = checkpoint_on(source, {"a": ("f32", (100,))})
    plan_save(given, tmp_path / "m.safetensors")
    assert source.ranges == [] and isinstance(given["a"], LazyTensor)


@pytest.mark.parametrize("target", ["m.safetensors", "m.pth", "m.ckpt"])
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("back", [False, True])
def test_a_large_rearranged_tensor_is_read_about_once(
    tmp_path: Path, target: str, jobs: int, back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dense layer behind Flatten, 24 times what is held at once: each slab of the outcome has values of every row."""
    monkeypatch.setattr(boxes, "_GAP", 512)  # as small, beside this tensor, as it is beside a large one
    out, channels, places = 256, 64, 49
    cut = (out, channels, places) if not back else (places, channels, out)
    values = np.random.default_rng(0).standard_normal(cut).astype("f4")
    expected = values.transpose(2, 1, 0)
    source = Counting(MemoryBytes(values.tobytes()))
    shape = (expected.shape[0], expected[0].size)
    tensor = arrange(checkpoint_on(source, {"w": ("f32", values.shape)})["w"], cut, (2, 1, 0), shape)
    given = checkpoint_on(source, {}).with_tensors([tensor])
    seen: list[int] = []
    (tmp_path / "whole").mkdir()
    save(plan_save(given, tmp_path / "whole" / target), memory=1 << 30)  # straight on: the checksums are sums over blocks
    source.ranges.clear()
    save(plan_save(given, tmp_path / target), jobs=jobs, memory=jobs * (512 << 10), progress=seen.append)
    assert open_checkpoint(tmp_path / target)["w"].array().tobytes() == expected.tobytes()
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert source.total <= 3 * values.nbytes
    assert len(source.ranges) <= 10_000
    assert sum(seen) == values.nbytes


def test_counts_of_tiles_add_up(tmp_path: Path) -> None:
    """What casts say of a tensor that several threads write part by part."""
    values = np.full((700, 900), 1e30, "f4")
    values[::2] = 1
    given = checkpoint_on(MemoryBytes(values.tobytes()), {"w": ("f32", values.shape)})
    given = given.with_tensors([transpose(given["w"], (1, 0)).map(Cast(dtype("f32"), dtype("f16")))])
    report = save(plan_save(given, tmp_path / "m.safetensors"), jobs=2, memory=1 << 20)
    assert report.overflow == {"w": 350 * 900}
