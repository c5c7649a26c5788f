"""The opcodes that a checkpoint uses seldom, as functions (workbench, all bytes, position of the argument) -> next position.

An argument that reaches past the bytes raises IndexError or struct.error before anything is changed, so that the machine can
go on when more bytes are there.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from typing import Any

from wtool.errors import CorruptError, LimitError
from wtool.formats.pickle_objects import MAX_INTEGER, MAX_MEMO, Bag, Inert, Pairs, Workbench

_MAX_DIGITS = 2400  # of an integer written as text: about MAX_INTEGER bytes

Handler = Callable[[Workbench, bytes, int], int]


def _line(data: bytes, pos: int) -> tuple[bytes, int]:
    end = data.find(b"\n", pos)
    if end < 0:
        raise IndexError
    return data[pos:end], end + 1


def _cut(data: bytes, pos: int, count: int) -> tuple[bytes, int]:
    end = pos + count
    if end > len(data):
        raise IndexError
    return data[pos:end], end


def _integer(text: bytes) -> int:
    if len(text) > _MAX_DIGITS:
        raise LimitError(f"an integer of more than {_MAX_DIGITS} digits")
    return int(text.removesuffix(b"L"))


def _text(data: bytes) -> str | bytes:
    """A Python 2 string: text if it is UTF-8 (as torch reads it), else its bytes."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _put(w: Workbench, index: int) -> None:
    if not 0 <= index <= MAX_MEMO:
        raise LimitError(f"byte {w.pos}: memo {index} is beyond the limit of {MAX_MEMO:,}")
    w.memo[index] = w.stack[-1]


def _sized(form: str, make: Callable[[bytes], Any]) -> Handler:
    """An opcode whose argument is a length and that many bytes."""
    length = struct.Struct(form)

    def handler(w: Workbench, data: bytes, pos: int) -> int:
        count = length.unpack_from(data, pos)[0]
        if count < 0:
            raise CorruptError(f"byte {w.pos}: a negative length")
        raw, pos = _cut(data, pos + length.size, count)
        w.stack.append(make(raw))
        return pos

    return handler


def _line_of(make: Callable[[bytes], Any]) -> Handler:
    """An opcode whose argument is a line of text."""

    def handler(w: Workbench, data: bytes, pos: int) -> int:
        raw, pos = _line(data, pos)
        w.stack.append(make(raw))
        return pos

    return handler


def _plain(value: Any) -> Handler:
    def handler(w: Workbench, data: bytes, pos: int) -> int:
        w.stack.append(value)
        return pos

    return handler


def _utf8(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _long(raw: bytes) -> int:
    if len(raw) > MAX_INTEGER:
        raise LimitError(f"an integer of {len(raw):,} bytes")
    return int.from_bytes(raw, "little", signed=True)


def _int_line(raw: bytes) -> int | bool:
    return {b"00": False, b"01": True}[raw] if raw in (b"00", b"01") else _integer(raw)


def _quoted(raw: bytes) -> str | bytes:
    raw = raw.strip()
    if len(raw) < 2 or raw[:1] not in b"'\"" or raw[-1:] != raw[:1]:
        raise CorruptError("a string without its quotes")
    decoded: bytes = codecs.escape_decode(raw[1:-1])[0]
    return _text(decoded)


def _float(w: Workbench, data: bytes, pos: int) -> int:
    w.stack.append(struct.unpack_from(">d", data, pos)[0])
    return pos + 8


def _empty_list(w: Workbench, data: bytes, pos: int) -> int:
    w.node()
    w.stack.append([])
    return pos


def _empty_dict(w: Workbench, data: bytes, pos: int) -> int:
    w.node()
    w.stack.append(Pairs([]))
    return pos


def _empty_set(w: Workbench, data: bytes, pos: int) -> int:
    w.node()
    w.stack.append(Bag([]))
    return pos


def _frozenset(w: Workbench, data: bytes, pos: int) -> int:
    w.node()
    w.stack.append(Bag(w.take(), frozen=True))
    return pos


def _list(w: Workbench, data: bytes, pos: int) -> int:
    w.node()
    w.stack.append(w.take())
    return pos


def _dict(w: Workbench, data: bytes, pos: int) -> int:
    w.node()
    items = w.take()
    w.stack.append(Pairs([]))
    w.update(items)
    return pos


def _append(w: Workbench, data: bytes, pos: int) -> int:
    w.extend([w.stack.pop()])
    return pos


def _appends(w: Workbench, data: bytes, pos: int) -> int:
    w.extend(w.take())
    return pos


def _setitem(w: Workbench, data: bytes, pos: int) -> int:
    value = w.stack.pop()
    w.update([w.stack.pop(), value])
    return pos


def _setitems(w: Workbench, data: bytes, pos: int) -> int:
    w.update(w.take())
    return pos


def _build(w: Workbench, data: bytes, pos: int) -> int:
    state = w.stack.pop()
    target = w.stack[-1]
    if isinstance(target, (Inert, Pairs)):
        w.charge((state,))
        # A second state adds to the first, as it would to the object's attributes.
        target.state = state if target.state is None else (target.state, state)
    return pos


def _newobj(w: Workbench, data: bytes, pos: int) -> int:
    args = w.stack.pop()
    w.stack[-1] = w.make(w.stack[-1], args)
    return pos


def _newobj_ex(w: Workbench, data: bytes, pos: int) -> int:
    kwargs, args = w.stack.pop(), w.stack.pop()
    made = w.make(w.stack[-1], args)
    if isinstance(made, Inert) and isinstance(kwargs, Pairs):
        made.pairs.extend(kwargs.flat)
    w.stack[-1] = made
    return pos


def _inst(w: Workbench, data: bytes, pos: int) -> int:
    module, pos = _line(data, pos)
    name, pos = _line(data, pos)
    args = tuple(w.take())
    w.find(module.decode(), name.decode())
    w.stack[-1] = w.make(w.stack[-1], args)
    return pos


def _obj(w: Workbench, data: bytes, pos: int) -> int:
    maker, *args = w.take()
    w.stack.append(w.make(maker, tuple(args)))
    return pos


def _global(w: Workbench, data: bytes, pos: int) -> int:
    module, pos = _line(data, pos)
    name, pos = _line(data, pos)
    w.find(module.decode(), name.decode())
    return pos


def _stack_global(w: Workbench, data: bytes, pos: int) -> int:
    name, module = w.stack.pop(), w.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise CorruptError(f"byte {w.pos}: a global whose name is no string")
    w.find(module, name)
    return pos


def _extension(form: str) -> Handler:
    """A code from the registry of copyreg, which stands for a global that is agreed elsewhere."""
    code = struct.Struct(form)

    def handler(w: Workbench, data: bytes, pos: int) -> int:
        w.find("copyreg", f"extension_{code.unpack_from(data, pos)[0]}")
        return pos + code.size

    return handler


def _persistent(w: Workbench, value: Any) -> None:
    if w.persistent is not None:
        w.stack.append(w.persistent(value))
        return
    w.find("pickle", "persistent_load")
    w.stack[-1] = w.make(w.stack[-1], (value,))


def _persid(w: Workbench, data: bytes, pos: int) -> int:
    raw, pos = _line(data, pos)
    _persistent(w, raw.decode())
    return pos


def _binpersid(w: Workbench, data: bytes, pos: int) -> int:
    _persistent(w, w.stack.pop())
    return pos


def _pop(w: Workbench, data: bytes, pos: int) -> int:
    if w.marks and w.marks[-1] == len(w.stack):
        w.marks.pop()
    else:
        w.stack.pop()
    return pos


def _pop_mark(w: Workbench, data: bytes, pos: int) -> int:
    w.take()
    return pos


def _dup(w: Workbench, data: bytes, pos: int) -> int:
    w.stack.append(w.stack[-1])
    return pos


def _put_line(w: Workbench, data: bytes, pos: int) -> int:
    raw, pos = _line(data, pos)
    _put(w, _integer(raw))
    return pos


def _get_line(w: Workbench, data: bytes, pos: int) -> int:
    raw, pos = _line(data, pos)
    w.stack.append(w.memo[_integer(raw)])
    return pos


def _proto(w: Workbench, data: bytes, pos: int) -> int:
    if data[pos] > 5:
        w.refuse(f"pickle protocol {data[pos]} is not known")
    return pos + 1


def _frame(w: Workbench, data: bytes, pos: int) -> int:
    """A frame only helps to read ahead, and CPython's readers differ on what crosses its end: its length means nothing."""
    struct.unpack_from("<Q", data, pos)
    return pos + 8


def _buffer(w: Workbench, data: bytes, pos: int) -> int:
    w.refuse("the pickle keeps its buffers outside the file (protocol 5, out of band)")


_TABLE: dict[int, Handler] = {
    0x80: _proto, 0x95: _frame, 0x97: _buffer, 0x98: _buffer,
    ord("I"): _line_of(_int_line), ord("L"): _line_of(_integer), 0x8A: _sized("<B", _long), 0x8B: _sized("<i", _long),
    ord("F"): _line_of(float), ord("G"): _float, 0x88: _plain(True),
    ord("S"): _line_of(_quoted), ord("T"): _sized("<i", _text), ord("U"): _sized("<B", _text),
    ord("V"): _line_of(lambda raw: raw.decode("raw-unicode-escape")), 0x8C: _sized("<B", _utf8), 0x8D: _sized("<Q", _utf8),
    ord("B"): _sized("<I", bytes), ord("C"): _sized("<B", bytes), 0x8E: _sized("<Q", bytes), 0x96: _sized("<Q", bytearray),
    ord("]"): _empty_list, ord("l"): _list, ord("a"): _append, ord("e"): _appends,
    ord("}"): _empty_dict, ord("d"): _dict, ord("s"): _setitem, ord("u"): _setitems,
    0x8F: _empty_set, 0x90: _appends, 0x91: _frozenset,
    ord("c"): _global, 0x93: _stack_global, 0x82: _extension("<B"), 0x83: _extension("<H"), 0x84: _extension("<i"),
    ord("b"): _build, 0x81: _newobj, 0x92: _newobj_ex, ord("i"): _inst, ord("o"): _obj,
    ord("P"): _persid, ord("Q"): _binpersid,
    ord("0"): _pop, ord("1"): _pop_mark, ord("2"): _dup, ord("p"): _put_line, ord("g"): _get_line,
}  # fmt: skip

HANDLERS: list[Handler | None] = [_TABLE.get(op) for op in range(256)]

# Opcodes with an argument of any length: at the end of the bytes they mean that bytes are missing.
SIZED = frozenset(b"ILFSTUVBCcipgPX") | frozenset((0x8A, 0x8B, 0x8C, 0x8D, 0x8E, 0x96))
