"""Store tensors that are mostly zero as what is left of them, and where it stands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, SparseTensor
from wtool.dtypes import DType, dtype
from wtool.kernels.bitmask import Marks, matrix, row_bytes
from wtool.ops.packed import Indices, Offsets, Part
from wtool.sparse import PARTS, TORCH_PARTS
from wtool.tensor import LazyTensor

TORCH = {"torch-csr": "torch.sparse_csr", "torch-coo": "torch.sparse_coo"}
LAYOUTS = ("dense", "bitmask", "csr", "auto", *TORCH)
MARGIN = 1024  # bytes that a layout must save: headers say more of four tensors than of one
_SMALL = 1 << 31
# What torch's sparse tensors can be made dense from. u16 and f8, say, it loads, and then has no function for them.
_NUMBERS = frozenset(["f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "bool", "c128", "c64"])
_NAMES = PARTS | {ours: TORCH_PARTS[theirs] for ours, theirs in TORCH.items()}


@dataclass(frozen=True)
class Store:
    """Give each tensor the layout, or with "auto" the smallest, where it saves at least `margin` bytes; else leave it dense.

    `marks` (key -> what analysis.counts counted) are the tensors that are thought of; layouts and sizes are known from them,
    values are packed while they are written. Tied tensors stay tied. A tensor whose parts' keys are taken stays dense, and
    with torch's layouts one that has another number of axes than they do, or a dtype that torch cannot make dense.
    """

    layout: str
    marks: Mapping[str, Marks] = field(repr=False)
    margin: int = MARGIN

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        made: dict[object, list[LazyTensor]] = {}
        new: dict[str, list[LazyTensor]] = {}
        for key, layout in self.layouts(checkpoint).items():
            tensor = checkpoint[key]
            who = key if tensor.identity is None else tensor.identity
            parts = made.get(who)
            if parts is None:
                parts = made[who] = split(tensor, self.marks[key], layout)
            new[key] = [part.renamed(f"{key}.{name}") for part, name in zip(parts, _NAMES[layout], strict=True)]
        tensors = {part.key: part for key, tensor in checkpoint.tensors.items() for part in new.get(key, [tensor])}
        if not new:
            return replace(checkpoint, history=(*checkpoint.history, self))
        changed = checkpoint.regrouped(tensors, {key: [part.key for part in parts] for key, parts in new.items()})
        changed = replace(changed, history=(*checkpoint.history, self))
        if self.layout not in TORCH:
            return replace(changed, structure=None)
        coalesced = True if self.layout == "torch-coo" else None
        sparse = (
            SparseTensor(key, TORCH[self.layout], tuple(part.key for part in parts), checkpoint[key].shape, coalesced)
            for key, parts in new.items()
        )
        return replace(changed, sparse=(*checkpoint.sparse, *sparse))

    def layouts(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Key -> layout of the tensors that do not stay dense, in the order of the checkpoint."""
        found = {}
        for key, tensor in checkpoint.tensors.items():
            if key in self.marks and self.layout != "dense" and tensor.dtype.itemsize and tensor.elements:
                asked = ("bitmask", "csr") if self.layout == "auto" else (self.layout,)
                nbytes, layout = min((packed_bytes(tensor, self.marks[key].total, one), one) for one in asked)
                taken = any(f"{key}.{name}" in checkpoint.tensors for name in _NAMES[layout])
                if nbytes + self.margin <= tensor.nbytes and not taken and _fits(tensor, layout):
                    found[key] = layout
        return found

    def metadata(self, checkpoint: Checkpoint) -> str:
        """What the metadata of the outcome says: how many tensors of `checkpoint` are stored in which layout."""
        names = list(self.layouts(checkpoint).values())
        return json.dumps({name: names.count(name) for name in sorted(set(names))})


def _fits(tensor: LazyTensor, layout: str) -> bool:
    if layout not in TORCH:
        return True
    axes = len(tensor.shape)
    return tensor.dtype.name in _NUMBERS and (axes == 2 if layout == "torch-csr" else axes > 0)


def packed_bytes(tensor: LazyTensor, nonzeros: int, layout: str) -> int:
    """Bytes of the parts' values."""
    rows, columns = matrix(tensor.shape)
    item, shape = tensor.dtype.itemsize, 8 * len(tensor.shape)
    if layout == "torch-coo":
        return nonzeros * (item + shape)
    if layout == "torch-csr":
        return nonzeros * (item + 8) + 8 * (rows + 1)
    if layout == "bitmask":
        return shape + nonzeros * item + rows * (row_bytes(columns) + 8)
    return shape + nonzeros * item + (nonzeros + rows + 1) * _index(columns, nonzeros).itemsize


def split(tensor: LazyTensor, marks: Marks, layout: str) -> list[LazyTensor]:
    """The parts of a tensor, in the order of sparse.PARTS or TORCH_PARTS, without names.

    torch's have the indices of `to_sparse()` and `to_sparse_csr()`: i64, in C order.
    """
    rows, columns = matrix(tensor.shape)
    total, i64, axes = marks.total, dtype("i64"), len(tensor.shape)
    shape = MemoryBytes(np.asarray(tensor.shape, "<i8").tobytes(), "shape")
    first = LazyTensor.contiguous("", i64, (len(tensor.shape),), shape, 0)
    values = _lazy(Part(tensor, marks, "values", tensor.dtype, total), (total,))
    if layout == "torch-coo":
        return [_lazy(Indices(tensor, marks, i64, axes * total), (axes, total)), values]
    if layout == "bitmask":
        bits = _lazy(Part(tensor, marks, "bits", dtype("u8"), rows * row_bytes(columns)), (rows, row_bytes(columns)))
        return [first, values, bits, _offsets(tensor, marks, i64, rows)]
    index = i64 if layout == "torch-csr" else _index(columns, total)
    where = _lazy(Part(tensor, marks, "places", index, total, 1, columns), (total,))
    found = [_offsets(tensor, marks, index, rows + 1), where, values]
    return found if layout == "torch-csr" else [first, *found]


def _index(columns: int, nonzeros: int) -> DType:
    return dtype("i32" if max(columns, nonzeros) < _SMALL else "i64")


def _lazy(part: Part | Offsets | Indices, shape: tuple[int, ...]) -> LazyTensor:
    return LazyTensor.contiguous("", part.unit, shape, part, 0)


def _offsets(tensor: LazyTensor, marks: Marks, unit: DType, count: int) -> LazyTensor:
    if marks.rows is None:
        return _lazy(Offsets(tensor, marks, unit, count), (count,))
    numbers = np.append(marks.rows, marks.total)[:count].astype(unit.numpy())
    return LazyTensor.contiguous("", unit, (count,), MemoryBytes(numbers.tobytes(), "row offsets"), 0)
