"""Change the dtype of the floating tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wtool.checkpoint import Checkpoint, Warning
from wtool.dtypes import DType
from wtool.errors import DtypeError
from wtool.tensor import LazyTensor

_SCALED = ("f4", "f8_e8m0")  # dtypes that mean little without the other tensor that scales them


@dataclass(frozen=True, slots=True)
class CastTo:
    """Cast every floating tensor to `dtype`; integers, bools and complex tensors stay, and so does what has it already.

    ggml's blocks are decoded; so is f4, without the scales that may stand beside it (a warning). f6, and f4 tensors that do
    not fill their last byte, stay (a warning). DtypeError unless `dtype` is floating and at least a byte wide. Tied tensors
    stay tied.
    """

    dtype: DType

    def __post_init__(self) -> None:
        if not (self.dtype.floating and self.dtype.itemsize):
            hint = "a floating dtype of 8 bits or more, such as bf16"
            if self.dtype.block:
                hint = f"`wtool quantize --layout gguf --scheme {self.dtype}` makes blocks"
            raise DtypeError(f"tensors cannot be cast to {self.dtype}", hint=hint)

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        tensors: list[LazyTensor] = []
        stayed: dict[str, int] = {}
        unscaled: dict[str, int] = {}
        for tensor in checkpoint.values():
            name = tensor.dtype.name
            if tensor.dtype is self.dtype or not (tensor.dtype.floating or tensor.dtype.kind == "complex"):
                tensors.append(tensor)
            elif not _castable(tensor):
                stayed[name] = stayed.get(name, 0) + 1
                tensors.append(tensor)
            else:
                from wtool.kernels.cast import Cast

                if name in _SCALED:
                    unscaled[name] = unscaled.get(name, 0) + 1
                tensors.append(tensor.map(Cast(tensor.dtype, self.dtype)))
        done = checkpoint.with_tensors(tensors, operation=self)
        warnings = [
            *(Warning("not-cast", f"{count} {name} tensors stay {name}") for name, count in stayed.items()),
            *(
                Warning("without-scales", f"{count} {name} tensors were cast as plain numbers, without any scales beside them")
                for name, count in unscaled.items()
            ),
        ]
        return replace(done, warnings=(*done.warnings, *warnings))


def _castable(tensor: LazyTensor) -> bool:
    row = tensor.dtype
    return row.floating and bool(row.itemsize or row.block or (row.name == "f4" and tensor.elements % 2 == 0))
