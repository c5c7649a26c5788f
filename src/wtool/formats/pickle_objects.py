"""What a pickle becomes: names, inert nodes, dicts as pairs; and the stack machine's state, without its opcodes.

Dicts keep their items as pairs: no key of a file is ever hashed, so colliding integers cost nothing and deep tuples cannot
overflow the stack.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from wtool.errors import CorruptError, LimitError, UnsupportedError

MAX_BYTES = 512 << 20  # of one pickle
MAX_OPCODES = 50_000_000
MAX_DEPTH = 1000  # of open marks here, of nested objects in whoever walks the result
MAX_MEMO = 10_000_000
MAX_INTEGER = 1024  # bytes of one integer
# What a file may make besides what its length warrants: an empty list takes 1 byte here and 64 in memory.
FREE_NODES = 200_000  # containers and objects; more for every 16 bytes
FREE_TUPLES = 500_000  # more for every 8 bytes
MAX_NAMES = 50_000
_FREE_COPIES = 2_000_000  # elements or bytes that calls may copy; two more for every byte

Meaning = Callable[[tuple[Any, ...]], Any]

_PYTHON2 = {"__builtin__": "builtins", "copy_reg": "copyreg", "cPickle": "_pickle", "exceptions": "builtins"}


class Name:
    """What a pickle would have imported: one object for each name. `module` is in Python 3's spelling."""

    __slots__ = ("meaning", "module", "name", "spelling")

    def __init__(self, module: str, name: str, meanings: Mapping[str, Meaning]) -> None:
        self.spelling = f"{module}.{name}"
        self.module = _PYTHON2.get(module, module)
        self.name = name
        self.meaning = meanings.get(self.text)

    @property
    def text(self) -> str:
        return f"{self.module}.{self.name}"

    def __repr__(self) -> str:
        return f"<{self.text}>"


class Inert:
    """An object of a class or function without a meaning: what it was made from and what it was given afterwards."""

    __slots__ = ("args", "elements", "made_by", "pairs", "state")

    def __init__(self, made_by: Name | Inert, args: tuple[Any, ...]) -> None:
        # What was made by an inert object has its name; a chain of them would have to be followed each time.
        self.made_by: Name = made_by.made_by if isinstance(made_by, Inert) else made_by
        self.args = args
        self.state: Any = None
        self.pairs: list[Any] = []  # key, value, key, value...
        self.elements: list[Any] = []

    @property
    def text(self) -> str:
        return self.made_by.text

    def __repr__(self) -> str:
        return f"<a {self.text}>"


class Pairs:
    """A dict: key, value, key, value... as they were set; `state` is what was put on the object itself (`_metadata`)."""

    __slots__ = ("flat", "ordered", "state")

    def __init__(self, flat: list[Any], ordered: bool = False) -> None:
        self.flat = flat
        self.ordered = ordered
        self.state: Any = None


class Bag:
    """A set or frozenset, as the elements it was given."""

    __slots__ = ("elements", "frozen")

    def __init__(self, elements: list[Any], frozen: bool = False) -> None:
        self.elements = elements
        self.frozen = frozen


def brief(value: Any) -> str:
    """A value of the file for a message: never long, and never walked into, since it may be deeper than the stack."""
    return str(value)[:40] if type(value) in (str, bytes, int, float, bool, type(None)) else f"a {type(value).__name__}"


def _weight(value: Any, depth: int) -> int:
    """How much a function would copy that is given this value."""
    kind = type(value)
    if kind is Pairs:
        return len(value.flat)
    if kind in _COPIED:
        return len(value)
    if kind is tuple:
        inner = sum(_weight(part, depth - 1) for part in value) if depth and len(value) <= 8 else 0
        return len(value) + inner
    return 0


_COPIED = frozenset((list, str, bytes, bytearray))
COPIED = _COPIED | {Pairs, tuple}


class Workbench:
    """Stack, marks and memo of one pickle, and what can be made on them."""

    def __init__(self, meanings: Mapping[str, Meaning], persistent: Callable[[Any], Any] | None) -> None:
        self.meanings = meanings
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.names: dict[str, Name] = {}
        self.pos = 0
        self.opcodes = 0
        self.nodes = 0
        self.tuples = 0
        self.copies = 0
        self.value: Any = None

    def node(self) -> None:
        self.nodes += 1
        if self.nodes > FREE_NODES and self.nodes > FREE_NODES + self.pos // 16:
            raise LimitError(f"byte {self.pos}: {self.nodes:,} objects in so few bytes")

    def charge(self, args: tuple[Any, ...]) -> None:
        """Count what a call or a state copies: one long object, shared by many short calls, would fill the memory."""
        self.copies += _weight(args, 4)
        if self.copies > _FREE_COPIES and self.copies > _FREE_COPIES + 2 * self.pos:
            raise LimitError(f"byte {self.pos}: the same objects are copied again and again")

    def make(self, maker: Any, args: Any) -> Any:
        if type(args) is not tuple:
            raise CorruptError("the arguments of a call are no tuple")
        if type(maker) is Name:
            if maker.meaning is not None:
                self.charge(args)
                try:
                    return maker.meaning(args)
                except (IndexError, struct.error):
                    raise CorruptError(f"the arguments of {maker.text} make no sense") from None
            if maker.text in ("copyreg.__newobj__", "copyreg._reconstructor") and args and type(args[0]) is Name:
                # _reconstructor(class, base, state of base): protocols 0 and 1 make every object this way.
                return self.make(args[0], args[1:] if maker.name == "__newobj__" else ())
        elif type(maker) is not Inert:
            raise CorruptError(f"a value of type {type(maker).__name__} is called")
        self.node()
        return Inert(maker, args)

    def take(self) -> list[Any]:
        """What lies above the last mark."""
        mark = self.marks.pop()
        if mark > len(self.stack):
            raise IndexError
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def find(self, module: str, name: str) -> None:
        spelling = f"{module}\n{name}"
        found = self.names.get(spelling)
        if found is None:
            if len(self.names) >= MAX_NAMES:
                raise LimitError(f"byte {self.pos}: more than {MAX_NAMES:,} names")
            found = self.names[spelling] = Name(module, name, self.meanings)
        self.stack.append(found)

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif isinstance(target, (Inert, Bag)):
            target.elements.extend(items)
        else:
            raise CorruptError(f"appends to a value of type {type(target).__name__}")

    def update(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        if len(flat) % 2:
            raise CorruptError("a dict has a key without a value")
        if type(target) is Pairs:
            target.flat.extend(flat)
        elif isinstance(target, Inert):
            target.pairs.extend(flat)
        else:
            raise CorruptError(f"sets an item of a value of type {type(target).__name__}")

    def refuse(self, what: str) -> NoReturn:
        raise UnsupportedError(f"byte {self.pos}: {what}")
