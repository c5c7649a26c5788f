"""Codes of a few bits, packed into words, as the runtimes store them.

Signed codes (int8) are stored with 2**(bits - 1) added, as compressed-tensors, AWQ and GPTQ do; unsigned ones (uint8) as they
are. Whatever is packed must lie in its range: bits above it are masked off, not looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack(codes: Array, bits: int, axis: int = 1) -> Array:
    """Codes [n, I], dense in 32-bit words along an axis: i32 [n, ceil(I * bits / 32)], or [ceil(n * bits / 32), I] for axis 0.

    Code j occupies the bits from j * bits on, low end first, across words where bits does not divide 32; what is left of the
    last word is zero. This is compressed-tensors' pack_to_int32 (0.15 and later; earlier ones padded 3, 5, 6 and 7 bits)
    and, of unsigned codes, mlx's order (viewed as u32) and, transposed, GPTQ's.
    """
    if axis == 0:
        return np.ascontiguousarray(pack(np.ascontiguousarray(codes.T), bits).T)
    rows, columns = codes.shape
    words = -(-columns * bits // 32)
    padded = np.zeros((rows, -(-columns // 32) * 32), np.uint8)
    np.copyto(padded[:, :columns].view(codes.dtype), codes)
    if codes.dtype == np.int8:
        padded[:, :columns] ^= np.uint8(1 << bits - 1)
    padded &= np.uint8((1 << bits) - 1)
    dense = np.packbits(
        np.unpackbits(padded[:, :, None], axis=2, count=bits, bitorder="little").reshape(rows, -1), axis=1, bitorder="little"
    )
    return dense.view("<i4")[:, :words].copy()


def unpack(words: Array, bits: int, count: int, axis: int = 1, signed: bool = True) -> Array:
    """The inverse of `pack`: `count` codes along the axis, int8 if signed, else uint8."""
    if axis == 0:
        return np.ascontiguousarray(unpack(np.ascontiguousarray(words.T), bits, count, 1, signed).T)
    rows = len(words)
    flat = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, count=count * bits, bitorder="little")
    codes = np.packbits(flat.reshape(rows, count, bits), axis=2, bitorder="little")[:, :, 0]
    if signed:
        codes -= np.uint8(1 << bits - 1)
        return codes.view(np.int8)
    return codes


def pack_gptq(codes: Array, bits: int) -> Array:
    """GPTQ's qweight, i32 [I * bits / 32, n], of codes [n, I]: dense along the input axis."""
    return np.ascontiguousarray(pack(codes, bits).T)


def unpack_gptq(words: Array, bits: int, count: int, signed: bool = True) -> Array:
    """Codes [n, count] of a GPTQ qweight [count * bits / 32, n]."""
    return unpack(np.ascontiguousarray(words.T), bits, count, signed=signed)


def pack_awq(codes: Array) -> Array:
    """AWQ's qweight (GEMM version), i32 [I, n / 8], of 4-bit codes [n, I]: nibble i of a word is output row AWQ_ORDER[i] of eight.

    Source: AutoAWQ awq/modules/linear/gemm.py and utils/packing_utils.py. The zero points [n, groups] are packed by the same rule.
    """
    rows, columns = codes.shape
    ordered = codes.reshape(rows // 8, 8, columns)[:, AWQ_ORDER].reshape(rows, columns)
    return pack(np.ascontiguousarray(ordered.T), 4)


def unpack_awq(words: Array, signed: bool = True) -> Array:
    """Codes [n, I] of AWQ words [I, n / 8]."""
    rows = words.shape[1] * 8
    ordered = unpack(words, 4, rows, signed=signed).T.reshape(rows // 8, 8, -1)
    codes = np.empty_like(ordered)
    codes[:, AWQ_ORDER] = ordered
    return codes.reshape(rows, -1)


def pack_nibbles(codes: Array, high_first: bool = False) -> Array:
    """Unsigned 4-bit codes [.., I] to bytes [.., I / 2]; the first of two in the low half, or in the high one (bitsandbytes)."""
    first, second = codes[..., 0::2] & np.uint8(15), codes[..., 1::2] & np.uint8(15)
    return first << np.uint8(4) | second if high_first else first | second << np.uint8(4)


def unpack_nibbles(packed: Array, high_first: bool = False) -> Array:
    """The inverse of `pack_nibbles`, as uint8."""
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), np.uint8)
    codes[..., int(high_first) :: 2] = packed & np.uint8(15)
    codes[..., 1 - int(high_first) :: 2] = packed >> np.uint8(4)
    return codes
