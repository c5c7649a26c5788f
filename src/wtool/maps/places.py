"""Where in its text a recipe is wrong: a fault is found in the parsed tables, people look for a line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from wtool.errors import RecipeError

_HEADER = re.compile(r"\s*\[(\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_AT_END = "(at end of document)"
_AT = re.compile(r"\(at line ([0-9]+), column ([0-9]+)\)")


class PlacedError(RecipeError):
    """A fault of the rule of this sort and number, counted from 1."""

    def __init__(self, error: RecipeError, what: str, number: int) -> None:
        super().__init__(error.message, hint=error.hint)
        self.what, self.number = what, number


@contextmanager
def placed(what: str, number: int) -> Iterator[None]:
    """Faults found inside are of this rule."""
    try:
        yield
    except PlacedError:
        raise
    except RecipeError as error:
        raise PlacedError(error, what, number) from None


def in_toml(text: str, message: str) -> str:
    """What tomllib says, with a line and a column always: `line 3, column 7: invalid value`."""
    found = _AT.search(message)
    lines = text.split("\n")
    said = _AT.sub("", message).replace(_AT_END, "").strip()
    said = said[:1].lower() + said[1:]
    if found is None:
        # The last line that says something is the one that is not finished.
        number = max((number for number, line in enumerate(lines, 1) if line.strip()), default=1)
        return f"line {number}, column {len(lines[number - 1].rstrip()) + 1}: {said} (the file ends there)"
    return f"line {found[1]}, column {found[2]}: {said}"


def line_of(text: str, error: RecipeError) -> int | None:
    """The line of the fault: where what the message quotes stands, in the rule or table that it is about."""
    lines = text.split("\n")
    known = _headers(lines)
    quoted = re.findall(r"'([^']+)'", error.message)
    if isinstance(error, PlacedError):
        headers = [at for at, (double, name) in known.items() if double and name == error.what]
        if len(headers) < error.number:  # written as an array of inline tables
            return _search(lines, quoted, range(len(lines)))
        start = headers[error.number - 1]
        below = error.what + "."
        stop = next((at for at, (_, name) in known.items() if at > start and not name.startswith(below)), len(lines))
        return _search(lines, quoted, range(start, stop)) or start + 1
    table = re.search(r"\[(\w+)\]|(table|kind|side|variable) '([^']+)'", error.message)
    if table is not None:
        name = {"side": "sides", "variable": "vars"}.get(table[2], table[1] or table[3])
        starts = [at for at, (_, header) in known.items() if name in header.split(".")]
        inside = [at for start in starts for at in range(start, next((at for at in known if at > start), len(lines)))]
        if inside:
            return _search(lines, [word for word in quoted if word != name], inside) or inside[0] + 1
    return _search(lines, quoted, range(len(lines)))


def _search(lines: list[str], quoted: list[str], inside: Iterable[int]) -> int | None:
    """The first line with the first of these words, and of several such that with most of the others."""
    best, line = [False], None
    for at in inside:
        found = [_stands(word, lines[at]) for word in quoted]
        if found > best and any(found):
            best, line = found, at + 1
    return line


def _stands(word: str, line: str) -> bool:
    """Whether the word is in the line, as itself or as TOML writes it; a name only where it is no part of another."""
    if word.isidentifier():
        return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", line) is not None
    return word in line or word.replace("\\", "\\\\").replace('"', '\\"') in line


def _headers(lines: list[str]) -> dict[int, tuple[bool, str]]:
    """Lines that are `[table]` or `[[array]]`: whether of an array, and the name. Those in long texts and lists are none."""
    found: dict[int, tuple[bool, str]] = {}
    quote, depth = "", 0
    for at, line in enumerate(lines):
        if not quote and not depth:
            header = _HEADER.match(line)
            if header is not None:
                found[at] = (bool(header[1]), header[2].replace(" ", "").replace('"', "").replace("'", ""))
                continue
        quote, depth = _after(line, quote, depth)
    return found


def _after(line: str, quote: str, depth: int) -> tuple[str, int]:
    """The long text that is open behind this line, if one is, and how many brackets are."""
    at = 0
    while at < len(line):
        if quote:
            if line[at] == "\\" and quote == '"""':
                at += 2
                continue
            if line.startswith(quote, at):
                at += len(quote)
                quote = ""
                continue
        elif line[at] == "#":
            break
        elif line.startswith(('"""', "'''"), at):
            quote = line[at : at + 3]
            at += 3
            continue
        elif line[at] in "\"'":
            end = re.compile(r'"(?:\\.|[^"\\])*"' if line[at] == '"' else r"'[^']*'").match(line, at)
            at = end.end() if end else len(line)
            continue
        elif line[at] in "[{":
            depth += 1
        elif line[at] in "]}":
            depth = max(depth - 1, 0)
        at += 1
    return quote, depth
