"""From the object of a pickle to keys and lazy tensors, with the structure they stood in and the plain values beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from wtool.bytesource import ByteSource
from wtool.checkpoint import Node, Opaque, Section, SectionKind, SparseTensor, TensorRef, Warning
from wtool.errors import CorruptError, KeyClashError, LimitError, UnsupportedError
from wtool.formats.pickle_objects import MAX_DEPTH, Inert, Pairs
from wtool.formats.torch.plain import Plain, opaque, plain_key
from wtool.formats.torch.sections import plan_sections
from wtool.formats.torch.survey import Aside, Survey, children, key_text, tensor
from wtool.formats.torch.values import Group, Meta, View, Wrapped
from wtool.sparse import TORCH_PARTS
from wtool.tensor import Box, LazyTensor, TensorSpec, c_strides

_DEEP_STRUCTURE = 100  # levels; writers and renderers may recurse on what is handed to them
_KEY_BYTES = 256 << 20  # all keys together
_LONGEST = 16 << 10  # one key, of a tensor or of what leads to it
_FREE_ITEMS = 200_000  # walked beside tensors, besides one for every byte of pickle
_MAX_RANK = 64
_MAX = 1 << 63


class Flat(NamedTuple):
    """What a checkpoint is made of."""

    tensors: dict[str, LazyTensor]
    structure: Any
    extras: Mapping[str, Any]
    sections: tuple[Section, ...]
    warnings: list[Warning]
    sparse: tuple[SparseTensor, ...] = ()


class _Frame:
    """A container on the way down. `flat`: its items go into the same Node as its parent's, under dotted keys."""

    __slots__ = ("built", "flat", "items", "key", "local", "prefix", "section", "shown", "thing")

    def __init__(self, thing: Any, key: Any, prefix: str, section: str, above: _Frame | None) -> None:
        self.thing = thing
        self.key = key
        self.prefix = prefix  # of full keys
        self.section = section
        self.items: Iterator[tuple[Any, Any]] = iter(children(thing) or ())
        self.flat = False
        self.local: str = ""
        self.built: list[tuple[Any, Any]] = []
        if above is not None and isinstance(thing, Inert) and isinstance(above.thing, Inert):
            self.flat, self.local, self.built = True, f"{above.local}{key_text(key)}.", above.built
        self.shown: list[tuple[str, Any]] = []


class _Flattening:
    def __init__(self, root: Any, name: str, nbytes: int) -> None:
        self.name = name
        self.survey = Survey(root)
        self.survey.check_tensors(root, nbytes, name)
        self.plain = Plain(self.survey, nbytes)
        self.plan = plan_sections(root, self.survey)
        self.tensors: dict[str, LazyTensor] = {}
        self.members: dict[str, list[str]] = {}
        self.notes: dict[str, list[str]] = {"sparse": [], "quantized": [], "nested": [], "attributes": [], "subclass": []}
        self.sparse: list[SparseTensor] = []
        self.key_bytes = 0
        self.items = _FREE_ITEMS + nbytes
        self.keep_structure = True

    def emit(self, key: str, view: Any, section: str) -> TensorRef:
        if key in self.tensors:
            raise KeyClashError(f"two tensors have the key '{key}' when nested keys are joined with dots", path=self.name)
        self.key_bytes += self.check_key(key)
        if self.key_bytes > _KEY_BYTES:
            raise LimitError(f"its keys are longer than {_KEY_BYTES:,} bytes together", path=self.name)
        self.tensors[key] = lazy(key, view, self.name)
        self.members.setdefault(section, []).append(key)
        return TensorRef(key)

    def check_key(self, key: str) -> int:
        if len(key) > _LONGEST:
            raise LimitError(f"a key of more than {_LONGEST:,} characters: {key[:40]!r}...", path=self.name)
        return len(key)

    def run(self, root: Any) -> tuple[Any, Any]:
        """The structure and the extras of the root."""
        single = tensor(root)
        if single is not None:
            return self.emit("tensor", single, ""), {}
        survey, plain = self.survey, self.plain
        frames = [_Frame(root, "", "", self.plan.get("", ("", "model"))[0], None)]
        open_ = {id(root)}
        while True:
            frame = frames[-1]
            down = None
            for key, value in frame.items:
                aside = type(value) is Aside
                if aside:
                    value = value.value
                text = key if type(key) is str else key_text(key)
                full = frame.prefix + text[: _LONGEST + 1]
                self.items -= 1
                if self.items < 0:
                    raise LimitError("it shares what stands beside its tensors again and again", path=self.name)
                view = value if type(value) is View else tensor(value)
                if view is not None:
                    if not text and type(frame.thing) is Group:
                        full = frame.prefix[:-1]  # the part of a group that is the tensor itself
                    ref = self.emit(full, view, "other" if aside else frame.section)
                    frame.built.append((frame.local + text if frame.local or isinstance(frame.thing, Inert) else key, ref))
                elif type(value) is Group and len(frames) < MAX_DEPTH:
                    self.notes[value.kind].append(full)
                    down = _Frame(value, key, full + ".", self.section_of(full + ".", frame), frame)
                    break
                elif survey.of(value).tensors and id(value) in open_:
                    frame.built.append((key, Opaque("an object that holds itself")))
                elif survey.of(value).tensors:
                    if len(frames) >= MAX_DEPTH:
                        raise LimitError(f"a tensor lies more than {MAX_DEPTH} levels deep", path=self.name)
                    if type(value) is Wrapped:
                        self.notes["subclass"].append(full)
                    down = _Frame(value, key, full + ".", self.section_of(full + ".", frame), frame)
                    break
                elif not isinstance(frame.thing, Inert):
                    frame.built.append((key, plain.keep(value)))
                    frame.shown.append((text, plain.show(value)))
            if down is not None:
                self.check_key(down.prefix)
                frames.append(down)
                open_.add(id(down.thing))
                self.keep_structure = self.keep_structure and len(frames) < _DEEP_STRUCTURE
                continue
            frames.pop()
            open_.discard(id(frame.thing))
            if not frames:
                return self.built(frame), self.shown(frame)
            above = frames[-1]
            if type(frame.thing) is Group:
                self.join_group(frame, above)
                continue
            if not frame.flat:
                key = above.local + key_text(frame.key) if isinstance(above.thing, Inert) else frame.key
                above.built.append((key, self.built(frame)))
            shown = self.shown(frame)
            if shown and not isinstance(above.thing, Inert):
                above.shown.append((key_text(frame.key), shown))

    def section_of(self, prefix: str, frame: _Frame) -> str:
        planned = self.plan.get(prefix)
        return planned[0] if planned else frame.section

    def built(self, frame: _Frame) -> Any:
        thing = frame.thing
        if type(thing) is list:
            return [value for _, value in frame.built]
        if type(thing) is tuple:
            return tuple([value for _, value in frame.built])
        if type(thing) is Pairs:
            items = tuple([(key if type(key) is str else plain_key(key), value) for key, value in frame.built])
            return Node(items, thing.ordered, self.plain.attributes(thing))
        return Node(tuple(frame.built), isinstance(thing, Inert))

    def shown(self, frame: _Frame) -> Any:
        if isinstance(frame.thing, Inert):
            return opaque(frame.thing)
        return dict(frame.shown)

    def join_group(self, frame: _Frame, above: _Frame) -> None:
        """The parts of a group stand beside one another in the dict that held it; a list has no place for them.

        But a sparse tensor has one place, for those who can write it.
        """
        if frame.shown:
            above.shown.append((key_text(frame.key), dict(frame.shown)))
        sparse = _sparse(frame)
        if sparse is not None and sparse.key not in self.tensors:
            self.sparse.append(sparse)
            dotted = above.local or isinstance(above.thing, Inert)
            above.built.append((above.local + key_text(frame.key) if dotted else frame.key, TensorRef(sparse.key)))
            return
        if type(above.thing) not in (Pairs, Inert):
            self.keep_structure = False
        for suffix, value in frame.built:
            name = f"{key_text(frame.key)}.{suffix}" if suffix else key_text(frame.key)
            above.built.append((above.local + name, value))

    def sections(self) -> tuple[Section, ...]:
        kinds = dict(self.plan.values())
        prefixes = {name: prefix for prefix, (name, _) in self.plan.items()}
        found = []
        for name, keys in self.members.items():
            kind: SectionKind = kinds.get(name, "model" if not self.plan and name != "other" else "other")
            prefix = prefixes.get(name, "")
            if not all(key.startswith(prefix) for key in keys):
                prefix = ""
            found.append(Section(name or "model", kind, tuple(keys), prefix))
        return tuple(found)

    def warnings(self) -> list[Warning]:
        texts = {
            "sparse": "{} stored as the tensors of its indices and values",
            "quantized": "{} given as its integers, with scale and zero point as tensors beside",
            "nested": "{} stored as the tensors of its values, sizes and strides",
            "attributes": "{} listed with the tensors among its attributes",
            "subclass": "{} of a subclass that keeps its values in inner tensors, which are listed instead",
        }
        notes = []
        for code, keys in self.notes.items():
            if keys:
                names = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
                count = f"{len(keys)} tensors are" if len(keys) > 1 else "1 tensor is"
                notes.append(Warning(code, texts[code].format(f"{count}") + f" ({names})"))
        return self.survey.warnings + notes


def _sparse(frame: _Frame) -> SparseTensor | None:
    """What a group of parts is, if it is all there."""
    if frame.thing.kind != "sparse":
        return None
    told = dict(frame.thing.parts)
    layout, size = told["layout"], told["size"]
    refs = {name: value.key for name, value in frame.built if type(value) is TensorRef}
    names = TORCH_PARTS.get(layout, ())
    if not names or not all(name in refs for name in names) or not isinstance(size, tuple):
        return None
    if not all(type(length) is int and 0 <= length < _MAX for length in size):
        return None
    return SparseTensor(frame.prefix[:-1], layout, tuple(refs[name] for name in names), size, frame.thing.coalesced)


def flatten(root: Any, name: str, nbytes: int) -> Flat:
    """Keys joined with dots, in the order of the file. `name` is the file's, for messages; `nbytes` are those of its pickle.

    Raises CorruptError (a view that leaves its storage), KeyClashError, LimitError, UnsupportedError (a meta tensor).
    """
    work = _Flattening(root, name, nbytes)
    structure, extras = work.run(root)
    return Flat(
        work.tensors,
        structure if work.keep_structure else None,
        extras if isinstance(extras, dict) else {"object": extras},
        work.sections(),
        work.warnings(),
        tuple(work.sparse),
    )


def lazy(key: str, view: View | Meta, name: str) -> LazyTensor:
    """The view as a LazyTensor, after all its numbers have been held against its storage."""
    if isinstance(view, Meta):
        raise UnsupportedError(f"'{key}' is a meta tensor: it has no values", path=name)
    storage, row, offset, shape, strides = view.storage, view.dtype, view.offset, view.shape, view.strides
    if len(shape) != len(strides) or len(shape) > _MAX_RANK:
        raise CorruptError(f"tensor '{key}' has {len(shape)} sizes and {len(strides)} strides", path=name)
    if type(offset) is not int or not 0 <= offset < _MAX:
        raise CorruptError(f"tensor '{key}' begins at {str(offset)[:40]!r}", path=name)
    last, empty = offset, False
    for size, stride in zip(shape, strides, strict=True):
        if type(size) is not int or type(stride) is not int or not (0 <= size < _MAX and -_MAX < stride < _MAX):
            raise CorruptError(f"tensor '{key}' has a size or stride that makes no sense", path=name)
        if size > 1:
            if stride < 0:
                raise CorruptError(f"tensor '{key}' has a negative stride", path=name)
            last += (size - 1) * stride
        elif size == 0:
            empty = True
    source: ByteSource | None = storage.source
    itemsize = row.itemsize
    if empty:
        return LazyTensor.contiguous(key, row, shape, source or _NOTHING, storage.start if source else 0)
    if source is None:
        raise CorruptError(f"the bytes of storage '{storage.key}' of tensor '{key}' are not in the file", path=name)
    if (last + 1) * itemsize > storage.nbytes:
        raise CorruptError(
            f"tensor '{key}' needs element {last} of a storage of {storage.nbytes // itemsize} elements", path=name
        )
    start = storage.start + offset * itemsize
    expected = c_strides(shape)
    if strides != expected:
        # The stride of an axis of one element says nothing; ties are recognised by equal strides.
        strides = tuple(b if size == 1 else a for size, a, b in zip(shape, strides, expected, strict=True))
    made = LazyTensor(TensorSpec(key, row, shape), (Box((0,) * len(shape), shape, source, start, strides),), row)
    if storage.swap and itemsize > 1:
        from wtool.kernels.byteswap import ByteSwap

        if row.numpy_name is None:
            raise UnsupportedError(f"tensor '{key}' is big-endian {row}", path=name)
        made = made.map(ByteSwap())
    if view.conjugate or view.negative:
        from wtool.kernels.signs import Signs

        if row.kind not in ("float", "complex") or row.numpy().kind == "V":
            raise UnsupportedError(f"tensor '{key}' is a lazy conjugate of {row}", path=name)
        made = made.map(Signs(view.conjugate and row.kind == "complex", view.negative))
    return made


def _nothing() -> ByteSource:
    from wtool.bytesource import MemoryBytes

    return MemoryBytes(b"")


_NOTHING = _nothing()
