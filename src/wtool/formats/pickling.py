"""Writes a pickle of plain values and tensors, opcode by opcode, without the pickle module.

Protocol 2, with the opcodes and memo entries that CPython's C pickler (Modules/_pickle.c) produces under `torch.save`, so that
a plain state dict gives torch's own bytes. Only what `torch.load(weights_only=True)` accepts is ever written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from struct import Struct
from typing import Any

from wtool.checkpoint import Node, TensorRef
from wtool.formats.pickle_parts import ATOMS, Pickled, Stored, StoredSparse, hashable, integer, plain
from wtool.tensor import Shape, c_strides

_BATCH = 1000  # items behind one MARK
_U32, _DOUBLE = Struct("<I").pack, Struct(">d").pack

_MARK, _STOP, _REDUCE, _BUILD, _PERSISTENT = b"(", b".", b"R", b"b", b"Q"
_NONE, _TRUE, _FALSE = b"N", b"\x88", b"\x89"
_EMPTY_TUPLE, _EMPTY_LIST, _EMPTY_DICT = b")", b"]", b"}"
_TUPLES = {1: b"\x85", 2: b"\x86", 3: b"\x87"}
_TUPLE, _APPEND, _APPENDS, _SETITEM, _SETITEMS = b"t", b"a", b"e", b"s", b"u"

_ORDERED = ("collections", "OrderedDict")


def dumps(value: Any, tensors: Mapping[str, Stored | StoredSparse]) -> Pickled:
    """The pickle of `value`: Node, dict, list, tuple, plain values, and TensorRef to a key of `tensors`.

    What is none of these, and a reference to another key, is left out of a dict and becomes None in a list or tuple, whose
    other items keep their places. Nesting may be deep and parts may be shared.
    """
    writer = _Writer(tensors)
    writer.save(value)
    return Pickled(bytes(writer.out + _STOP), tuple(writer.storages), frozenset(writer.keys))


class _Writer:
    def __init__(self, tensors: Mapping[str, Stored | StoredSparse]) -> None:
        self.out = bytearray(b"\x80\x02")
        self.storages: dict[str, str] = {}
        self.keys: set[str] = set()
        self._tensors = tensors
        self._memo: dict[object, bytes] = {}  # strings and names by value, containers by id -> the opcode that gets them
        self._count = 0

    def save(self, value: Any) -> None:
        """Containers are walked with a stack of generators, each yielding the items it wants written next."""
        frames = [iter((value,))]
        while frames:
            for item in frames[-1]:
                inner = self._write(item)
                if inner is not None:
                    frames.append(inner)
                    break
            else:
                frames.pop()

    def _write(self, value: Any) -> Iterator[Any] | None:
        """Write a value without parts; or return the frame of one with parts."""
        kind = type(value)
        if kind is TensorRef:
            stored = self._tensors.get(value.key)
            if stored is None:
                self.out += _NONE
            else:
                self.keys.add(value.key)
                if isinstance(stored, Stored):
                    self._save_tensor(stored)
                else:
                    self._save_sparse(stored)
            return None
        if kind is Node or kind is dict or kind is list or kind is tuple:
            known = self._memo.get(id(value))
            if known is not None:
                self.out += known
                return None
            if kind is list:
                return self._list(value)
            if kind is tuple:
                return self._tuple(value)
            return self._dict(value)
        if kind in ATOMS:
            self._atom(value)
        else:
            self.out += _NONE
        return None

    def _kept(self, value: Any) -> bool:
        kind = type(value)
        if kind is TensorRef:
            return value.key in self._tensors
        return kind is Node or kind is dict or kind is list or kind is tuple or plain(value)

    def _put(self, *identities: object) -> None:
        """Memoize what is on top of the stack, for those who look for one of `identities`."""
        number = self._count
        self._count = number + 1
        if number < 256:
            self.out += b"q%c" % number
            get = b"h%c" % number
        else:
            packed = _U32(number)
            self.out += b"r" + packed
            get = b"j" + packed
        for identity in identities:
            self._memo[identity] = get

    def _atom(self, value: Any) -> None:
        if value is None:
            self.out += _NONE
        elif value is True:
            self.out += _TRUE
        elif value is False:
            self.out += _FALSE
        elif isinstance(value, str):
            self._text(value)
        elif isinstance(value, int):
            self.out += integer(value) if plain(value) else _NONE
        elif isinstance(value, float):
            self.out += b"G" + _DOUBLE(value)
        elif isinstance(value, complex):
            self._name("__builtin__", "complex")
            self.out += b"G" + _DOUBLE(value.real) + b"G" + _DOUBLE(value.imag) + _TUPLES[2]
            self._call()
        else:
            self._name("_codecs", "encode")
            self._text(value.decode("latin-1"))
            self._text("latin1")
            self.out += _TUPLES[2]
            self._call()

    def _call(self) -> None:
        """Memoize the tuple of arguments on top of the stack, call what lies below, and memoize what comes."""
        self._put()
        self.out += _REDUCE
        self._put()

    def _text(self, value: str) -> None:
        known = self._memo.get(value)
        if known is not None:
            self.out += known
            return
        data = value.encode("utf-8", "surrogatepass")
        self.out += b"X" + _U32(len(data)) + data
        self._put(value)

    def _name(self, module: str, name: str) -> None:
        known = self._memo.get((module, name))
        if known is not None:
            self.out += known
            return
        self.out += f"c{module}\n{name}\n".encode()
        self._put((module, name))

    def _list(self, value: list[Any]) -> Iterator[Any]:
        self.out += _EMPTY_LIST
        self._put(id(value))
        if len(value) == 1:
            yield value[0]
            self.out += _APPEND
            return
        for first in range(0, len(value), _BATCH):
            self.out += _MARK
            yield from value[first : first + _BATCH]
            self.out += _APPENDS

    def _tuple(self, value: tuple[Any, ...]) -> Iterator[Any]:
        if not value:
            self.out += _EMPTY_TUPLE
            return
        if len(value) > 3:
            self.out += _MARK
        yield from value
        self.out += _TUPLES.get(len(value), _TUPLE)
        self._put(id(value))

    def _dict(self, value: Node | dict[Any, Any]) -> Iterator[Any]:
        attributes: dict[Any, Any] = {}
        items: Iterable[tuple[Any, Any]]
        if isinstance(value, Node) and value.ordered:
            self._name(*_ORDERED)
            self.out += _EMPTY_TUPLE + _REDUCE
            items, attributes = value.items, dict(value.attributes)
        else:
            self.out += _EMPTY_DICT
            items = value.items if isinstance(value, Node) else value.items()
        self._put(id(value))
        yield from self._items((key, item) for key, item in items if hashable(key) and self._kept(item))
        if attributes:
            # Not memoized by its id: the dict is gone when this frame is, and another may get its id.
            self.out += _EMPTY_DICT
            self._put()
            yield from self._items((key, item) for key, item in attributes.items() if hashable(key) and self._kept(item))
            self.out += _BUILD

    def _items(self, items: Iterator[tuple[Any, Any]]) -> Iterator[Any]:
        while batch := list(islice(items, _BATCH)):
            if len(batch) == 1:
                yield from batch[0]
                self.out += _SETITEM
                return
            self.out += _MARK
            yield from chain.from_iterable(batch)
            self.out += _SETITEMS

    def _save_tensor(self, stored: Stored) -> None:
        """`_rebuild_tensor_v2`, or `_v3` for a dtype without a storage class (torch/_tensor.py, `_reduce_ex_internal`)."""
        name, dtype, shape = stored
        storage = self.storages.setdefault(name, str(len(self.storages)))
        elements = 1
        for size in shape:
            elements *= size
        typed = dtype.storage
        self._name("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
        self.out += b"(("
        self._text("storage")
        if typed:
            self._name("torch", typed)
        else:
            self._name("torch.storage", "UntypedStorage")
            elements *= dtype.itemsize
        self._text(storage)
        self._text("cpu")
        self.out += integer(elements) + _TUPLE
        self._put()
        self.out += b"QK\x00"
        self._sizes(shape)
        self._sizes(c_strides(shape))
        self.out += _FALSE
        self._name(*_ORDERED)
        self.out += b")R"
        self._put()
        if not typed:
            self._name("torch", str(dtype.torch))
        self.out += _TUPLE
        self._call()

    def _save_sparse(self, sparse: StoredSparse) -> None:
        """`_rebuild_sparse_tensor` of the layout and (parts, shape[, coalesced]) (torch/_tensor.py, `_reduce_ex_internal`)."""
        layout, parts, shape, coalesced = sparse
        self._name("torch._utils", "_rebuild_sparse_tensor")
        known = self._memo.get(("layout", layout))
        if known is None:
            self._name("torch.serialization", "_get_layout")
            self._text(layout)
            self.out += _TUPLES[1]
            self._put()
            self.out += _REDUCE
            self._put(("layout", layout))
        else:
            self.out += known
        flag = b"" if coalesced is None else _TRUE if coalesced else _FALSE
        count = len(parts) + 1 + len(flag)
        self.out += _MARK if count > 3 else b""
        for part in parts:
            self._save_tensor(part)
        self._name("torch", "Size")
        self._sizes(shape)
        self.out += _TUPLES[1]
        self._call()
        self.out += flag + _TUPLES.get(count, _TUPLE)
        self._put()
        self.out += _TUPLES[2]
        self._call()

    def _sizes(self, sizes: Shape) -> None:
        if not sizes:
            self.out += _EMPTY_TUPLE
            return
        if len(sizes) > 3:
            self.out += _MARK
        for size in sizes:
            self.out += integer(size)
        self.out += _TUPLES.get(len(sizes), _TUPLE)
        self._put()
