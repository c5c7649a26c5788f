"""Checkpoint -> TensorFlow's checkpoint V2: one data shard, the values packed in the order given, and the index file.

The object graph goes behind the values, as TensorFlow writes it. Plain keys are written as they are, so that Saver and
load_checkpoint find them, and once more in the index as object keys of the same bytes, so that tf.train.Checkpoint restores
the objects that the keys form. Without a graph it is a file as TensorFlow 1 wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os.path import basename

from wtool.adapter import SaveRequest
from wtool.errors import DtypeError, UnsupportedError, UsageError
from wtool.formats.sstable import mask, write_table
from wtool.formats.tensorflow.bundle import STRING, Entry, format_entry, format_header
from wtool.formats.tensorflow.graph import KEY, aliases, build_graph, parse_graph, prune_graph
from wtool.formats.tensorflow.place import INDEX, STATE, shard_name
from wtool.formats.tensorflow.strings import encode
from wtool.plan import Layout, OutputFile, Patch, Slot

_IN_FOLDER = "model.ckpt"


@dataclass(frozen=True, slots=True)
class BundleSink:
    """The layout; `entries` of the tensors without checksums, the other keys of some, and the graph's own entry, if any."""

    layout: Layout
    entries: tuple[tuple[str, Entry], ...]
    also: Mapping[str, str]
    graph: Entry | None

    def finish(self, checksums: Mapping[str, int]) -> Iterable[Patch]:
        """The whole index file. `checksums` are the crc32c (not masked) of every slot's bytes, 0 for one without bytes."""
        sums = {key: mask(checksums[key]) for key, _ in self.entries}
        return (Patch(len(self.layout.files) - 1, 0, _index(self.entries, self.also, self.graph, sums)),)


def create(request: SaveRequest) -> BundleSink:
    """Lay out a checkpoint of prefix `request.target` (without `.index`), or of `model.ckpt` in that folder.

    `request.structure` may be the bytes of the object graph that the tensors had: it is kept as far as its keys are here.
    Without it, or if there are keys that it does not know, one is made of the keys; if it is empty there is none.
    """
    offset = 0
    entries: list[tuple[str, Entry]] = []
    slots: list[Slot] = []
    for spec in request.specs:
        _check(spec.key)
        if spec.dtype.tf is None:
            raise DtypeError(f"TensorFlow has no dtype {spec.dtype} for '{spec.key}'", path=request.target)
        entries.append((spec.key, Entry(spec.dtype.tf, spec.shape, 0, offset, spec.nbytes, 0)))
        slots.append(Slot(spec.key, 0, offset, spec.nbytes))
        offset += spec.nbytes
    graph, also = _graph([key for key, _ in entries], request.structure)
    data, crc = encode(graph) if graph else (b"", 0)
    graph_entry = Entry(STRING, (), 0, offset, len(data), crc) if graph else None
    prefix = _IN_FOLDER if request.folder else basename(request.target.removesuffix(INDEX))
    if not prefix:
        raise UsageError("is no name for a checkpoint", path=request.target)
    files = [OutputFile(shard_name(prefix, 0, 1), offset + len(data))]
    patches = [Patch(0, offset, data)] if data else []
    if request.folder:
        state = f'model_checkpoint_path: "{prefix}"\nall_model_checkpoint_paths: "{prefix}"\n'.encode()
        files.append(OutputFile(STATE, len(state)))
        patches.append(Patch(1, 0, state))
    # Checksums have a fixed width, so the index is already as long as it will be.
    files.append(OutputFile(prefix + INDEX, len(_index(entries, also, graph_entry, {}))))
    layout = Layout(tuple(files), tuple(patches), tuple(slots), folder=request.folder, checksum="crc32c")
    return BundleSink(layout, tuple(entries), also, graph_entry)


def _check(key: str) -> None:
    """Keys that would mean something else: the header (""), slices of partitioned variables, the object graph."""
    try:
        key.encode()
    except UnicodeEncodeError:
        raise UnsupportedError(f"the key {key[:80]!r} cannot be written: it is no valid text") from None
    if not key or key[0] == "\0" or key == KEY:
        raise UnsupportedError(f"TensorFlow uses the key {key!r} itself", hint="rename it with --rename")


def _graph(keys: list[str], original: object) -> tuple[bytes, dict[str, str]]:
    if original == b"":
        return original, {}
    if isinstance(original, bytes):
        stored = {attribute.key for attribute in parse_graph(original).attributes}
        if stored.issuperset(keys):
            return (original if stored == set(keys) else prune_graph(original, set(keys))), {}
    also = aliases(keys)
    return build_graph(keys, also), also


def _index(
    entries: Iterable[tuple[str, Entry]], also: Mapping[str, str], graph: Entry | None, checksums: Mapping[str, int]
) -> bytes:
    """The index file; sums that are not known yet count as 0."""
    table = {} if graph is None else {KEY.encode(): format_entry(graph)}
    for key, entry in entries:
        value = format_entry(entry._replace(crc=checksums.get(key, 0)))
        table[key.encode()] = value
        if key in also:
            table[also[key].encode()] = value
    return write_table([(b"", format_header(1)), *sorted(table.items())])
