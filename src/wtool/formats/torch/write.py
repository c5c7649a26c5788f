"""Lays out a checkpoint as `torch.save` would: a zip with a pickle of the object and one entry for each storage."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from wtool.adapter import SaveRequest, TensorSink
from wtool.checkpoint import Node, TensorRef
from wtool.errors import DtypeError, UsageError
from wtool.formats.pickle_parts import Pickled, Stored, StoredSparse
from wtool.formats.pickling import dumps
from wtool.formats.shards import INDEX, Pattern, split
from wtool.formats.torch.archive_layout import ALIGNMENT, Entry, descriptor, descriptor_size, directory, directory_size, header
from wtool.plan import Layout, OutputFile, Patch, Slot
from wtool.tensor import TensorSpec

WEIGHTS = Pattern("pytorch_model", ".bin")

_VERSION = b"3\n"  # of the archive, since torch 1.6


class _Storage(NamedTuple):
    key: str
    at: int  # of its local header
    data: int
    nbytes: int


class Archive(NamedTuple):
    """One file. `head` are the entries before the first storage, `tail` those after the last one, with their bytes."""

    name: str
    root: str
    size: int
    front: bytes
    head: tuple[Entry, ...]
    storages: tuple[_Storage, ...]
    tail: tuple[tuple[Entry, bytes], ...]


@dataclass(frozen=True, slots=True)
class TorchSink:
    """The layout of one archive or of several and their index."""

    layout: Layout
    archives: tuple[Archive, ...]

    def finish(self, checksums: Mapping[str, int]) -> Iterator[Patch]:
        """What stands between the storages, and the directories. `checksums`: the CRC-32 of each slot, by key."""
        for number, archive in enumerate(self.archives):
            yield from _finish(archive, number, checksums)


def create(request: SaveRequest) -> TensorSink:
    """One file, or, beyond `max_shard`, several and an index, with the names that transformers looks for.

    The object is the request's structure, given what it lacks at its top; without one, and in each of several files, an
    OrderedDict, key -> tensor. Raises DtypeError for a dtype that torch lacks.
    """
    for spec in request.specs:
        if spec.dtype.torch is None:
            raise DtypeError(
                f"tensor '{spec.key}' is {spec.dtype}, which PyTorch does not have",
                path=request.target,
                hint="choose another dtype with --dtype, or another format",
            )
    pattern = WEIGHTS
    if not request.folder:
        pattern = Pattern(*os.path.splitext(os.path.basename(request.target)))
    untied = [spec for spec in request.specs if spec.key not in request.tied]
    shards = split(untied, request.max_shard, pattern)
    owners = {key: key for key in (spec.key for spec in untied)} | dict(request.tied)
    if request.sparse and len(shards) > 1:
        raise UsageError(
            "torch's sparse tensors are written into one file", path=request.target, hint="no --max-shard, or --densify"
        )
    archives = []
    for name, specs in shards.items():
        kept = {spec.key: spec for spec in specs}
        table = {key: _stored(kept[owner]) for key, owner in _ordered(request, owners) if owner in kept}
        archives.append(_archive(name, _pickled(request, table, len(shards) == 1), kept))

    files = [OutputFile(archive.name, archive.size) for archive in archives]
    patches = [Patch(number, 0, archive.front) for number, archive in enumerate(archives)]
    if len(shards) > 1:
        homes = {spec.key: name for name, specs in shards.items() for spec in specs}
        index = _index(sum(spec.nbytes for spec in untied), {key: homes[owner] for key, owner in _ordered(request, owners)})
        patches.append(Patch(len(files), 0, index))
        files.append(OutputFile(pattern.name() + INDEX, len(index)))
    slots = (
        Slot(storage.key, number, storage.data, storage.nbytes)
        for number, archive in enumerate(archives)
        for storage in archive.storages
    )
    layout = Layout(tuple(files), tuple(patches), tuple(slots), folder=request.folder, checksum="crc32")
    return TorchSink(layout, tuple(archives))


def _ordered(request: SaveRequest, owners: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Every key and the key whose storage it has: in the order of the specs, and tied keys that have no spec last."""
    order = dict.fromkeys(spec.key for spec in request.specs) | dict.fromkeys(owners)
    return ((key, owners[key]) for key in order)


def _stored(spec: TensorSpec) -> Stored:
    return Stored(spec.key, spec.dtype, spec.shape)


def _joined(request: SaveRequest, stored: dict[str, Stored]) -> dict[str, Stored | StoredSparse]:
    """The table with each sparse tensor in place of the first of its parts."""
    whole = (one for one in request.sparse if one.key not in stored and all(part in stored for part in one.parts))
    at = {one.parts[0]: one for one in whole}
    inner = {part for one in at.values() for part in one.parts}
    table: dict[str, Stored | StoredSparse] = {}
    for key, tensor in stored.items():
        if (one := at.get(key)) is not None:
            table[one.key] = StoredSparse(one.layout, tuple(stored[part] for part in one.parts), one.shape, one.coalesced)
        elif key not in inner:
            table[key] = tensor
    return table


def _pickled(request: SaveRequest, stored: dict[str, Stored], whole: bool) -> Pickled:
    table = _joined(request, stored)
    flat = Node(tuple((key, TensorRef(key)) for key in table), ordered=True)
    structure = request.structure if whole else None
    if structure is None:
        return dumps(flat, table)
    pickled = dumps(structure, table)
    missing = tuple((key, TensorRef(key)) for key in table if key not in pickled.keys)
    if missing and isinstance(structure, Node):
        pickled = dumps(Node(structure.items + missing, structure.ordered, structure.attributes), table)
    elif missing:
        pickled = dumps(flat, table)
    return pickled


def _archive(name: str, pickled: Pickled, specs: Mapping[str, TensorSpec]) -> Archive:
    import hashlib
    from zlib import crc32

    root = _root(name)
    # torch makes the id from its own hashes of names and sums; a reader only compares it for equality.
    fingerprint = hashlib.blake2b(pickled.data, digest_size=16)
    identifier = b"%040d" % int.from_bytes(fingerprint.digest(), "little")

    at = 0
    head: list[Entry] = []
    front = bytearray()
    fixed = (
        ("data.pkl", pickled.data),
        (".format_version", b"1"),
        (".storage_alignment", b"%d" % ALIGNMENT),
        ("byteorder", b"little"),
    )
    for path, content in fixed:
        entry = Entry(_inside(root, path), at, len(content), crc32(content))
        head.append(entry)
        front += header(entry.name, at, entry.size) + content + descriptor(entry)
        at = len(front)

    storages: list[_Storage] = []
    places = [(entry.name, entry.at, entry.size) for entry in head]
    for number, key in enumerate(pickled.storages):
        inside, nbytes = _inside(root, f"data/{number}"), specs[key].nbytes
        data = at + len(header(inside, at, nbytes))
        storages.append(_Storage(key, at, data, nbytes))
        places.append((inside, at, nbytes))
        at = data + nbytes + descriptor_size(at, nbytes)

    tail: list[tuple[Entry, bytes]] = []
    for path, content in (("version", _VERSION), (".data/serialization_id", identifier)):
        entry = Entry(_inside(root, path), at, len(content), crc32(content))
        tail.append((entry, content))
        places.append((entry.name, at, entry.size))
        at += len(header(entry.name, at, entry.size)) + entry.size + descriptor_size(at, entry.size)
    size = at + directory_size(places)
    return Archive(name, root, size, bytes(front), tuple(head), tuple(storages), tuple(tail))


def _finish(archive: Archive, number: int, checksums: Mapping[str, int]) -> Iterator[Patch]:
    entries = list(archive.head)
    between = b""  # what stands from `start` up to the next values
    start = len(archive.front)
    for index, (key, at, data, nbytes) in enumerate(archive.storages):
        entry = Entry(_inside(archive.root, f"data/{index}"), at, nbytes, checksums[key])
        entries.append(entry)
        between += header(entry.name, at, nbytes)
        if nbytes:
            yield Patch(number, start, between)
            between, start = descriptor(entry), data + nbytes
    for entry, content in archive.tail:
        entries.append(entry)
        between += header(entry.name, entry.at, entry.size) + content + descriptor(entry)
    yield Patch(number, start, between + directory(entries, start + len(between)))


def _index(total: int, places: dict[str, str]) -> bytes:
    """As huggingface_hub writes it."""
    import json

    return json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2).encode()


def _root(name: str) -> str:
    """torch's name for the folder inside the archive: the file's name without its last suffix, if it is plain ASCII."""
    stem = name.rpartition(".")[0] if "." in name else name
    return stem if stem.isascii() and stem.isprintable() and stem.strip(". ") and "\\" not in stem else "archive"


def _inside(root: str, path: str) -> bytes:
    return f"{root}/{path}".encode()
