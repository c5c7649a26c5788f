"""The closed table of names that mean something in a torch pickle, each a function of ours on its arguments.

Sources: torch/_utils.py and torch/_tensor.py (the `_rebuild_*` functions), torch/jit/_pickle.py, numpy's `array_reduce`.
"""

from __future__ import annotations

import struct
from typing import Any

from wtool.dtypes import BY_NAME
from wtool.errors import CorruptError, UnsupportedError
from wtool.formats.pickle_objects import Bag, Inert, Meaning, Name, Pairs
from wtool.formats.torch.values import (
    Group,
    Meta,
    NumpyArray,
    NumpyDtype,
    Storage,
    View,
    Wrapped,
    attributes,
    from_buffer,
    torch_dtype,
)

Args = tuple[Any, ...]

_MAX_RANK = 64

_SCALARS = {
    "f8": "d",
    "f4": "f",
    "f2": "e",
    "i8": "q",
    "i4": "i",
    "i2": "h",
    "i1": "b",
    "u8": "Q",
    "u4": "I",
    "u2": "H",
    "u1": "B",
}


def _view(storage: Any, dtype: Any, offset: Any, size: Any, stride: Any) -> View | Meta:
    if type(storage) is not Storage:
        raise CorruptError("a tensor is rebuilt from something that is no storage")
    if storage.location == "meta":
        return Meta()
    if type(size) in (list, tuple) and len(size) > _MAX_RANK:
        raise CorruptError(f"a tensor of {len(size)} sizes")
    if type(stride) in (list, tuple) and len(stride) > _MAX_RANK:
        raise CorruptError(f"a tensor of {len(stride)} strides")
    if type(size) is list:
        size = tuple(size)
    if type(stride) is list:
        stride = tuple(stride)
    if type(size) is not tuple or type(stride) is not tuple:
        raise CorruptError("a tensor whose size or stride is no tuple")
    return View(storage, dtype or storage.dtype or BY_NAME["u8"], offset, size, stride)


def _bits(view: View | Meta, metadata: Any) -> View | Meta:
    if metadata and isinstance(metadata, Pairs) and isinstance(view, View):
        if len(metadata.flat) > 2 * _MAX_RANK:
            raise CorruptError("the metadata of a tensor is too long")
        for key, value in zip(metadata.flat[::2], metadata.flat[1::2], strict=True):
            if key == "conj":
                view.conjugate = bool(value)
            elif key == "neg":
                view.negative = bool(value)
    return view


def _tensor(args: Args) -> Any:
    storage, offset, size, stride = args
    return _view(storage, None, offset, size, stride)


def _tensor_v2(args: Args) -> Any:
    view = _view(args[0], None, args[1], args[2], args[3])
    return _bits(view, args[6]) if len(args) > 6 else view


def _tensor_v3(args: Args) -> Any:
    view = _view(args[0], torch_dtype(args[6]), args[1], args[2], args[3])
    return _bits(view, args[7]) if len(args) > 7 else view


def _first(args: Args) -> Any:
    return args[0]


def _parameter(args: Args) -> Any:
    return args[0] if args else Pairs([])


def _parameter_with_state(args: Args) -> Any:
    made, _, _, state = args
    return _with_attributes(made, state)


def _with_attributes(made: Any, state: Any) -> Any:
    """A tensor with tensors of its own among its attributes is a group; other attributes are left."""
    if isinstance(made, View):
        held = Inert(_TENSOR, ())
        held.state = state
        inner = [(name, value) for name, value in attributes(held) if isinstance(value, View)]
        if inner:
            return Group("attributes", [("", made), *inner])
    return made


def _from_type(args: Args) -> Any:
    func, kind, inner, state = args
    if not isinstance(func, Name) or not isinstance(inner, tuple):
        raise CorruptError("a tensor subclass that is not rebuilt by a name")
    # Only what rebuilds one tensor: a table of functions that call each other would be a machine.
    meaning = func.meaning if func.text.startswith("torch._utils._rebuild_") else None
    made = meaning(inner) if meaning is not None else None
    if made is None or isinstance(made, Inert):
        made = Wrapped(kind if isinstance(kind, Name) else func, inner if meaning is None else ())
        made.state = state
    return _with_attributes(made, state)


def _quantized(args: Args) -> Any:
    storage, offset, size, stride, params = args[:5]
    view = _view(storage, None, offset, size, stride)
    if not isinstance(params, tuple) or len(params) < 3 or not isinstance(params[0], Name):
        raise CorruptError("a quantized tensor without its parameters")
    parts: list[tuple[str, Any]] = [("", view)]
    _, scale, zero, *axis = params
    if isinstance(scale, View):
        parts += [("scale", scale), ("zero_point", zero), ("axis", axis[0] if axis else None)]
    else:
        if type(scale) not in (int, float) or type(zero) is not int:
            raise CorruptError("the scale of a quantized tensor is no number")
        parts.append(("scale", _scalar_view("f64", struct.pack("<d", float(scale)))))
        parts.append(("zero_point", _scalar_view("i64", struct.pack("<q", int(zero)))))
    return Group("quantized", parts)


def _scalar_view(dtype: str, data: bytes) -> View:
    row = BY_NAME[dtype]
    return View(Storage.of_bytes(data, row), row, 0, (), ())


def _sparse(args: Args) -> Any:
    layout, data = args
    if not isinstance(layout, str) or not isinstance(data, tuple):
        raise CorruptError("a sparse tensor of no known layout")
    kind = layout.removeprefix("torch.")
    if kind == "sparse_coo":
        names: tuple[str, ...] = ("indices", "values")
    elif kind in ("sparse_csr", "sparse_bsr"):
        names = ("crow_indices", "col_indices", "values")
    elif kind in ("sparse_csc", "sparse_bsc"):
        names = ("ccol_indices", "row_indices", "values")
    else:
        raise UnsupportedError(f"sparse tensors of layout {layout} cannot be read")
    parts: list[tuple[str, Any]] = list(zip(names, data, strict=False))
    coalesced = data[3] if kind == "sparse_coo" and len(data) > 3 and type(data[3]) is bool else None
    return Group("sparse", [*parts, ("size", data[len(names)]), ("layout", layout)], coalesced)


def _sparse_csr(args: Args) -> Any:
    return _sparse(("torch.sparse_csr", args[0] if isinstance(args[0], tuple) else args))


def _nested(args: Args) -> Any:
    buffer, sizes, strides, offsets = args
    return Group("nested", [("values", buffer), ("sizes", sizes), ("strides", strides), ("offsets", offsets)])


def _meta(args: Args) -> Any:
    return Meta()


def _from_numpy(args: Args) -> Any:
    data, dtype = args[0], torch_dtype(args[1])
    view = data.view() if isinstance(data, NumpyArray) else data
    if not isinstance(view, View):
        raise UnsupportedError("a tensor of another device made from something that is no array")
    if view.dtype is not dtype:
        # torch wrote float32 or int64 where numpy has no such dtype, and casts after reading.
        raise UnsupportedError(f"a tensor of another device was saved as {view.dtype} to be read as {dtype}")
    return view


def _ordered_dict(args: Args) -> Pairs:
    return Pairs(_pairs(args[0]) if args else [], ordered=True)


def _default_dict(args: Args) -> Pairs:
    return Pairs(_pairs(args[1]) if len(args) > 1 else [])


def _dict(args: Args) -> Pairs:
    return Pairs(_pairs(args[0]) if args else [])


def _pairs(given: Any) -> list[Any]:
    if isinstance(given, Pairs):
        return list(given.flat)
    flat: list[Any] = []
    for pair in given:
        key, value = pair
        flat += (key, value)
    return flat


def _set(args: Args) -> Bag:
    return Bag(list(args[0]) if args else [])


def _frozenset(args: Args) -> Bag:
    return Bag(list(args[0]) if args else [], frozen=True)


def _size(args: Args) -> tuple[Any, ...]:
    return tuple(args[0]) if args else ()


def _list(args: Args) -> list[Any]:
    return list(args[0]) if args else []


def _complex(args: Args) -> complex:
    return complex(*args)


def _bytes(args: Args) -> bytes:
    given = args[0] if args else b""
    if isinstance(given, str):
        return given.encode("latin-1")
    if isinstance(given, (bytes, bytearray, list)):
        return bytes(given)
    raise CorruptError("bytes made from something else")


def _encode(args: Args) -> bytes:
    text, encoding = (*args, "utf-8")[:2]
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "utf8", "ascii"):
        raise CorruptError("text encoded in an unexpected way")
    return text.encode(encoding)


def _numpy_dtype(args: Args) -> NumpyDtype:
    return NumpyDtype(_NUMPY_DTYPE, args)


def _numpy_array(args: Args) -> NumpyArray:
    return NumpyArray(_NUMPY_ARRAY, ())


def _frombuffer(args: Args) -> Any:
    view = from_buffer(*args)
    return Inert(_NUMPY_ARRAY, ()) if view is None else view


def _scalar(args: Args) -> Any:
    dtype, data = args
    if isinstance(data, str):
        data = data.encode("latin-1")
    if isinstance(dtype, NumpyDtype) and isinstance(data, (bytes, bytearray)):
        code, big = dtype.code()
        order = ">" if big else "<"
        if code in _SCALARS:
            return struct.unpack(order + _SCALARS[code], data)[0]
        if code == "b1":
            return bool(data[0])
        if code in ("c8", "c16"):
            return complex(*struct.unpack(order + ("2f" if code == "c8" else "2d"), data))
        if code[:1] == "U":
            return data.decode("utf-32-be" if big else "utf-32-le").rstrip("\0")
        if code[:1] == "S":
            return bytes(data)
    return Inert(_NUMPY_SCALAR, args)


_TENSOR = Name("torch", "Tensor", {})
_NUMPY_DTYPE = Name("numpy", "dtype", {})
_NUMPY_ARRAY = Name("numpy", "ndarray", {})
_NUMPY_SCALAR = Name("numpy", "generic", {})


def _table() -> dict[str, Meaning]:
    table: dict[str, Meaning] = {
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor_v2,
        "torch._utils._rebuild_tensor_v3": _tensor_v3,
        "torch._utils._rebuild_parameter": _first,
        "torch._utils._rebuild_parameter_with_state": _parameter_with_state,
        "torch._utils._rebuild_buffer": _first,
        "torch._utils._rebuild_qtensor": _quantized,
        "torch._utils._rebuild_sparse_tensor": _sparse,
        "torch._utils._rebuild_sparse_csr_tensor": _sparse_csr,
        "torch._utils._rebuild_nested_tensor": _nested,
        "torch._utils._rebuild_meta_tensor_no_storage": _meta,
        "torch._utils._rebuild_device_tensor_from_numpy": _from_numpy,
        "torch._utils._rebuild_device_tensor_from_cpu_tensor": _from_numpy,
        "torch._utils._rebuild_xla_tensor": _from_numpy,
        "torch.serialization._get_layout": _first,
        "torch.Size": _size,
        "collections.OrderedDict": _ordered_dict,
        "collections.defaultdict": _default_dict,
        "collections.Counter": _dict,
        "builtins.dict": _dict,
        "builtins.list": _list,
        "builtins.tuple": _size,
        "builtins.set": _set,
        "builtins.frozenset": _frozenset,
        "builtins.complex": _complex,
        "builtins.bytearray": _bytes,
        "builtins.bytes": _bytes,
        "_codecs.encode": _encode,
        "numpy.dtype": _numpy_dtype,
    }
    for module in ("torch._tensor", "torch.tensor"):
        table[f"{module}._rebuild_from_type"] = table[f"{module}._rebuild_from_type_v2"] = _from_type
    for name in ("torch.nn.parameter.Parameter", "torch.nn.Parameter", "torch.nn.parameter.Buffer", "torch.autograd.Variable"):
        table[name] = _parameter
    table["torch.autograd.variable.Variable"] = _parameter
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray._reconstruct"] = _numpy_array
        table[f"{core}.multiarray.scalar"] = _scalar
        table[f"{core}.numeric._frombuffer"] = _frombuffer
    for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag"):
        table[f"torch.jit._pickle.{name}"] = _first
    return table


MEANINGS = _table()
