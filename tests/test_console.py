"""Streams: color, width, progress, errors."""

from __future__ import annotations

import io
import json
import os

import pytest

from wtool.cli.console import Console, ProgressLine, has_color, report_kind, say, show_error, write_report
from wtool.errors import CorruptError, UsageError, WriteError
from wtool.report import Facts, Report

REPORT = Report("wtool.test/1", "title", {"n": 1}, (Facts((("a", "b"),)),))


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "terminal", "color"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "0"}, True, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_color(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], terminal: bool, color: bool) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert has_color(Terminal() if terminal else io.StringIO()) is color


def test_columns_sets_the_width_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Report("s/1", "t", {}, (Facts((("label", "v" * 300),)),))
    for columns in (50, 90):
        out = Terminal()
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setenv("COLUMNS", str(columns))
        Console().show([wide], "text")
        assert (
            max(map(len, out.getvalue().replace("\x1b[0m", "").replace("\x1b[1m", "").replace("\x1b[2m", "").splitlines()))
            == columns
        )


def test_progress_only_where_somebody_watches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress("writing", 10) as advance:
        assert advance is None
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with Console(quiet=True).progress("writing", 10) as advance:
        assert advance is None
    with Console().progress("writing", 10) as advance:
        assert advance is not None


def test_progress_tells_bytes_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    err = Terminal()
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("COLUMNS", "100")
    now = [100.0]
    line = ProgressLine("writing", 4_000_000, clock=lambda: now[0])
    now[0] += 10
    line.advance(1_000_000)
    text = line.text(99)
    assert text.startswith("writing  ███")
    assert text.endswith("25%  1.00 MB of 4.00 MB  100 kB/s  30 s left")
    assert len(text) <= 99
    assert all(len(line.text(width)) <= width for width in range(1, 100))
    shown = err.getvalue()
    assert shown.startswith("\rwriting")
    line.advance(1_000_000)
    assert err.getvalue() == shown, "the same moment is not drawn twice"
    line.clear()
    assert err.getvalue().endswith("\r\x1b[K")


def test_an_error_is_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(CorruptError("is bro\x1bken", path="a\nb.pth", hint="try again"), as_json=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "wtool: error: a\\nb.pth: is bro\\x1bken\nhint: try again\n"


def test_an_error_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(CorruptError("is broken", path="a.pth"), as_json=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err) == {
        "schema": "wtool.error/1",
        "code": "corrupt",
        "message": "is broken",
        "hint": None,
        "path": "a.pth",
    }


def test_a_closed_stderr_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Closed())
    say("warning", "nobody hears this")


@pytest.mark.parametrize(("name", "kind"), [("a.json", "json"), ("a.md", "markdown"), ("A.HTML", "html"), ("a.txt", "text")])
def test_the_suffix_says_the_kind_of_a_report(tmp_path: object, name: str, kind: str) -> None:
    path = os.path.join(str(tmp_path), name)
    assert report_kind(path) == kind
    write_report(path, [REPORT])
    assert os.listdir(str(tmp_path)) == [name]
    with open(path) as file:
        text = file.read()
    assert "title" in text or json.loads(text) == {"schema": "wtool.test/1", "n": 1}


@pytest.mark.parametrize("name", ["a.safetensors", "a", "no/folder/a.json"])
def test_a_report_goes_nowhere_else(tmp_path: object, name: str) -> None:
    with pytest.raises(UsageError):
        report_kind(os.path.join(str(tmp_path), name))


def test_a_report_that_cannot_be_written_leaves_nothing(tmp_path: object) -> None:
    target = os.path.join(str(tmp_path), "a.json")
    os.mkdir(target)
    with pytest.raises(WriteError):
        write_report(target, [REPORT])
    assert os.listdir(str(tmp_path)) == ["a.json"]
