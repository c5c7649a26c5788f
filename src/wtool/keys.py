"""Keys of tensors: how people select them, order them and rename them.

A key is a string of parts divided by `.` (torch, Flax) or `/` (TensorFlow), its separators.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wtool.errors import UsageError

SEPARATORS = "./"
TF_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"  # what TensorFlow's object-based checkpoints put behind every variable

_NUMBER = re.compile("([0-9]+)")
_CACHED = 1 << 14  # transitions kept by a matcher
_RUNS = 12  # runs of numbers that a merged key lists

NaturalKey = tuple[tuple[str | tuple[int, str], ...], str]


def natural(key: str) -> NaturalKey:
    """A sort key that puts numbers in order of value (`layers.2` before `layers.10`); a total order over all strings."""
    # A number as (digits, text), not int: a hostile key may hold more digits than int() takes.
    parts: list[str | tuple[int, str]] = list(_NUMBER.split(key))
    for index in range(1, len(parts), 2):
        digits = str(parts[index]).lstrip("0")
        parts[index] = (len(digits), digits)
    return tuple(parts), key


def short_key(key: str) -> str:
    """The key as people write it: without TensorFlow's `/.ATTRIBUTES/VARIABLE_VALUE`."""
    return key.removesuffix(TF_SUFFIX)


@dataclass(frozen=True, slots=True)
class Rename:
    """`re.sub(pattern, replacement)` on a key; `\\1` and `\\g<name>` in the replacement are groups of the pattern."""

    pattern: str
    replacement: str

    def __call__(self, key: str) -> str:
        return re.sub(self.pattern, self.replacement, key)


def parse_rename(text: str) -> Rename:
    """`REGEX=>REPL`, cut at the last `=>`. UsageError, with the position, if either side is malformed."""
    pattern, arrow, replacement = text.rpartition("=>")
    if not arrow or not pattern:
        raise UsageError(f"'{text}' is no rename", hint=r"write REGEX=>REPL, as in '^model\.=>'")
    try:
        # The replacement is parsed even where nothing matches.
        re.compile(pattern).sub(replacement, "")
    except re.error as error:
        place = "" if error.pos is None else f" at position {error.pos}"
        raise UsageError(f"bad rename '{text}': {error.msg}{place}") from None
    except (IndexError, OverflowError, RecursionError) as error:
        raise UsageError(f"bad rename '{text}': {error}") from None
    return Rename(pattern, replacement)


def matcher(globs: Sequence[str]) -> Callable[[str], bool]:
    """Whether a key matches any of the globs (none: never). UsageError for a malformed glob.

    A glob is matched against the whole key, upper and lower case apart:

    - `*` is any run of characters within one part, `?` one character within a part;
    - `**` is any run of characters across parts. Standing as a whole part with one behind it, it may also be no part at all:
      `**.weight` matches `weight`, and `a.**.b` matches `a.b`; `a.**` is all below `a`, not `a` itself;
    - `[abc]`, `[0-9]` is one of these characters, `[!0-9]` one that is neither of these nor a separator; a `]` that comes
      first is itself, so `[*]` and `[]]` quote;
    - every other character, the backslash too, is itself.

    Time is linear in the key whatever the globs: they run as one automaton, whose states are found when first met.
    """
    tokens: list[_Token] = []
    start = accept = 0
    for glob in globs:
        start |= 1 << len(tokens)
        tokens += _tokens(glob)
        accept |= 1 << len(tokens)
        tokens.append(_Token())
    start = _closure(tokens, start)
    known: dict[tuple[int, str], int] = {}

    def matches(key: str) -> bool:
        states = start
        for char in key:
            after = known.get((states, char))
            if after is None:
                if len(known) >= _CACHED:
                    known.clear()
                after = known[states, char] = _closure(tokens, _step(tokens, states, char))
            states = after
            if not states:
                return False
        return bool(states & accept)

    return matches


@dataclass(frozen=True, slots=True)
class _Token:
    """One place in a glob. It takes a character of `ranges` (outside of them if `negated`); none is the end of the glob.

    `repeat`: takes any number. `jumps`: the places, counted from here, where the match may go on without taking a character.
    """

    ranges: tuple[tuple[str, str], ...] = ()
    negated: bool = False
    repeat: bool = False
    jumps: tuple[int, ...] = ()

    def takes(self, char: str) -> bool:
        return any(low <= char <= high for low, high in self.ranges) != self.negated


_PART = tuple((char, char) for char in SEPARATORS)


def _tokens(glob: str) -> list[_Token]:
    if not glob:
        raise UsageError("an empty glob matches no key")
    tokens: list[_Token] = []
    at = 0
    while at < len(glob):
        char = glob[at]
        if char == "*":
            stop = at
            while stop < len(glob) and glob[stop] == "*":
                stop += 1
            whole = (at == 0 or glob[at - 1] in SEPARATORS) and glob[stop : stop + 1] in tuple(SEPARATORS)
            if stop - at == 1:
                tokens.append(_Token(_PART, negated=True, repeat=True, jumps=(1,)))
            else:
                if whole:
                    tokens.append(_Token(jumps=(1, 3)))  # into the run, or past it and its separator
                tokens.append(_Token(negated=True, repeat=True, jumps=(1,)))
            at = stop
        elif char == "?":
            tokens.append(_Token(_PART, negated=True))
            at += 1
        elif char == "[":
            token, at = _class(glob, at)
            tokens.append(token)
        else:
            tokens.append(_Token(((char, char),)))
            at += 1
    return tokens


def _class(glob: str, start: int) -> tuple[_Token, int]:
    at = start + 1
    negated = glob[at : at + 1] in ("!", "^")
    at += negated
    stop = glob.find("]", at + 1)
    if stop < 0:
        raise UsageError(f"bad glob '{glob}': '[' at position {start} is not closed", hint="'[[]' matches a bracket")
    ranges: list[tuple[str, str]] = []
    while at < stop:
        low = high = glob[at]
        if at + 2 < stop and glob[at + 1] == "-":
            high = glob[at + 2]
            at += 2
        if low > high:
            raise UsageError(f"bad glob '{glob}': the range '{low}-{high}' runs backwards")
        ranges.append((low, high))
        at += 1
    return _Token((*ranges, *(_PART if negated else ())), negated), stop + 1


def _step(tokens: list[_Token], states: int, char: str) -> int:
    after = 0
    for index in _bits(states):
        token = tokens[index]
        if token.takes(char):
            after |= 1 << (index if token.repeat else index + 1)
    return after


def _closure(tokens: list[_Token], states: int) -> int:
    """With every place that is reached without taking a character."""
    todo = states
    while todo:
        reached = 0
        for index in _bits(todo):
            for jump in tokens[index].jumps:
                reached |= 1 << (index + jump)
        todo = reached & ~states
        states |= reached
    return states


def _bits(states: int) -> list[int]:
    found = []
    while states:
        low = states & -states
        found.append(low.bit_length() - 1)
        states ^= low
    return found


def pattern(key: str) -> str:
    """The key with every number as `#`: equal for the same tensor of repeated layers."""
    return _NUMBER.sub("#", key)


def merged(keys: Sequence[str]) -> str:
    """Keys of one pattern as one: `layers.{0-11}.weight`. Numbers that leave gaps are listed, `{0,2,5-9}`; of many, the
    first and the last."""
    rows = [_NUMBER.split(key) for key in keys]
    said = ""
    for place, text in enumerate(rows[0]):
        values = sorted({row[place] for row in rows}, key=natural)
        runs = _runs(values)
        if len(runs) > _RUNS:
            runs = [*runs[: _RUNS - 2], "...", runs[-1]]
        said += text if len(values) == 1 else "{" + ",".join(runs) + "}"
    return said


def _runs(numbers: Sequence[str]) -> list[str]:
    """Numbers in rising order, neighbours as `first-last`."""
    found: list[list[str]] = []
    for text in numbers:
        last = found[-1][-1] if found else ""
        if last and len(text) < 19 and int(text) == int(last) + 1:
            found[-1] = [found[-1][0], text]
        else:
            found.append([text])
    return ["-".join(run) for run in found]
