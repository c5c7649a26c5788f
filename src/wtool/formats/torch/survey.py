"""The object of a pickle seen as a tree: what each part holds below it, counted before anything is spread out.

A part that is shared counts wherever it is reached, so that a small file that stands for billions of things is known as one
("billion laughs"). Nothing here recurses: a deep file costs memory, not the stack.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from wtool.checkpoint import Warning
from wtool.dtypes import BY_NAME
from wtool.errors import LimitError
from wtool.formats.pickle_objects import Bag, Inert, Name, Pairs
from wtool.formats.torch.values import Group, Meta, NumpyArray, Storage, View, attributes

_MAX_AGAIN = 1_000_000  # items of states that objects share, counted from the second object
_FREE_TENSORS = 100_000  # allowed besides one for every 16 bytes of pickle: torch writes more than 60 for each
_INNER = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


class Aside:
    """Stands beside the state dict: a buffer that is not persistent, or a tensor that is a plain attribute of a module."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Measure(NamedTuple):
    """What is below an object, itself included: tensors, objects, and levels."""

    tensors: int
    nodes: int
    depth: int


def key_text(key: Any) -> str:
    """A dict's key as part of a tensor's key."""
    if type(key) is str:
        return key
    if type(key) is bytes:
        return key.decode("utf-8", "backslashreplace")
    if type(key) is tuple and len(key) <= 8 and all(type(part) in (str, int, float, bool, type(None)) for part in key):
        return "(" + ", ".join(map(key_text, key)) + ")"
    if isinstance(key, (Name, Inert)):
        return key.text
    if type(key) is int:
        return str(key) if abs(key) < 1 << 64 else hex(key)
    return str(key) if isinstance(key, (float, complex, bool, type(None))) else f"({type(key).__name__})"


def pairs(given: Pairs) -> list[tuple[Any, Any]]:
    """The items of a dict: of equal keys the place of the first and the value of the last, as in Python.

    A key that is a tensor (the state of a pickled optimizer) or a container is replaced by its place.
    """
    flat = given.flat
    keys = flat[::2]
    if all(type(key) is str for key in keys):
        return _kept(given, list(dict(zip(keys, flat[1::2], strict=True)).items()))
    # Other keys are compared as text: the hash of an integer or a tuple is the file's to choose.
    merged: dict[object, tuple[Any, Any]] = {}
    for number, (key, value) in enumerate(zip(keys, flat[1::2], strict=True)):
        if isinstance(key, float) and key.is_integer():
            word: object = f"i{int(key):x}"
        elif isinstance(key, int):
            word = f"i{key:x}"
        elif type(key) in (str, bytes, type(None)):
            word = (type(key), key)
        elif type(key) is float:
            word = repr(key)
        else:
            word = f"#{number}"
            if not isinstance(key, (tuple, Name, Inert)):
                key = number
        merged[word] = (merged[word][0], value) if word in merged else (key, value)
    return _kept(given, list(merged.values()))


def _kept(given: Pairs, items: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """The items; where they are fewer than were set, the dict keeps only them, so that its past is looked through once."""
    if 2 * len(items) < len(given.flat):
        given.flat = [part for item in items for part in item]
    return items


def is_module(thing: Any) -> bool:
    """Whether an inert object is a pickled torch.nn.Module."""
    if type(thing) is not Inert:
        return False
    names = {key for key, _ in attributes(thing)}
    return "_parameters" in names and "_modules" in names


def tensor(thing: Any) -> Any:
    """The View of what is one tensor (a bare storage and a numpy array too), else None."""
    kind = type(thing)
    if kind is View or kind is Meta:
        return thing
    if kind is NumpyArray:
        return thing.view()
    if kind is Storage:
        return View(thing, thing.dtype or BY_NAME["u8"], 0, (thing.count,), (1,))
    return None


def children(thing: Any) -> Iterable[tuple[Any, Any]] | None:
    """(key, value) of what can hold tensors, None for a leaf."""
    kind = type(thing)
    if kind is Pairs:
        return pairs(thing)
    if kind is list or kind is tuple:
        return enumerate(thing)
    if kind is Aside:
        return None
    if kind is Group:
        return [(suffix, value) for suffix, value in thing.parts]
    if kind is Bag:
        return enumerate(thing.elements)
    if kind is Inert:
        return _module(thing) if is_module(thing) else _object(thing)
    if isinstance(thing, Inert) and kind is not NumpyArray:
        return _object(thing)
    return None


def _module(thing: Inert) -> list[tuple[str, Any]]:
    """Parameters, buffers and submodules, in the order of state_dict(); then what it would leave out."""
    found = dict(attributes(thing))
    fleeting = found.get("_non_persistent_buffers_set")
    left_out = {name for name in fleeting.elements if type(name) is str} if isinstance(fleeting, Bag) else set()
    items: list[tuple[str, Any]] = []
    later: list[tuple[str, Any]] = []
    for member in ("_parameters", "_buffers", "_modules"):
        held = found.get(member)
        if isinstance(held, Pairs):
            for key, value in pairs(held):
                if value is not None:
                    aside = member == "_buffers" and key in left_out if type(key) is str else False
                    (later if aside else items).append((key_text(key), Aside(value) if aside else value))
    names = {key for key, _ in items}
    for key, value in found.items():
        if key not in _INNER and key not in names and tensor(value) is not None:
            later.append((key, Aside(value)))
    return items + later


def _object(thing: Inert) -> list[tuple[Any, Any]]:
    """What was put on an inert object, then what it was made from."""
    items: list[tuple[Any, Any]] = list(dict(attributes(thing)).items())
    if not items and thing.state is not None:
        items.append(("state", thing.state))
    items.extend(zip(thing.pairs[::2], thing.pairs[1::2], strict=False))
    items.extend(enumerate(thing.elements))
    if thing.args:
        items.append(("args", thing.args))
    return items


class Survey:
    """The measure of every object below a root."""

    def __init__(self, root: Any) -> None:
        self.measures: dict[int, Measure] = {}
        self.warnings: list[Warning] = []
        self._keep: list[Any] = []  # objects whose id stands in `measures` must live
        self._walk(root)

    def check_tensors(self, root: Any, nbytes: int, name: str) -> None:
        """LimitError if a pickle of `nbytes` stands for far more tensors than it has room for."""
        limit = _FREE_TENSORS + nbytes // 16
        if self.of(root).tensors > limit:
            raise LimitError(f"its pickle of {nbytes:,} bytes stands for more than {limit:,} tensors", path=name)

    def of(self, thing: Any) -> Measure:
        found = self.measures.get(id(thing))
        if found is not None:
            return found
        if type(thing) is Aside:
            return self.of(thing.value)
        return _LEAF if tensor(thing) is None else _TENSOR

    def adopt(self, other: Survey) -> None:
        """Take over what another survey measured."""
        self.measures.update(other.measures)
        self._keep.extend(other._keep)

    def _walk(self, root: Any) -> None:
        measures = self.measures
        open_: set[int] = set()
        states: set[int] = set()
        again = 0
        # A frame: object, iterator over its values, and what has been counted so far.
        first = children(root)
        if first is None:
            return
        frames: list[list[Any]] = [[root, iter(first), 0, 1, 0]]
        open_.add(id(root))
        cycle = False
        while frames:
            frame = frames[-1]
            down = None
            for _, value in frame[1]:
                if type(value) is Aside:
                    value = value.value
                kind = type(value)
                if kind is View:
                    frame[2] += 1
                    continue
                if kind in _PLAIN:
                    frame[3] += 1
                    continue
                known = measures.get(id(value))
                if known is not None:
                    frame[2] += known.tensors
                    frame[3] += known.nodes
                    frame[4] = max(frame[4], known.depth)
                    continue
                if id(value) in open_:
                    cycle = True
                    continue
                inner = children(value)
                if isinstance(value, Inert) and value.state is not None:
                    if id(value.state) in states and isinstance(inner, list):
                        again += len(inner)
                        if again > _MAX_AGAIN:
                            raise LimitError("its objects share what they hold again and again")
                    states.add(id(value.state))
                if not inner and inner is not None:
                    frame[3] += 1  # nothing below: not worth a measure
                    continue
                if inner is None:
                    frame[2] += tensor(value) is not None
                    frame[3] += 1
                    continue
                down = [value, iter(inner), 0, 1, 0]
                break
            if down is not None:
                frames.append(down)
                open_.add(id(down[0]))
                continue
            frames.pop()
            thing = frame[0]
            open_.discard(id(thing))
            measure = Measure(min(frame[2], _MANY), min(frame[3], _MANY), frame[4] + 1)
            measures[id(thing)] = measure
            self._keep.append(thing)
            if frames:
                above = frames[-1]
                above[2] += measure.tensors
                above[3] += measure.nodes
                above[4] = max(above[4], measure.depth)
        if cycle:
            self.warnings.append(Warning("cycle", "an object in the pickle holds itself; it is shown once"))


_MANY = 1 << 62  # where counting stops: shared parts can stand for more than there are atoms
_PLAIN = frozenset((str, int, float, bool, bytes, type(None), Name))
_LEAF = Measure(0, 1, 0)
_TENSOR = Measure(1, 1, 0)
