"""From what the user named to the files of one checkpoint.

A checkpoint is a prefix `P`, which is no file: `P.index` and `P.data-00000-of-00002`... stand for it. One may name the prefix,
any of its files, a folder that holds one, a folder with a `checkpoint` file (which names the latest), a SavedModel or its
`variables` folder. Names found in a `checkpoint` file never lead out of its folder.
"""

from __future__ import annotations

import re
from os.path import basename, join
from typing import NamedTuple

from wtool.adapter import Match, Probe, probe
from wtool.bytesource import ByteSource, LocalFile
from wtool.errors import CorruptError, NotFoundError, UsageError

INDEX = ".index"
STATE = "checkpoint"
_TABLE_END = bytes.fromhex("57fb808b247547db")  # sstable.MAGIC, known here so that sniffing imports no reader
_DATA = re.compile(r"(.+)\.data-\d{5,}-of-\d{5,}")
_LATEST = re.compile(rb'^[ \t]*model_checkpoint_path[ \t]*:[ \t]*"((?:[^"\\\n]|\\.)*)"', re.MULTILINE)
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|x[0-9a-fA-F]{1,2}|.)")
_STATE_BYTES = 4 << 20  # 20,000 names of old checkpoints; TensorFlow keeps five
_VARIABLES = ("variables", "variables" + INDEX)


class Place(NamedTuple):
    """`prefix` and the index file, a table; `names` are the entries of its folder where they are known."""

    prefix: str
    table: ByteSource
    variant: str
    names: tuple[str, ...] = ()


def shard_name(prefix: str, shard: int, shards: int) -> str:
    return f"{prefix}.data-{shard:05d}-of-{shards:05d}"


def claim(seen: Probe) -> Match | None:
    """Whether this is TensorFlow's: by the end of a table, or by the names of files that stand together."""
    if seen.kind == "file":
        if seen.tail.endswith(_TABLE_END):
            return Match(90, "bundle")
        # Data shards are bare values: only the name can tell, so every format with a magic number comes before.
        named = _DATA.fullmatch(basename(seen.path)) or seen.path.endswith(INDEX)
        return Match(10, "bundle") if named else None
    if seen.kind == "missing":
        return Match(100, "bundle") if basename(seen.path) + INDEX in seen.names else None
    if "saved_model.pb" in seen.names and "variables" in seen.names:
        return Match(90, "saved-model")
    if _VARIABLES[1] in seen.names:
        return Match(80, "saved-model")
    found = _prefixes(seen.names)
    if found:
        return Match(60 if STATE in seen.names or len(found) == 1 else 20, "bundle")
    return None


def locate(seen: Probe) -> Place:
    """The one checkpoint that is meant. NotFoundError, CorruptError or UsageError if there is none or more than one."""
    if seen.kind == "file":
        return _file(seen)
    if seen.kind == "missing":
        return _bundle(seen.path, "bundle", seen.names)
    names = seen.names
    if "saved_model.pb" in names and "variables" in names:
        folder = join(seen.path, "variables")
        inside = probe(folder)
        if _VARIABLES[1] not in inside.names:
            raise NotFoundError("is a SavedModel without variables", path=seen.path)
        return _bundle(join(folder, "variables"), "saved-model", inside.names)
    if _VARIABLES[1] in names:
        return _bundle(join(seen.path, "variables"), "saved-model", names)
    if STATE in names:
        latest = _latest(join(seen.path, STATE))
        if latest + INDEX not in names and latest in names:
            return _file(probe(join(seen.path, latest)))
        if latest + INDEX not in names:
            text = f"names '{latest}' as the latest checkpoint, but '{latest}{INDEX}' is not there"
            raise NotFoundError(text, path=join(seen.path, STATE), hint="name one of the others by its prefix")
        return _bundle(join(seen.path, latest), "bundle", names)
    found = _prefixes(names)
    if len(found) != 1:
        some = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise UsageError(f"holds {len(found)} TensorFlow checkpoints", path=seen.path, hint=f"name one of them: {some}")
    return _bundle(join(seen.path, found[0]), "bundle", names)


def _file(seen: Probe) -> Place:
    assert seen.source is not None
    if seen.path.endswith(INDEX):
        return Place(seen.path[: -len(INDEX)], seen.source, "bundle")
    data = _DATA.fullmatch(seen.path)
    if data is None:
        return Place(seen.path, seen.source, "bundle")
    try:
        index = LocalFile(data[1] + INDEX)
    except NotFoundError:
        text = f"is a data shard, but its index '{basename(data[1])}{INDEX}' is not beside it"
        raise NotFoundError(text, path=seen.path) from None
    return Place(data[1], index, "bundle")


def _bundle(prefix: str, variant: str, names: tuple[str, ...]) -> Place:
    return Place(prefix, LocalFile(prefix + INDEX), variant, names)


def _prefixes(names: tuple[str, ...]) -> list[str]:
    """Prefixes that have both an index and a data shard in the folder."""
    shards = {match[1] for match in map(_DATA.fullmatch, names) if match}
    return [name[: -len(INDEX)] for name in names if name.endswith(INDEX) and name[: -len(INDEX)] in shards]


def _latest(path: str) -> str:
    """The name that a `checkpoint` file (a CheckpointState message as text) gives as the latest, without its folders."""
    state = LocalFile(path)
    text = state.pread(0, min(state.size, _STATE_BYTES))
    found = _LATEST.search(text)
    if found is None:
        raise CorruptError("names no checkpoint (there is no model_checkpoint_path)", path=path)
    name = _ESCAPE.sub(_unescape, found[1]).decode("utf-8", "surrogateescape")
    name = re.split(r"[/\\]", name)[-1]
    if name in ("", ".", "..") or "\0" in name:
        raise CorruptError("names a folder as the latest checkpoint", path=path)
    return name


def _unescape(found: re.Match[bytes]) -> bytes:
    code = found[1]
    if code[:1].isdigit():
        return bytes((int(code, 8) & 255,))
    if code[:1] == b"x" and len(code) > 1:
        return bytes((int(code[1:], 16),))
    return {b"n": b"\n", b"t": b"\t", b"r": b"\r"}.get(code, code)
