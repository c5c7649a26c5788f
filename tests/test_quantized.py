"""The frame of quantization: parts made in one pass, read anywhere, the same for any number of threads and any arrangement."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Counting, checkpoint_on

from wtool import views
from wtool.api import open_checkpoint, plan_save, save, save_checkpoint
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import dtype
from wtool.errors import CorruptError, DtypeError, NotFiniteError
from wtool.kernels.affine import Affine
from wtool.kernels.minifloat import Float8, MxFloat4, NvFloat4
from wtool.layouts.codecs import PackedInts, PlainInts, as_f32
from wtool.layouts.floats import Floats, MxFloats, NvFloats
from wtool.layouts.gguf import Blocks
from wtool.plan import EncodeJob
from wtool.quantized import Codec, Encoding, decoded
from wtool.tensor import LazyTensor

F32 = dtype("f32")
CODECS: dict[str, Codec] = {
    "int4": PackedInts(Affine(4, 32, True, F32)),
    "int4-asym": PackedInts(Affine(4, 32, False, F32)),
    "int3-asym": PackedInts(Affine(3, None, False, F32)),
    "int8-plain": PlainInts(Affine(8, None, True, F32)),
    "int8-one-scale": PlainInts(Affine(8, None, True, F32), 0.04),
    "f8-row": Floats(Float8(dtype("f8_e4m3"), F32, "row"), F32),
    "f8-block": Floats(Float8(dtype("f8_e4m3"), F32, "block"), F32),
    "f8-tensor": Floats(Float8(dtype("f8_e5m2"), F32, "tensor"), F32, 0.001),
    "nvfp4": NvFloats(NvFloat4(F32), 800.0),
    "mxfp4": MxFloats(MxFloat4(F32)),
    "q4_0": Blocks(dtype("q4_0")),
    "q6_k": Blocks(dtype("q6_k")),
}


def tensor_of(values: Any, key: str = "w") -> LazyTensor:
    return LazyTensor.contiguous(key, F32, values.shape, MemoryBytes(values.tobytes()), 0)


def matrix(rows: int, columns: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype("f4")


def checkpoint(tensors: list[LazyTensor]) -> Checkpoint:
    return Checkpoint({tensor.key: tensor for tensor in tensors}, Source("made", "torch", "zip", (("made", 1 << 20),)))


def parts_of(encoding: Encoding) -> list[LazyTensor]:
    return [encoding.part(number, f"{encoding.key}.{part.name}") for number, part in enumerate(encoding.parts)]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("rows", [1, 7, 130, 300])
def test_parts_are_written_and_come_back(tmp_path: Path, name: str, rows: int) -> None:
    codec, values = CODECS[name], matrix(rows, 256)
    encoding = Encoding("w", tensor_of(values), codec)
    parts = parts_of(encoding)
    outcomes = set()
    for jobs in (1, 3):
        path = tmp_path / f"{jobs}.safetensors"
        save_checkpoint(checkpoint(parts), path, jobs=jobs) if name[0] != "q" else path.write_bytes(parts[0].array().tobytes())
        outcomes.add(path.read_bytes())
    assert len(outcomes) == 1
    there = parts if name[0] == "q" else [open_checkpoint(tmp_path / "1.safetensors")[part.key] for part in parts]
    for made, read in zip(parts, there, strict=True):
        assert made.array().tobytes() == read.array().tobytes()  # the writer's pass, and a reader's own
    back = decoded("w", there, codec, values.shape)
    dense = back.array()
    assert np.abs(dense - values).max() < 0.6 * np.abs(values).max()
    flat = dense.reshape(-1)
    for first, last in ((0, 1), (255, 258), (3, flat.size), (flat.size - 1, flat.size)):
        assert np.array_equal(back.flat(first, min(last, flat.size)), flat[first:last])
    assert b"".join(block.tobytes() for block in back.blocks(1000)) == dense.tobytes()


@pytest.mark.parametrize("name", [name for name in CODECS if name[0] != "q"])
def test_an_arrangement_of_the_weights_makes_the_same_parts(name: str) -> None:
    values = matrix(64, 256)
    turned = views.transpose(tensor_of(np.ascontiguousarray(values.T)), (1, 0))
    assert turned.span is None
    plain, other = (parts_of(Encoding("w", tensor, CODECS[name])) for tensor in (tensor_of(values), turned))
    assert [part.array().tobytes() for part in plain] == [part.array().tobytes() for part in other]


def test_a_weight_is_read_once_for_all_its_parts(tmp_path: Path) -> None:
    values = matrix(512, 256)
    source = Counting(MemoryBytes(values.tobytes()))
    weights = checkpoint_on(source, {"w": ("f32", values.shape)})["w"]
    plan = plan_save(checkpoint(parts_of(Encoding("w", weights, CODECS["int4-asym"]))), tmp_path / "o.safetensors")
    assert source.total == 0
    assert all(isinstance(job, EncodeJob) for job in plan.plan.jobs)
    assert sum(job.nbytes for job in plan.plan.jobs) == sum(slot.nbytes for slot in plan.plan.layout.slots)
    save(plan, jobs=2)
    assert source.total == values.nbytes


def test_checksums_are_those_of_the_whole_part(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    values = matrix(300, 256)
    parts = parts_of(Encoding("w", tensor_of(values), CODECS["int4-asym"]))
    save_checkpoint(checkpoint(parts), tmp_path / "o.pth", jobs=2)
    there = torch.load(tmp_path / "o.pth", weights_only=True)
    assert all(there[part.key].numpy().tobytes() == part.array().tobytes() for part in parts)


def test_tied_weights_are_encoded_once(tmp_path: Path) -> None:
    encoding = Encoding("w", tensor_of(matrix(64, 256)), CODECS["int4"])
    parts = parts_of(encoding) + [part.renamed(f"other.{part.key}") for part in parts_of(encoding)]
    plan = plan_save(checkpoint(parts), tmp_path / "o.safetensors", tied="duplicate")
    assert len(plan.plan.jobs) == 1
    save(plan)
    there = open_checkpoint(tmp_path / "o.safetensors")
    assert there["w.packed"].array().tobytes() == there["other.w.packed"].array().tobytes()
    assert len(plan_save(checkpoint(parts), tmp_path / "p.safetensors").tied) == 2


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["int4", "f8-block", "q4_0"])
def test_what_is_not_finite_is_an_error_that_names_the_tensor(odd: float, name: str) -> None:
    values = matrix(20, 256)
    values[13, 7] = odd
    with pytest.raises(NotFiniteError, match="'w' holds"):
        parts_of(Encoding("w", tensor_of(values), CODECS[name]))[0].array()


def test_large_finite_values_are_no_infinity() -> None:
    values = np.full((4, 256), 3e38, "f4")
    part = parts_of(Encoding("w", tensor_of(values), CODECS["int4"]))[1]
    assert np.isfinite(part.array()).all()


def test_scales_that_overflow_are_an_error_that_names_the_tensor() -> None:
    values = np.full((4, 256), 1e38, "f4")
    with pytest.raises(DtypeError, match="'w': "):
        parts_of(Encoding("w", tensor_of(values), CODECS["q4_0"]))[0].array()


def test_parts_that_do_not_fit_are_corrupt() -> None:
    parts = parts_of(Encoding("w", tensor_of(matrix(8, 256)), CODECS["int4"]))
    with pytest.raises(CorruptError, match=r"'w\.scale'"):
        decoded("w", [parts[0], parts[0].renamed("w.scale")], CODECS["int4"], (8, 256))
    with pytest.raises(CorruptError, match=r"'w\.packed' is i32 \[8, 32\]"):
        decoded("w", parts, CODECS["int4"], (9, 256))


@pytest.mark.parametrize("name", ["f64", "f16", "bf16"])
def test_other_dtypes_are_cast_before(name: str) -> None:
    values = matrix(32, 256)
    row = dtype(name)
    stored = values.astype(row.numpy())
    tensor = as_f32(LazyTensor.contiguous("w", row, stored.shape, MemoryBytes(stored.tobytes()), 0))
    made = parts_of(Encoding("w", tensor, CODECS["int4"]))
    same = parts_of(Encoding("w", tensor_of(stored.astype("f4")), CODECS["int4"]))
    assert [part.array().tobytes() for part in made] == [part.array().tobytes() for part in same]


@given(st.sampled_from(sorted(CODECS)), st.integers(1, 40), st.lists(st.integers(0, 1 << 20), min_size=2, max_size=2))
@settings(deadline=None, max_examples=60)
def test_any_range_of_a_part_is_that_of_the_whole(name: str, rows: int, ends: list[int]) -> None:
    for part in parts_of(Encoding("w", tensor_of(matrix(rows, 256, rows)), CODECS[name])):
        whole, source = part.array().tobytes(), part.boxes[0].source
        assert len(whole) == source.size == (part.nbytes if name[0] == "q" else prod(part.shape) * part.dtype.itemsize)
        first, last = sorted(end % (source.size + 1) for end in ends)
        assert source.pread(first, last - first) == whole[first:last]
