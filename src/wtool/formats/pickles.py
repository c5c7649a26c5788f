"""A closed machine that reads a pickle as data. Nothing is imported and nothing is called but the functions its caller passes.

Every opcode of protocols 0 to 5 is known (sources: CPython's `Lib/pickletools.py` and `Modules/_pickle.c`). A global yields an
inert `Name`. Calling or constructing an inert thing yields an `Inert` node with what it was given; a closed table of
`meanings`, functions of ours, gives some names more than that.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from wtool.bytesource import ByteSource
from wtool.errors import CorruptError, LimitError, TruncatedError, UnsupportedError
from wtool.formats.pickle_objects import (
    COPIED,
    FREE_NODES,
    FREE_TUPLES,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_MEMO,
    MAX_OPCODES,
    Meaning,
    Name,
    Workbench,
)
from wtool.formats.pickle_opcodes import HANDLERS, SIZED

_TWO = struct.Struct("<H")
_FOUR = struct.Struct("<I")
_SIGNED = struct.Struct("<i")


class Pickled(NamedTuple):
    """The object, the names it would have imported in their order, and the offset of the first byte behind it."""

    value: Any
    names: list[Name]
    end: int


def read_pickle(
    source: ByteSource,
    start: int,
    end: int,
    meanings: Mapping[str, Meaning],
    persistent: Callable[[Any], Any] | None = None,
    *,
    window: int = 1 << 16,
) -> Pickled:
    """The pickle at `start`, which ends before `end` (where, if it is followed by other things, the pickle itself says).

    Read in windows that grow from `window` bytes. Raises CorruptError, TruncatedError, LimitError or UnsupportedError.
    """
    machine = _Machine(meanings, persistent)
    at = start
    data = b""
    while True:
        if at - start >= MAX_BYTES:
            raise LimitError(f"its pickle is longer than {MAX_BYTES:,} bytes", path=source.name)
        count = min(window, end - at, MAX_BYTES - (at - start))
        if count <= 0:
            raise TruncatedError(f"ends inside a pickle, at byte {end}", path=source.name)
        data += source.pread(at, count)
        at += count
        window = len(data) * 3
        try:
            done = machine.run(data, last=at >= end)
        except (CorruptError, LimitError, UnsupportedError) as error:
            raise type(error)(f"pickle at byte {start}: {error.message}", path=source.name) from None
        if done is not None:
            return Pickled(machine.value, list(machine.names.values()), start + done)


class _Machine(Workbench):
    def run(self, data: bytes, last: bool) -> int | None:
        """Go on in `data` (all bytes so far) to the end, and return where it is; None if more bytes are needed."""
        at = self.pos
        try:
            return self._run(data)
        except (IndexError, struct.error):
            at = self.pos
            if len(data) - at < 10 or data[at] in SIZED:
                if not last:
                    return None
                raise TruncatedError(f"ends inside a pickle, after {len(data)} bytes of it") from None
            raise CorruptError(f"byte {at}: opcode {data[at]:#04x} finds nothing to work on") from None
        except (ValueError, TypeError, AttributeError, OverflowError, KeyError) as error:
            at = self.pos
            reason = f"no memo {error}" if isinstance(error, KeyError) else str(error)
            raise CorruptError(f"byte {at}: opcode {data[at]:#04x}: {reason[:200]}") from None

    def _run(self, data: bytes) -> int | None:
        stack, marks, memo, push, persistent = self.stack, self.marks, self.memo, self.stack.append, self.persistent
        two, four, signed = _TWO.unpack_from, _FOUR.unpack_from, _SIGNED.unpack_from
        at = pos = self.pos
        size = len(data)
        done = 0
        tuples, most_tuples, most_memos = self.tuples, FREE_TUPLES + size // 8, min(FREE_NODES + size // 4, MAX_MEMO)
        try:
            # The order is that of how often a checkpoint uses an opcode; the rest is in a table of methods.
            for done in range(MAX_OPCODES - self.opcodes):  # noqa: B007
                at = pos
                op = data[pos]
                pos += 1
                if op == 0x72:  # LONG_BINPUT
                    index = four(data, pos)[0]
                    if index > MAX_MEMO:
                        raise LimitError(f"byte {at}: memo {index} is beyond the limit of {MAX_MEMO:,}")
                    memo[index] = stack[-1]
                    pos += 4
                elif op == 0x71:  # BINPUT
                    memo[data[pos]] = stack[-1]
                    pos += 1
                elif op == 0x94:  # MEMOIZE
                    memo[len(memo)] = stack[-1]
                    if len(memo) > most_memos:
                        raise LimitError(f"byte {at}: more than {most_memos:,} memos in so few bytes")
                elif op == 0x68:  # BINGET
                    push(memo[data[pos]])
                    pos += 1
                elif op == 0x4B:  # BININT1
                    push(data[pos])
                    pos += 1
                elif op == 0x28:  # MARK
                    if len(marks) >= MAX_DEPTH:
                        raise LimitError(f"byte {at}: nested more than {MAX_DEPTH} deep")
                    marks.append(len(stack))
                elif op == 0x85:  # TUPLE1
                    stack[-1] = (stack[-1],)
                    tuples += 1
                    if tuples > most_tuples:
                        raise LimitError(f"byte {at}: {tuples:,} tuples in so few bytes")
                elif op == 0x74:  # TUPLE
                    mark = marks.pop()
                    items = tuple(stack[mark:])
                    del stack[mark:]
                    push(items)
                    tuples += 1
                    if tuples > most_tuples:
                        raise LimitError(f"byte {at}: {tuples:,} tuples in so few bytes")
                elif op == 0x86:  # TUPLE2
                    second = stack.pop()
                    stack[-1] = (stack[-1], second)
                    tuples += 1
                    if tuples > most_tuples:
                        raise LimitError(f"byte {at}: {tuples:,} tuples in so few bytes")
                elif op == 0x58:  # BINUNICODE
                    end = pos + 4 + four(data, pos)[0]
                    if end > size:
                        raise IndexError
                    push(data[pos + 4 : end].decode("utf-8", "surrogatepass"))
                    pos = end
                elif op == 0x52:  # REDUCE
                    args = stack.pop()
                    maker = stack[-1]
                    self.pos = at
                    # The rebuilding of a tensor copies nothing; whatever else is called is counted.
                    if (
                        type(maker) is Name
                        and type(args) is tuple
                        and maker.meaning is not None
                        and 5 < len(args) < 9
                        and type(args[0]) not in COPIED
                        and type(args[1]) not in COPIED
                    ):
                        stack[-1] = maker.meaning(args)
                    else:
                        stack[-1] = self.make(maker, args)
                elif op == 0x4D:  # BININT2
                    push(two(data, pos)[0])
                    pos += 2
                elif op == 0x4A:  # BININT
                    push(signed(data, pos)[0])
                    pos += 4
                elif op == 0x6A:  # LONG_BINGET
                    push(memo[four(data, pos)[0]])
                    pos += 4
                elif op == 0x89:  # NEWFALSE
                    push(False)
                elif op == 0x29:  # EMPTY_TUPLE
                    push(())
                elif op == 0x51 and persistent is not None:  # BINPERSID
                    stack[-1] = persistent(stack[-1])
                elif op == 0x87:  # TUPLE3
                    third = stack.pop()
                    second = stack.pop()
                    stack[-1] = (stack[-1], second, third)
                    tuples += 1
                    if tuples > most_tuples:
                        raise LimitError(f"byte {at}: {tuples:,} tuples in so few bytes")
                elif op == 0x4E:  # NONE
                    push(None)
                elif op == 0x2E:  # STOP
                    self.value = stack.pop()
                    return pos
                else:
                    self.pos = at
                    handler = HANDLERS[op]
                    if handler is None:
                        raise CorruptError(f"byte {at}: there is no opcode {op:#04x}")
                    pos = handler(self, data, pos)
            raise LimitError(f"more than {MAX_OPCODES:,} opcodes")
        finally:
            self.pos = at
            self.opcodes += done
            self.tuples = tuples
