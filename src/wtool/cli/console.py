"""The three streams of a command: the answer on stdout, everything else on stderr, progress only for someone who watches."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from wtool.errors import UsageError, WriteError, WtoolError
from wtool.render import SUFFIXES, render
from wtool.report import Report, printable
from wtool.sizes import format_size

_EVERY = 0.1  # seconds between two states of the progress line
_COLORS = {"error": "\x1b[1;31m", "warning": "\x1b[33m", "hint": "\x1b[36m", "dim": "\x1b[2m"}


class ClosedPipe(Exception):
    """Whoever read stdout has seen enough."""


class Console:
    """Where a command writes. `quiet` leaves only the answer and errors; `verbose` shows what is otherwise cut."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose

    def show(self, reports: Sequence[Report], kind: str, many: str = "reports") -> None:
        """The answer: reports on stdout, as wide and as colorful as it can show."""
        terminal = _is_terminal(sys.stdout)
        width = _width(sys.stdout) if terminal else None
        color = has_color(sys.stdout)
        self.out(render(reports, kind, width=width, color=color, unicode=_has_unicode(sys.stdout), many=many))

    def out(self, text: str) -> None:
        """Text on stdout. ClosedPipe if nobody reads it any more."""
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            raise ClosedPipe from None
        except OSError as error:
            raise WriteError(f"stdout cannot be written: {error.strerror}") from None

    def warn(self, text: str, path: str | None = None) -> None:
        if not self.quiet:
            say("warning", text, path)

    def note(self, text: str) -> None:
        if not self.quiet:
            say(None, text)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None] | None]:
        """A line on stderr that counts bytes, for as long as the block runs. None where nobody watches.

        The function may be called from any thread.
        """
        if self.quiet or not _is_terminal(sys.stderr) or os.environ.get("TERM") == "dumb":
            yield None
            return
        line = ProgressLine(label, total)
        try:
            yield line.advance
        finally:
            line.clear()


class ProgressLine:
    """One line that is written over: label, bar, share, bytes, rate and time left."""

    def __init__(self, label: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._label, self._total, self._clock = label, total, clock
        self._done = 0
        self._began = clock()
        self._shown = 0.0
        self._lock = threading.Lock()

    def advance(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            now = self._clock()
            if now - self._shown < _EVERY:
                return
            self._shown = now
            self._write(self.text(_width(sys.stderr) - 1))

    def text(self, width: int) -> str:
        """The line at this moment, in at most `width` columns."""
        seconds = max(self._clock() - self._began, 1e-9)
        rate = self._done / seconds
        share = min(self._done / self._total, 1.0) if self._total else 1.0
        left = (self._total - self._done) / rate if rate and seconds > 1 and self._total > self._done else None
        after = f" {share:4.0%}  {format_size(self._done)} of {format_size(self._total)}  {format_size(int(rate))}/s"
        if left is not None:
            after += f"  {_duration(left)} left"
        room = min(30, width - len(self._label) - len(after) - 4)
        if room < 5:
            return f"{self._label}{after}"[:width]
        full, empty = ("█", "░") if _has_unicode(sys.stderr) else ("#", ".")
        filled = round(room * share)
        return f"{self._label}  {full * filled}{empty * (room - filled)}{after}"

    def clear(self) -> None:
        with self._lock:
            if self._shown:
                self._write("")

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(f"\r{text}\x1b[K")
            sys.stderr.flush()
        except OSError:
            pass


def write_report(path: str, reports: Sequence[Report], many: str = "reports") -> None:
    """One more report, in a file whose suffix says its kind: written whole or not at all."""
    text = render(reports, report_kind(path), many=many)
    part = f"{path}.{os.getpid()}.part"
    try:
        try:
            with open(part, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            os.replace(part, path)
        except BaseException:
            if os.path.lexists(part):
                os.unlink(part)
            raise
    except OSError as error:
        raise WriteError(f"the report cannot be written: {error.strerror}", path=path) from None


def report_kind(path: str) -> str:
    """The kind of report that a file name asks for. UsageError before any work if there is none, or no folder for it."""
    kind = SUFFIXES.get(os.path.splitext(path)[1].lower())
    if kind is None:
        raise UsageError("a report's name ends in .json, .md, .html or .txt", path=path)
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise UsageError("the report's folder does not exist", path=path)
    return kind


def show_error(error: WtoolError, *, as_json: bool) -> None:
    """The error on stderr: two lines for people, or one JSON object."""
    if as_json:
        from wtool.render.json import line

        data = {
            "schema": "wtool.error/1",
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
            "path": error.path,
        }
        _stderr(line(data) + "\n")
        return
    say("error", error.message, error.path)
    if error.hint:
        word = f"{_COLORS['hint']}hint:\x1b[0m" if has_color(sys.stderr) else "hint:"
        _stderr(f"{word} {printable(error.hint)}\n")


def say(level: str | None, text: str, path: str | None = None) -> None:
    """`wtool: level: path: text`, one line on stderr."""
    word = f"{level}:" if level else ""
    if level and has_color(sys.stderr):
        word = f"{_COLORS[level]}{word}\x1b[0m"
    _stderr(" ".join(filter(None, ("wtool:", word, f"{printable(path)}:" if path else "", printable(text)))) + "\n")


def _stderr(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        pass  # nobody can be told


def has_color(stream: object) -> bool:
    """NO_COLOR (no-color.org) wins over FORCE_COLOR, which wins over whether this is a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    force = os.environ.get("FORCE_COLOR")
    if force is not None:
        return force not in ("", "0")
    return _is_terminal(stream) and os.environ.get("TERM") != "dumb"


def _is_terminal(stream: object) -> bool:
    try:
        return bool(stream.isatty())  # type: ignore[attr-defined]
    except (AttributeError, ValueError, OSError):
        return False


def _has_unicode(stream: object) -> bool:
    try:
        "│█…×".encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True


def _width(stream: object) -> int:
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and 0 < int(columns) < 10_000:
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80  # type: ignore[attr-defined]
    except (AttributeError, ValueError, OSError):
        return 80


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"
