"""Codes of a few bits, packed into words, as the runtimes store them.

Signed codes (int8) are stored with 2**(bits - 1) added, as compressed-tensors, AWQ and GPTQ do; unsigned ones (uint8) as they
are. Whatever is packed must lie in its range: bits above it are masked off, not looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.kernels import buffers
from wtool.kernels.buffers import scratch

Array = NDArray[Any]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

_EIGHTS = 1 << 14  # eights of codes worked on at a time
_RUN = 32  # codes that end on a word whatever their bits


def pack(codes: Array, bits: int, axis: int = 1) -> Array:
    """Codes [n, I], dense in 32-bit words along an axis: i32 [n, ceil(I * bits / 32)], or [ceil(n * bits / 32), I] for axis 0.

    Code j occupies the bits from j * bits on, low end first, across words where bits does not divide 32; what is left of the
    last word is zero. This is compressed-tensors' pack_to_int32 (of 0.19; old ones padded 3, 5, 6 and 7 bits) and, of unsigned
    codes and viewed as u32, mlx's order; transposed it is GPTQ's.
    """
    if axis == 0:
        return np.ascontiguousarray(pack(codes.T, bits).T)
    rows, columns = codes.shape
    whole = -(-columns // _RUN) * _RUN
    flip = codes.dtype == np.int8
    if whole == columns:
        given = np.ascontiguousarray(codes)
    else:
        given = np.full((rows, whole), -(1 << bits - 1) if flip else 0, codes.dtype)
        np.copyto(given[:, :columns], codes)
    packed = buffers.block(np.dtype(np.uint8), rows * whole * bits // 8)
    _gather(given.reshape(-1), packed, bits, flip)
    words = packed.view("<i4").reshape(rows, whole * bits // 32)
    return words if whole == columns else np.ascontiguousarray(words[:, : -(-columns * bits // 32)])


def unpack(words: Array, bits: int, count: int, axis: int = 1, signed: bool = True) -> Array:
    """The inverse of `pack`: `count` codes along the axis, int8 if signed, else uint8."""
    if axis == 0:
        return np.ascontiguousarray(unpack(words.T, bits, count, 1, signed).T)
    rows, width = words.shape
    whole = -(-count // _RUN) * _RUN
    if width * 32 != whole * bits:
        padded = np.zeros((rows, whole * bits // 32), "<i4")
        np.copyto(padded[:, :width], words.view("<i4"))
        words = padded
    codes = buffers.block(np.dtype(np.uint8), rows * whole)
    _scatter(np.ascontiguousarray(words).view(np.uint8).reshape(-1), codes, bits, signed)
    table = codes.view(np.int8 if signed else np.uint8).reshape(rows, whole)
    return table if whole == count else np.ascontiguousarray(table[:, :count])


def pack_gptq(codes: Array, bits: int) -> Array:
    """GPTQ's qweight, i32 [I * bits / 32, n], of codes [n, I]: dense along the input axis.

    Source: AutoGPTQ qlinear_cuda_old.py. Its qzeros [groups, n * bits / 32] are `pack(zeros.T)`, of zero points less one in
    version 1 of the format.
    """
    return np.ascontiguousarray(pack(codes, bits).T)


def unpack_gptq(words: Array, bits: int, count: int, signed: bool = True) -> Array:
    """Codes [n, count] of a GPTQ qweight [count * bits / 32, n]."""
    return unpack(words.T, bits, count, signed=signed)


def pack_awq(codes: Array) -> Array:
    """AWQ's qweight (GEMM version), i32 [I, n / 8], of 4-bit codes [n, I]; n must divide by 8.

    Nibble i of a word is row AWQ_ORDER[i] of eight output rows. Source: AutoAWQ awq/modules/linear/gemm.py and
    utils/packing_utils.py. qzeros are packed by the same rule from zero points [n, groups].
    """
    rows, columns = codes.shape
    eights = (codes.view(np.uint8) ^ np.uint8(8 if codes.dtype == np.int8 else 0)).reshape(rows // 8, 8, columns)
    eights &= np.uint8(15)
    words = np.empty((rows // 8, columns, 4), np.uint8)
    for at, (low, high) in enumerate(zip(AWQ_ORDER[0::2], AWQ_ORDER[1::2], strict=True)):
        np.bitwise_or(eights[:, low], eights[:, high] << np.uint8(4), out=words[:, :, at])
    return np.ascontiguousarray(words.view("<i4")[:, :, 0].T)


def unpack_awq(words: Array, signed: bool = True) -> Array:
    """Codes [n, I] of AWQ words [I, n / 8]."""
    rows = words.shape[1] * 8
    ordered = unpack(words, 4, rows, signed=signed).T.reshape(rows // 8, 8, -1)
    codes = np.empty(ordered.shape, ordered.dtype)
    codes[:, AWQ_ORDER] = ordered
    return codes.reshape(rows, -1)


def pack_nibbles(codes: Array, high_first: bool = False) -> Array:
    """Unsigned 4-bit codes u8 [.., I], I even, to bytes u8 [.., I / 2].

    The first of two lies in the low half (mxfp4, nvfp4) or, with `high_first`, in the high one (bitsandbytes).
    """
    given = np.ascontiguousarray(codes)
    packed = np.empty((*given.shape[:-1], given.shape[-1] // 2), np.uint8)
    pairs, out = given.reshape(-1).view("<u2"), packed.reshape(-1)
    for first in range(0, len(pairs), buffers.CHUNK):
        pair = pairs[first : first + buffers.CHUNK]
        near, far = scratch("u2", len(pair), 30), scratch("u2", len(pair), 31)
        np.bitwise_and(pair, np.uint16(0x0F0F), out=near)
        np.right_shift(near, np.uint16(8 if high_first else 4), out=far)
        if high_first:
            np.left_shift(near, np.uint16(4), out=near)
        np.bitwise_or(near, far, out=near)
        np.copyto(out[first : first + len(pair)], near, casting="unsafe")  # the low byte
    return packed


def unpack_nibbles(packed: Array, high_first: bool = False) -> Array:
    """The inverse of `pack_nibbles`, as uint8 [.., I]."""
    given = np.ascontiguousarray(packed)
    codes = np.empty((*given.shape[:-1], given.shape[-1] * 2), np.uint8)
    pairs, bytes_ = codes.reshape(-1).view("<u2"), given.reshape(-1)
    for first in range(0, len(pairs), buffers.CHUNK):
        pair = pairs[first : first + buffers.CHUNK]
        high = scratch("u2", len(pair), 30)
        np.copyto(pair, bytes_[first : first + len(pair)])
        np.left_shift(pair, np.uint16(8 if high_first else 4), out=high)
        if high_first:
            np.right_shift(pair, np.uint16(4), out=pair)
        np.bitwise_or(pair, high, out=pair)
        np.bitwise_and(pair, np.uint16(0x0F0F), out=pair)
    return codes


def _gather(codes: Array, packed: Array, bits: int, flip: bool) -> None:
    """Eight codes, a byte each, become `bits` bytes."""
    eights = codes.view("<u8")
    for first in range(0, len(eights), _EIGHTS):
        eight = eights[first : first + _EIGHTS]
        word, out = scratch("u8", len(eight), 30), packed[first * bits : (first + len(eight)) * bits]
        if flip:
            np.bitwise_xor(eight, _repeat(1 << bits - 1, 8), out=word)  # the low bits of q + 2**(bits - 1)
            eight = word
        if bits == 8:
            np.copyto(out.view("<u8"), eight)
            continue
        np.bitwise_and(eight, _repeat((1 << bits) - 1, 8), out=word)
        if bits == 4:
            _pairs(word, 4, out)
        elif bits == 2:
            twos = scratch("u8", -(-len(word) // 2), 32).view(np.uint8)[: len(word) * 4]
            _pairs(word, 6, twos)
            _pairs(twos, 4, out)
        else:
            _close(word, bits)
            np.copyto(out.reshape(-1, bits), word.view(np.uint8).reshape(-1, 8)[:, :bits])


def _pairs(codes: Array, shift: int, out: Array) -> None:
    """Of every two bytes one: the second, moved down by `shift` of sixteen bits, beside the first."""
    pairs = codes.view("<u2")
    part = scratch("u2", len(pairs), 33)
    np.right_shift(pairs, np.uint16(shift), out=part)
    np.bitwise_or(pairs, part, out=part)
    np.copyto(out, part, casting="unsafe")  # the low byte


def _steps(bits: int) -> list[tuple[int, np.uint64, np.uint64]]:
    """By how much the upper half of each field moves; where it lies when spread, and where the lower half lies."""
    return [
        (width // 2 - used, _repeat((1 << used) - 1 << width // 2, width), _repeat((1 << used) - 1, width))
        for width, used in ((16, bits), (32, 2 * bits), (64, 4 * bits))
    ]


def _close(word: Array, bits: int) -> None:
    """Eight codes of 64-bit words move to their low end: pairs first, then pairs of pairs, then the halves."""
    part = scratch("u8", len(word), 31)
    for shift, upper, lower in _steps(bits):
        np.bitwise_and(word, upper, out=part)
        np.right_shift(part, np.uint64(shift), out=part)
        np.bitwise_and(word, lower, out=word)
        np.bitwise_or(word, part, out=word)


def _spread(word: Array, bits: int) -> None:
    """The inverse of `_close`."""
    part = scratch("u8", len(word), 31)
    for shift, upper, lower in reversed(_steps(bits)):
        np.left_shift(word, np.uint64(shift), out=part)
        np.bitwise_and(part, upper, out=part)
        np.bitwise_and(word, lower, out=word)
        np.bitwise_or(word, part, out=word)


def _scatter(packed: Array, codes: Array, bits: int, signed: bool) -> None:
    eights = codes.view("<u8")
    for first in range(0, len(eights), _EIGHTS):
        word = eights[first : first + _EIGHTS]
        given = packed[first * bits : (first + len(word)) * bits]
        if bits in (2, 4, 8):
            np.copyto(word, given.view(f"<u{bits}"))
        else:
            np.copyto(word, np.uint64(0))
            np.copyto(word.view(np.uint8).reshape(-1, 8)[:, :bits], given.reshape(-1, bits))
        if bits < 8:
            _spread(word, bits)
        if signed:
            single = word.view(np.uint8)
            np.subtract(single, np.uint8(1 << bits - 1), out=single)


def _repeat(value: int, width: int) -> np.uint64:
    """The value in every `width` bits of a word."""
    return np.uint64(sum(value << at for at in range(0, 64, width)))
