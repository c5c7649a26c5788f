"""ggml's block types: how a block lies in memory, and how blocks of 32, 64 and 128 become f32.

Layouts are those of ggml-common.h (`block_q4_0` and so on); a block of `DType.block[0]` values of one row lies as one record.
In blocks of 32 the low four bits of byte k hold value k, the high four value k + 16. The decoders give the bits that
`dequantize_row_*` of ggml-quants.c gives: everything is computed in f32, and the f16 scale is widened first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType
from wtool.kernels.buffers import CHUNK, scratch

Array = NDArray[Any]
Decoder = Callable[[Array, Array], None]
"""Writes the values of records [n] into f32 [n, values of a block]."""

FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the value of every code of e2m1 (`kvalues_mxfp4`)."""
IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""`kvalues_iq4nl`."""

HALF = ("d", "<f2")

# fmt: off
RECORDS: dict[str, np.dtype[np.void]] = {
    name: np.dtype(list(fields)) for name, fields in {
        "q4_0":    (HALF, ("qs", "u1", 16)),
        "q4_1":    (HALF, ("m", "<f2"), ("qs", "u1", 16)),
        "q5_0":    (HALF, ("qh", "<u4"), ("qs", "u1", 16)),
        "q5_1":    (HALF, ("m", "<f2"), ("qh", "<u4"), ("qs", "u1", 16)),
        "q8_0":    (HALF, ("qs", "i1", 32)),
        "q2_k":    (("scales", "u1", 16), ("qs", "u1", 64), HALF, ("dmin", "<f2")),
        "q3_k":    (("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), HALF),
        "q4_k":    (HALF, ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)),
        "q5_k":    (HALF, ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)),
        "q6_k":    (("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), HALF),
        "iq2_xxs": (HALF, ("qs", "<u4", (8, 2))),
        "iq2_xs":  (HALF, ("qs", "<u2", 32), ("scales", "u1", 8)),
        "iq3_xxs": (HALF, ("qs", "u1", 64), ("signs", "<u4", 8)),
        "iq1_s":   (HALF, ("qs", "u1", 32), ("qh", "<u2", 8)),
        "iq4_nl":  (HALF, ("qs", "u1", 16)),
        "iq3_s":   (HALF, ("qs", "u1", 64), ("qh", "u1", 8), ("signs", "u1", 32), ("scales", "u1", 4)),
        "iq2_s":   (HALF, ("qs", "u1", 32), ("signs", "u1", 32), ("qh", "u1", 8), ("scales", "u1", 8)),
        "iq4_xs":  (HALF, ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)),
        "iq1_m":   (("qs", "u1", 32), ("qh", "u1", 16), ("scales", "<u2", 4)),
        "tq1_0":   (("qs", "u1", 48), ("qh", "u1", 4), HALF),
        "tq2_0":   (("qs", "u1", 64), HALF),
        "mxfp4":   (("e", "u1"), ("qs", "u1", 16)),
        "nvfp4":   (("d", "u1", 4), ("qs", "u1", (4, 8))),
        "q1_0":    (HALF, ("qs", "u1", 16)),
    }.items()
}
# fmt: on
"""Of each block type the record of one block; fields of several bytes are little-endian, and nothing is padded."""


@cache
def decoder(row: DType) -> Callable[[Array, Array], None]:
    """What writes the values of flat bytes, whole blocks of this dtype, into flat f32."""
    if row.name in _DECODERS:
        one = _DECODERS[row.name]
    elif row.name.startswith("iq"):
        from wtool.kernels.ggml_iq import DECODERS

        one = DECODERS[row.name]
    else:
        from wtool.kernels import ggml_k

        one = ggml_k.DECODERS[row.name]
    return partial(_pieces, RECORDS[row.name], row.run[0], one)


def _pieces(record: np.dtype[np.void], elements: int, one: Decoder, block: Array, out: Array) -> None:
    records, rows = block.view(record), out.reshape(-1, elements)
    step = CHUNK // elements
    with np.errstate(all="ignore"):
        for first in range(0, len(records), step):
            one(records[first : first + step], rows[first : first + step])


def wide(values: Array) -> Array:
    """As f32, one a row: for scales."""
    return values.astype(np.float32)[:, None]


def nibbles(qs: Array, slot: int = 0) -> Array:
    """The low four bits of bytes [n, ..., k], then the high ones: [n, ..., 2, k], in a scratch array."""
    out = scratch("u1", qs.size * 2, slot).reshape(*qs.shape[:-1], 2, qs.shape[-1])
    np.bitwise_and(qs, np.uint8(15), out=out[..., 0, :])
    np.right_shift(qs, np.uint8(4), out=out[..., 1, :])
    return out


def fields(qs: Array, bits: int, count: int, slot: int = 0) -> Array:
    """`count` fields of so many bits of every byte [n, g, k], the lowest first: [n, g, count, k], in a scratch array."""
    out = scratch("u1", qs.size * count, slot).reshape(*qs.shape[:-1], count, qs.shape[-1])
    for number in range(count):
        np.right_shift(qs, np.uint8(number * bits), out=out[..., number, :])
    np.bitwise_and(out, np.uint8((1 << bits) - 1), out=out)
    return out


def _q4_0(block: Array, out: Array) -> None:
    codes = nibbles(block["qs"]).reshape(out.shape).view(np.int8)
    np.subtract(codes, np.int8(8), out=codes)
    np.copyto(out, codes)
    np.multiply(out, wide(block["d"]), out=out)


def _q4_1(block: Array, out: Array) -> None:
    np.copyto(out, nibbles(block["qs"]).reshape(out.shape))
    np.multiply(out, wide(block["d"]), out=out)
    np.add(out, wide(block["m"]), out=out)


def _five(block: Array) -> Array:
    """The fifth bit of value k is bit k of `qh`."""
    high = np.unpackbits(np.ascontiguousarray(block["qh"]).view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
    codes = nibbles(block["qs"]).reshape(high.shape)
    np.left_shift(high, np.uint8(4), out=high)
    np.bitwise_or(codes, high, out=codes)
    return codes


def _q5_0(block: Array, out: Array) -> None:
    codes = _five(block).view(np.int8)
    np.subtract(codes, np.int8(16), out=codes)
    np.copyto(out, codes)
    np.multiply(out, wide(block["d"]), out=out)


def _q5_1(block: Array, out: Array) -> None:
    np.copyto(out, _five(block))
    np.multiply(out, wide(block["d"]), out=out)
    np.add(out, wide(block["m"]), out=out)


def _q8_0(block: Array, out: Array) -> None:
    np.copyto(out, block["qs"])
    np.multiply(out, wide(block["d"]), out=out)


def by_table(codes: Array, table: Array, out: Array) -> None:
    """Entry by entry; `codes` of bytes, in C order."""
    index = scratch("p", codes.size)
    np.copyto(index, codes.reshape(-1))
    np.take(table, index, out=out.reshape(-1), mode="wrap")


@cache
def table(values: tuple[float, ...]) -> Array:
    return np.array(values, np.float32)


@cache
def _powers() -> Array:
    """Half of 2**(e - 127) for every e: the codes are doubled (`ggml_e8m0_to_fp32_half`; subnormal where e < 2)."""
    e = np.arange(256, dtype=np.uint32)
    return np.where(e < 2, np.uint32(0x200000) << np.minimum(e, 1), (np.maximum(e, 1) - 1) << np.uint32(23)).view(np.float32)


@cache
def _ue4m3() -> Array:
    """Half of the e4m3 without a sign, for every byte: the top bit counts for nothing, and NaN is 0 (`ggml_ue4m3_to_fp32`)."""
    x = np.arange(256)
    e, m = (x >> 3) & 15, x & 7
    values = np.where(e == 0, m * 2.0**-9, (1 + m / 8) * 2.0 ** (e - 7.0)) * 0.5
    return np.where((x == 0) | (x == 0x7F), 0.0, values).astype(np.float32)


def _mxfp4(block: Array, out: Array) -> None:
    by_table(nibbles(block["qs"]), table(FP4), out)
    np.multiply(out, _powers()[block["e"]][:, None], out=out)


def _nvfp4(block: Array, out: Array) -> None:
    """Four sub-blocks of 16, each with its own scale; 8 bytes hold 16 values, low halves first."""
    by_table(nibbles(block["qs"]), table(FP4), out)
    parts = out.reshape(-1, 4, 16)
    np.multiply(parts, _ue4m3()[block["d"]][:, :, None], out=parts)


def _q1_0(block: Array, out: Array) -> None:
    """A set bit is d, another -d; of a byte the lowest bit first."""
    np.copyto(out, np.unpackbits(block["qs"], axis=1, bitorder="little"))
    np.multiply(out, np.float32(2), out=out)
    np.subtract(out, np.float32(1), out=out)
    np.multiply(out, wide(block["d"]), out=out)


_DECODERS: dict[str, Decoder] = {
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q8_0": _q8_0,
    "mxfp4": _mxfp4,
    "nvfp4": _nvfp4,
    "q1_0": _q1_0,
}
