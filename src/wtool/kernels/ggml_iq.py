"""ggml's IQ blocks as f32: what `dequantize_row_iq*` of ggml-quants.c computes, in its order.

The types of 1 to 3 bits code 4 or 8 values at once, as a point of a codebook. Signs of 8 values are a byte, the lowest bit
that of the first value; where only 7 bits are stored, the eighth makes the number of minus signs even.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.kernels.buffers import scratch
from wtool.kernels.ggml import IQ4, Decoder, by_table, nibbles, table, wide
from wtool.kernels.ggml_grids import grid

Array = NDArray[Any]
_DELTA = np.float32(0.125)


@cache
def _signs() -> Array:
    """1 and -1 for every byte of signs: f32 [256, 8]."""
    bits = np.arange(256)[:, None] >> np.arange(8) & 1
    return np.where(bits == 1, -1, 1).astype(np.float32)


@cache
def _even() -> Array:
    """The byte of signs of every 7 bits."""
    low = np.arange(128)
    return (low | (sum(low >> k for k in range(7)) & 1) << 7).astype(np.uint8)


def _points(book: Array, codes: Array, out: Array) -> None:
    index = scratch("p", codes.size)
    np.copyto(index, codes.reshape(-1), casting="unsafe")
    np.take(book, index, axis=0, out=out.reshape(-1, book.shape[1]), mode="wrap")


def _signed(out: Array, scale: Array, signs: Array) -> None:
    """Points times the [n, groups] scales, times the signs of bytes."""
    parts = out.reshape(*scale.shape, -1)
    np.multiply(parts, scale[:, :, None], out=parts)
    minus = scratch("f4", out.size).reshape(out.shape)
    _points(_signs(), signs, minus)
    np.multiply(out, minus, out=out)


def _halves(packed: Array) -> Array:
    """Both halves of bytes [n, k], low ones first: [n, 2 * k]."""
    return np.stack([packed & 15, packed >> 4], axis=2).reshape(len(packed), -1)


def _sevens(words: Array) -> Array:
    """Four times 7 bits of signs in words [n, k]: bytes [n, k, 4]."""
    found: Array = _even()[words[:, :, None] >> np.array([0, 7, 14, 21], np.uint32) & 127]
    return found


def _iq2_xxs(block: Array, out: Array) -> None:
    """8 groups of 32: a word of four codes, and one of four times 7 signs and 4 bits of scale."""
    codes, words = np.ascontiguousarray(block["qs"][:, :, 0]), block["qs"][:, :, 1]
    _points(grid("iq2_xxs"), codes.view(np.uint8), out)
    scale = wide(block["d"]) * (np.float32(0.5) + (words >> 28).astype(np.float32)) * np.float32(0.25)
    _signed(out, scale, _sevens(words))


def _iq2_xs(block: Array, out: Array) -> None:
    """16 groups of 16; codes of 9 bits, 7 signs above them."""
    _points(grid("iq2_xs"), block["qs"] & 511, out)
    scale = wide(block["d"]) * (np.float32(0.5) + _halves(block["scales"])) * np.float32(0.25)
    _signed(out, scale, _even()[block["qs"] >> 9])


def _iq2_s(block: Array, out: Array) -> None:
    """16 groups of 16; the high two bits of four codes are a byte of `qh`."""
    high = (block["qh"][:, :, None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(-1, 32).astype(np.uint16)
    _points(grid("iq2_s"), block["qs"] | high << 8, out)
    scale = wide(block["d"]) * (np.float32(0.5) + _halves(block["scales"])) * np.float32(0.25)
    _signed(out, scale, block["signs"])


def _iq3_xxs(block: Array, out: Array) -> None:
    """8 groups of 32, each with a word of four times 7 signs and 4 bits of scale; points of four values."""
    words = block["signs"]
    _points(grid("iq3_xxs"), block["qs"], out)
    scale = wide(block["d"]) * (np.float32(0.5) + (words >> 28).astype(np.float32)) * np.float32(0.5)
    _signed(out, scale, _sevens(words))


def _iq3_s(block: Array, out: Array) -> None:
    """8 groups of 32; the ninth bits of eight codes are a byte of `qh`."""
    high = np.unpackbits(block["qh"], axis=1, bitorder="little").astype(np.uint16)
    _points(grid("iq3_s"), block["qs"] | high << 8, out)
    _signed(out, wide(block["d"]) * (1 + 2 * _halves(block["scales"])), block["signs"])


def _shifted(out: Array, scale: Array, minus: Array) -> None:
    """Points with an eighth added, or taken off where `minus` [n, k], times the [n, groups] scales."""
    parts = out.reshape(*minus.shape, -1)
    np.add(parts, np.where(minus, -_DELTA, _DELTA)[:, :, None], out=parts)
    parts = out.reshape(*scale.shape, -1)
    np.multiply(parts, scale[:, :, None], out=parts)


def _iq1_s(block: Array, out: Array) -> None:
    """8 groups of 32; `qh` of a group has four times the high three bits of a code, three of scale, and the shift's sign."""
    qh = block["qh"]
    high = (qh[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(-1, 32)
    _points(grid("iq1_s"), block["qs"] | high << 8, out)
    _shifted(out, wide(block["d"]) * (2 * (qh >> 12 & 7) + 1), qh & 0x8000 != 0)


def _iq1_m(block: Array, out: Array) -> None:
    """16 groups of 16; half a byte of `qh` for each code: its high three bits, and the shift's sign.

    The f16 scale lies in the high four bits of four words, the lowest first; below are four times three bits of scale.
    """
    words = block["scales"]
    parts = words >> 12 << np.array([0, 4, 8, 12], np.uint16)
    d = (parts[:, 0] | parts[:, 1] | parts[:, 2] | parts[:, 3]).view(np.float16)
    qh = _halves(block["qh"])
    _points(grid("iq1_s"), block["qs"] | (qh & 7).astype(np.uint16) << 8, out)
    scale = (words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(-1, 16)
    _shifted(out, wide(d) * (2 * scale + 1), qh & 8 != 0)


def _iq4_nl(block: Array, out: Array) -> None:
    by_table(nibbles(block["qs"]), table(IQ4), out)
    np.multiply(out, wide(block["d"]), out=out)


def _iq4_xs(block: Array, out: Array) -> None:
    """8 groups of 32 with scales of 6 bits, 32 being zero: the low four in `scales_l`, the high two in `scales_h`."""
    high = (block["scales_h"][:, None] >> (2 * np.arange(8, dtype=np.uint16)) & 3).astype(np.uint8)
    scales = (_halves(block["scales_l"]) | high << 4).view(np.int8) - np.int8(32)
    by_table(nibbles(block["qs"].reshape(-1, 8, 16)), table(IQ4), out)
    parts = out.reshape(-1, 8, 32)
    np.multiply(parts, (wide(block["d"]) * scales)[:, :, None], out=parts)


DECODERS: dict[str, Decoder] = {
    "iq2_xxs": _iq2_xxs,
    "iq2_xs": _iq2_xs,
    "iq2_s": _iq2_s,
    "iq3_xxs": _iq3_xxs,
    "iq3_s": _iq3_s,
    "iq1_s": _iq1_s,
    "iq1_m": _iq1_m,
    "iq4_nl": _iq4_nl,
    "iq4_xs": _iq4_xs,
}
