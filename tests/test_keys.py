from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtool.errors import UsageError
from wtool.keys import Rename, matcher, natural, parse_rename, short_key
from wtool.report import printable


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("a.b", ["a.b"], ["a", "a.b.c", "aab", "xa.b", "A.B"]),
        ("*", ["a", "weight", ""], ["a.b", "a/b"]),
        ("**", ["", "a", "a.b/c"], []),
        ("*.weight", ["fc.weight", ".weight"], ["a.fc.weight", "weight", "fc.weights"]),
        ("**.weight", ["weight", "fc.weight", "a.fc.weight"], ["xweight", "a/weight", "weight.x"]),
        ("**weight", ["weight", "xweight", "a.b/weight"], ["weights"]),
        ("a.**", ["a.b", "a.b.c", "a."], ["a", "ab.c"]),
        ("a.**.b", ["a.b", "a.x.b", "a.x.y.b"], ["ab", "a.xb", "a.b.c", "xa.b"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x.y/b"], ["a.b", "a/xb"]),
        ("**.a.**.b.**", ["a.b.", "a.b.c", "x.a.y.b.z"], ["a.b", "xa.b.c"]),
        ("layers.*.bias", ["layers.0.bias", "layers.10.bias"], ["layers.0.fc.bias", "layers.bias"]),
        ("l*r*s", ["lrs", "layers", "lrsrs"], ["l.r.s", "layer"]),
        ("a?c", ["abc"], ["a.c", "a/c", "ac", "abbc"]),
        ("layers.[0-3].w", ["layers.0.w", "layers.3.w"], ["layers.4.w", "layers.10.w", "layers..w"]),
        ("x[!0-9]", ["xa", "x]"], ["x1", "x.", "x/", "x"]),
        ("x[^0-9]", ["xa"], ["x1"]),
        ("x[._]y", ["x.y", "x_y"], ["x/y"]),
        ("*[.x]*b", ["axc.b", "axb", "a.b"], ["a.c.b"]),
        ("[*]", ["*"], ["a"]),
        ("[]]", ["]"], ["a"]),
        ("[a-]", ["a", "-"], ["b"]),
        ("a]", ["a]"], ["a"]),
        (r"a\*", ["a\\", "a\\b"], ["a*"]),
        ("(a|b)+$^", ["(a|b)+$^"], ["a"]),
        ("***", ["a.b"], []),
        ("größe.*", ["größe.w"], ["grosse.w"]),
    ],
)
def test_globs(glob: str, yes: list[str], no: list[str]) -> None:
    matches = matcher([glob])
    assert [key for key in yes if not matches(key)] == []
    assert [key for key in no if matches(key)] == []


def test_any_of_several_globs_will_do() -> None:
    matches = matcher(["a.*", "**.b"])
    assert [key for key in ("a.x", "q.b", "b", "a.x.b", "a.x.c", "a") if matches(key)] == ["a.x", "q.b", "b", "a.x.b"]
    assert not matcher([])("a")


@pytest.mark.parametrize("glob", ["", "a[", "a[]", "[!]", "[z-a]"])
def test_malformed_globs_are_refused(glob: str) -> None:
    with pytest.raises(UsageError):
        matcher([glob])


def oracle(glob: str) -> str:
    """The glob as a regular expression, which backtracks."""
    pattern, tail = (
        "",
        re.compile(r"(?P<whole>(?:(?<![^./]))\*\*+(?P<separator>[./]))|(?P<run>\*\*+)|(?P<part>\*)|(?P<one>\?)|."),
    )
    for found in tail.finditer(glob):
        kinds = {"whole": f"(?:.*{re.escape(found['separator'] or '')})?", "run": ".*", "part": "[^./]*", "one": "[^./]"}
        pattern += kinds[found.lastgroup] if found.lastgroup else re.escape(found.group())
    return pattern


@given(st.text("ab.*?", min_size=1, max_size=10), st.lists(st.text("ab./", max_size=10), max_size=20))
def test_globs_agree_with_a_regular_expression(glob: str, keys: list[str]) -> None:
    matches = matcher([glob])
    for key in keys:
        assert matches(key) == bool(re.fullmatch(oracle(glob), key)), key


def test_no_glob_is_slow() -> None:
    # A backtracking matcher would not finish.
    for glob in ("**a" * 30, "*a" * 30, "**." * 30 + "z", "[ab]**" * 30 + "z"):
        assert not matcher([glob])("a" * 5000 + "b")


def test_natural_order_counts() -> None:
    keys = ["a.10", "a.2", "a.2.b", "a.02", "b", "", "a", "10", "9", "a" + "9" * 5000, "a.2b"]
    assert sorted(keys, key=natural)[:8] == ["", "9", "10", "a", "a" + "9" * 5000, "a.02", "a.2", "a.2.b"]


@given(st.lists(st.text("a0.9/1٣", max_size=8), unique=True))
def test_natural_order_is_total(keys: list[str]) -> None:
    turned = keys[::-1]
    assert sorted(keys, key=natural) == sorted(turned, key=natural)
    assert len({natural(key) for key in keys}) == len(keys)


def test_short_keys() -> None:
    assert short_key("net/w/.ATTRIBUTES/VARIABLE_VALUE") == "net/w"
    assert short_key("net/w") == "net/w"


def test_renames() -> None:
    assert parse_rename(r"^model\.(\w+)=>enc.\1")("model.a.model.b") == "enc.a.model.b"
    assert parse_rename("a=>")("banana") == "bnn"
    assert parse_rename("x=>y=>z") == Rename("x=>y", "z")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("ab", "REGEX=>REPL"),
        ("=>b", "REGEX=>REPL"),
        ("a(b=>c", "position 1"),
        (r"a=>\1", "position 1"),
        (r"a=>\g<n>", "bad rename"),
        ("a{99999999999}=>b", "bad rename"),
        ("(" * 5000 + ")" * 5000 + "=>b", "bad rename"),
    ],
)
def test_malformed_renames_are_refused(text: str, place: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_rename(text)
    assert place in f"{caught.value} {caught.value.hint}"


def test_unprintable_characters_are_escaped() -> None:
    assert printable("layers.0 größe 権") == "layers.0 größe 権"
    assert printable("a\x1b[31m\n\u202eb\ud800\x7f") == r"a\x1b[31m\n\u202eb\ud800\x7f"
