"""Folders and sharded checkpoints: several safetensors or torch files that are one, with an index or without.

An index is the JSON that Hugging Face's libraries write: {"metadata": {"total_size": bytes}, "weight_map": {key: file}}. The
shards it names must lie beside it; a shard that is a link, as in Hugging Face's cache, is followed.

In a folder the candidates are, the first kind that is there: a safetensors index, safetensors files, a torch index, torch
files. Several candidates of that kind are an error that lists them, never a guess.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NoReturn

from wtool.adapter import Capabilities, FormatAdapter, Judged, Match, Probe, SaveRequest, TensorSink, probe
from wtool.checkpoint import Checkpoint, Source, Warning
from wtool.errors import (
    DuplicateTensorError,
    ForeignShardError,
    MisplacedTensorError,
    MissingShardError,
    MissingTensorError,
    UnknownFormatError,
    UnsupportedError,
    UsageError,
    WtoolError,
)
from wtool.formats.safetensors import ADAPTER as SAFETENSORS
from wtool.formats.safetensors import FRAMEWORKS, read_header, with_aliases
from wtool.formats.safetensors_header import show
from wtool.formats.shards import INDEX, SHARD, read_index
from wtool.tensor import LazyTensor

_WORKERS = 8

_KINDS = (
    re.compile(r".+\.safetensors\.index(\.\w+)?\.json", re.DOTALL),
    re.compile(r".+\.safetensors", re.DOTALL),
    re.compile(r".+\.bin\.index(\.\w+)?\.json", re.DOTALL),
    re.compile(r".+\.(bin|pt|pth|ckpt)", re.DOTALL),
)
# What trainers leave beside the weights.
_BESIDE = re.compile(r"(optimizer|scheduler|scaler|training_args|rng_state\w*)\.(bin|pt|pth)")
_NUMBERS = frozenset({"total_size", "total_parameters"})  # of the index's metadata: said by the tensors themselves


class Sharded:
    name = "sharded"
    suffixes: tuple[str, ...] = ()
    capabilities = Capabilities()

    def sniff(self, probe: Probe) -> Match | None:
        if probe.kind == "folder":
            found = candidates(probe.names)
            if not found:
                return None
            several = len(found) == 1 and (len(found[0]) > 1 or found[0][0].endswith(".json"))
            return Match(90, "sharded" if several else "single")
        if probe.kind != "file" or probe.head.lstrip()[:1] != b"{":
            return None
        named = INDEX in probe.path or b'"weight_map"' in probe.head or b'"weight_map"' in probe.tail
        return Match(90, "sharded") if named else None

    def open(self, probe: Probe) -> Checkpoint:
        if probe.kind == "file":
            return _open_index(probe.path, probe.path)
        found = candidates(probe.names)
        if len(found) > 1:
            names = [group[0] for group in found]
            raise UsageError(
                f"the folder holds {len(found)} checkpoints: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
                path=probe.path,
                hint=f"name one of them, such as {os.path.join(probe.path, names[0])}",
            )
        [group] = found
        first = os.path.join(probe.path, group[0])
        if group[0].endswith(".json"):
            return _open_index(first, probe.path)
        shard = SHARD.fullmatch(group[0])
        if shard is None or shard.group(3).lstrip("0") == "1":
            opened = _member(first)[1]
            return replace(opened, source=replace(opened.source, path=probe.path))
        return _open_numbered(probe.path, group)

    def create(self, request: SaveRequest) -> TensorSink:
        self._refuse(request.target)

    def judge(self, path: str) -> Iterator[Judged]:
        self._refuse(path)

    def _refuse(self, path: str) -> NoReturn:
        raise UnsupportedError("shards are written as what they hold", path=path, hint="--to safetensors --max-shard 5GB")


ADAPTER = Sharded()


def candidates(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Groups of files of a folder, each of which is one checkpoint: an index alone, shards of one numbering, or a file."""
    for kind in _KINDS:
        groups: dict[object, list[str]] = {}
        for name in names:
            if name.startswith(".") or not kind.fullmatch(name) or _BESIDE.fullmatch(name):
                continue
            shard = SHARD.fullmatch(name)
            groups.setdefault(shard.group(1, 3, 4) if shard else name, []).append(name)
        if groups:
            return [tuple(group) for group in groups.values()]
    return []


def _open_index(path: str, shown: str) -> Checkpoint:
    index = read_index(path)
    folder = os.path.dirname(path)
    names = list(dict.fromkeys(index.places.values()))
    missing = [name for name in names if not os.path.exists(os.path.join(folder, name))]
    if missing:
        raise MissingShardError(
            f"{len(missing)} of {len(names)} shards are missing: {_listed(missing)}",
            path=path,
            hint="the download was not finished: fetch them",
        )
    shards = _open_all([os.path.join(folder, name) for name in names])
    try:
        tensors, unnamed = _placed(index.places, dict(zip(names, shards, strict=True)))
    except WtoolError as error:
        raise error.at(path) from None
    warnings = [
        Warning("extra-shard", f"{name} looks like a shard, but the index does not name it: it was not read")
        for name in _extras(folder, names)
    ]
    if unnamed:
        said = f"{len(unnamed)} tensors are in the shards but not in the index: {_listed(map(show, unnamed))}"
        warnings.append(Warning("unindexed-tensor", said))
    warnings += _stale(index.metadata.get("total_size"), tensors)
    whole = _joined(shown, [(path, os.path.getsize(path))], shards, tensors, index.metadata, warnings)
    lost = [key for key in index.places if key not in whole.tensors]
    if lost:
        raise MissingTensorError(
            f"{len(lost)} tensors of the index are in no shard, first {show(lost[0])} of {index.places[lost[0]]}", path=path
        )
    return whole


def _open_numbered(folder: str, names: tuple[str, ...]) -> Checkpoint:
    """Shards without an index: complete by their numbers, their tensors in the order of the shards."""
    parts = [match.group(2, 3) for match in map(SHARD.fullmatch, names) if match]
    numbers = {number.lstrip("0") for number, _ in parts}
    total = parts[0][1].lstrip("0")
    # Compared as text, since a name can be a number of any length. Some tools count from 0.
    if str(len(numbers)) != total or ("" in numbers) == (total in numbers):
        raise MissingShardError(
            f"{len(numbers)} of {total or '0'} shards are here, and no index: {_listed(names)}",
            path=folder,
            hint="the download was not finished: fetch them",
        )
    shards = _open_all([os.path.join(folder, name) for name in names])
    tensors: dict[str, LazyTensor] = {}
    for name, shard in zip(names, shards, strict=True):
        for key, tensor in shard.tensors.items():
            if key in tensors:
                raise DuplicateTensorError(f"tensor {show(key)} stands in {name} and in a shard before it", path=folder)
            tensors[key] = tensor
    found = Warning("no-index", f"{total} shards without an index: they were put together by their names")
    return _joined(folder, [], shards, tensors, {}, [found])


def _open_all(paths: list[str]) -> list[Checkpoint]:
    """All shards, several at a time; aliases in their metadata are not yet keys."""
    if len(paths) == 1:
        return [_member(paths[0], alone=False)[1]]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(_WORKERS, len(paths))) as pool:
        opened = list(pool.map(lambda path: _member(path, alone=False), paths))
    formats = {name for name, _ in opened}
    if len(formats) > 1:
        odd = next(path for path, (name, _) in zip(paths, opened, strict=True) if name != opened[0][0])
        raise ForeignShardError(f"the shards are of several formats: {', '.join(sorted(formats))}", path=odd)
    return [checkpoint for _, checkpoint in opened]


def _member(path: str, alone: bool = True) -> tuple[str, Checkpoint]:
    """Open one file by its content: (format, checkpoint)."""
    seen = probe(path)
    if seen.source is not None and SAFETENSORS.sniff(seen):
        if alone:
            return SAFETENSORS.name, SAFETENSORS.open(seen)
        header = read_header(seen.source)
        source = Source(
            path, SAFETENSORS.name, "single", ((path, seen.size),), FRAMEWORKS.get(header.metadata.get("format", ""))
        )
        return SAFETENSORS.name, Checkpoint(header.tensors, source, header.metadata)
    from wtool.formats.torch import ADAPTER as torch

    adapter: FormatAdapter = torch
    if adapter.sniff(seen):
        return adapter.name, adapter.open(seen)
    from wtool.formats.strangers import describe

    raise UnknownFormatError(describe(seen), path=path)


def _placed(places: dict[str, str], shards: dict[str, Checkpoint]) -> tuple[dict[str, LazyTensor], list[str]]:
    """Tensors in the order of the index, and the keys that stand in a shard but not in the index (at the end)."""
    homes: dict[str, str] = {}
    for name, shard in shards.items():
        for key in shard.tensors:
            if key in homes:
                raise DuplicateTensorError(f"tensor {show(key)} stands in {homes[key]} and in {name}")
            homes[key] = name
    known = dict.fromkeys(shards, 0)
    for key, name in places.items():
        known[name] += homes.get(key) == name
    for name, count in known.items():
        if not count:
            raise ForeignShardError(
                f"the shard {name} holds nothing of what the index says it holds: it is another checkpoint's"
            )
    tensors: dict[str, LazyTensor] = {}
    for key, name in places.items():
        home = homes.get(key)
        if home is None:
            continue  # an alias, or missing: known when the metadata of all shards is
        if home != name:
            raise MisplacedTensorError(f"tensor {show(key)} is in {home}; the index says {name}")
        tensors[key] = shards[home].tensors[key]
    unnamed = [key for key in homes if key not in places]
    tensors.update((key, shards[homes[key]].tensors[key]) for key in unnamed)
    return tensors, unnamed


def _joined(
    path: str,
    files: list[tuple[str, int]],
    shards: list[Checkpoint],
    tensors: dict[str, LazyTensor],
    said: dict[str, Any],
    warnings: list[Warning],
) -> Checkpoint:
    """One checkpoint of all shards, with what stood beside their tensors; `said` is the index's metadata."""
    metadata: dict[str, str] = {}
    extras: dict[str, Any] = {}
    differing: dict[str, None] = {}
    for shard in shards:
        for name, text in shard.metadata.items():
            if metadata.setdefault(name, text) != text:
                differing[name] = None
        for name, value in shard.extras.items():
            extras.setdefault(name, value)
    for name, value in said.items():
        if isinstance(value, str):
            metadata[name] = value
        elif name not in _NUMBERS:
            extras[name] = value
    if differing:
        text = f"the shards' metadata differs, and the first was taken: {_listed(map(show, differing))}"
        warnings = [*warnings, Warning("metadata-differs", text)]
    first = shards[0].source
    if first.format == SAFETENSORS.name:
        tensors, metadata = with_aliases(tensors, metadata)
    every = dict.fromkeys([*files, *(file for shard in shards for file in shard.source.files)])
    own = [warning for shard in shards for warning in shard.warnings]
    return Checkpoint(
        tensors,
        Source(path, first.format, "sharded", tuple(every), first.framework),
        metadata,
        extras,
        globals=tuple(dict.fromkeys(name for shard in shards for name in shard.globals)),
        warnings=tuple(dict.fromkeys([*own, *warnings])),
    )


def _stale(total: object, tensors: dict[str, LazyTensor]) -> list[Warning]:
    """A warning when the index's total_size is neither the bytes stored nor the bytes with ties counted twice."""
    if total is None:
        return []
    every = sum(tensor.nbytes for tensor in tensors.values())
    once = sum({tensor.identity: tensor.nbytes for tensor in tensors.values()}.values())
    if isinstance(total, int | float) and total in (every, once):
        return []
    said = str(total)[:40]
    return [
        Warning("stale-total-size", f"the index says {said} bytes in all, the shards hold {once}: it is of another version")
    ]


def _extras(folder: str, shards: list[str]) -> list[str]:
    """Files numbered like the index's shards that it does not name."""
    named = set(shards)
    sets = {match.group(1, 4) for match in map(SHARD.fullmatch, shards) if match}
    try:
        present = sorted(os.listdir(folder or "."))
    except OSError:  # a folder may be entered without leave to list it
        return []
    matches = ((name, SHARD.fullmatch(name)) for name in present if name not in named)
    return [name for name, match in matches if match and match.group(1, 4) in sets]


def _listed(names: Iterable[str]) -> str:
    """The first three names, for a message."""
    some = list(names)
    return ", ".join(some[:3]) + (", ..." if len(some) > 3 else "")
