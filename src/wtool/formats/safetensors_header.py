"""The header of a safetensors file, both ways: bytes -> entries, specs -> bytes. Pure functions, no file.

A file is the length of the header (u64, little-endian), the header (JSON), and the values of all tensors, one after the
other. The reader refuses whatever the official library refuses (safetensors/src/tensor.rs, `SafeTensors::read_metadata`), and
some things that it lets through: a name that stands twice anywhere in the header (the format's README forbids it), a tensor
written as a JSON array instead of an object, a header that does not begin with "{", and numbers of more than 400 digits.
The writer gives the bytes that the official library gives.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import isinf
from typing import Any, NamedTuple

from wtool.dtypes import BY_SAFETENSORS, DType
from wtool.errors import CorruptError, LimitError, TruncatedError, UnsafeError, UnsupportedError, WtoolError
from wtool.tensor import Shape, TensorSpec

MAX_HEADER = 100_000_000  # bytes, as in tensor.rs
METADATA = "__metadata__"

_U64 = 2**64 - 1
_DIGITS = 400
_DEPTH = 100  # serde_json stops at 128 levels, of which a field's value has 126
_BRACKETS = 8  # bytes per bracket: an entry takes 16 at the least, a bomb of empty lists 3

# The order of tensor.rs' enum `Dtype`: files are sorted by it, the last first, then by name.
_ORDER = (
    *("BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    *("I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64"),
)
_RANK = {name: rank for rank, name in enumerate(_ORDER)}


class Entry(NamedTuple):
    """One tensor of the header. `offset` counts from the end of the header, in bytes."""

    offset: int
    stop: int
    key: str
    dtype: DType
    shape: Shape


def decode(text: str) -> Any:
    """JSON as strict as serde_json's, and refusing names that stand twice. Integers outside u64 come as floats."""
    if len(text) > 1 << 20 and (text.count("[") + text.count("{")) * _BRACKETS > len(text):
        raise LimitError("its JSON is little but brackets, which no checkpoint's is")
    try:
        table = _DECODER.decode(text)
        if "\\u" in text:
            json.dumps(table, ensure_ascii=False).encode()  # fails on half of a surrogate pair
    except RecursionError:
        raise LimitError("its JSON is nested too deeply") from None
    except UnicodeEncodeError:
        raise CorruptError("its JSON has half of a surrogate pair") from None
    except ValueError as error:
        raise CorruptError(f"its JSON is malformed: {error}") from None
    return table


def parse(raw: bytes, available: int) -> tuple[list[Entry], dict[str, str]]:
    """Entries in the order of their places, and the metadata, of a header after which `available` bytes follow."""
    if raw[:1] != b"{":
        raise CorruptError("the header does not begin with '{'")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise CorruptError(f"the header is no UTF-8 at byte {8 + error.start}") from None
    table = decode(text)
    metadata = table.pop(METADATA, None)
    entries = [_entry(key, info) for key, info in table.items()]
    entries.sort(key=_place)
    end = 0
    for entry in entries:
        if entry.offset != end:
            what = "leaves a hole before" if entry.offset > end else "overlaps the tensor before"
            raise CorruptError(f"tensor {show(entry.key)} begins at {entry.offset} where {end} is free: it {what} it")
        end = entry.stop
    if end > available:
        raise TruncatedError(
            f"{end - available} bytes are missing: tensor {show(entries[-1].key)} ends {end} bytes behind the header, "
            f"where only {available} are",
            hint="the download or the copy was cut off: fetch it again",
        )
    if end < available:
        raise CorruptError(
            f"{available - end} bytes stand after the last tensor and belong to none",
            hint="something was appended, or a longer file was overwritten in place; the official library refuses it too",
        )
    return entries, _strings(metadata)


def render(
    specs: Iterable[TensorSpec], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, list[tuple[TensorSpec, int]]]:
    """The length and the header as the official library writes them, and each spec with its offset in the file.

    Byte for byte what `safetensors.serialize` gives; where it leaves the order to chance (two or more entries of metadata:
    it walks a hash map), they stand sorted by name. No metadata is no entry, as for the library's None. Raises
    UnsupportedError for what the format cannot say, LimitError beyond 100,000,000 bytes.
    """
    ordered = sorted(specs, key=_written)
    table: dict[str, Any] = {}
    if metadata:
        table[METADATA] = {name: metadata[name] for name in sorted(metadata)}
    offset = 0
    places = []
    for spec in ordered:
        if spec.key == METADATA:
            raise UnsupportedError(
                f"safetensors cannot hold a tensor of the name '{METADATA}'", hint="rename it with --rename"
            )
        if spec.dtype.bits < 8 and spec.elements * spec.dtype.bits % 8:
            raise UnsupportedError(
                f"tensor {show(spec.key)}: {spec.elements} elements of {spec.dtype} do not fill whole bytes"
            )
        stop = offset + spec.nbytes
        table[spec.key] = {"dtype": spec.dtype.safetensors, "shape": spec.shape, "data_offsets": (offset, stop)}
        places.append(offset)
        offset = stop
    try:
        body = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise UnsupportedError("a key or an entry of metadata is no text that UTF-8 can hold") from None
    body += b" " * (-len(body) % 8)
    if len(body) > MAX_HEADER:
        raise LimitError(f"the header would take {len(body)} bytes; safetensors allows {MAX_HEADER}")
    begin = 8 + len(body)
    return len(body).to_bytes(8, "little") + body, [(spec, begin + at) for spec, at in zip(ordered, places, strict=True)]


def show(key: str) -> str:
    """A key for a message: quoted, control characters escaped, the middle of a long one left out."""
    return repr(key if len(key) <= 120 else f"{key[:80]}...{key[-30:]}")


def _place(entry: Entry) -> tuple[int, int]:
    return entry.offset, entry.stop


def _written(spec: TensorSpec) -> tuple[int, str]:
    if spec.dtype.safetensors is None:
        raise UnsupportedError(f"safetensors has no dtype {spec.dtype} (tensor {show(spec.key)})")
    return -_RANK[spec.dtype.safetensors], spec.key


def _entry(key: str, info: Any) -> Entry:
    try:
        name, sizes, (start, stop) = info["dtype"], info["shape"], info["data_offsets"]
        row = BY_SAFETENSORS[name]
    except (KeyError, TypeError, ValueError):
        raise _malformed(key, info) from None
    if type(sizes) is not list or type(start) is not int or type(stop) is not int:
        raise CorruptError(f"tensor {show(key)}: its shape or data_offsets are no whole numbers of 64 bits")
    elements = 1
    for size in sizes:
        if type(size) is not int:
            raise CorruptError(f"tensor {show(key)}: its shape has a size that is no whole number of 64 bits")
        elements *= size
        if elements > _U64:  # also where a later size is 0: so does the official library
            raise CorruptError(f"tensor {show(key)}: its shape overflows 64 bits")
    bits = elements * row.bits
    if bits > _U64:
        raise CorruptError(f"tensor {show(key)}: its size in bits overflows 64 bits")
    if bits % 8:
        raise CorruptError(f"tensor {show(key)}: {elements} elements of {row} do not fill whole bytes")
    if stop - start != bits // 8:
        raise CorruptError(
            f"tensor {show(key)}: {row} of shape {_shape(sizes)} takes {bits // 8} bytes, not those from {start} to {stop}"
        )
    if len(info) > 3 and _deeper(info, _DEPTH):
        raise LimitError(f"tensor {show(key)}: its entry is nested too deeply")
    return Entry(start, stop, key, row, tuple(sizes))


def _malformed(key: str, info: Any) -> WtoolError:
    where = f"tensor {show(key)}"
    if not isinstance(info, dict):
        return CorruptError(f"{where}: its entry is no JSON object")
    missing = [field for field in ("dtype", "shape", "data_offsets") if field not in info]
    if missing:
        return CorruptError(f"{where}: its entry has no {missing[0]}")
    name = info["dtype"]
    if not isinstance(name, str) or name not in BY_SAFETENSORS:
        return CorruptError(
            f"{where}: unknown dtype {show(name) if isinstance(name, str) else 'that is no text'}",
            hint="known: " + " ".join(BY_SAFETENSORS),
        )
    return CorruptError(f"{where}: its data_offsets are no pair")


def _shape(sizes: list[int]) -> str:
    return str(sizes) if len(sizes) <= 8 else f"of {len(sizes)} axes"


def _strings(metadata: Any) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise CorruptError(f"{METADATA} is no JSON object")
    for name, value in metadata.items():
        if not isinstance(value, str):
            raise CorruptError(f"{METADATA} entry {show(name)} is no text")
    return metadata


def _deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested more than `depth` deep."""
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        left = dict.fromkeys(table)
        for name, _ in pairs:
            if name not in left:
                raise UnsafeError(f"the name {show(name)} stands twice in its JSON: two readers could read two models from it")
            del left[name]
    return table


def _integer(text: str) -> int | float:
    # Not "-0" either: to serde_json it is a float, and a size is refused. int() of thousands of digits would be slow.
    if len(text) <= 20 and text[0] != "-":
        number = int(text)
        if number <= _U64:
            return number
    return _real(text)


def _real(text: str) -> float:
    number = float(text) if len(text) <= _DIGITS else float("inf")
    if isinf(number):
        raise CorruptError("its JSON has a number beyond what 64 bits hold")
    return number


def _constant(text: str) -> None:
    raise CorruptError(f"its JSON has {text}, which is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer, parse_float=_real, parse_constant=_constant)
