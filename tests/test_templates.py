"""Templates: the key that a template writes is the key that it matches, and nothing else is."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wtool.errors import RecipeError
from wtool.maps.templates import Bindings, Slot, Template, paired, parse

TABLES = {"part": ["attn.proj", "mlp.fc1", "norm1"]}


def bound(source: str, key: str, separator: str = ".") -> Bindings | None:
    return parse(source, TABLES, separator).match(key)


MATCHES: list[tuple[str, str, dict[str, object] | None]] = [
    # The whole key, nothing less.
    ("a.b", "a.b", {}),
    ("a.b", "a.bc", None),
    ("a.b", "xa.b", None),
    ("a.b", "a.b\n", None),
    ("a.b", "aXb", None),
    ("a(b)[c]*", "a(b)[c]*", {}),
    # Numbers: one letter.
    ("l.{i}.w", "l.0.w", {"i": 0}),
    ("l.{i}.w", "l.12.w", {"i": 12}),
    ("l.{i}.w", "l.012.w", None),
    ("l.{i}.w", "l.-1.w", None),
    ("l.{i}.w", "l.x.w", None),
    ("l.{i}.w", "l.1.2.w", None),
    ("l.{i}.w", "l.١.w", None),  # digits, but none of ours
    ("l{i}", "l" + "9" * 18, {"i": int("9" * 18)}),
    ("l{i}", "l" + "9" * 19, None),
    ("l{i}", "l" + "9" * 5000, None),
    # Shifted, and with zeros in front.
    ("l.{i+1}", "l.1", {"i": 0}),
    ("l.{i+1}", "l.0", None),
    ("l.{i-1}", "l.0", {"i": 1}),
    ("l_{i:03}", "l_007", {"i": 7}),
    ("l_{i:03}", "l_1234", {"i": 1234}),
    ("l_{i:03}", "l_7", None),
    ("l_{i:03}", "l_0007", None),
    # Parts and paths.
    ("{name}.w", "conv.w", {"name": "conv"}),
    ("{name}.w", "a.conv.w", None),
    ("{name}.w", "a/conv.w", None),
    ("{name}.w", ".w", None),
    ("{name}_norm", "a_b_norm", {"name": "a_b"}),
    ("{p*}.w", "a.w", {"p": ("a",)}),
    ("{p*}.w", "a.b.c.w", {"p": ("a", "b", "c")}),
    ("{p*}.w", "a/b.w", None),  # this template would write a.b.w
    ("{p*}.w", "a..b.w", None),
    ("{p*}.w", ".w", None),
    # Choices and tables.
    ("c{x:1|2|3}", "c2", {"x": 1}),
    ("c{x:1|2|3}", "c4", None),
    ("{x:q|k}_proj", "k_proj", {"x": 1}),
    ("{x:|_1}w", "w", {"x": 0}),
    ("{x:|_1}w", "_1w", {"x": 1}),
    ("{x:a.*|b}", "a.*", {"x": 0}),
    ("{x:a.*|b}", "a.b", None),
    ("b.{x:part}.w", "b.mlp.fc1.w", {"x": 1}),
    ("b.{x:part}.w", "b.part.w", None),
    # The same slot twice is the same value twice.
    ("{i}.{i}", "3.3", {"i": 3}),
    ("{i}.{i}", "3.4", None),
    ("{name}.{name}", "ab.ab", {"name": "ab"}),
    ("{name}.{name}", "ab.ba", None),
]


@pytest.mark.parametrize(("source", "key", "values"), MATCHES, ids=[f"{s}~{k[:20]}" for s, k, _ in MATCHES])
def test_what_matches(source: str, key: str, values: dict[str, object] | None) -> None:
    found = bound(source, key)
    assert found == values
    if values is not None:
        assert parse(source, TABLES).write(values) == key


def test_a_path_takes_the_separator_of_its_side() -> None:
    torch, keras = parse("{p*}.weight", {}), parse("{p*}/kernel", {}, "/")
    values = torch.match("a.b.c.weight")
    assert values is not None and keras.write(values) == "a/b/c/kernel"
    assert keras.match("a/b/c/kernel") == values
    assert keras.match("a.b/kernel") is None, "this template would write a/b/kernel"


def test_backtracking_finds_the_choice_that_fits() -> None:
    assert bound("{x:a|ab}{y:c|bc}", "abc") in ({"x": 0, "y": 1}, {"x": 1, "y": 0})
    assert bound("{name}_{i}_conv", "a_0_b_1_conv") == {"name": "a_0_b", "i": 1}


@pytest.mark.parametrize(
    "source",
    ["{path*}.{aa}.{bb}.x", "{aa}_{bb}_{cc}_x", "{path*}_{aa}_{bb}x", "{x:a|aa}{y:a|aa}{z:a|aa}b", "{a}_{b}_{c}_{d}_{e}!"],
)
def test_no_key_takes_for_ever(source: str) -> None:
    """The time of a match is a small power of the key's length, never exponential; keys of a novel's length match nothing."""
    template = parse(source, {})
    for key in ("a" * 300, "a." * 150, "a_" * 150, "a" * 299 + "\0", "." * 300, "a.a_" * 75, "a_" * 10**6):
        template.match(key)


@pytest.mark.parametrize("key", ["", ".", "/", "\0", "a\nb.w", "💥.w", "\ud800.w", "{i}.w", "(" * 100, "a" * 100_000 + ".w"])
def test_hostile_keys_are_keys(key: str) -> None:
    for source in ("{name}.w", "{p*}.w", "{i}.w", "{x:part}.w"):
        template = parse(source, TABLES)
        values = template.match(key)
        assert values is None or template.write(values) == key


BAD: list[tuple[str, str]] = [
    ("", "empty"),
    ("a{", "brace"),
    ("a}", "brace"),
    ("a{{b}}", "brace"),
    ("{}", "no slot"),
    ("{i+}", "no slot"),
    ("{i+x}", "no slot"),
    ("{1}", "no slot"),
    ("{a b}", "no slot"),
    ("{i:}", "no slot"),
    ("{ö}", "no slot"),
    ("{x:nosuch}", "no table 'nosuch'"),
    ("{x:a|a}", "twice"),
    ("{i}.{i+1}", "two different slots 'i'"),
    ("{p*}.{q*}", "two slots of several parts"),
    ("{name}{i}", "nothing stands between"),
    ("a{i:03}{j}", "nothing stands between"),
    ("{i:099}", "too wide"),
    ("{i:0" + "9" * 5000 + "}", "too wide"),
    ("{i+" + "9" * 5000 + "}", "too far"),
]


@pytest.mark.parametrize(("source", "word"), BAD)
def test_bad_templates(source: str, word: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(word)) as caught:
        parse(source, TABLES)
    assert "\n" not in str(caught.value)


def pair(left: str, right: str) -> tuple[Template, Template]:
    (one,), (two,) = paired([parse(left, TABLES)], [parse(right, TABLES, "/")])
    return one, two


def test_choices_of_one_side_hold_on_the_other() -> None:
    one, two = pair("l{i:1|2}.{x:q|k}.w", "b{i}/{x}/kernel")
    assert two.match("b2/k/kernel") == one.match("l2.k.w") == {"i": 1, "x": 1}
    assert two.match("b3/k/kernel") is None and two.match("b2/v/kernel") is None
    one, two = pair("{x:q|k}", "{x:query|key}")
    assert two.write(one.match("k") or {}) == "key"


@pytest.mark.parametrize(
    ("left", "right", "word"),
    [
        ("{x:a|b}", "{x:a|b|c}", "2 choices on one side and 3"),
        ("{p*}", "{p}", "is a path on one side and a number"),
        ("{name*}", "{name}", "is a path on one side and a part"),
    ],
)
def test_pairs_that_do_not_agree(left: str, right: str, word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        pair(left, right)


def test_a_number_that_should_be_a_word_is_hinted_at() -> None:
    template = parse("l.{w}.{i}.x", {})
    near = {slot.name for slot, loose in template.loosened() if loose.match("l.conv.3.x") is not None}
    assert near == {"w"}


# Laws

PARTS = st.text(st.sampled_from(string.ascii_lowercase + string.digits + "_-"), min_size=1, max_size=4)
LITERALS = st.text(st.sampled_from("ab_0.*([|"), max_size=3)


@st.composite
def templates(draw: st.DrawFn) -> tuple[Template, dict[str, object]]:
    """A template, and values that it can write."""
    source, values, path = draw(LITERALS), {}, False
    for number in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["number", "shift", "width", "part", "path", "word"]))
        name = "ijk"[number]
        if kind == "number":
            source, values[name] = f"{source}{{{name}}}", draw(st.integers(0, 10**17))
        elif kind == "shift":
            source, values[name] = f"{source}{{{name}+2}}", draw(st.integers(0, 99))
        elif kind == "width":
            source, values[name] = f"{source}{{{name}:03}}", draw(st.integers(0, 9999))
        elif kind == "word":
            source, values[name] = f"{source}{{{name}:x|yy|.z}}", draw(st.integers(0, 2))
        elif kind == "part" or path:
            source, values[name * 2] = f"{source}{{{name * 2}}}", draw(PARTS)
        else:
            path = True
            source, values[name * 2] = f"{source}{{{name * 2}*}}", tuple(draw(st.lists(PARTS, min_size=1, max_size=3)))
        source += draw(LITERALS) if kind == "word" else draw(LITERALS.filter(bool))
    assume(source)
    return parse(source, {}), values


@given(templates())
def test_what_is_written_is_matched(made: tuple[Template, dict[str, object]]) -> None:
    """Neighbouring slots may share a key out otherwise (`{aa}{bb}`), but then they write the same."""
    template, values = made
    key = template.write(values)
    found = template.match(key)
    assert found is not None and template.write(found) == key


@given(templates(), st.text(st.sampled_from("abxyz._/0123"), max_size=12))
def test_what_is_matched_is_written(made: tuple[Template, dict[str, object]], key: str) -> None:
    template, _ = made
    found = template.match(key)
    assert found is None or template.write(found) == key


@given(st.text(max_size=20))
def test_any_text_is_a_template_or_an_error(text: str) -> None:
    try:
        template = parse(text, TABLES)
    except RecipeError as error:
        assert "\n" not in error.message
    else:
        template.match(text)
        assert all(isinstance(part, str | Slot) for part in template.parts)
