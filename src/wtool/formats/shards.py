"""How a checkpoint is cut into several files: which tensors go where, the files' names, and the index.

Names, split and index are those of huggingface_hub (serialization/_base.py, `split_state_dict_into_shards_factory`, and
`save_torch_state_dict`), so that what is written here is what transformers and diffusers would have written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from wtool.bytesource import LocalFile
from wtool.errors import CorruptError, LimitError, UnsafeError, WtoolError
from wtool.formats.safetensors_header import decode, show
from wtool.tensor import TensorSpec

INDEX = ".index.json"
MAX_INDEX = 100_000_000  # bytes, as for a safetensors header
SHARD = re.compile(r"(.+)-(\d{5,})-of-(\d{5,})(\.[A-Za-z0-9.]+)")


class Index(NamedTuple):
    """An index as it was read: key -> file, and its metadata."""

    places: dict[str, str]
    metadata: dict[str, Any]


class Pattern(NamedTuple):
    """Names of files: `model` + `.safetensors`, or `model-00001-of-00003.safetensors`."""

    stem: str
    suffix: str

    def name(self, number: int = 1, total: int = 1) -> str:
        middle = "" if total == 1 else f"-{number:05d}-of-{total:05d}"
        return f"{self.stem}{middle}{self.suffix}"


WEIGHTS = Pattern("model", ".safetensors")


def split(specs: Iterable[TensorSpec], most: int | None, pattern: Pattern) -> dict[str, list[TensorSpec]]:
    """File name -> its tensors, in order, each file at most `most` bytes of values; None is one file.

    Greedy in the order given, as huggingface_hub's: a tensor larger than `most` has a file of its own, placed before the
    file that is being filled. Tensors without values all follow the first of them, since to huggingface_hub they share one
    (empty) storage.
    """
    shards: list[list[TensorSpec]] = []
    current: list[TensorSpec] = []
    filled = 0
    empty: list[TensorSpec] = []
    for spec in specs:
        nbytes = spec.nbytes
        if not nbytes:
            empty.append(spec)
            if len(empty) > 1:
                continue
        if most is not None and nbytes > most:
            shards.append([spec])
            continue
        if most is not None and filled + nbytes > most:
            shards.append(current)
            current, filled = [], 0
        current.append(spec)
        filled += nbytes
    if current or not shards:
        shards.append(current)
    if len(empty) > 1:
        home = next(shard for shard in shards if empty[0] in shard)
        home += empty[1:]
    return {pattern.name(number, len(shards)): shard for number, shard in enumerate(shards, 1)}


def index_file(shards: Mapping[str, list[TensorSpec]], metadata: Mapping[str, str], pattern: Pattern) -> tuple[str, bytes]:
    """Name and bytes of the index, byte for byte as huggingface_hub writes it."""
    total = sum(spec.nbytes for specs in shards.values() for spec in specs)
    weights = {spec.key: name for name, specs in shards.items() for spec in specs}
    table = {"metadata": {"total_size": total, **metadata}, "weight_map": weights}
    return pattern.name() + INDEX, json.dumps(table, indent=2).encode()


def read_index(path: str) -> Index:
    """The index at `path`. UnsafeError when it names a file outside its folder, CorruptError when it is no index."""
    source = LocalFile(path)
    try:
        if source.size > MAX_INDEX:
            raise LimitError(f"an index of {source.size} bytes; {MAX_INDEX} are allowed")
        try:
            table = decode(source.pread(0, source.size).decode())
        except UnicodeDecodeError as error:
            raise CorruptError(f"the index is no UTF-8 at byte {error.start}") from None
        places = table.get("weight_map") if isinstance(table, dict) else None
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise CorruptError("the index has no weight_map from keys to file names")
        if not places:
            raise CorruptError("the index names no tensor")
        for name in dict.fromkeys(places.values()):
            _plain(name)
    except WtoolError as error:
        raise error.at(path) from None
    metadata = table.get("metadata")
    return Index(places, metadata if isinstance(metadata, dict) else {})


def _plain(name: str) -> None:
    """UnsafeError if a shard's name leads out of the index's folder."""
    if not name or name in (".", "..") or any(mark in name for mark in "/\\:\0"):
        raise UnsafeError(f"the index names the shard {show(name)}: a shard must be a file beside its index")
