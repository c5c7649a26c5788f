"""What a format must answer. This is the promise to those who add one; docs/extending.md teaches it on one page.

A format is one object that keeps four promises:

- `sniff` decides from a Probe (4 KiB at each end, or the names in a folder), never from the suffix, and reads nothing else.
- `open` reads headers only and returns a Checkpoint whose tensors know where their values lie. What the bytes say is checked
  against the length of the file before anything is allocated. It never imports or calls what a file names.
- `create` lays out the output: a TensorSink that knows every file's size and every tensor's place before values are read.
- `judge` loads a written checkpoint with the format's own framework, for `--verify framework`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from wtool.bytesource import ByteSource, LocalFile
from wtool.checkpoint import Checkpoint, SparseTensor
from wtool.errors import UnreadableError
from wtool.plan import Layout, Patch
from wtool.tensor import TensorSpec

if TYPE_CHECKING:
    from wtool.tensor import Array

PROBE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Probe:
    """What a format may look at to recognise its own.

    `kind` is "file", "folder" or "missing" (a TensorFlow prefix is no file, but files beside it are). `head` and `tail` are
    the first and last 4 KiB of a file. `names` are the entries of a folder, or, for a missing path, of the folder it would
    be in.
    """

    path: str
    kind: str
    source: ByteSource | None = None
    head: bytes = b""
    tail: bytes = b""
    names: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return self.source.size if self.source else 0


class Match(NamedTuple):
    """A format's claim: `score` 0 to 100 (100: no other reader need be asked), and the variant it saw."""

    score: int
    variant: str


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a format can hold. What it cannot is a loss that is said, or an error before the first byte.

    `dtypes` are the names it can write. `ties`: two keys may share one copy of the values. `metadata`: a map of strings.
    `extras`: plain values beside the tensors, in the checkpoint's structure. `sharded`: can be cut by size into several files.
    `sparse`: tensors may be the parts of a sparse one.
    """

    read: bool = True
    write: bool = False
    dtypes: frozenset[str] = frozenset()
    ties: bool = False
    metadata: bool = False
    extras: bool = False
    sharded: bool = False
    sparse: bool = False


@dataclass(frozen=True, slots=True)
class SaveRequest:
    """What is to be laid out.

    `specs` in the order to keep. `tied` maps a key to the earlier key in `specs` whose values it shares (empty unless the
    format can keep ties). `target` is the path that was asked for; `folder` says that the user wants a folder; `max_shard` is
    the most bytes of tensors in one file. `structure` (see Checkpoint) only for formats with `extras`. `keep`: of tied keys
    these are the ones to store. `sparse` (empty unless the format has them) are to be loaded as sparse tensors.
    """

    target: str
    specs: tuple[TensorSpec, ...]
    tied: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    structure: Any = None
    max_shard: int | None = None
    folder: bool = False
    keep: frozenset[str] = frozenset()
    sparse: tuple[SparseTensor, ...] = ()


class TensorSink(Protocol):
    """A layout, and the bytes that can only be known when all values have been written. Frozen, picklable data."""

    @property
    def layout(self) -> Layout: ...

    def finish(self, checksums: Mapping[str, int]) -> Iterable[Patch]:
        """Patches that need the checksums (key -> sum over its slot; 0-byte slots included). Empty for most formats."""
        ...


class Judged(NamedTuple):
    """One tensor as the framework itself loaded it: `array` has the dtype's numpy type (packed types: raw bytes)."""

    key: str
    dtype: str
    array: Array


class FormatAdapter(Protocol):
    """A format. One module-level object; no state."""

    @property
    def name(self) -> str:
        """The id: `torch`, `safetensors`, `tensorflow`. Also the value of `--to`."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of a target that mean this format, with their dot, the first being the usual one."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    def sniff(self, probe: Probe) -> Match | None: ...

    def open(self, probe: Probe) -> Checkpoint: ...

    def create(self, request: SaveRequest) -> TensorSink: ...

    def judge(self, path: str) -> Iterator[Judged]: ...


def probe(path: str | os.PathLike[str]) -> Probe:
    """Look at a path: open a regular file and read its two ends, or list a folder. Refuses pipes and devices."""
    text = os.fspath(path)
    try:
        mode = os.stat(text).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return Probe(text, "missing", names=_names(os.path.dirname(text) or "."))
    except ValueError:
        return Probe(text, "missing")
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}", path=text) from None
    if stat.S_ISDIR(mode):
        return Probe(text, "folder", names=_names(text))
    source = LocalFile(text)
    head = source.pread(0, min(PROBE_BYTES, source.size))
    tail = head if source.size <= PROBE_BYTES else source.pread(source.size - PROBE_BYTES, PROBE_BYTES)
    return Probe(text, "file", source, head, tail)


def _names(folder: str) -> tuple[str, ...]:
    try:
        return tuple(sorted(os.listdir(folder)))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise UnreadableError(f"cannot be listed: {error.strerror}", path=folder) from None
