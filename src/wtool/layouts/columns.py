"""Layouts whose parts lie transposed: the inputs of a matrix are their rows, as in GPTQ and AWQ.

What is written goes block by block of columns, so that the parts grow row by row; what is read is the parts' transposes,
which are views, with the codec of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.layout import Scheme
from wtool.quantized import LONGEST, Codec, Part
from wtool.tensor import LazyTensor, Shape
from wtool.views import arrange, transpose

Array = NDArray[Any]

_PIECE = 1 << 18  # elements that are coded at once: fewer, and what each call costs counts
_WIDE = 128  # columns of a block, where it fits: runs that are long enough to be read one by one


@dataclass(frozen=True)
class Columns:
    """The parts of a codec of rows, each transposed. The matrix [O, I] comes as `blocks` makes it: [I / width, O * width].

    What the codec makes of `width` columns must not depend on the others, and must begin with a whole row of each part.
    """

    rows: Codec
    outputs: int
    step: int = 1

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        found = []
        for part in self.rows.parts(self.outputs, columns // self.outputs):
            tall, wide = part.shape
            found.append(Part(part.name, part.dtype, (rows * wide, tall), part.nbytes))
        return tuple(found)

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        blocks = x.reshape(len(x), self.outputs, -1)
        parts = self.parts(*x.shape)
        found = [np.empty((len(blocks), part.shape[0] // len(blocks), part.shape[1]), part.dtype.numpy()) for part in parts]
        many = max(_PIECE // blocks.shape[2] // self.rows.step, 1) * self.rows.step
        for at, block in enumerate(blocks):
            done = [0] * len(found)
            for low in range(0, self.outputs, many):
                for number, array in enumerate(self.rows.encode(block[low : low + many], low)):
                    begun, done[number] = done[number], done[number] + len(array)
                    found[number][at, :, begun : done[number]] = array.T
        return found

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        width = columns // self.outputs
        shapes = [part.shape for part in self.parts(1, columns)]
        blocks = [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
        found = np.empty((len(blocks[0]), self.outputs, width), np.float32)
        for at in range(len(found)):
            turned = [np.ascontiguousarray(block[at].T).reshape(-1) for block in blocks]
            found[at] = self.rows.decode(turned, 0, width)[: self.outputs]
        return found.reshape(len(found), columns)


def width(shape: Shape, group: int) -> int:
    """Columns of a block of a matrix [O, I] in groups of 32, 64 or 128 along I."""
    return _WIDE if shape[1] % _WIDE == 0 and shape[0] * _WIDE <= LONGEST else group


def blocks(tensor: LazyTensor, wide: int) -> LazyTensor:
    """A matrix [O, I] as [I / wide, O * wide], a row for each block of columns."""
    outputs, inputs = tensor.shape
    return arrange(tensor, (outputs, inputs // wide, wide), (1, 0, 2), (inputs // wide, outputs * wide))


def turned(tensor: LazyTensor) -> LazyTensor:
    """The transpose."""
    return transpose(tensor, (1, 0))


def misfit(tensor: LazyTensor, scheme: Scheme, many: int) -> str | None:
    """Why a tensor cannot be stored in groups of inputs, and outputs by so `many`."""
    assert isinstance(scheme.group, int)
    if not tensor.key.endswith(".weight"):
        return "its key does not end in .weight"
    if len(tensor.shape) != 2 or not tensor.elements:
        return "no matrix" if tensor.elements else "empty"
    outputs, inputs = tensor.shape
    if inputs % scheme.group:
        return f"rows of {inputs:,} are no groups of {scheme.group}"
    if outputs % many:
        return f"{outputs:,} rows are no multiple of {many}"
    return f"more rows than {LONGEST // scheme.group:,}" if outputs * scheme.group > LONGEST else None
