"""Packing of codes: against the plain definition, bit by bit, and against the runtimes' own code where it is at hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wtool.kernels import packing


def some(bits: int, rows: int, columns: int, signed: bool = True, seed: int = 0) -> np.ndarray:
    low = -(1 << bits - 1) if signed else 0
    values = np.random.default_rng(seed).integers(low, low + (1 << bits), (rows, columns))
    return values.astype(np.int8 if signed else np.uint8)


def dense(codes: np.ndarray, bits: int) -> np.ndarray:
    """The definition: code j of a row is bits j * bits and on of one long little-endian number."""
    words = -(-codes.shape[1] * bits // 32)
    out = np.zeros((len(codes), words), "<i4")
    offset = 1 << bits - 1 if codes.dtype == np.int8 else 0
    for row, values in enumerate(codes.tolist()):
        number = sum((value + offset) << at * bits for at, value in enumerate(values))
        out[row] = np.frombuffer(number.to_bytes(words * 4, "little"), "<i4")
    return out


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("shape", [(1, 32), (3, 64), (5, 33), (7, 100), (1, 1), (2, 31), (0, 32), (4, 0), (64, 2)])
def test_dense_words(bits: int, signed: bool, shape: tuple[int, int]) -> None:
    codes = some(bits, *shape, signed=signed)
    words = packing.pack(codes, bits)
    assert words.dtype == "<i4" and words.flags.c_contiguous
    np.testing.assert_array_equal(words, dense(codes, bits))
    back = packing.unpack(words, bits, shape[1], signed=signed)
    assert back.dtype == codes.dtype
    np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_other_axis(bits: int) -> None:
    codes = some(bits, 70, 3)
    words = packing.pack(codes, bits, axis=0)
    np.testing.assert_array_equal(words, dense(np.ascontiguousarray(codes.T), bits).T)
    np.testing.assert_array_equal(packing.unpack(words, bits, 70, axis=0), codes)


@pytest.mark.parametrize("bits", [3, 4])
def test_more_than_a_piece(bits: int) -> None:
    codes = some(bits, 3, packing._EIGHTS * 8 - 32)
    words = packing.pack(codes, bits)
    np.testing.assert_array_equal(packing.unpack(words, bits, codes.shape[1]), codes)
    unsigned = (codes.view(np.uint8) + np.uint8(1 << bits - 1)) & np.uint8((1 << bits) - 1)
    flat = np.unpackbits(unsigned[:, :, None], axis=2, count=bits, bitorder="little").reshape(3, -1)
    np.testing.assert_array_equal(words.view(np.uint8), np.packbits(flat, axis=1, bitorder="little"))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(0, 5), st.integers(0, 130), st.booleans(), st.integers(0, 1))
def test_packing_is_undone(bits: int, rows: int, columns: int, signed: bool, axis: int) -> None:
    codes = some(bits, rows, columns, signed)
    words = packing.pack(codes, bits, axis)
    np.testing.assert_array_equal(packing.unpack(words, bits, codes.shape[axis], axis, signed), codes)


def test_results_do_not_share_memory() -> None:
    first, second = some(4, 2, 64, seed=1), some(4, 2, 64, seed=2)
    kept = packing.pack(first, 4)
    other = packing.pack(second, 4)
    np.testing.assert_array_equal(kept, dense(first, 4))
    np.testing.assert_array_equal(other, dense(second, 4))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits: int) -> None:
    """Along the input axis; of 3 bits, words begin with codes 0, 10.67 and 21.33, as AutoGPTQ's three-word pattern does."""
    codes = some(bits, 16, 64, signed=False)
    words = packing.pack_gptq(codes, bits)
    assert words.shape == (64 * bits // 32, 16)
    np.testing.assert_array_equal(words, dense(codes, bits).T)
    np.testing.assert_array_equal(packing.unpack_gptq(words, bits, 64, signed=False), codes)
    if bits == 3:
        row = codes[5].astype(np.int64)
        pattern = [
            sum(row[j] << 3 * j for j in range(10)) | row[10] << 30,
            row[10] >> 2 & 1 | sum(row[11 + j] << 3 * j + 1 for j in range(10)) | row[21] << 31,
            row[21] >> 1 & 3 | sum(row[22 + j] << 3 * j + 2 for j in range(10)),
        ]
        assert [int(word) & 0xFFFF_FFFF for word in words[:3, 5]] == [int(word) & 0xFFFF_FFFF for word in pattern]


def test_awq() -> None:
    codes = some(4, 24, 10, signed=False)
    words = packing.pack_awq(codes)
    assert words.shape == (10, 3)
    for column in range(10):
        for word in range(3):
            bits = int(words[column, word]) & 0xFFFF_FFFF
            assert [bits >> 4 * i & 15 for i in range(8)] == [codes[word * 8 + j, column] for j in (0, 2, 4, 6, 1, 3, 5, 7)]
    np.testing.assert_array_equal(packing.unpack_awq(words, signed=False), codes)
    signed = some(4, 24, 10)
    np.testing.assert_array_equal(packing.unpack_awq(packing.pack_awq(signed)), signed)


@pytest.mark.parametrize("high_first", [False, True])
@pytest.mark.parametrize("shape", [(2, 8), (1, 2), (3, 5, 64), (6,), (0, 4), (2, 1 << 17)])
def test_nibbles(high_first: bool, shape: tuple[int, ...]) -> None:
    codes = np.random.default_rng(3).integers(0, 16, shape).astype(np.uint8)
    packed = packing.pack_nibbles(codes, high_first)
    first, second = codes[..., 0::2], codes[..., 1::2]
    np.testing.assert_array_equal(packed, first << 4 | second if high_first else first | second << 4)
    np.testing.assert_array_equal(packing.unpack_nibbles(packed, high_first), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx_reads_it(bits: int) -> None:
    mx = pytest.importorskip("mlx.core")
    codes = some(bits, 4, 128, signed=False)
    words = mx.array(packing.pack(codes, bits).view(np.uint32))
    read = mx.dequantize(words, mx.ones((4, 2)), mx.zeros((4, 2)), group_size=64, bits=bits)
    np.testing.assert_array_equal(np.array(read), codes.astype(np.float32))
