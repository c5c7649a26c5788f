"""bitsandbytes: nf4 and fp4 in blocks over the flattened weight, with plain or nested absmaxes, and int8 rows (LLM.int8()).

Source: bitsandbytes 0.50 (functional.QuantState.as_dict, nn/modules.py Linear4bit and Linear8bitLt):

    weight u8 [N / 2, 1], weight.absmax f32 [N / 64], weight.quant_map f32 [16], weight.quant_state.bitsandbytes__nf4 u8 (JSON)
    nested: weight.absmax u8, weight.nested_absmax f32 [N / 64 / 256], weight.nested_quant_map f32 [256]
    int8: weight i8 [O, I], SCB f32 [O], weight_format u8 (0)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool import views
from wtool.bytesource import MemoryBytes
from wtool.dtypes import BY_TORCH, DType, dtype
from wtool.errors import CorruptError, UnsupportedError, UsageError
from wtool.kernels.codebook import NESTED, Book, FourBit, Int8Rows, Nested, dynamic_map
from wtool.layout import Quantized, Scheme, Seen, Wanted
from wtool.layouts.codecs import as_f32
from wtool.quantized import LONGEST, Encoding, Part, decoded
from wtool.tensor import LazyTensor

Array = NDArray[Any]

_SIZE = 64
_STATE = ".quant_state.bitsandbytes__"
_LARGEST = 1 << 16  # bytes of a state


@dataclass(frozen=True)
class Four:
    """Rows are blocks: `codes` u8, two to a byte, and `absmax`, which is f32, or u8 with `seconds` where it is nested."""

    four: FourBit
    nested: Nested | None = None
    table: tuple[float, ...] | None = None  # of a file that has its own
    second: tuple[float, ...] | None = None

    @property
    def step(self) -> int:
        return 1 if self.nested is None else NESTED

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        codes = Part("codes", dtype("u8"), (rows * columns // 2, 1), self.step * columns // 2)
        if self.nested is None:
            return codes, Part("absmax", dtype("f32"), (rows,), 4)
        return codes, Part("absmax", dtype("u8"), (rows,), NESTED), Part("seconds", dtype("f32"), (-(-rows // NESTED),), 4)

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        codes, absmax = self.four.encode(x)
        return (codes, absmax) if self.nested is None else (codes, *self.nested.encode(absmax))

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        absmax = parts[1]
        if self.nested is not None:
            absmax = self.nested.decode(absmax, parts[2], None if self.second is None else np.asarray(self.second, "f4"))
        table = None if self.table is None else np.asarray(self.table, "f4")
        return self.four.decode(parts[0], absmax, len(absmax) * columns, table).reshape(-1, columns)


@dataclass(frozen=True)
class Eight:
    """`codes` i8 [O, I] and `SCB` f32 [O]."""

    step: int = 1

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        return Part("codes", dtype("i8"), (rows, columns), columns), Part("SCB", dtype("f32"), (rows,), 4)

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        return Int8Rows().encode(x)

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        return Int8Rows().decode(parts[0].reshape(-1, columns), parts[1])


class Bitsandbytes:
    name = "bnb"
    formats = ("safetensors",)
    schemes = ("nf4", "nf4-nested", "fp4", "int8")

    def settle(self, scheme: Scheme) -> Scheme:
        if scheme.name not in self.schemes:
            raise UsageError(f"{self.name} has no scheme {scheme.name}", hint="it has " + ", ".join(self.schemes))
        if scheme.group not in (None, "channel" if scheme.name == "int8" else _SIZE) or not scheme.symmetric:
            raise UsageError(f"{self.name} has no {scheme}: int8 has a scale for a row, the others one for {_SIZE} weights")
        return replace(scheme, group=None, method="mse" if scheme.searches and scheme.name != "int8" else "rtn")

    def wants(self, scheme: Scheme) -> Wanted | None:
        return "mean" if scheme.name.endswith("nested") else None

    def refuses(self, scheme: Scheme, tensor: LazyTensor) -> str | None:
        if not tensor.key.endswith(".weight"):
            return "its key does not end in .weight"
        if len(tensor.shape) != 2:
            return f"of {len(tensor.shape)} axes"
        if scheme.name == "int8":
            return f"rows longer than {LONGEST:,}" if tensor.shape[-1] > LONGEST else None
        return f"{tensor.elements:,} weights are no blocks of {_SIZE}" if tensor.elements % _SIZE else None

    def parts(self, tensor: LazyTensor, scheme: Scheme, seen: Seen | None) -> list[LazyTensor]:
        key = tensor.key
        if scheme.name == "int8":
            stem = key.removesuffix("weight")
            encoding = Encoding(key, as_f32(tensor), Eight())
            format_ = _constant(f"{stem}weight_format", np.zeros((), np.uint8))
            return [encoding.part(0, key), encoding.part(1, f"{stem}SCB"), format_]
        book: Book = "fp4" if scheme.name == "fp4" else "nf4"
        four = FourBit(book, _SIZE, scheme.searches)
        nested = None if not scheme.name.endswith("nested") else Nested(float(np.float32(seen.mean if seen else 0.0)))
        rows = views.reshape(as_f32(tensor), (tensor.elements // _SIZE, _SIZE))
        encoding = Encoding(key, rows, Four(four, nested))
        names = [key, f"{key}.absmax", f"{key}.nested_absmax"]
        found = [encoding.part(at, name) for at, name in zip(range(len(encoding.parts)), names, strict=False)]
        state: dict[str, Any] = {"quant_type": book, "blocksize": _SIZE}
        state |= {"dtype": tensor.dtype.torch if tensor.dtype.bits < 64 else "float32", "shape": list(tensor.shape)}
        if nested is not None:
            found.append(_constant(f"{key}.nested_quant_map", dynamic_map()))
            state |= {"nested_blocksize": NESTED, "nested_dtype": "float32", "nested_offset": nested.offset}
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        return [*found, _constant(f"{key}.quant_map", four.table), _constant(f"{key}{_STATE}{book}", text)]

    def config(self, chosen: Mapping[str, Scheme], kept: Sequence[str]) -> dict[str, Any]:
        names = sorted({scheme.name for scheme in chosen.values()})
        if len(names) > 1:
            raise UsageError(f"{self.name} has one scheme for a model, not {' and '.join(names)}")
        four = names[0] != "int8"
        modules = [key.removesuffix(".weight") for key in kept]
        return {
            "quantization_config": {
                "_load_in_4bit": four,
                "_load_in_8bit": not four,
                "bnb_4bit_compute_dtype": "bfloat16",
                "bnb_4bit_quant_storage": "uint8",
                "bnb_4bit_quant_type": names[0].partition("-")[0] if four else "fp4",
                "bnb_4bit_use_double_quant": names[0].endswith("nested"),
                "llm_int8_enable_fp32_cpu_offload": False,
                "llm_int8_has_fp16_weight": False,
                "llm_int8_skip_modules": modules,
                "llm_int8_threshold": 6.0,
                "load_in_4bit": four,
                "load_in_8bit": not four,
                "quant_method": "bitsandbytes",
            }
        }

    def metadata(self, chosen: Mapping[str, Scheme]) -> dict[str, str]:
        return {}

    def find(
        self, tensors: Mapping[str, LazyTensor], config: Mapping[str, Any] | None, metadata: Mapping[str, str]
    ) -> list[Quantized]:
        found = []
        for key, tensor in tensors.items():
            stem, sign, book = key.partition(_STATE)
            if sign and book in ("nf4", "fp4") and stem in tensors:
                found.append(_four(stem, "nf4" if book == "nf4" else "fp4", tensor, tensors))
            elif key.endswith(".weight") and tensor.dtype.name == "i8" and len(tensor.shape) == 2:
                scb = tensors.get(key.removesuffix("weight") + "SCB")
                if scb is not None and tensor.elements:
                    found.append(_eight(key, tensor, scb, tensors))
        return found


def _constant(key: str, values: Array) -> LazyTensor:
    row = dtype(values.dtype.name)
    return LazyTensor.contiguous(key, row, values.shape, MemoryBytes(values.tobytes(), key), 0)


def _damaged(key: str, why: str) -> CorruptError:
    return CorruptError(f"'{key}', stored quantized by bitsandbytes, is damaged: {why}")


def _eight(key: str, codes: LazyTensor, scb: LazyTensor, tensors: Mapping[str, LazyTensor]) -> Quantized:
    if scb.dtype.name != "f32" or scb.elements != codes.shape[0]:
        raise _damaged(key, f"its SCB is {scb.dtype} {list(scb.shape)} for {list(codes.shape)}")
    layout = tensors.get(key + "_format")
    if layout is not None and layout.elements and int(layout.array().reshape(-1)[0]):
        raise UnsupportedError(f"'{key}' is in a layout of one kind of GPU (weight_format is not 0)", hint="save it anew")
    every = [codes, scb, *([] if layout is None else [layout])]
    dense = partial(decoded, key, (codes, scb), Eight(), codes.shape)
    nbytes = sum(one.nbytes for one in every)
    return Quantized(key, codes.shape, dtype("f16"), "bnb", "int8", tuple(one.key for one in every), nbytes, dense)


def _four(key: str, book: Book, packed: LazyTensor, tensors: Mapping[str, LazyTensor]) -> Quantized:
    codes, state = tensors[key], _state(key, packed)
    shape, size, row = state["shape"], state["blocksize"], state["dtype"]
    names = ["absmax", "quant_map", *(["nested_absmax", "nested_quant_map"] if state["nested"] else [])]
    missing = next((name for name in names if f"{key}.{name}" not in tensors), None)
    if missing:
        raise _damaged(key, f"it has no {missing}")
    own = {name: tensors[f"{key}.{name}"] for name in names}
    if prod(shape) % size or not prod(shape):
        raise UnsupportedError(f"'{key}' {list(shape)} does not consist of whole blocks of {size}")
    if codes.dtype.name != "u8":  # stored as words of another dtype, for FSDP
        raise UnsupportedError(f"'{key}' is stored as {codes.dtype}, not as u8", hint="bnb_4bit_quant_storage=uint8")
    every = [codes, *own.values(), packed]
    dense = partial(_dense, key, book, state, codes, own)
    nbytes = sum(one.nbytes for one in every)
    scheme = f"{book}-nested" if state["nested"] else book
    return Quantized(key, shape, row, "bnb", scheme, tuple(one.key for one in every), nbytes, dense)


def _dense(key: str, book: Book, state: Mapping[str, Any], codes: LazyTensor, own: Mapping[str, LazyTensor]) -> LazyTensor:
    shape, size = state["shape"], state["blocksize"]
    table = _numbers(key, own["quant_map"], 16)
    second = _numbers(key, own["nested_quant_map"], 256) if state["nested"] else None
    codec = Four(FourBit(book, size), Nested(state["offset"]) if state["nested"] else None, table, second)
    tensors = [codes, own["absmax"], *([own["nested_absmax"]] if state["nested"] else [])]
    return views.reshape(decoded(key, tensors, codec, (prod(shape) // size, size)), shape)


def _numbers(key: str, tensor: LazyTensor, count: int) -> tuple[float, ...]:
    if tensor.dtype.name != "f32" or tensor.elements != count:
        raise _damaged(key, f"'{tensor.key}' is {tensor.dtype} {list(tensor.shape)}")
    return tuple(float(value) for value in tensor.array().reshape(-1))


def _state(key: str, packed: LazyTensor) -> dict[str, Any]:
    """What its JSON says, checked."""
    try:
        if packed.dtype.name != "u8" or packed.nbytes > _LARGEST:
            raise ValueError
        said = json.loads(packed.array().tobytes())
        shape = tuple(said["shape"])
        row: DType = BY_TORCH[str(said["dtype"]).removeprefix("torch.")]
        nested, size = "nested_offset" in said, said["blocksize"]
        good = all(type(one) is int and one > 0 for one in (*shape, size)) and size in (
            32,
            64,
            128,
            256,
            512,
            1024,
            2048,
            4096,
        )
        if not good or not row.floating or not shape or (nested and said["nested_blocksize"] != NESTED):
            raise ValueError
        offset = float(said["nested_offset"]) if nested else 0.0
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
        raise _damaged(key, f"'{packed.key}' does not tell shape, dtype and blocks") from None
    return {"shape": shape, "dtype": row, "blocksize": size, "nested": nested, "offset": offset}


LAYOUT = Bitsandbytes()
