"""Make tensors that are stored quantized plain numbers again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from wtool.checkpoint import Checkpoint
from wtool.dtypes import DType, dtype
from wtool.errors import KeyClashError
from wtool.layout import Quantized
from wtool.tensor import LazyTensor


@dataclass(frozen=True)
class Dequantize:
    """Every tensor of `found` (by the key of the dense tensor) becomes one of `dtype`, or of the dtype it had, in its place.

    CorruptError where parts do not belong together; KeyClashError where the key is taken. Tied tensors stay tied.
    """

    found: Mapping[str, Quantized] = field(repr=False)
    dtype: DType | None = None

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        from wtool.kernels.cast import Cast

        f32 = dtype("f32")
        part_of = {part: one.key for one in self.found.values() for part in one.parts}
        dense: dict[str, LazyTensor] = {}
        for one in self.found.values():
            if one.key in checkpoint.tensors and one.key not in one.parts:
                raise KeyClashError(
                    f"'{one.key}' is a tensor, and the name of one that is stored quantized", path=checkpoint.source.path
                )
            tensor, row = one.dense().renamed(one.key), self.dtype or one.dtype
            dense[one.key] = tensor if row is f32 else tensor.map(Cast(f32, row))
        order = dict.fromkeys(part_of.get(key, key) for key in checkpoint.tensors)
        tensors = {key: dense.get(key) or checkpoint.tensors[key] for key in order}
        made = checkpoint.regrouped(tensors, {part: (key,) for part, key in part_of.items()})
        return replace(made, structure=None, history=(*checkpoint.history, self))
