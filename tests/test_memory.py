"""Promises about memory and reading: headers only to open, one pass to save, blocks whatever the size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import Counting, checkpoint_of

from wtool import adapter, bytesource
from wtool.api import open_checkpoint, save_checkpoint

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peaks are read from /proc")

MIB = 1 << 20
SIZE = 400 * MIB


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> list[bytesource.LocalFile]:
    """Every LocalFile made from now on, with the bytes read of it as `read`."""
    made: list[bytesource.LocalFile] = []
    real = bytesource.LocalFile

    class Watched(real):
        def __init__(self, path: str | os.PathLike[str]) -> None:
            super().__init__(path)
            self.read = 0
            made.append(self)

        def pread(self, offset: int, nbytes: int) -> bytes:
            self.read += nbytes
            return super().pread(offset, nbytes)

        def readinto(self, offset: int, buffer: memoryview) -> None:
            self.read += len(buffer)
            super().readinto(offset, buffer)

    for name, module in list(sys.modules.items()):
        if name.startswith("wtool") and getattr(module, "LocalFile", None) is real:
            monkeypatch.setattr(module, "LocalFile", Watched)
    return made


@pytest.mark.parametrize("target", ["m.safetensors", "m.ckpt", "m.pth", "out"])
def test_opening_reads_headers_and_saving_reads_once(tmp_path: Path, sources: list[bytesource.LocalFile], target: str) -> None:
    given = checkpoint_of(0, count=8, elements=500_000)
    save_checkpoint(given, tmp_path / target, max_shard=5 * MIB if target == "out" else None)
    sources.clear()
    opened = open_checkpoint(tmp_path / target)
    size = given.nbytes
    assert sources
    assert sum(source.read for source in sources) < 100_000 < size // 100
    for other in ("a.safetensors", "a.pth", "a.ckpt"):
        for source in sources:
            source.read = 0
        save_checkpoint(opened, tmp_path / other, jobs=2)
        assert sum(source.read for source in sources) == size
    assert adapter.PROBE_BYTES == 4096


def sparse(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A safetensors file whose values are a hole in the file."""
    header, at = {}, 0
    for key, (dtype, shape) in tensors.items():
        nbytes = 4
        for size in shape:
            nbytes *= size
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


MEASURE = """
import sys
from dataclasses import replace
from wtool.api import open_checkpoint, save_checkpoint
opened = open_checkpoint(sys.argv[1])
if sys.argv[3] == "transposed":
    from wtool.tensor import LazyTensor
    def turned(t):
        box, (n, m) = t.boxes[0], t.shape
        return LazyTensor.strided(t.key, t.dtype, (m, n), box.source, box.offset, (1, m))
    opened = replace(opened, tensors={key: turned(t) for key, t in opened.items()})
elif sys.argv[3] != "verbatim":
    from wtool.dtypes import dtype
    from wtool.ops.cast import CastTo
    opened = CastTo(dtype(sys.argv[3]))(opened)
if sys.argv[2] != "-":
    save_checkpoint(opened, sys.argv[2], jobs=int(sys.argv[4]))
names = [name for name in ("numpy", "torch", "tensorflow") if name in sys.modules]
# Not ru_maxrss: after vfork and exec that begins with what the parent had.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")), *names)
"""


def measured(source: Path, target: Path | str, how: str, jobs: int = 2) -> tuple[float, list[str]]:
    """MiB at the peak of a process that converts, and which of the large libraries it had imported."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(source), str(target), how, str(jobs)], capture_output=True, text=True
    )
    assert done.stderr == ""
    peak, *names = done.stdout.split()
    return int(peak) / 1024, names


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "in.safetensors"
    sparse(path, {f"layers.{n}.w": ("F32", [5000, 4000]) for n in range(SIZE // 80_000_000)})
    return path


def test_opening_is_small(large: Path) -> None:
    peak, names = measured(large, "-", "verbatim")
    assert peak < 40 and names == []


@pytest.mark.parametrize("name", ["out.safetensors", "out.pth", "out.ckpt"])
def test_verbatim(large: Path, tmp_path: Path, name: str) -> None:
    peak, names = measured(large, tmp_path / name, "verbatim")
    assert peak < 60 and names == []
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) >= SIZE * 0.9


@pytest.mark.parametrize(("how", "jobs"), [("bf16", 2), ("f16", 2), ("f8_e4m3", 2), ("transposed", 2), ("transposed", 6)])
def test_changing_values(large: Path, tmp_path: Path, how: str, jobs: int) -> None:
    peak, names = measured(large, tmp_path / "out.safetensors", how, jobs)
    assert peak < 150 and names == ["numpy"]


def test_a_hundred_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    try:
        sparse(path, {f"layers.{n}.w": ("F32", [25_000, 10_000]) for n in range(100)})
    except OSError:
        pytest.skip("no such large files here")
    peak, names = measured(path, "-", "verbatim")
    assert peak < 40 and names == []


def test_counting_counts() -> None:
    source = Counting(bytesource.MemoryBytes(bytes(10)))
    source.pread(0, 4)
    source.readinto(4, memoryview(bytearray(6)))
    assert source.ranges == [(0, 4), (4, 6)] and source.total == 10


QUANTIZE = """
import sys
from wtool.cli.app import run
assert run(sys.argv[1:]) == 0
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize("scheme", ["int4", "f8-e4m3:block", "nf4-nested", "q4_k:rtn"])
def test_quantizing_and_its_report_take_constant_memory(tmp_path: Path, scheme: str) -> None:
    """One matrix of 400 MB, whose parts and errors are made in pieces."""
    sparse(tmp_path / "in.safetensors", {"a.weight": ("F32", [SIZE // 4096 // 4, 4096])})
    target = "o.gguf" if scheme.startswith("q") else "o.safetensors"
    argv = ["quantize", tmp_path / "in.safetensors", tmp_path / target, "--scheme", scheme, "-q", "-j", "2"]
    done = subprocess.run([sys.executable, "-c", QUANTIZE, *map(str, argv)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) / 1024 < 120
