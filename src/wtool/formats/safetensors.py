"""safetensors: one file, or several with an index as Hugging Face writes them.

The layout is https://github.com/huggingface/safetensors#format; safetensors_header.py holds its rules. Tied tensors are kept
as the library's `save_model` keeps them: one of them is stored, and the metadata says `alias: kept`. Reading shows the alias
as a key of its own, tied to the kept tensor.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from wtool.adapter import Capabilities, Judged, Match, Probe, SaveRequest
from wtool.bytesource import ByteSource
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import BY_SAFETENSORS
from wtool.errors import CorruptError, KeyClashError, LimitError, TruncatedError, UnsupportedError, WtoolError
from wtool.formats.safetensors_header import MAX_HEADER, parse, render, show
from wtool.formats.shards import WEIGHTS, Pattern, index_file, split
from wtool.plan import Layout, OutputFile, Patch, Slot
from wtool.tensor import LazyTensor, TensorSpec

if TYPE_CHECKING:
    from wtool.tensor import Array

SUFFIX = ".safetensors"
FRAMEWORKS = {"pt": "PyTorch", "tf": "TensorFlow", "flax": "Flax", "mlx": "MLX", "np": "NumPy", "paddle": "Paddle"}

_HEAD = 9  # the length and the "{"
_TEXT = 2**56  # a length whose eight bytes are all in use is rather text than a length


class Header(NamedTuple):
    """A file's own tensors in the order of their places, and its metadata, aliases still among it."""

    tensors: dict[str, LazyTensor]
    metadata: dict[str, str]


def read_header(source: ByteSource) -> Header:
    """Read the length and the header, nothing more. Raises CorruptError and its kin, with the path filled in."""
    try:
        if source.size < _HEAD:
            raise TruncatedError(f"only {source.size} bytes: too short for a safetensors header")
        length = int.from_bytes(source.pread(0, 8), "little")
        if length > MAX_HEADER:
            raise LimitError(f"declares a header of {length} bytes; safetensors allows {MAX_HEADER}")
        if length > source.size - 8:
            raise TruncatedError(
                f"declares a header of {length} bytes, but only {source.size - 8} follow",
                hint="the download or the copy was cut off: fetch it again",
            )
        entries, metadata = parse(source.pread(8, length), source.size - 8 - length)
    except WtoolError as error:
        raise error.at(source.name) from None
    begin = 8 + length
    tensors = {
        key: LazyTensor.contiguous(key, dtype, shape, source, begin + offset) for offset, _, key, dtype, shape in entries
    }
    return Header(tensors, metadata)


def with_aliases(tensors: dict[str, LazyTensor], metadata: Mapping[str, str]) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Tensors with those added that the metadata ties to one of them, and the metadata without these entries.

    An entry is a tie when its value is a tensor's key and its name is none, and is not "format".
    """
    aliases = {name: kept for name, kept in metadata.items() if kept in tensors and name not in tensors and name != "format"}
    if not aliases:
        return tensors, dict(metadata)
    tied = {alias: tensors[kept].renamed(alias) for alias, kept in aliases.items()}
    return {**tensors, **tied}, {name: value for name, value in metadata.items() if name not in aliases}


@dataclass(frozen=True, slots=True)
class SafetensorsSink:
    """Every byte but the values is known before they are."""

    layout: Layout

    def finish(self, checksums: Mapping[str, int]) -> Iterable[Patch]:
        return ()


class Safetensors:
    name = "safetensors"
    suffixes = (SUFFIX,)
    capabilities = Capabilities(
        write=True,
        dtypes=frozenset(row.name for row in BY_SAFETENSORS.values()),
        ties=True,
        metadata=True,
        sharded=True,
    )

    def sniff(self, probe: Probe) -> Match | None:
        """Certain when a possible length and a brace stand first; likely when the file is too short for that length."""
        if probe.kind != "file" or probe.head[8:_HEAD] != b"{":
            return None
        length = int.from_bytes(probe.head[:8], "little")
        if 2 <= length <= min(MAX_HEADER, probe.size - 8):
            return Match(100, "single")
        return Match(60, "single") if length < _TEXT else None

    def open(self, probe: Probe) -> Checkpoint:
        if probe.source is None:
            raise CorruptError("is no file", path=probe.path)
        header = read_header(probe.source)
        tensors, metadata = with_aliases(*header)
        framework = FRAMEWORKS.get(header.metadata.get("format", ""))
        source = Source(probe.path, self.name, "single", ((probe.path, probe.size),), framework)
        return Checkpoint(tensors, source, metadata)

    def create(self, request: SaveRequest) -> SafetensorsSink:
        """One file, or, beyond `max_shard`, several and an index, as huggingface_hub.save_torch_state_dict lays them out.

        Of tied tensors one of `keep` is stored, else the one whose key sorts first, as the official library chooses; keys of
        `tied` may stand in `specs` or not. With several files the metadata (but `format`, which each file has) and the ties
        stand in the index.
        """
        specs, aliases = _kept(request)
        taken = [name for name in aliases if name in request.metadata or name == "format"]
        if taken:
            raise KeyClashError(
                f"the metadata has an entry {show(taken[0])}, whose place is needed to say that this key is tied",
                path=request.target,
                hint="store both with --tied duplicate",
            )
        metadata = {**request.metadata, **aliases}
        if request.folder:
            pattern = WEIGHTS
        else:
            name = os.path.basename(request.target)
            stem = name.removesuffix(SUFFIX)
            pattern = Pattern(stem, name[len(stem) :])
        shards = split(specs, request.max_shard, pattern)
        try:
            if len(shards) == 1:
                return SafetensorsSink(_layout(shards, metadata, None, request.folder))
            own = {"format": metadata.pop("format")} if "format" in metadata else {}
            return SafetensorsSink(_layout(shards, own, index_file(shards, metadata, pattern), request.folder))
        except WtoolError as error:
            raise error.at(request.target) from None

    def judge(self, path: str) -> Iterator[Judged]:
        """Every tensor as the official library loads it, aliases after the tensor they are tied to.

        Through torch where it is installed, else through numpy. For the dtypes that numpy lacks, the library then
        checks the file and is handed each tensor alone.
        """
        from safetensors import safe_open

        files, named = _written_files(path)
        framework = "pt" if _has_torch() else "np"
        for file in files:
            with safe_open(file, framework=framework) as opened:
                aliases: dict[str, list[str]] = {}
                for alias, kept in {**named, **(opened.metadata() or {})}.items():
                    aliases.setdefault(kept, []).append(alias)
                for key in opened.keys():  # noqa: SIM118 (it is no mapping)
                    dtype = BY_SAFETENSORS[opened.get_slice(key).get_dtype()].name
                    array = _loaded(opened, file, key)
                    yield Judged(key, dtype, array)
                    for alias in aliases.get(key, ()):
                        yield Judged(alias, dtype, array)


ADAPTER = Safetensors()


def _kept(request: SaveRequest) -> tuple[list[TensorSpec], dict[str, str]]:
    """The specs that are stored, and alias -> kept for the others."""
    if not request.tied:
        return list(request.specs), {}
    present = {spec.key for spec in request.specs}
    groups: dict[str, list[str]] = {}
    for alias, kept in request.tied.items():
        groups.setdefault(kept, [kept]).append(alias)
    aliases: dict[str, str] = {}
    for keys in groups.values():
        first = min((key for key in keys if key in present), key=lambda key: (key not in request.keep, key))
        aliases.update((key, first) for key in sorted(keys) if key != first)
    return [spec for spec in request.specs if spec.key not in aliases], aliases


def _layout(
    shards: Mapping[str, list[TensorSpec]], metadata: Mapping[str, str], index: tuple[str, bytes] | None, folder: bool
) -> Layout:
    files, patches, slots = [], [], []
    for number, (name, specs) in enumerate(shards.items()):
        header, places = render(specs, metadata)
        patches.append(Patch(number, 0, header))
        slots += [Slot(spec.key, number, offset, spec.nbytes) for spec, offset in places]
        files.append(OutputFile(name, len(header) + sum(spec.nbytes for spec in specs)))
    if index is not None:
        name, text = index
        patches.append(Patch(len(files), 0, text))
        files.append(OutputFile(name, len(text)))
    return Layout(tuple(files), tuple(patches), tuple(slots), folder)


def _written_files(path: str) -> tuple[list[str], dict[str, str]]:
    """The files that `create` made for a target, and the ties that an index beside them says."""
    import json

    if os.path.isfile(path) and not path.endswith(".json"):
        return [path], {}
    if os.path.isdir(path):
        whole = os.path.join(path, WEIGHTS.name())
        if os.path.isfile(whole):
            return [whole], {}
        path = whole
    index = path if path.endswith(".json") else f"{path}.index.json"
    with open(index, encoding="utf-8") as file:
        table = json.load(file)
    names = dict.fromkeys(table["weight_map"].values())
    said = {name: value for name, value in table["metadata"].items() if isinstance(value, str)}
    return [os.path.join(os.path.dirname(index), name) for name in names], said


def _has_torch() -> bool:
    from importlib.util import find_spec

    return find_spec("torch") is not None


def _loaded(opened: Any, file: str, key: str) -> Array:
    """One tensor of a `safe_open` file as a numpy array of its dtype's type; packed types as flat bytes."""
    import numpy as np

    part = opened.get_slice(key)
    row, shape = BY_SAFETENSORS[part.get_dtype()], tuple(part.get_shape())
    try:
        tensor: Any = opened.get_tensor(key)
    except Exception:  # the frameworks lack some dtypes, and say so each in its own way
        return _alone(file, key)
    if isinstance(tensor, np.ndarray):
        return tensor
    import torch

    raw: Array = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return raw.view(row.numpy()).reshape(shape) if row.itemsize else raw


def _alone(file: str, key: str) -> Array:
    """A tensor that the library unpacked from a file of its own, for dtypes that no framework here can hold."""
    import numpy as np
    import safetensors

    from wtool.bytesource import LocalFile

    tensor = read_header(LocalFile(file)).tensors[key]
    span = tensor.span
    if span is None:
        raise UnsupportedError(f"tensor {show(key)} is not stored as one run of bytes", path=file)
    header, _ = render([tensor.spec])
    unpack: Any = safetensors.deserialize
    [(_, found)] = unpack(header + span.source.pread(span.offset, span.nbytes))
    raw = np.frombuffer(found["data"], np.uint8)
    return raw.view(tensor.dtype.numpy()).reshape(tensor.shape) if tensor.dtype.itemsize else raw
