"""The element types, one row each, with their name in every format.

The names people see are the short ones (`f32`, `bf16`, `f8_e4m3`); `dtype("torch.float16")`, `dtype("half")` and the like are
accepted. Sources: safetensors' `Dtype` (tensor.rs), torch's `torch/storage.py` (storage classes) and `ScalarType.h`,
TensorFlow's `types.proto` (DataType numbers), ggml's `ggml.h` (`ggml_type`) and `ggml-common.h` (blocks).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import TYPE_CHECKING, Any, Literal

from wtool.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["float", "int", "uint", "bool", "complex"]


@dataclass(frozen=True, slots=True, eq=False)
class DType:
    """One element type. There is one object per row: compare with `is` or `==`.

    `numpy_name` is numpy's or ml_dtypes' name, None where neither has it. `storage` is the name of torch's typed storage
    class, None for the types that torch saves in an `UntypedStorage`. `tf` is the number in TensorFlow's DataType, `ggml` that
    in ggml's `ggml_type`.

    `block` (elements, bytes) makes a type of ggml's blocks: so many values of a row lie together with their scale. `bits` is
    then what one value takes without it, rounded down; `bits_each` is exact for all.
    """

    name: str
    bits: int
    kind: Kind
    safetensors: str | None = None
    torch: str | None = None
    storage: str | None = None
    tf: int | None = None
    numpy_name: str | None = None
    ggml: int | None = None
    block: tuple[int, int] | None = None

    @property
    def itemsize(self) -> int:
        """Bytes per element; 0 for the packed types: those narrower than a byte, and those in blocks."""
        return 0 if self.block else self.bits // 8

    @property
    def run(self) -> tuple[int, int]:
        """The shortest run that fills whole bytes, as (elements, bytes): (1, 4) for f32, (2, 1) for f4, (32, 18) for q4_0."""
        if self.block:
            return self.block
        shared = gcd(self.bits, 8)
        return 8 // shared, self.bits // shared

    @property
    def bits_each(self) -> float:
        """Bits that an element takes, scales of blocks counted: 4.5 for q4_0."""
        elements, nbytes = self.run
        return 8 * nbytes / elements

    @property
    def floating(self) -> bool:
        return self.kind == "float"

    def nbytes(self, elements: int) -> int:
        """Bytes of `elements` packed elements (rounded up to whole bytes, or blocks)."""
        if self.block:
            return -(-elements // self.block[0]) * self.block[1]
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


def _block(name: str, bits: int, ggml: int, elements: int, nbytes: int) -> DType:
    return DType(name, bits, "float", ggml=ggml, block=(elements, nbytes))


# fmt: off
_ROWS = (
    #     name          bits kind       safetensors     torch              storage                 tf    numpy name       ggml
    DType("f64",         64, "float",   "F64",          "float64",         "DoubleStorage",         2,   "float64", 28),
    DType("f32",         32, "float",   "F32",          "float32",         "FloatStorage",          1,   "float32", 0),
    DType("f16",         16, "float",   "F16",          "float16",         "HalfStorage",          19,   "float16", 1),
    DType("bf16",        16, "float",   "BF16",         "bfloat16",        "BFloat16Storage",      14,   "bfloat16", 30),
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
    DType("i64",         64, "int",     "I64",          "int64",           "LongStorage",           9,   "int64", 27),
    DType("i32",         32, "int",     "I32",          "int32",           "IntStorage",            3,   "int32", 26),
    DType("i16",         16, "int",     "I16",          "int16",           "ShortStorage",          5,   "int16", 25),
    DType("i8",           8, "int",     "I8",           "int8",            "CharStorage",           6,   "int8", 24),
    DType("u64",         64, "uint",    "U64",          "uint64",          None,                   23,   "uint64"),
    DType("u32",         32, "uint",    "U32",          "uint32",          None,                   22,   "uint32"),
    DType("u16",         16, "uint",    "U16",          "uint16",          None,                   17,   "uint16"),
    DType("u8",           8, "uint",    "U8",           "uint8",           "ByteStorage",           4,   "uint8"),
    DType("bool",         8, "bool",    "BOOL",         "bool",            "BoolStorage",          10,   "bool"),
    # ggml's blocks: name, bits, number in ggml_type, values and bytes of a block.
    _block("q4_0",    4,  2,  32,  18),
    _block("q4_1",    4,  3,  32,  20),
    _block("q5_0",    5,  6,  32,  22),
    _block("q5_1",    5,  7,  32,  24),
    _block("q8_0",    8,  8,  32,  34),
    _block("q2_k",    2, 10, 256,  84),
    _block("q3_k",    3, 11, 256, 110),
    _block("q4_k",    4, 12, 256, 144),
    _block("q5_k",    5, 13, 256, 176),
    _block("q6_k",    6, 14, 256, 210),
    _block("iq2_xxs", 2, 16, 256,  66),
    _block("iq2_xs",  2, 17, 256,  74),
    _block("iq3_xxs", 3, 18, 256,  98),
    _block("iq1_s",   1, 19, 256,  50),
    _block("iq4_nl",  4, 20,  32,  18),
    _block("iq3_s",   3, 21, 256, 110),
    _block("iq2_s",   2, 22, 256,  82),
    _block("iq4_xs",  4, 23, 256, 136),
    _block("iq1_m",   1, 29, 256,  56),
    _block("tq1_0",   1, 34, 256,  54),
    _block("tq2_0",   2, 35, 256,  66),
    _block("mxfp4",   4, 39,  32,  17),
    _block("nvfp4",   4, 40,  64,  36),
    _block("q1_0",    1, 41, 128,  18),
)
# fmt: on

BY_NAME = {row.name: row for row in _ROWS}
BY_SAFETENSORS = {row.safetensors: row for row in _ROWS if row.safetensors}
BY_TORCH = {row.torch: row for row in _ROWS if row.torch}
BY_STORAGE = {row.storage: row for row in _ROWS if row.storage}
BY_TF = {row.tf: row for row in _ROWS if row.tf is not None}
BY_GGML = {row.ggml: row for row in _ROWS if row.ggml is not None}
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
        return np.dtype(np.uint8) if not row.itemsize else np.dtype((np.void, row.itemsize))
    if row.numpy_name == "bfloat16" or row.numpy_name.startswith("float8"):
        import ml_dtypes

        narrow: np.dtype[Any] = np.dtype(getattr(ml_dtypes, row.numpy_name))
        return narrow
    plain: np.dtype[Any] = np.dtype(row.numpy_name)
    return plain.newbyteorder("<")
