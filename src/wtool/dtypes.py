"""The element types, one row each, with their name in every format.

The names people see are the short ones (`f32`, `bf16`, `f8_e4m3`); `dtype("torch.float16")`, `dtype("half")` and the like are
accepted. Sources: safetensors' `Dtype` (tensor.rs), torch's `torch/storage.py` (storage classes) and `ScalarType.h`,
TensorFlow's `types.proto` (DataType numbers).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from wtool.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["float", "int", "uint", "bool", "complex"]


@dataclass(frozen=True, slots=True, eq=False)
class DType:
    """One element type. There is one object per row: compare with `is` or `==`.

    `numpy_name` is numpy's or ml_dtypes' name, None where neither has it. `storage` is the name of torch's typed storage
    class, None for the types that torch saves in an `UntypedStorage`. `tf` is the number in TensorFlow's DataType.
    """

    name: str
    bits: int
    kind: Kind
    safetensors: str | None = None
    torch: str | None = None
    storage: str | None = None
    tf: int | None = None
    numpy_name: str | None = None

    @property
    def itemsize(self) -> int:
        """Bytes per element; 0 for the types narrower than a byte, which are stored packed."""
        return self.bits // 8

    @property
    def floating(self) -> bool:
        return self.kind == "float"

    def nbytes(self, elements: int) -> int:
        """Bytes of `elements` packed elements (rounded up to whole bytes)."""
        return (elements * self.bits + 7) // 8

    def numpy(self) -> np.dtype[Any]:
        """The little-endian numpy dtype; `uint8` for packed types, whose blocks are raw bytes."""
        return _numpy(self)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"dtype({self.name!r})"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return dtype, (self.name,)


# fmt: off
_ROWS = (
    #     name          bits kind       safetensors     torch              storage                 tf    numpy / ml_dtypes
    DType("f64",         64, "float",   "F64",          "float64",         "DoubleStorage",         2,   "float64"),
    DType("f32",         32, "float",   "F32",          "float32",         "FloatStorage",          1,   "float32"),
    DType("f16",         16, "float",   "F16",          "float16",         "HalfStorage",          19,   "float16"),
    DType("bf16",        16, "float",   "BF16",         "bfloat16",        "BFloat16Storage",      14,   "bfloat16"),
    DType("f8_e4m3",      8, "float",   "F8_E4M3",      "float8_e4m3fn",   None,                   25,   "float8_e4m3fn"),
    DType("f8_e5m2",      8, "float",   "F8_E5M2",      "float8_e5m2",     None,                   24,   "float8_e5m2"),
    DType("f8_e4m3fnuz",  8, "float",   "F8_E4M3FNUZ",  "float8_e4m3fnuz", None,                   26,   "float8_e4m3fnuz"),
    DType("f8_e5m2fnuz",  8, "float",   "F8_E5M2FNUZ",  "float8_e5m2fnuz", None,                   28,   "float8_e5m2fnuz"),
    DType("f8_e8m0",      8, "float",   "F8_E8M0",      "float8_e8m0fnu",  None,                 None,   "float8_e8m0fnu"),
    DType("f6_e2m3",      6, "float",   "F6_E2M3",      None,              None,                 None,   None),
    DType("f6_e3m2",      6, "float",   "F6_E3M2",      None,              None,                 None,   None),
    DType("f4",           4, "float",   "F4",           None,              None,                 None,   None),
    DType("c128",       128, "complex", None,           "complex128",      "ComplexDoubleStorage", 18,   "complex128"),
    DType("c64",         64, "complex", "C64",          "complex64",       "ComplexFloatStorage",   8,   "complex64"),
    DType("c32",         32, "complex", None,           "complex32",       None,                 None,   None),
    DType("i64",         64, "int",     "I64",          "int64",           "LongStorage",           9,   "int64"),
    DType("i32",         32, "int",     "I32",          "int32",           "IntStorage",            3,   "int32"),
    DType("i16",         16, "int",     "I16",          "int16",           "ShortStorage",          5,   "int16"),
    DType("i8",           8, "int",     "I8",           "int8",            "CharStorage",           6,   "int8"),
    DType("u64",         64, "uint",    "U64",          "uint64",          None,                   23,   "uint64"),
    DType("u32",         32, "uint",    "U32",          "uint32",          None,                   22,   "uint32"),
    DType("u16",         16, "uint",    "U16",          "uint16",          None,                   17,   "uint16"),
    DType("u8",           8, "uint",    "U8",           "uint8",           "ByteStorage",           4,   "uint8"),
    DType("bool",         8, "bool",    "BOOL",         "bool",            "BoolStorage",          10,   "bool"),
)
# fmt: on

BY_NAME = {row.name: row for row in _ROWS}
BY_SAFETENSORS = {row.safetensors: row for row in _ROWS if row.safetensors}
BY_TORCH = {row.torch: row for row in _ROWS if row.torch}
BY_STORAGE = {row.storage: row for row in _ROWS if row.storage}
BY_TF = {row.tf: row for row in _ROWS if row.tf is not None}
BY_NUMPY = {row.numpy_name: row for row in _ROWS if row.numpy_name}

_ALIASES = {
    "double": "f64", "float": "f32", "half": "f16", "fp64": "f64", "fp32": "f32", "fp16": "f16", "bfloat": "bf16",
    "f8": "f8_e4m3", "fp8": "f8_e4m3", "float8_e4m3": "f8_e4m3", "e4m3": "f8_e4m3", "f8_e4m3fn": "f8_e4m3", "e5m2": "f8_e5m2",
    "long": "i64", "int": "i32", "short": "i16", "char": "i8", "byte": "u8",
    "f4_e2m1": "f4", "complex": "c64",
}  # fmt: skip


@cache
def dtype(name: str) -> DType:
    """The dtype of that name, in wtool's, safetensors', torch's or numpy's spelling. UsageError if there is none."""
    word = name.strip().lower().removeprefix("torch.").removeprefix("tf.").removeprefix("np.")
    for found in (
        BY_NAME.get(word),
        BY_TORCH.get(word),
        BY_SAFETENSORS.get(word.upper()),
        BY_NUMPY.get(word),
    ):
        if found is not None:
            return found
    if word in _ALIASES:
        return BY_NAME[_ALIASES[word]]
    raise UsageError(f"unknown dtype '{name}'", hint="one of " + " ".join(BY_NAME))


@cache
def _numpy(row: DType) -> np.dtype[Any]:
    import numpy as np

    if row.numpy_name is None:
        return np.dtype(np.uint8) if row.bits < 8 else np.dtype((np.void, row.itemsize))
    if row.numpy_name == "bfloat16" or row.numpy_name.startswith("float8"):
        import ml_dtypes

        narrow: np.dtype[Any] = np.dtype(getattr(ml_dtypes, row.numpy_name))
        return narrow
    plain: np.dtype[Any] = np.dtype(row.numpy_name)
    return plain.newbyteorder("<")
