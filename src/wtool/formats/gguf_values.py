"""The keys and values of a GGUF file on their way through a conversion: seen as plain values, kept as the bytes they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from struct import error as struct_error
from struct import pack
from typing import Any

from wtool.bytesource import ByteSource
from wtool.checkpoint import Opaque
from wtool.errors import UnsupportedError, UsageError
from wtool.formats.gguf_header import ALIGNMENT, NAMES, NUMBERS, STRING, Entry, Summary
from wtool.tensor import TensorSpec

ARCHITECTURE = "general.architecture"
FILE_TYPE = "general.file_type"
QUANTIZED = "general.quantization_version"
TOKENS = "tokenizer.ggml.tokens"
_SPLIT = ("split.no", "split.count", "split.tensors.count")  # of a file among several; what is written is one

# Of the dtype that most weights have, llama.h's `llama_ftype`; where it knows mixes of sizes S and M, the plain one, S.
_FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k": 11, "q4_k": 14, "q5_k": 16,
    "q6_k": 18, "iq2_xxs": 19, "iq2_xs": 20, "iq3_xxs": 23, "iq1_s": 24, "iq4_nl": 25, "iq3_s": 26, "iq2_s": 28, "iq4_xs": 30,
    "iq1_m": 31, "bf16": 32, "tq1_0": 36, "tq2_0": 37,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class KeyValues(Mapping[str, Any]):
    """What stands in a file beside its tensors, as the extras of a checkpoint: key -> plain value, in the order of the file.

    Text stands in the checkpoint's metadata instead, and is not among these. `entries` are all; their bytes lie in `source`.
    `specs` are those of the file's tensors.
    """

    source: ByteSource
    entries: tuple[Entry, ...]
    specs: tuple[TensorSpec, ...] = field(repr=False)

    @cached_property
    def _plain(self) -> dict[str, Any]:
        return {entry.name: _shown(entry.value) for entry in self.entries if not isinstance(entry.value, str)}

    def __getitem__(self, key: str) -> Any:
        return self._plain[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._plain)

    def __len__(self) -> int:
        return len(self._plain)

    @property
    def texts(self) -> dict[str, str]:
        return {entry.name: entry.value for entry in self.entries if isinstance(entry.value, str)}

    def bytes(self, entry: Entry) -> bytes:
        """Type and value as they lie in the file."""
        return self.source.pread(entry.offset, entry.nbytes)


def _shown(value: Any) -> Any:
    return Opaque(str(value)) if isinstance(value, Summary) else value


@dataclass(frozen=True, slots=True)
class Rendered:
    """The keys of an output: their number, their bytes, the alignment they ask for, and what to say of them."""

    count: int
    data: bytes
    alignment: int
    notes: tuple[str, ...]


def render(carried: KeyValues | None, metadata: Mapping[str, str], specs: Sequence[TensorSpec]) -> Rendered:
    """The keys for an output of these tensors.

    What the source had is kept as its bytes, in its order; text as `metadata` has it now, which adds keys and takes some away.
    Left out are the keys of files that are parts of others. `general.file_type` changes with what most weights are;
    `general.quantization_version` is added where blocks are new, since the specification demands it.
    """
    texts = dict(metadata)
    known = carried.texts if carried is not None else {}
    if "format" not in known:
        texts.pop("format", None)  # safetensors' note on its own layout
    rows: dict[str, bytes] = {}
    notes: list[str] = []
    alignment = 32
    for entry in carried.entries if carried is not None else ():
        assert carried is not None
        if entry.name in known:
            if entry.name in texts:
                text = texts.pop(entry.name)
                rows[entry.name] = carried.bytes(entry) if text == entry.value else _string(text)
        elif entry.name in texts:
            rows[entry.name] = _changed(entry, texts.pop(entry.name))
        elif entry.name == FILE_TYPE:
            data = _file_type(entry, carried, specs, notes)
            if data is not None:
                rows[entry.name] = data
        elif entry.name not in _SPLIT:
            rows[entry.name] = carried.bytes(entry)
            alignment = entry.value if entry.name == ALIGNMENT else alignment
    rows.update((name, _string(text)) for name, text in texts.items())
    had_blocks = carried is not None and any(spec.dtype.block for spec in carried.specs)
    if QUANTIZED not in rows and not had_blocks and any(spec.dtype.block for spec in specs):
        rows[QUANTIZED] = _u32(2)  # GGML_QNT_VERSION
    lacking = [what for name, what in ((ARCHITECTURE, "architecture"), (TOKENS, "tokenizer")) if name not in rows]
    if lacking:
        notes.insert(0, f"weights only: no {' or '.join(lacking)} keys, so runtimes such as llama.cpp will not load it")
    data = b"".join(_text(name) + value for name, value in rows.items())
    return Rendered(len(rows), data, alignment, tuple(notes))


def _file_type(entry: Entry, carried: KeyValues, specs: Sequence[TensorSpec], notes: list[str]) -> bytes | None:
    """The bytes of `general.file_type`: as they are while most weights are of the dtype they were of."""
    before, now = most_weights(carried.specs), most_weights(specs)
    if before == now or entry.type not in NUMBERS:
        return carried.bytes(entry)
    if now not in _FILE_TYPES:
        notes.append(f"{FILE_TYPE}, which said {entry.value}, is left out: it has no number for {now}")
        return None
    notes.append(f"{FILE_TYPE} is {_FILE_TYPES[now]} now, for {now}; it was {entry.value}")
    return _u32(_FILE_TYPES[now])


def most_weights(specs: Iterable[TensorSpec]) -> str | None:
    """The dtype that most elements of matrices have."""
    sums: dict[str, int] = {}
    for spec in specs:
        if len(spec.shape) >= 2:
            sums[spec.dtype.name] = sums.get(spec.dtype.name, 0) + prod(spec.shape)
    return max(sums, key=lambda name: sums[name], default=None)


def _changed(entry: Entry, text: str) -> bytes:
    """Another value for a key that was no text, of the type it had. UsageError where the text is none."""
    try:
        if NAMES.get(entry.type) == "bool":
            value: int | float | bool = {"true": True, "false": False}[text.lower()]
        elif NAMES.get(entry.type) in ("f32", "f64"):
            value = float(text)
        else:
            value = int(text)
        return entry.type.to_bytes(4, "little") + pack(f"<{NUMBERS[entry.type]}", value)
    except (KeyError, ValueError, OverflowError, struct_error):
        kind = NAMES.get(entry.type, "an array")
        raise UsageError(f"the key {entry.name} is {kind}, which '{text}' is not") from None


def _text(text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise UnsupportedError("a key or an entry of metadata is no text that UTF-8 can hold") from None
    return len(data).to_bytes(8, "little") + data


def _string(text: str) -> bytes:
    return STRING.to_bytes(4, "little") + _text(text)


def _u32(value: int) -> bytes:
    return (4).to_bytes(4, "little") + value.to_bytes(4, "little")
