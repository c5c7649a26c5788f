"""A checkpoint: what was saved, as one ordered mapping from key to lazy tensor, and what stood beside the tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from wtool.errors import CorruptError, UsageError
from wtool.tensor import LazyTensor, TensorSpec

SectionKind = Literal["model", "ema", "optimizer", "other"]
Verdict = Literal["known", "unknown", "dangerous"]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a checkpoint: `state_dict`, `optimizer_states`, `ema`.

    `keys` are full keys of the checkpoint; `prefix` (with its separator) is what they all begin with and what is taken off
    when the section is looked at alone. A checkpoint that is one flat state dict has one section, `model`, with no prefix.
    """

    name: str
    kind: SectionKind
    keys: tuple[str, ...]
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Warning:
    """Something a person should know; `code` is stable and kebab-case."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Global:
    """A name that a pickle would have imported, and what wtool holds of it."""

    name: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Source:
    """Where a checkpoint came from. `files` are (path, bytes) of all files that belong to it.

    `framework` is a guess for people ("PyTorch Lightning", "Keras", ...), `variant` the kind of container ("zip", "legacy",
    "tar", "torchscript", "single", "sharded", "bundle", "saved-model").
    """

    path: str
    format: str
    variant: str
    files: tuple[tuple[str, int], ...]
    framework: str | None = None


@dataclass(frozen=True, slots=True)
class TensorRef:
    """In `structure`: the place of the tensor with this full key."""

    key: str


@dataclass(frozen=True, slots=True)
class SparseTensor:
    """Tensors that are the `parts` of one of torch's sparse tensors: its key, its layout ("torch.sparse_csr"), its shape.

    The parts are full keys, in the order in which torch takes them. `coalesced` is what the file says of COO, if anything.
    """

    key: str
    layout: str
    parts: tuple[str, ...]
    shape: tuple[int, ...]
    coalesced: bool | None = None

    def renamed(self, names: Callable[[str], str]) -> SparseTensor | None:
        """With other keys; None where the parts are no longer named as parts of one tensor."""
        suffixes = [part.removeprefix(f"{self.key}.") for part in self.parts]
        parts = tuple(names(part) for part in self.parts)
        found = {part.removesuffix(f".{suffix}") for part, suffix in zip(parts, suffixes, strict=True)}
        if len(found) != 1 or any(part in found for part in parts):
            return None
        return replace(self, key=found.pop(), parts=parts)


@dataclass(frozen=True, slots=True)
class Opaque:
    """In `extras` and `structure`: an object of a class that wtool does not know, kept as its name and never called."""

    name: str


@dataclass(frozen=True, slots=True)
class Node:
    """In `structure`: a dict, with the attributes that torch puts on an OrderedDict (`_metadata`)."""

    items: tuple[tuple[Any, Any], ...]
    ordered: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Operation(Protocol):
    """Frozen options and a call: checkpoint -> checkpoint. It answers specs without reading values."""

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint: ...


@dataclass(frozen=True, eq=False)
class Checkpoint(Mapping[str, LazyTensor]):
    """Key -> LazyTensor in the order of the file.

    - `metadata`: the format's own map of strings.
    - `extras`: what is no tensor, as nested dicts and lists of plain values (epoch, hyper-parameters) and Opaque objects.
    - `structure`: the nested object that the tensors stood in, for formats that can write one: Node, list, tuple, plain
      values, TensorRef; or the bytes of a TensorFlow object graph; None for a flat checkpoint or when keys have been changed.
    - `sections`: the parts; together they hold every key once.
    - `globals`: names that a pickle would have called. `warnings`: what the reader noticed.
    - `history`: the operations done so far.
    - `sparse`: which tensors are parts of sparse ones, for formats that can write these. Their places in `structure` have
      their keys. Those of which a part is missing mean nothing.
    """

    tensors: Mapping[str, LazyTensor]
    source: Source
    metadata: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    structure: Any = None
    sections: tuple[Section, ...] = ()
    globals: tuple[Global, ...] = ()
    warnings: tuple[Warning, ...] = ()
    history: tuple[Operation, ...] = ()
    sparse: tuple[SparseTensor, ...] = ()

    def __post_init__(self) -> None:
        if not self.sections:
            object.__setattr__(self, "sections", (Section("model", "model", tuple(self.tensors)),))

    def __getitem__(self, key: str) -> LazyTensor:
        return self.tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def specs(self) -> list[TensorSpec]:
        return [tensor.spec for tensor in self.tensors.values()]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def main_section(self) -> Section:
        """The model's weights: the first section of kind model, else of kind ema, else the first."""
        for kind in ("model", "ema"):
            for section in self.sections:
                if section.kind == kind:
                    return section
        return self.sections[0]

    def section(self, name: str | None = None) -> Checkpoint:
        """One section alone, its keys without their prefix; None is the model's weights, "all" everything as it is."""
        if name == "all":
            return self
        if name is None:
            section = self.main_section()
        else:
            found = [section for section in self.sections if section.name == name]
            if not found:
                names = ", ".join(section.name for section in self.sections)
                raise UsageError(f"there is no section '{name}'", path=self.source.path, hint=f"it has: {names}")
            section = found[0]
        if not section.prefix and len(section.keys) == len(self.tensors):
            return self
        skip = len(section.prefix)
        tensors = {key[skip:]: self.tensors[key].renamed(key[skip:]) for key in section.keys}
        if len(tensors) != len(section.keys):
            raise CorruptError(f"section '{section.name}' has two tensors of one key", path=self.source.path)
        return replace(
            self,
            tensors=tensors,
            structure=None,
            sections=(Section(section.name, section.kind, tuple(tensors)),),
            sparse=tuple(
                renamed
                for one in self.sparse
                if all(part.startswith(section.prefix) for part in one.parts)
                if (renamed := one.renamed(lambda key: key[skip:])) is not None
            ),
        )

    def with_tensors(self, tensors: Iterable[LazyTensor], *, operation: Operation | None = None) -> Checkpoint:
        """The same checkpoint around other tensors. Sections keep the keys that are still there; new keys join the first.

        `structure` is kept only while every key is one of the old.
        """
        table = {tensor.key: tensor for tensor in tensors}
        sections = [replace(section, keys=tuple(key for key in section.keys if key in table)) for section in self.sections]
        placed = {key for section in sections for key in section.keys}
        fresh = tuple(key for key in table if key not in placed)
        if fresh:
            sections[0] = replace(sections[0], keys=sections[0].keys + fresh, prefix="")
        kept = [section for section in sections if section.keys]
        return replace(
            self,
            tensors=table,
            sections=tuple(kept or sections[:1]),
            structure=None if fresh else self.structure,
            history=self.history if operation is None else (*self.history, operation),
        )

    def regrouped(self, tensors: Mapping[str, LazyTensor], became: Mapping[str, Sequence[str]]) -> Checkpoint:
        """The same checkpoint of other tensors: in its sections stands, for a key, what it `became`, each key once."""
        sections = tuple(
            replace(section, keys=tuple(dict.fromkeys(new for key in section.keys for new in became.get(key, (key,)))))
            for section in self.sections
        )
        return replace(self, tensors=tensors, sections=sections)

    def tied(self) -> list[list[str]]:
        """Groups of two or more keys that are the same values at the same place, in the order of the checkpoint."""
        groups: dict[object, list[str]] = {}
        for key, tensor in self.tensors.items():
            identity = tensor.identity
            if identity is not None:
                groups.setdefault(identity, []).append(key)
        return [keys for keys in groups.values() if len(keys) > 1]
