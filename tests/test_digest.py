from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtool.analysis.digest import digest
from wtool.analysis.parallel import ask
from wtool.bytesource import LocalFile, MemoryBytes
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import dtype
from wtool.errors import TruncatedError
from wtool.ops.cast import CastTo
from wtool.tensor import Box, LazyTensor

SOURCE = Source("m", "torch", "zip", ())


def plain(key: str, name: str, shape: tuple[int, ...], data: bytes) -> LazyTensor:
    return LazyTensor.contiguous(key, dtype(name), shape, MemoryBytes(data), 0)


def gather(*tensors: LazyTensor) -> Checkpoint:
    return Checkpoint({tensor.key: tensor for tensor in tensors}, SOURCE)


def test_anyone_can_compute_it() -> None:
    rows = {"b": ("bf16", (2, 3), bytes(range(12))), "a": ("i64", (), b"\1" * 8), "ü": ("f4", (4,), b"\x21\x43")}
    found = digest(gather(*(plain(key, *row) for key, row in rows.items())))

    whole = hashlib.blake2b(digest_size=32)
    for key in sorted(rows):
        name, shape, data = rows[key]
        head = f"{name} {','.join(str(size) for size in shape)}\n"
        one = hashlib.blake2b(head.encode() + data, digest_size=32)
        assert found.tensors[key] == one.hexdigest()
        whole.update(len(key.encode()).to_bytes(8, "little") + key.encode() + one.digest())
    assert found.whole == whole.hexdigest()
    assert list(found.tensors) == ["b", "a", "ü"]


def test_it_never_changes() -> None:
    # By coreutils: printf 'f32 2\\n\\0\\0\\0\\0\\0\\0\\0\\0' | b2sum -l 256
    found = digest(gather(plain("w", "f32", (2,), bytes(8))))
    assert found.tensors["w"] == "a7b007bb8f710bb80992f9094f2513341d1452c84d24fe6e224f8f320c5e1ada"
    assert found.whole == "eb1c959d277e47fa587c446b01e3d38230a3e07cc88431641dde8b628d6fda13"


def layouts(values: np.ndarray) -> list[LazyTensor]:
    """The same values as a span, a transposed view, and pieces."""
    rows, columns = values.shape
    turned, f32 = MemoryBytes(np.ascontiguousarray(values.T).tobytes()), dtype("f32")
    straight = MemoryBytes(b"xx" + values.tobytes())
    cut = rows // 2
    boxes = (
        Box((0, 0), (cut, columns), straight, 2, (columns, 1)),
        Box((cut, 0), (rows - cut, columns), straight, 2 + cut * columns * 4, (columns, 1)),
    )
    span = LazyTensor.contiguous("w", f32, values.shape, straight, 2)
    return [
        span,
        LazyTensor.strided("w", f32, values.shape, turned, 0, (1, rows)),
        LazyTensor(span.spec, boxes, f32),
    ]


@given(st.integers(2, 9), st.integers(1, 9), st.integers(1, 4))
def test_layout_order_and_threads_do_not_matter(rows: int, columns: int, jobs: int) -> None:
    values = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    other = plain("a", "u8", (3,), b"abc")
    found = {digest(gather(*order), jobs).whole for w in layouts(values) for order in ((w, other), (other, w))}
    assert len(found) == 1


@pytest.mark.parametrize(
    "other",
    [
        plain("v", "f32", (2,), bytes(8)),
        plain("w", "i32", (2,), bytes(8)),
        plain("w", "f32", (2, 1), bytes(8)),
        plain("w", "f32", (2,), bytes(7) + b"\x80"),
    ],
)
def test_key_dtype_shape_and_every_bit_matter(other: LazyTensor) -> None:
    assert digest(gather(other)).whole != digest(gather(plain("w", "f32", (2,), bytes(8)))).whole


def test_a_cast_is_digested_as_what_it_gives() -> None:
    values = np.linspace(-3, 3, 1000, dtype=np.float32)
    cast = CastTo(dtype("f16"))(gather(plain("w", "f32", (1000,), values.tobytes())))
    halves = plain("w", "f16", (1000,), values.astype(np.float16).tobytes())
    assert digest(cast) == digest(gather(halves))


def test_tied_tensors_are_read_once() -> None:
    class Counted(MemoryBytes):
        reads = 0

        def readinto(self, offset: int, buffer: memoryview) -> None:
            self.reads += 1
            super().readinto(offset, buffer)

    source = Counted(bytes(8))
    tied = [LazyTensor.contiguous(key, dtype("f32"), (2,), source, 0) for key in "abc"]
    found = digest(gather(*tied, plain("empty", "f32", (0, 3), b"")), jobs=2)
    assert source.reads == 1
    assert len(set(found.tensors.values())) == 2


def test_progress_adds_up_to_the_bytes() -> None:
    seen: list[int] = []
    digest(gather(plain("a", "u8", (3 << 20,), bytes(3 << 20)), plain("b", "u8", (5,), bytes(5))), 2, seen.append)
    assert sum(seen) == (3 << 20) + 5


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_error_ends_it(jobs: int) -> None:
    tensors = [plain(str(number), "u8", (9,), bytes(9 if number != 5 else 3)) for number in range(50)]
    with pytest.raises(TruncatedError):
        digest(gather(*tensors), jobs)


def test_answers_keep_the_order_of_the_tensors() -> None:
    tensors = gather(*(plain(str(number), "u8", (1,), bytes([number])) for number in range(100))).tensors
    assert list(ask(tensors, lambda tensor: tensor.key, 4).items()) == [(key, key) for key in tensors]


def test_spans_are_digested_without_numpy(tmp_path: Path) -> None:
    file = tmp_path / "w"
    file.write_bytes(bytes(100))
    code = """if True:
        import sys
        from wtool.analysis.digest import digest
        from wtool.bytesource import LocalFile
        from wtool.checkpoint import Checkpoint, Source
        from wtool.dtypes import dtype
        from wtool.tensor import LazyTensor
        w = LazyTensor.contiguous("w", dtype("bf16"), (5, 10), LocalFile(sys.argv[1]), 0)
        print(digest(Checkpoint({"w": w}, Source("", "", "", ())), 2).whole)
        sys.exit("numpy" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    w = LazyTensor.contiguous("w", dtype("bf16"), (5, 10), LocalFile(file), 0)
    assert done.stdout.strip() == digest(gather(w)).whole
