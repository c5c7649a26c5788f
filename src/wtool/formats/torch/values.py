"""What a torch pickle's tensors become before their bytes are found: storages, views of them, groups of parts."""

from __future__ import annotations

from typing import Any

from wtool.bytesource import ByteSource, MemoryBytes
from wtool.dtypes import BY_NAME, BY_STORAGE, BY_TORCH, DType
from wtool.errors import CorruptError, UnsupportedError
from wtool.formats.pickle_objects import Inert, Name, Pairs

# Quantized storages hold plain integers; those of less than a byte are packed.
_QUANTIZED = {"QInt8Storage": "i8", "QUInt8Storage": "u8", "QInt32Storage": "i32"}


class Storage:
    """A run of bytes. `count` is what the pickle says: elements of `dtype`, bytes if that is None (untyped).

    `source`, `start` and `nbytes` are set when its bytes have been found. `swap`: they are big-endian.
    """

    __slots__ = ("count", "dtype", "key", "location", "nbytes", "source", "start", "swap")

    def __init__(self, key: str, dtype: DType | None, count: int, location: str = "cpu") -> None:
        self.key = key
        self.dtype = dtype
        self.count = count
        self.location = location
        self.source: ByteSource | None = None
        self.start = 0
        self.nbytes = count * (dtype.itemsize if dtype else 1)
        self.swap = False

    def place(self, source: ByteSource, start: int) -> None:
        self.source = source
        self.start = start

    @staticmethod
    def of_bytes(data: bytes, dtype: DType) -> Storage:
        storage = Storage("", dtype, len(data) // dtype.itemsize)
        storage.place(MemoryBytes(bytes(data)), 0)
        return storage


class View:
    """A tensor: a strided view of a storage; `offset` and `strides` in elements. Nothing here has been checked.

    `conjugate` and `negative` are torch's lazy bits: the values are those of the storage after that operation.
    """

    __slots__ = ("conjugate", "dtype", "negative", "offset", "shape", "storage", "strides")

    def __init__(self, storage: Storage, dtype: DType, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.storage = storage
        self.dtype = dtype
        self.offset = offset
        self.shape = shape
        self.strides = strides
        self.conjugate = False
        self.negative = False


class Meta:
    """A tensor that has no values."""

    __slots__ = ()


class Group:
    """A tensor that is stored as several: `parts` are (suffix, View or plain value); the suffix "" is the tensor itself."""

    __slots__ = ("coalesced", "kind", "parts")

    def __init__(self, kind: str, parts: list[tuple[str, Any]], coalesced: bool | None = None) -> None:
        self.kind = kind
        self.parts = parts
        self.coalesced = coalesced  # of a sparse tensor


class Wrapped(Inert):
    """A tensor subclass without a storage of its own: its inner tensors are in `state`."""

    __slots__ = ()


class NumpyDtype(Inert):
    """numpy.dtype(code, align, copy), then (version, byte order, subarray, names, fields, size, alignment, flags)."""

    __slots__ = ()

    def code(self) -> tuple[str, bool]:
        """The code without its byte order ("f4"), and whether it is big-endian; ("", False) for structured types."""
        code = self.args[0] if self.args else None
        if isinstance(code, bytes):
            code = code.decode("ascii", "replace")
        order = "="
        if isinstance(self.state, tuple) and len(self.state) >= 5:
            order = self.state[1] if isinstance(self.state[1], str) else "="
            if self.state[2] is not None or self.state[3] is not None:
                return "", False
        if isinstance(code, Name):
            return code.text, order == ">"
        if not isinstance(code, str):
            return "", False
        if code[:1] in "<>|=":
            order = code[0] if code[0] == ">" else order
            code = code[1:]
        return code, order == ">"


class NumpyArray(Inert):
    """numpy's _reconstruct(...), then (version, shape, dtype, fortran order, bytes or list of objects)."""

    __slots__ = ("_view",)

    def view(self) -> View | None:
        """The array as a tensor, made once; None for arrays of objects, strings or records."""
        try:
            return self._view
        except AttributeError:
            self._view: View | None = None
            state = self.state
            if isinstance(state, tuple) and len(state) in (4, 5):
                shape, dtype, fortran, data = state[-4:]
                self._view = _numpy_view(shape, dtype, bool(fortran), data)
            return self._view


NUMPY_CODES = {
    "f8": "f64", "f4": "f32", "f2": "f16", "i8": "i64", "i4": "i32", "i2": "i16", "i1": "i8",
    "u8": "u64", "u4": "u32", "u2": "u16", "u1": "u8", "b1": "bool", "c8": "c64", "c16": "c128",
    "ml_dtypes.bfloat16": "bf16", "bfloat16": "bf16", "ml_dtypes.float8_e4m3fn": "f8_e4m3", "ml_dtypes.float8_e5m2": "f8_e5m2",
    "ml_dtypes.float8_e4m3fnuz": "f8_e4m3fnuz", "ml_dtypes.float8_e5m2fnuz": "f8_e5m2fnuz",
}  # fmt: skip


def storage_dtype(name: object) -> DType | None:
    """The dtype of a storage class (`torch.cuda.HalfStorage`), None for the untyped one. UnsupportedError if there is none."""
    if not isinstance(name, Name):
        raise CorruptError("a storage whose class is no name")
    last = name.name.rsplit(".", 1)[-1]
    if last in ("UntypedStorage", "_UntypedStorage"):
        return None
    found = BY_STORAGE.get(last) or BY_NAME.get(_QUANTIZED.get(last, ""))
    if found is None:
        raise UnsupportedError(f"storages of class {name.text} cannot be read")
    return found


def torch_dtype(name: object) -> DType:
    """The dtype that a name like `torch.float8_e4m3fn` stands for."""
    if not isinstance(name, Name) or name.module != "torch":
        raise CorruptError("a dtype that is no name")
    found = BY_TORCH.get(name.name)
    if found is None or not found.itemsize:
        raise UnsupportedError(f"tensors of dtype {name.text} cannot be read")
    return found


def _numpy_view(shape: Any, dtype: Any, fortran: bool, data: Any) -> View | None:
    if not isinstance(dtype, NumpyDtype) or not isinstance(shape, tuple):
        return None
    if isinstance(data, str):  # Python 2's strings are bytes
        data = data.encode("latin-1")
    code, big = dtype.code()
    name = NUMPY_CODES.get(code)
    if name is None or not isinstance(data, (bytes, bytearray)):
        return None
    row = BY_NAME[name]
    if not all(type(size) is int and 0 <= size < 1 << 63 for size in shape) or len(shape) > 64:
        raise CorruptError("a numpy array whose shape makes no sense")
    strides = []
    step = 1
    for size in shape if fortran else reversed(shape):
        strides.append(step)
        step *= size
    if step * row.itemsize != len(data):
        raise CorruptError(f"a numpy array of {step} elements of {row.name} in {len(data)} bytes")
    storage = Storage.of_bytes(bytes(data), row)
    storage.swap = big
    return View(storage, row, 0, shape, tuple(strides if fortran else reversed(strides)))


def from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> View | None:
    """numpy's _frombuffer, which protocol 5 uses."""
    return _numpy_view(shape, dtype, order == "F", data)


def attributes(thing: Inert) -> list[tuple[str, Any]]:
    """What was put on an object: its state, flat. A state (dict, slots) is both."""
    found: list[tuple[str, Any]] = []
    states = [thing.state]
    for _ in range(4):
        if not states:
            break
        state = states.pop(0)
        if isinstance(state, tuple) and len(state) == 2:
            states[:0] = state
        elif isinstance(state, Pairs):
            found.extend(
                (key, value) for key, value in zip(state.flat[::2], state.flat[1::2], strict=True) if type(key) is str
            )
    return found
