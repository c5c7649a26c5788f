"""GGUF: the files of llama.cpp and its kin, of ggml's tensors with their keys and values.

gguf_header.py reads what stands before the data, gguf_values.py keeps keys and values through a conversion. Shapes are shown
in C order, ggml's the other way round. A file that is the part of several ("-00001-of-00003.gguf") is read with the others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wtool.adapter import Capabilities, Judged, Match, Probe, SaveRequest
from wtool.bytesource import ByteSource, LocalFile
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import BY_GGML
from wtool.errors import (
    CorruptError,
    DuplicateTensorError,
    LimitError,
    MissingShardError,
    NotFoundError,
    UnsupportedError,
    WtoolError,
)
from wtool.plan import Layout, OutputFile, Patch, Slot
from wtool.tensor import LazyTensor, TensorSpec

if TYPE_CHECKING:
    from wtool.formats.gguf_header import Header

_MAGIC = b"GGUF"
_VERSION = 3
_NAME = 63  # bytes of a tensor's name that ggml has room for (GGML_MAX_NAME, less one)
_AXES = 4  # GGML_MAX_DIMS
_SHORTER = "--rename 'REGEX=>REPL' gives others"
_PART = re.compile(r"(.*-)(\d{5})-of-(\d{5})(\.gguf)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class GgufSink:
    """Every byte but the values is known before they are. `notes` are for people."""

    layout: Layout
    notes: tuple[str, ...] = ()

    def finish(self, checksums: Mapping[str, int]) -> Iterable[Patch]:
        return ()


class Gguf:
    name = "gguf"
    suffixes = (".gguf",)
    capabilities = Capabilities(
        write=True, dtypes=frozenset(row.name for row in BY_GGML.values()), metadata=True, extras=False
    )

    def sniff(self, probe: Probe) -> Match | None:
        return Match(100, "single") if probe.kind == "file" and probe.head[:4] == _MAGIC else None

    def open(self, probe: Probe) -> Checkpoint:
        from wtool.formats.gguf_values import KeyValues

        if probe.source is None:
            raise CorruptError("is no file", path=probe.path)
        header = _header(probe.source)
        count = _parts(header)
        if count > 1:
            return self._parts(probe, count)
        tensors = _tensors(probe.source, header)
        keys = KeyValues(probe.source, header.entries, tuple(tensor.spec for tensor in tensors.values()))
        variant = "single" if header.version == _VERSION else f"v{header.version}"
        return Checkpoint(tensors, Source(probe.path, self.name, variant, ((probe.path, probe.size),)), keys.texts, keys)

    def _parts(self, probe: Probe, count: int) -> Checkpoint:
        """All parts as one; the keys are the first's, as llama.cpp takes them."""
        from wtool.formats.gguf_values import KeyValues

        named = _PART.fullmatch(probe.path)
        if named is None or int(named[3]) != count:
            raise UnsupportedError(
                f"is one of {count} parts, and its name does not say which",
                path=probe.path,
                hint=f"the parts are called NAME-00001-of-{count:05}.gguf and so on, in one folder",
            )
        tensors: dict[str, LazyTensor] = {}
        files: list[tuple[str, int]] = []
        keys: KeyValues | None = None
        for number in range(1, count + 1):
            path = f"{named[1]}{number:05}-of-{named[3]}{named[4]}"
            try:
                source = LocalFile(path)
            except NotFoundError:
                raise MissingShardError(f"part {number} of {count} is missing", path=path) from None
            header = _header(source)
            if (_parts(header), _value(header, "split.no")) != (count, number - 1):
                raise CorruptError(f"is not part {number} of {count}, as its name says", path=path)
            for key, tensor in _tensors(source, header).items():
                if key in tensors:
                    raise DuplicateTensorError(f"tensor '{key}' stands in two parts", path=path)
                tensors[key] = tensor
            files.append((path, source.size))
            keys = keys or KeyValues(source, header.entries, ())
        assert keys is not None
        keys = KeyValues(keys.source, keys.entries, tuple(tensor.spec for tensor in tensors.values()))
        return Checkpoint(tensors, Source(probe.path, self.name, "split", tuple(files)), keys.texts, keys)

    def create(self, request: SaveRequest) -> GgufSink:
        """One file, as gguf.GGUFWriter lays it out. `structure` are the keys of the file that was read, if it was one."""
        from wtool.formats.gguf_header import MAX_HEADER, MAX_TENSORS
        from wtool.formats.gguf_values import KeyValues, render

        for spec in request.specs:
            _check(spec, request.target)
        carried = request.structure if isinstance(request.structure, KeyValues) else None
        keys = render(carried, request.metadata, request.specs)
        infos, places, end = [], [], 0
        for spec in request.specs:
            infos.append(_info(spec, end))
            places.append(end)
            end = _aligned(end + spec.nbytes, keys.alignment)
        counts = len(request.specs).to_bytes(8, "little") + keys.count.to_bytes(8, "little")
        front = b"".join((_MAGIC, _VERSION.to_bytes(4, "little"), counts, keys.data, *infos))
        if len(front) > MAX_HEADER or len(infos) > MAX_TENSORS:
            raise LimitError(
                f"{len(infos)} tensors and {len(front)} bytes of keys and names are more than wtool reads", path=request.target
            )
        begin = _aligned(len(front), keys.alignment)
        slots = tuple(Slot(spec.key, 0, begin + at, spec.nbytes) for spec, at in zip(request.specs, places, strict=True))
        file = OutputFile(os.path.basename(request.target), begin + end)
        notes = keys.notes
        empty = next((spec.key for spec in request.specs if 0 in spec.shape), None)
        if empty is not None:  # gguf_init_from_file_impl divides by the sizes
            notes += (f"'{empty}' has no values: llama.cpp stops at such a tensor; --exclude leaves it out",)
        return GgufSink(Layout((file,), (Patch(0, 0, front),), slots), notes)

    def judge(self, path: str) -> Iterator[Judged]:
        """Every tensor as the gguf package reads it; blocks as their bytes."""
        from gguf import GGUFReader

        try:
            tensors = GGUFReader(path).tensors
        except Exception as error:  # it has no errors of its own
            raise UnsupportedError(f"the gguf package cannot read it: {type(error).__name__}: {error}", path=path) from None
        for tensor in tensors:
            row = BY_GGML[int(tensor.tensor_type)]
            raw: Any = tensor.data.reshape(-1).view("u1")
            shape = tuple(int(size) for size in tensor.shape[::-1])
            yield Judged(tensor.name, row.name, raw.view(row.numpy()).reshape(shape) if row.itemsize else raw)


ADAPTER = Gguf()


def _header(source: ByteSource) -> Header:
    from wtool.formats.gguf_header import read_header

    try:
        return read_header(source)
    except WtoolError as error:
        raise error.at(source.name) from None


def _tensors(source: ByteSource, header: Header) -> dict[str, LazyTensor]:
    return {
        info.name: LazyTensor.contiguous(info.name, info.dtype, info.shape, source, info.offset) for info in header.tensors
    }


def _value(header: Header, name: str) -> Any:
    return next((entry.value for entry in header.entries if entry.name == name), None)


def _parts(header: Header) -> int:
    """Of how many files this is one."""
    count = _value(header, "split.count")
    return count if type(count) is int else 1


def _check(spec: TensorSpec, path: str) -> None:
    """Refuse what ggml has no room for."""
    if "\0" in spec.key:
        raise UnsupportedError(f"'{spec.key}': ggml's names end at a zero byte", path=path, hint=_SHORTER)
    try:
        size = len(spec.key.encode())
    except UnicodeEncodeError:
        raise UnsupportedError(f"'{spec.key}' is no text that UTF-8 can hold", path=path) from None
    if size > _NAME:
        raise UnsupportedError(f"'{spec.key}' has {size} bytes; ggml's names have at most {_NAME}", path=path, hint=_SHORTER)
    if len(spec.shape) > _AXES:
        raise UnsupportedError(
            f"'{spec.key}' has {len(spec.shape)} axes; ggml's tensors have at most {_AXES}",
            path=path,
            hint="--exclude leaves it out",
        )
    columns, (values, _) = (spec.shape or (1,))[-1], spec.dtype.run
    if columns % values:
        text = f"'{spec.key}': rows of {columns} values are no whole blocks of {spec.dtype}, which have {values}"
        raise UnsupportedError(text, path=path)


def _info(spec: TensorSpec, offset: int) -> bytes:
    name = spec.key.encode()
    assert spec.dtype.ggml is not None
    sizes = b"".join(size.to_bytes(8, "little") for size in reversed(spec.shape))
    return b"".join(
        (
            len(name).to_bytes(8, "little"),
            name,
            len(spec.shape).to_bytes(4, "little"),
            sizes,
            spec.dtype.ggml.to_bytes(4, "little"),
            offset.to_bytes(8, "little"),
        )
    )


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
