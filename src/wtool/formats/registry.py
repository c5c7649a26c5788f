"""Which format reads this, which writes that.

The built-in formats are a table of names and module paths; a module is imported when it is first asked. Other packages add
formats through the entry-point group `wtool.formats` (name = "module:OBJECT", the object a FormatAdapter); since looking
through the installed packages costs more than opening a checkpoint, they are consulted only when no built-in format answers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from importlib import import_module

from wtool.adapter import FormatAdapter, Match, Probe
from wtool.errors import NotFoundError, UnknownFormatError, UnsupportedError, UsageError

GROUP = "wtool.formats"

# In the order in which they are asked. `sharded` is no format of its own: it reads folders of the others' files.
_BUILTIN = {
    "safetensors": "wtool.formats.safetensors",
    "gguf": "wtool.formats.gguf",
    "torch": "wtool.formats.torch",
    "tensorflow": "wtool.formats.tensorflow",
    "sharded": "wtool.formats.sharded",
}
_CONTAINERS = frozenset({"sharded"})

# Here and not asked of the adapters, so that choosing the writer imports no other format.
_SUFFIXES = {
    ".safetensors": "safetensors",
    ".gguf": "gguf",
    ".pth": "torch",
    ".pt": "torch",
    ".bin": "torch",
    ".ckpt": "tensorflow",
    ".index": "tensorflow",
}


def find(probe: Probe) -> tuple[FormatAdapter, Match]:
    """The format that claims what the probe saw with the highest score; of equals, the first in the table.

    Raises NotFoundError for a path where nothing is, UnknownFormatError (whose message says what the bytes look like) when
    nobody claims it.
    """
    best: tuple[FormatAdapter, Match] | None = None
    if probe.kind == "folder":
        claims = [name for name in _BUILTIN if _builtin(name).sniff(probe)]
        if len(claims) > 1:
            kinds = " and ".join("safetensors or PyTorch" if name in _CONTAINERS else "TensorFlow" for name in claims)
            raise UsageError(f"the folder holds checkpoints of {kinds}", path=probe.path, hint="name the file that you mean")
    for name in _BUILTIN:
        best = _better(best, _builtin(name), probe)
        if best is not None and best[1].score >= 100:
            return best
    if best is not None:
        return best
    broken = []
    for name in _plugin_names():
        try:
            adapter = _plugin(name)
        except UnsupportedError as error:
            broken.append(error.message)
            continue
        best = _better(best, adapter, probe)
    if best is not None:
        return best
    if probe.kind == "missing":
        raise _missing(probe)
    from wtool.formats.strangers import describe

    raise UnknownFormatError(describe(probe), path=probe.path, hint="; ".join(broken) or None)


def by_name(name: str) -> FormatAdapter:
    """The format of that name. UsageError, listing the names, if there is none."""
    if name in _BUILTIN:
        return _builtin(name)
    if name in _plugin_names():
        return _plugin(name)
    raise UsageError(f"there is no format '{name}'", hint="formats: " + ", ".join(names()))


def for_target(path: str | os.PathLike[str], to: str | None = None) -> FormatAdapter:
    """The format to write: `to` if given, else what the suffix means; a folder is safetensors, whole or in shards.

    Raises UsageError for a suffix that means nothing, UnsupportedError for a format that is only read.
    """
    adapter = by_name(to) if to is not None else _by_suffix(path)
    if not adapter.capabilities.write:
        raise UnsupportedError(f"wtool reads {adapter.name} but does not write it", path=path)
    return adapter


def is_folder_target(path: str | os.PathLike[str]) -> bool:
    """Whether a target means a folder of files: it is one, ends in a slash, or has no suffix."""
    text = os.fspath(path)
    return text.endswith(os.sep) or os.path.isdir(text) or not os.path.splitext(text)[1]


def names() -> tuple[str, ...]:
    """Every format that can be named, the built-in ones first."""
    return (*(name for name in _BUILTIN if name not in _CONTAINERS), *_plugin_names())


def _by_suffix(path: str | os.PathLike[str]) -> FormatAdapter:
    if is_folder_target(path):
        return _builtin("safetensors")
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix in _SUFFIXES:
        return _builtin(_SUFFIXES[suffix])
    for adapter in _plugins():
        if suffix in adapter.suffixes:
            return adapter
    raise UsageError(
        f"the suffix '{suffix}' does not say which format to write",
        path=path,
        hint=f"say it with --to {'|'.join(names())}, or use {' '.join(_SUFFIXES)}",
    )


def _better(
    best: tuple[FormatAdapter, Match] | None, adapter: FormatAdapter, probe: Probe
) -> tuple[FormatAdapter, Match] | None:
    match = adapter.sniff(probe)
    if match is None or (best is not None and match.score <= best[1].score):
        return best
    return adapter, match


@cache
def _builtin(name: str) -> FormatAdapter:
    adapter: FormatAdapter = import_module(_BUILTIN[name]).ADAPTER
    return adapter


@cache
def _plugin_names() -> tuple[str, ...]:
    """Names that other packages give; a name that is taken is not given twice."""
    from importlib.metadata import entry_points

    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)} - set(_BUILTIN)))


@cache
def _plugin(name: str) -> FormatAdapter:
    """UnsupportedError when the package that gives this format fails to load."""
    from importlib.metadata import entry_points

    entry = next(iter(entry_points(group=GROUP, name=name)))
    package = entry.dist.name if entry.dist else entry.value
    try:
        adapter: FormatAdapter = entry.load()
    except Exception as error:  # code of a stranger: whatever it raises, the fault is named and not ours
        raise UnsupportedError(
            f"the format '{name}' cannot be loaded: {type(error).__name__}: {error}",
            hint=f"it comes from the package {package}: update or remove it",
        ) from error
    return adapter


def _plugins() -> Iterator[FormatAdapter]:
    for name in _plugin_names():
        yield _plugin(name)


def _missing(probe: Probe) -> NotFoundError:
    from difflib import get_close_matches

    name = os.path.basename(probe.path)
    hints = []
    near = get_close_matches(name, probe.names, 3, 0.6)
    if near:
        hints.append(f"did you mean {', '.join(near)}?")
    hints.append(f"a TensorFlow checkpoint of that prefix would have a file {name}.index")
    return NotFoundError("no such file, folder or TensorFlow prefix", path=probe.path, hint="; ".join(hints))
