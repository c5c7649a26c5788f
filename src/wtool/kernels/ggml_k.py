"""ggml's K blocks and ternary blocks, of 256 values, as f32: as `dequantize_row_*` of ggml-quants.c computes, in its order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.kernels.buffers import scratch
from wtool.kernels.ggml import Decoder, fields, nibbles, wide

Array = NDArray[Any]


def _scaled(out: Array, codes: Array, scale: Array, least: Array | None = None) -> None:
    """Of [n, groups] scales: scale * code, or scale * code - least."""
    parts = out.reshape(*scale.shape, -1)
    np.copyto(parts, codes.reshape(parts.shape))
    np.multiply(parts, scale[:, :, None], out=parts)
    if least is not None:
        np.subtract(parts, least[:, :, None], out=parts)


def _q2_k(block: Array, out: Array) -> None:
    """16 groups of 16 with 4 bits of scale and 4 of minimum; of 32 bytes, first the lowest two bits of all, then the next."""
    scales = block["scales"]
    codes = fields(block["qs"].reshape(-1, 2, 32), 2, 4)
    _scaled(out, codes, wide(block["d"]) * (scales & 15), wide(block["dmin"]) * (scales >> 4))


def _q3_k(block: Array, out: Array) -> None:
    """16 groups of 16. Where a bit of `hmask` is not set, 4 is taken off the two low bits.

    Scales have 6 bits, 32 being zero: the low four of 0 to 7 are the low halves of bytes 0 to 7, those of 8 to 15 the high
    ones; the high two of scale 4j + k are bits 2j and 2j + 1 of byte 8 + k.
    """
    packed = block["scales"]
    low, high = nibbles(packed[:, :8], 2).reshape(-1, 16), fields(packed[:, None, 8:], 2, 4, 3).reshape(-1, 16)
    scales = (low | high << np.uint8(4)).view(np.int8) - np.int8(32)
    codes = fields(block["qs"].reshape(-1, 2, 32), 2, 4).reshape(-1, 256)
    mask = fields(block["hmask"][:, None, :], 1, 8, 1).reshape(-1, 256)
    np.bitwise_xor(mask, np.uint8(1), out=mask)
    np.left_shift(mask, np.uint8(2), out=mask)
    np.subtract(codes, mask, out=codes)
    _scaled(out, codes.view(np.int8), wide(block["d"]) * scales)


def _six(packed: Array) -> tuple[Array, Array]:
    """8 scales and 8 minima of 6 bits from 12 bytes.

    Those of 0 to 3 are the low six bits of bytes 0 to 3 and 4 to 7; of 4 to 7 the low four bits are the halves of bytes 8 to
    11, and the high two those that were left of bytes 0 to 3 and 4 to 7.
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, third & 15 | first >> 2 & 48], axis=1)
    return scales, np.concatenate([second & 63, third >> 4 | second >> 2 & 48], axis=1)


def _q4_k(block: Array, out: Array) -> None:
    """8 groups of 32, two to 32 bytes."""
    scales, least = _six(block["scales"])
    _scaled(out, nibbles(block["qs"].reshape(-1, 4, 32)), wide(block["d"]) * scales, wide(block["dmin"]) * least)


def _q5_k(block: Array, out: Array) -> None:
    """As q4_k; the fifth bit of value k of group g is bit g of byte k of `qh`."""
    scales, least = _six(block["scales"])
    codes = nibbles(block["qs"].reshape(-1, 4, 32)).reshape(-1, 256)
    high = fields(block["qh"][:, None, :], 1, 8, 1).reshape(-1, 256)
    np.left_shift(high, np.uint8(4), out=high)
    np.bitwise_or(codes, high, out=codes)
    _scaled(out, codes, wide(block["d"]) * scales, wide(block["dmin"]) * least)


def _q6_k(block: Array, out: Array) -> None:
    """16 groups of 16 with scales of a byte; 32 is zero. Low halves of 64 bytes, then the high ones; of `qh` as q2_k."""
    codes = nibbles(block["ql"].reshape(-1, 2, 64)).reshape(-1, 256)
    high = fields(block["qh"].reshape(-1, 2, 32), 2, 4, 1).reshape(-1, 256)
    np.left_shift(high, np.uint8(4), out=high)
    np.bitwise_or(codes, high, out=codes)
    signed = codes.view(np.int8)
    np.subtract(signed, np.int8(32), out=signed)
    _scaled(out, signed, wide(block["d"]) * block["scales"])


def _tq1_0(block: Array, out: Array) -> None:
    """Five digits of base 3 a byte, as the fraction byte / 256: times 3**k, the next digit is what stands before the point.

    160 values in 32 bytes, 80 in 16, 16 (four digits each) in 4.
    """
    parts = ((block["qs"][:, :32], 0, 5), (block["qs"][:, 32:], 160, 5), (block["qh"], 240, 4))
    digits = scratch("u2", out.size).reshape(out.shape)
    for packed, start, count in parts:
        size = packed.shape[1]
        for k in range(count):
            np.multiply(packed, np.uint8(3**k), out=digits[:, start + k * size :][:, :size], dtype=np.uint8)
    np.multiply(digits, np.uint16(3), out=digits)
    np.right_shift(digits, np.uint16(8), out=digits)
    np.copyto(out, digits)
    np.subtract(out, np.float32(1), out=out)
    np.multiply(out, wide(block["d"]), out=out)


def _tq2_0(block: Array, out: Array) -> None:
    """Two bits each, 1 being zero, in the order of q2_k."""
    codes = fields(block["qs"].reshape(-1, 2, 32), 2, 4).reshape(out.shape).view(np.int8)
    np.subtract(codes, np.int8(1), out=codes)
    np.copyto(out, codes)
    np.multiply(out, wide(block["d"]), out=out)


DECODERS: dict[str, Decoder] = {
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "tq1_0": _tq1_0,
    "tq2_0": _tq2_0,
}
