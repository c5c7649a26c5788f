"""ggml's blocks as f32, bit for bit as the gguf package decodes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from wtool import views
from wtool.api import open_checkpoint
from wtool.bytesource import MemoryBytes
from wtool.dtypes import BY_NAME, DType, dtype
from wtool.kernels.cast import Cast
from wtool.kernels.ggml import RECORDS
from wtool.tensor import LazyTensor

FIXTURES = Path(__file__).parent.parent / "fixtures"
BLOCKS = [name for name, row in BY_NAME.items() if row.block]
F32 = dtype("f32")
NO_ORACLE = {"q1_0"}

# Of the tensors of fixtures/gguf/dtypes: crc32 of the f32 that gguf 0.19.0 makes of them; those it has not, as here.
DECODED = {
    "q4_0": 0x1745a64c, "q4_1": 0xf52ede00, "q5_0": 0x452bf1f7, "q5_1": 0x9e8096ca, "q8_0": 0x5a2c022f, "q2_k": 0xfa833f9b,
    "q3_k": 0x22f66475, "q4_k": 0x06d1126f, "q5_k": 0x47608eef, "q6_k": 0xcc38dfc9, "iq2_xxs": 0x8922c77f,
    "iq2_xs": 0xade46a18, "iq3_xxs": 0x93578fd3, "iq1_s": 0x5d40b6d1, "iq4_nl": 0x9f171202, "iq3_s": 0x5936e1c4,
    "iq2_s": 0x1b706a1e, "iq4_xs": 0x8df4988d, "iq1_m": 0xabd6aad6, "tq1_0": 0x067c2c8e, "tq2_0": 0xb71bf1f7,
    "mxfp4": 0x3984cf4b, "nvfp4": 0xe598a98e, "q1_0": 0xb45b0d64,
}  # fmt: skip


def random_blocks(row: DType, count: int, seed: int = 0) -> Any:
    """Any bytes: scales are huge, tiny, negative, infinite and NaN too."""
    return np.random.default_rng(seed).integers(0, 256, count * row.run[1], np.uint8)


def decode(row: DType, block: Any) -> Any:
    return Cast(row, F32)(block, {}).copy()


def same(one: Any, two: Any) -> bool:
    """Bit for bit, but that any NaN is as good as another."""
    numbers = ~(np.isnan(one) & np.isnan(two))
    return bool(np.array_equal(one.view("u4")[numbers], two.view("u4")[numbers]))


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_has_the_bytes_of_its_record(name: str) -> None:
    row = dtype(name)
    assert RECORDS[name].itemsize == row.run[1]
    assert row.itemsize == 0 and row.nbytes(3 * row.run[0]) == 3 * row.run[1]
    assert row.bits <= row.bits_each <= row.bits + 1


def test_sizes_are_those_of_the_package() -> None:
    gguf = pytest.importorskip("gguf")
    for kind, (elements, nbytes) in gguf.GGML_QUANT_SIZES.items():
        if kind.name not in ("Q8_1", "Q8_K"):
            assert BY_NAME[kind.name.lower() if elements > 1 else str(dtype(kind.name))].run == (elements, nbytes)


@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in NO_ORACLE])
@pytest.mark.parametrize("count", [1, 7, 2100])
def test_as_the_package_decodes(name: str, count: int) -> None:
    gguf = pytest.importorskip("gguf")
    row = dtype(name)
    block = random_blocks(row, count, count)
    with np.errstate(all="ignore"):
        meant = gguf.quants.dequantize(block.reshape(count, -1), gguf.GGMLQuantizationType(row.ggml))
    assert same(decode(row, block), meant.reshape(-1))


@pytest.mark.parametrize("name", BLOCKS)
def test_as_the_package_once_decoded(name: str) -> None:
    tensor = open_checkpoint(FIXTURES / "gguf" / "dtypes" / "model.gguf")[name]
    assert crc32(tensor.map(Cast(tensor.dtype, F32)).array().tobytes()) == DECODED[name]


def test_a_bit_is_a_sign() -> None:
    block = np.frombuffer(np.float16(0.5).tobytes() + bytes([0b1] + [0] * 14 + [0x80]), np.uint8)
    values = decode(dtype("q1_0"), block)
    assert values[0] == values[127] == 0.5 and (values[1:127] == -0.5).all()


@pytest.mark.parametrize("name", ["q4_0", "q6_k", "nvfp4"])
@pytest.mark.parametrize("target", ["f64", "f16", "bf16", "f8_e4m3"])
def test_cast_by_way_of_f32(name: str, target: str) -> None:
    row = dtype(name)
    block = random_blocks(row, 70_000 // row.run[0] + 1)
    one, two = {}, {}  # type: ignore[var-annotated]
    found = Cast(row, dtype(target))(block, one).copy()
    meant = Cast(F32, dtype(target))(decode(row, block), two).copy()
    assert found.tobytes() == meant.tobytes()
    assert one == two


@pytest.mark.parametrize("name", BLOCKS)
def test_any_range_of_values(name: str) -> None:
    row = dtype(name)
    columns = 2 * row.run[0]
    data = random_blocks(row, 2 * 20)
    stored = LazyTensor.contiguous("w", row, (20, columns), MemoryBytes(data.tobytes()), 0)
    tensor, meant = stored.map(Cast(row, F32)), decode(row, data)
    assert same(tensor.array().reshape(-1), meant)
    for first, last in ((0, 1), (5, 5 + columns), (columns - 3, columns + 3), (columns * 20 - 1, columns * 20), (7, 7)):
        assert same(tensor.flat(first, last), meant[first:last])
    assert same(tensor.rows(3, 5), meant.reshape(20, columns)[3:5])
    for nbytes in (1, 4096, 1 << 20):
        assert same(np.concatenate([block.copy() for block in tensor.blocks(nbytes)]), meant)
        assert b"".join(block.tobytes() for block in stored.blocks(nbytes)) == data.tobytes()
        assert all(block.nbytes % row.run[1] == 0 for block in stored.blocks(nbytes))
    turned = views.transpose(tensor, (1, 0))
    assert same(np.ascontiguousarray(turned.array().T).reshape(-1), meant)
    assert same(views.narrow(tensor, 1, 3, 9).array(), np.ascontiguousarray(meant.reshape(20, columns)[:, 3:9]))


def test_blocks_stay_small() -> None:
    row = dtype("iq1_s")
    tensor = LazyTensor.contiguous("w", row, (1 << 22,), MemoryBytes(random_blocks(row, 1 << 14).tobytes()), 0)
    assert max(block.nbytes for block in tensor.map(Cast(row, F32)).blocks(1 << 20)) <= 1 << 20
