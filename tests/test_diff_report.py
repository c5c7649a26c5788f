"""The report of a diff: what it says first, how it collapses, what it makes of strange numbers and names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from wtool.analysis.diff import diff
from wtool.analysis.diff_heat import heats, layer_of
from wtool.analysis.diff_report import Judgement, diff_report
from wtool.analysis.diff_tables import cosine, grouped, said, share
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import dtype
from wtool.render import KINDS, render
from wtool.render.text import columns
from wtool.report import Report, Table
from wtool.tensor import LazyTensor


def checkpoint(arrays: Mapping[str, Any], path: str = "m.pth", **more: Any) -> Checkpoint:
    tensors = {}
    for key, array in arrays.items():
        array = np.asarray(array)
        tensors[key] = LazyTensor.contiguous(key, dtype(array.dtype.name), array.shape, MemoryBytes(array.tobytes()), 0)
    return Checkpoint(tensors, Source(path, "torch", "zip", ((path, 1),)), **more)


def report(a: Mapping[str, Any], b: Mapping[str, Any], judgement: Judgement | None = None, **options: Any) -> Report:
    return diff_report(diff(checkpoint(a, "x/a.pth"), checkpoint(b, "x/b.pth")), judgement or Judgement(), **options)


def facts(found: Report) -> list[tuple[str, str]]:
    return list(found.blocks[0].rows)  # type: ignore[union-attr,arg-type]


def tables(found: Report) -> dict[str, list[tuple[str, ...]]]:
    return {str(block.title): [row.cells for row in block.rows] for block in found.blocks if isinstance(block, Table)}


def gpt(layers: int = 12) -> dict[str, Any]:
    random = np.random.default_rng(0)
    found = {"wte": random.standard_normal((9, 4)).astype("f4")}
    for layer in range(layers):
        for name, shape in {"ln_1.weight": (4,), "attn.weight": (4, 4), "mlp.weight": (8, 4)}.items():
            found[f"h.{layer}.{name}"] = random.standard_normal(shape).astype("f4")
    return found


def tuned(base: Mapping[str, Any]) -> dict[str, Any]:
    """Layers 8 to 11 moved, each ten times as far as the one before."""
    return {
        key: array * np.float32(1 + 10.0 ** (int(key.split(".")[1]) - 14))
        if key[:3] in ("h.8", "h.9", "h.1") and key[:4] != "h.1."
        else array
        for key, array in base.items()
    }


BASE = gpt()


def test_the_first_lines_answer() -> None:
    found = report(BASE, tuned(BASE) | {"head": np.ones(3, "f4")})
    assert found.title == "differs: a.pth -> b.pth"
    assert facts(found)[2:5] == [("differs", "1 only in B"), ("", "12 with other values"), ("same", "25 tensors")]
    found = report(BASE, BASE)
    assert (found.title, facts(found)[2:]) == ("same: a.pth -> b.pth", [("same", "37 tensors")])


def test_layers_are_collapsed_and_mapped() -> None:
    found = report(BASE, tuned(BASE))
    [rows] = tables(found).values()
    assert sorted((row[0], row[1]) for row in rows) == [
        ("h.{8-11}.attn.weight", "4x"),
        ("h.{8-11}.ln_1.weight", "4x"),
        ("h.{8-11}.mlp.weight", "4x"),
    ]
    text = render([found], "text")
    assert "  attn.weight  ········▁▃▆█  0.001\n" in text
    assert len(text.splitlines()) < 25


def test_a_pull_request_gets_few_columns() -> None:
    text = render([report(BASE, tuned(BASE))], "markdown")
    header = next(line for line in text.splitlines() if line.startswith("| tensor"))
    assert header == "| tensor |  | rel L2 | max abs | cosine |"
    assert "x/a.pth" not in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_narrow_terminals_lose_columns_rather_than_keys(width: int) -> None:
    text = render([report(BASE, tuned(BASE))], "text", width=width)
    assert max(map(columns, text.splitlines())) <= width
    assert "h.{8-11}.attn.weight" in text and "rel L2" in text and "cosine" in text
    assert ("shape" in text) == (width == 120)
    assert "shape" in render([report(BASE, tuned(BASE))], "text")
    assert '<th class="s">shape</th>' in render([report(BASE, tuned(BASE))], "html")


def test_a_cast_stands_with_its_dtype() -> None:
    found = report(BASE, {key: array.astype("f2") for key, array in tuned(BASE).items()})
    [rows, moved] = tables(found).values()
    assert {row[2:5] for row in rows} == {("f32", "f16", "cast"), ("f32", "f16", "other")}
    # The first of the layers that moved did so by less than the cast takes away.
    assert {row[0] for row in rows if row[4] == "other"} == {row[0] for row in moved}
    assert all(row[0].startswith(("h.{0-", "wte")) for row in rows if row[4] == "cast")
    # The map is of what moved, not of what was rounded.
    assert heats(diff(checkpoint(BASE), checkpoint({key: array.astype("f2") for key, array in BASE.items()}))) == []


def test_what_is_not_counted_is_said() -> None:
    half = {key: array.astype("f2") for key, array in BASE.items()}
    found = report(BASE, half, Judgement(ignore=("dtype",)))
    assert found.exit_code == 0
    assert facts(found)[2:4] == [
        ("same", "37 tensors, 37 of them but for what is ignored"),
        ("not counted", "37 of another dtype (f32 -> f16)"),
    ]
    found = report(BASE, half, Judgement(fail_on=("values",)))
    assert found.data["counted"] == {"structure": 0, "dtype": 0, "values": 37}
    assert ("differs", "37 with other values by a cast alone") in facts(found)


def test_a_tolerance_is_said() -> None:
    changes = diff(checkpoint(BASE), checkpoint(tuned(BASE)), atol=1.0)
    found = diff_report(changes, Judgement(atol=1.0))
    assert ("same", "37 tensors, within rtol 0 and atol 1") in facts(found)


NAN = np.array([np.nan, 1, 2], "f4")
ODD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "NaN appears": ({"l.0.a": np.ones(3, "f4"), "l.1.a": NAN}, {"l.0.a": NAN, "l.1.a": NAN}),
    "Inf goes": ({"l.0.a": np.array([np.inf], "f4"), "l.1.a": NAN}, {"l.0.a": np.ones(1, "f4"), "l.1.a": NAN}),
    "all NaN": ({"l.0.a": NAN * np.nan, "l.1.a": NAN}, {"l.0.a": np.ones(3, "f4"), "l.1.a": NAN}),
    "zero before": ({"l.0.a": np.zeros(3, "f4"), "l.1.a": NAN}, {"l.0.a": np.ones(3, "f4"), "l.1.a": NAN}),
    "zero after": ({"l.0.a": np.ones(3, "f4"), "l.1.a": NAN}, {"l.0.a": np.zeros(3, "f4"), "l.1.a": NAN}),
    "minus zero": ({"l.0.a": np.zeros(3, "f4"), "l.1.a": NAN}, {"l.0.a": -np.zeros(3, "f4"), "l.1.a": NAN}),
    "huge": ({"l.0.a": np.full(3, 1e308), "l.1.a": NAN}, {"l.0.a": np.full(3, -1e308), "l.1.a": NAN}),
    "empty": ({"l.0.a": np.zeros((0, 3), "f4")}, {"l.0.a": np.zeros((0, 3), "f4")}),
    "nothing": ({}, {}),
    "one side only": ({"a": NAN}, {}),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("kind", KINDS)
def test_strange_numbers_have_a_report(name: str, kind: str) -> None:
    found = report(*ODD[name])
    text = render([found], kind)
    assert ("NaN" in text and "Infinity" in text) is False if kind == "json" else text
    assert found.exit_code == (0 if name in ("empty", "nothing") else 1)


@pytest.mark.parametrize("name", ["NaN appears", "Inf goes", "all NaN", "zero before"])
def test_what_cannot_be_told_is_marked_on_the_map(name: str) -> None:
    text = render([report(*ODD[name])], "text")
    assert "! NaN, infinite, or zero before" in text
    assert ("NaN/Inf" in text) == (name != "zero before")


EVIL = '"><script>alert(1)</script>|`*x*\x1b[2J'


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_keys_stay_keys(kind: str) -> None:
    one = {f"{EVIL}.{n}.a": np.full(3, n + 1, "f4") for n in range(3)} | {EVIL: NAN}
    two = {f"{EVIL}.{n}.a": np.full(3, n + 2, "f4") for n in range(3)} | {EVIL + "x": NAN, "y": np.ones(2)}
    a, b = (checkpoint(arrays, EVIL, metadata={EVIL: text}) for arrays, text in ((one, "1"), (two, EVIL)))
    text = render([diff_report(diff(a, b), Judgement())], kind)
    assert "\x1b" not in text
    if kind in ("markdown", "html"):
        assert "<script" not in text


def test_what_differs_beside_the_tensors() -> None:
    a = checkpoint(BASE, extras={"epoch": 1, "nan": float("nan"), "only": 1, "list": [{"lr": 0.1}, {"lr": 0.1}]})
    b = replace(a, extras={"epoch": 2, "nan": float("nan"), "list": [{"lr": 0.2}, {"lr": 0.2}]})
    found = diff_report(diff(a, b), Judgement())
    assert found.exit_code == 0
    assert found.data["extras"] == [
        {"key": "epoch", "a": 1, "b": 2},
        {"key": "list.0.lr", "a": 0.1, "b": 0.2},
        {"key": "list.1.lr", "a": 0.1, "b": 0.2},
    ]
    assert "not counted: beside the tensors: epoch 1 -> 2, list.{0-1}.lr 0.1 -> 0.2\n" in render([found], "text")


RENAMES: list[tuple[dict[str, str], list[tuple[str, ...]]]] = [
    ({"h.0.a": "blocks.0.a", "h.1.a": "blocks.1.a", "h.0.b": "blocks.0.b"}, [("h.*", "blocks.*", "3x")]),
    ({"a.w": "m.a.w", "b": "m.b"}, [("*", "m.*", "2x")]),
    ({"h.0.x.w": "h.0.y.w", "h.1.x.w": "h.1.y.w"}, [("h.{0-1}.x.w", "h.{0-1}.y.w", "2x")]),
    ({"one": "two"}, [("one", "two")]),
]


@pytest.mark.parametrize(("names", "expected"), RENAMES)
def test_renames_are_told_by_what_they_share(names: dict[str, str], expected: list[tuple[str, ...]]) -> None:
    values = {key: np.arange(at + 1, dtype="f4") + 1 for at, key in enumerate(names)}
    found = report(values, {names[key]: array for key, array in values.items()})
    assert list(tables(found).values()) == [expected]


@pytest.mark.parametrize(
    ("keys", "rows"),
    [
        (["h.0.a", "h.1.a", "h.2.a"], ["h.{0-2}.a"]),
        (["h.0.ln_1", "h.0.ln_2", "h.1.ln_1", "h.1.ln_2"], ["h.{0-1}.ln_{1-2}"]),
        (["h.0.ln_1", "h.1.ln_2"], ["h.0.ln_1", "h.1.ln_2"]),
        (["h.0.ln_1", "h.1.ln_1", "h.1.ln_2"], ["h.{0-1}.ln_1", "h.1.ln_2"]),
        (["a", "b"], ["a", "b"]),
    ],
)
def test_a_row_tells_of_no_key_that_is_not_there(keys: list[str], rows: list[str]) -> None:
    assert [said(some) for some in grouped(keys, lambda key: None)] == rows


@pytest.mark.parametrize(
    ("key", "layer", "name"),
    [
        ("h.3.attn.weight", "h.3", "attn.weight"),
        ("a.1.b.2.w", "a.1", "b.2.w"),
        ("bert/encoder/layer_3/output/kernel", "bert.encoder.layer_3", "output.kernel"),
        ("layer1.0.conv1.weight", "layer1.0", "conv1.weight"),
        ("fc1.weight", "fc1", "weight"),
        ("wte.weight", "", "wte.weight"),
        ("x.3", "", "x.3"),
        ("", "", ""),
    ],
)
def test_layers_are_found(key: str, layer: str, name: str) -> None:
    assert layer_of(key) == (layer, name)


def test_stacks_have_maps_of_one_scale_and_experts_share_a_line() -> None:
    one = {f"encoder.{n}.w": np.ones(2, "f4") for n in range(3)} | {f"decoder.{n}.w": np.ones(2, "f4") for n in range(3)}
    one |= {f"moe.{n}.experts.{e}.w": np.ones(2, "f4") for n in range(2) for e in range(40)}
    one |= {f"same.{n}.w": np.ones(2, "f4") for n in range(3)}
    two = {key: array if key.startswith("same") else array * np.float32(1.5) for key, array in one.items()}
    two["encoder.0.w"] = one["encoder.0.w"] * np.float32(1.001)
    found = heats(diff(checkpoint(one), checkpoint(two)))
    assert [heat.rows[0] for heat in found] == ["decoder.0", "encoder.0", "moe.0"]
    assert len({heat.scale for heat in found}) == 1
    assert found[2].columns == ("experts.{0-39}.w",)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (1.0, "1"), (0.5, "0.500000"), (-1.0, "-1.000000"), (1 - 1e-9, "1-1.0e-09"), (0.9999, "0.999900")],
)
def test_a_cosine_near_one_is_told_from_one(value: float | None, text: str) -> None:
    assert cosine(value) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(5, 5, "all"), (5, 10**6, "5"), (10**6 - 1, 10**6, "99.99%"), (1000, 10**9, "<0.01%"), (5000, 10**4, "50.00%")],
)
def test_a_share_is_never_rounded_to_all_or_none(part: int, whole: int, text: str) -> None:
    assert share(part, whole) == text


def test_another_order_is_noted_within_a_format() -> None:
    turned = dict(reversed(BASE.items()))
    text = "not counted: the tensors stand in another order"
    assert text in render([report(BASE, turned)], "text")
    assert text not in render([report(BASE, turned, Judgement(ignore=("order",)))], "text")
    other = checkpoint(turned)
    found = diff_report(
        diff(checkpoint(BASE), replace(other, source=replace(other.source, format="safetensors"))), Judgement()
    )
    assert text not in render([found], "text")
    assert found.data["reordered"]
