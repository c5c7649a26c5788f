"""What quanto saves. Only read.

Source: optimum-quanto 0.2 (tensor/packed.py, grouped.py, weights/):

    8 bits  weight._data i8 or f8 [O, I], weight._scale [O, 1] or []: w = code * scale
    4, 2    weight._data._data u8, weight._scale and weight._shift [R, 1] for R = O * I / g groups: codes are of groups [R, g];
            row r of the bytes holds rows r, r + R / 2 (or r + R / 4 ...), the first in the low bits; w = code * scale - shift,
            or, of an integer shift, (code - shift) * scale. The shape of the weight is not there: beside a bias it is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool import views
from wtool.dtypes import dtype
from wtool.errors import UnsupportedError
from wtool.layout import Quantized, Scheme
from wtool.layouts.compressed_found import F8, damaged, eight, plain_ints
from wtool.layouts.reading import Reading
from wtool.quantized import Part, decoded
from wtool.tensor import LazyTensor

Array = NDArray[Any]

_ACTIVATIONS = ("input_scale", "output_scale")


@dataclass(frozen=True)
class Slice:
    """The codes in some bits of bytes: parts `codes` u8 [R, g], `scale` and `shift` [R, 1] of dtypes as they were found."""

    bits: int
    place: int
    scale: str
    shift: str
    step: int = 1

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        one, two = dtype(self.scale), dtype(self.shift)
        codes = Part("codes", dtype("u8"), (rows, columns), columns)
        return codes, Part("scale", one, (rows, 1), one.itemsize), Part("shift", two, (rows, 1), two.itemsize)

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        raise NotImplementedError

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        codes = parts[0].reshape(-1, columns) >> np.uint8(self.place)
        codes &= np.uint8((1 << self.bits) - 1)
        values = codes.astype(np.float32)
        scale, shift = (part.astype(np.float32).reshape(-1, 1) for part in parts[1:])
        if dtype(self.shift).floating:
            values *= scale
            values -= shift
        else:
            values -= shift
            values *= scale
        return values


class Quanto(Reading):
    name = "quanto"

    def find(
        self, tensors: Mapping[str, LazyTensor], config: Mapping[str, Any] | None, metadata: Mapping[str, str]
    ) -> list[Quantized]:
        return list(_found(tensors))


def _found(tensors: Mapping[str, LazyTensor]) -> Iterator[Quantized]:
    for key, codes in tensors.items():
        if len(codes.shape) != 2 or not codes.elements:
            continue
        if key.endswith("._data._data") and codes.dtype.name == "u8":
            stem = key.removesuffix("._data._data")
            if f"{stem}._scale" in tensors and f"{stem}._shift" in tensors:
                yield _bits(stem, codes, tensors)
        elif key.endswith("._data") and (scale := tensors.get(f"{key.removesuffix('._data')}._scale")) is not None:
            stem = key.removesuffix("._data")
            more = _beside(stem, tensors)
            if codes.dtype.name in F8:
                yield eight("quanto", stem, codes, scale, more)
            elif codes.dtype.name == "i8" and scale.dtype.floating:
                yield plain_ints("quanto", stem, codes, scale, None, more)


def _beside(stem: str, tensors: Mapping[str, LazyTensor]) -> list[LazyTensor]:
    """Scales of activations, which mean nothing without the codes."""
    module = stem.rpartition(".")[0]
    return [tensors[name] for name in (f"{module}.{one}" for one in _ACTIVATIONS) if name in tensors]


def _bits(stem: str, codes: LazyTensor, tensors: Mapping[str, LazyTensor]) -> Quantized:
    scale, shift = tensors[f"{stem}._scale"], tensors[f"{stem}._shift"]
    groups, group = scale.elements, codes.shape[1]
    if groups not in (2 * codes.shape[0], 4 * codes.shape[0]) or shift.elements != groups or not scale.dtype.floating:
        raise damaged(stem, f"{list(scale.shape)} scales do not fit codes of {list(codes.shape)}")
    bits = 8 * codes.shape[0] // groups
    bias = tensors.get(f"{stem.rpartition('.')[0]}.bias")
    if bias is None or len(bias.shape) != 1 or not bias.elements or groups % bias.elements:
        raise UnsupportedError(
            f"'{stem}' is stored by quanto in {bits} bits, without its shape", hint="save it again with quanto, dequantized"
        )
    size = (bias.elements, groups // bias.elements * group)
    every = [codes, scale, shift, *_beside(stem, tensors)]
    dense = partial(_sliced, stem, size, bits, codes, scale, shift)
    nbytes, keys = sum(one.nbytes for one in every), tuple(one.key for one in every)
    return Quantized(stem, size, scale.dtype, "quanto", str(Scheme(f"int{bits}", group, False)), keys, nbytes, dense)


def _sliced(key: str, size: tuple[int, int], bits: int, codes: LazyTensor, scale: LazyTensor, shift: LazyTensor) -> LazyTensor:
    rows, columns = codes.shape
    parts = []
    for number in range(8 // bits):
        codec = Slice(bits, number * bits, scale.dtype.name, shift.dtype.name)
        some = [
            views.narrow(views.reshape(one, (one.elements, 1)), 0, number * rows, (number + 1) * rows)
            for one in (scale, shift)
        ]
        parts.append(decoded(key, [codes, *some], codec, (rows, columns)))
    return views.reshape(views.concat(key, parts, 0), size)


LAYOUT = Quanto()
