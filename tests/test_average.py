"""Averages of checkpoints: methods against float64 oracles, policies, keys that differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Counting, covered_once
from test_combine import COMPLEX, PARTS, REAL, SMALL, block, oracle, plain
from thinned import peer

from wtool.analysis.gram import Noting, grams
from wtool.analysis.spread import Spread
from wtool.api import save_checkpoint
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import dtype
from wtool.errors import (
    DtypeError,
    KeyClashError,
    MismatchError,
    NoTensorsError,
    NotFiniteError,
    UnsupportedError,
    UsageError,
)
from wtool.ops import linear
from wtool.ops.average import Averaged, average, kept_in, parse_rule
from wtool.ops.linear import Combine, ModelStock, Slerp
from wtool.ops.wrappers import prefix_between
from wtool.tensor import LazyTensor

Values = Mapping[str, tuple[str, Any]]


def tensor(key: str, name: str, values: Any) -> LazyTensor:
    row = dtype(name)
    array = values if isinstance(values, np.ndarray) else np.asarray(values)
    if row.floating or row.kind == "complex":
        made = block(array.reshape(-1), name)
        shape = array.shape if row.floating else (*array.shape[:-1], array.shape[-1] // 2)
    else:
        made, shape = array.astype(row.numpy()), array.shape
    return LazyTensor.contiguous(key, row, shape, MemoryBytes(made.tobytes(), key), 0)


def checkpoint(path: str, values: Values) -> Checkpoint:
    tensors = {key: tensor(key, name, value) for key, (name, value) in values.items()}
    return Checkpoint(tensors, Source(path, "torch", "zip", ((path, 1000),)))


def run(inputs: Sequence[Checkpoint], combine: Combine | None = None, **options: Any) -> Averaged:
    names = [one.source.path for one in inputs]
    combine = combine or linear.mean(len(inputs))
    if isinstance(combine, (Slerp, ModelStock)):
        noting = Noting(combine.base)
        average(inputs, names, noting, **options)
        combine = replace(combine, grams=grams(noting.asked, jobs=2))
    return average(inputs, names, combine, **options)


def values(found: Averaged, key: str = "w") -> Any:
    made = found.checkpoint[key]
    return plain(made.array().reshape(-1), made.dtype.name)


def fates(found: Averaged) -> dict[str, str]:
    return {fate.key: fate.policy for fate in found.fates}


@st.composite
def families(draw: st.DrawFn, least: int = 1, most: int = 4) -> list[Checkpoint]:
    """Checkpoints of two tensors, of one shape and any mix of dtypes of a family."""
    kinds = draw(st.sampled_from([REAL, COMPLEX]))
    rows = []
    for number in range(draw(st.integers(least, most))):
        name = draw(st.sampled_from(kinds))
        rows.append(checkpoint(f"c{number}", {"w": (name, np.array(draw(st.lists(SMALL, min_size=6, max_size=6))))}))
    return rows


def exact(inputs: Sequence[Checkpoint]) -> list[Any]:
    return [plain(one["w"].array().reshape(-1), one["w"].dtype.name) for one in inputs]


def once(total: Any, inputs: Sequence[Checkpoint]) -> bytes:
    return bytes(block(total, inputs[0]["w"].dtype.name).tobytes())


def made(found: Averaged) -> bytes:
    return bytes(found.checkpoint["w"].array().tobytes())


def fits(total: Any, inputs: Sequence[Checkpoint]) -> bool:
    name = inputs[0]["w"].dtype.name
    return bool(np.isfinite(plain(block(total, name), name)).all())


def all_alike(rows: Sequence[Any]) -> Any:
    return np.logical_and.reduce([rows[0] == row for row in rows])


@given(families(), st.data())
def test_linear_methods(inputs: list[Checkpoint], data: st.DataObject) -> None:
    count, rows = len(inputs), exact(inputs)
    kind = data.draw(st.sampled_from(["mean", "weighted", "ema", "lerp", "task"]))
    if kind == "mean":
        combine, meant = linear.mean(count), oracle(rows, [1.0] * count, count)
    elif kind == "weighted":
        weights = data.draw(st.lists(st.floats(0.01, 1), min_size=count, max_size=count))
        combine, meant = linear.weighted(weights), oracle(rows, weights, math.fsum(weights))
        if len(set(weights)) == 1:
            meant = oracle(rows, [1.0] * count, count)
    elif kind == "ema":
        decay = data.draw(st.floats(0.01, 0.99))
        combine = linear.ema(count, decay)
        meant = oracle(rows, list(combine.weights), 1.0)
        state = rows[0]
        for row in rows[1:]:
            state = decay * state + (1 - decay) * row
        assert np.allclose(meant, state, rtol=1e-12, atol=1e-12)
    elif kind == "lerp":
        inputs, t = [inputs[0], inputs[-1]], data.draw(st.floats(-0.5, 1.5))
        rows, combine = exact(inputs), linear.lerp(t)
        pairs = [(w, row) for w, row in zip((1 - t, t), rows, strict=True) if w]
        meant = oracle([row for _, row in pairs], [w for w, _ in pairs], 1.0)
    else:
        base = checkpoint("base", {"w": ("f64", np.arange(6.0))})
        if inputs[0]["w"].dtype.kind == "complex":
            base = checkpoint("base", {"w": ("c128", np.arange(6.0))})
        scale = data.draw(st.floats(0.1, 2))
        combine = linear.task([1.0] * count, scale)
        found = run(inputs, combine, base=base)
        wanted = exact([base])[0] + scale * sum(row - exact([base])[0] for row in rows)
        if fits(wanted * 1.1, inputs):
            part = dtype(PARTS.get(inputs[0]["w"].dtype.name, inputs[0]["w"].dtype.name))
            step = {"f64": 1e-11, "f32": 1e-6, "f16": 1e-3, "bf16": 8e-3, "f8_e4m3": 0.1, "f8_e5m2": 0.2}[part.name]
            assert np.allclose(values(found), wanted, rtol=step, atol=step)
        return
    whole = len({(one["w"].dtype.name, one["w"].array().tobytes()) for one in inputs}) == 1
    meant = rows[0] if whole else np.where(all_alike(rows) & (rows[0] != 0), rows[0], meant)  # but 0 and -0 are added up
    if fits(meant, inputs):
        assert made(run(inputs, combine)) == once(meant, inputs)


@given(families(least=2, most=2), st.floats(0, 1), st.booleans())
def test_slerp(inputs: list[Checkpoint], t: float, raw: bool) -> None:
    a, b = exact(inputs)
    found = run(inputs, Slerp(t, raw=raw)) if fits(np.abs(a) + np.abs(b) + 1, inputs) else None
    one, two = math.sqrt(math.fsum(a * a)), math.sqrt(math.fsum(b * b))
    if found is None or min(one, two) < 1e-6:
        return
    cosine = max(-1.0, min(1.0, math.fsum(a * b) / one / two))
    if abs(abs(cosine) - 0.9995) < 1e-9:
        return
    if abs(cosine) > 0.9995:
        meant = (1 - t) * a + t * b
    else:
        angle = math.acos(cosine)
        u, v = (a, b) if raw else (a / one, b / two)
        meant = (math.sin((1 - t) * angle) * u + math.sin(t * angle) * v) / math.sin(angle)
        meant = meant if raw else meant * ((1 - t) * one + t * two)
    name = PARTS.get(inputs[0]["w"].dtype.name, inputs[0]["w"].dtype.name)
    step = {"f64": 1e-9, "f32": 1e-6, "f16": 2e-3, "bf16": 1e-2, "f8_e4m3": 0.13, "f8_e5m2": 0.26}[name]
    assert np.allclose(values(found), meant, rtol=step, atol=step * 1e-2 + 1e-12)


def test_slerp_is_one_rounding_of_two_weights() -> None:
    rng = np.random.default_rng(3)
    inputs = [checkpoint(path, {"w": ("bf16", rng.standard_normal(5000))}) for path in "ab"]
    rows = exact(inputs)
    noting = Noting(False)
    average(inputs, "ab", noting)
    (gram,) = grams(noting.asked).values()
    for place, row in enumerate(rows):
        for other, column in enumerate(rows):
            assert math.isclose(gram[place][other], math.fsum(row * column), rel_tol=1e-12, abs_tol=1e-9)
    weights, straight = linear.arc(gram, 0.3, True)
    assert not straight
    assert made(run(inputs, Slerp(0.3))) == once(oracle(rows, list(weights), 1.0), inputs)


def test_slerp_where_there_is_no_arc() -> None:
    def slerp(a: list[float], b: list[float], t: float = 0.5, raw: bool = True) -> list[float]:
        inputs = [checkpoint(path, {"w": ("f32", np.array(row))}) for path, row in (("a", a), ("b", b))]
        found: list[float] = values(run(inputs, Slerp(t, raw=raw))).tolist()
        return found

    assert slerp([1, 0], [0, 2]) == pytest.approx([0.70710678, 1.41421356])  # mergekit 0.1.5
    assert slerp([1, 0], [0, 2], raw=False) == pytest.approx([1.06066017, 1.06066017])  # sd-mecha 1.1.8
    assert slerp([1, 2], [-1, -2]) == [0, 0]
    assert slerp([0, 0], [1, 2]) == [0.5, 1]
    assert slerp([1, 2], [2, 4]) == [1.5, 3]
    for raw in (True, False):
        assert slerp([0.1, 3], [3, 0.1], 0.0, raw) == [np.float32(0.1), 3]
        assert slerp([0.1, 3], [3, 0.1], 1.0, raw) == [3, np.float32(0.1)]


def test_model_stock() -> None:
    def stock(base: list[float], *rows: list[float], beyond: bool = False) -> list[float]:
        inputs = [checkpoint(str(number), {"w": ("f64", np.array(row))}) for number, row in enumerate(rows)]
        one = checkpoint("base", {"w": ("f64", np.array(base))})
        found: list[float] = values(run(inputs, ModelStock(len(rows), beyond=beyond), base=one)).tolist()
        return found

    assert stock([0, 0], [1, 0], [1, 1]) == pytest.approx([0.82842712, 0.41421356])  # mergekit 0.1.5
    assert stock([5, 5], [6, 5], [6, 6]) == pytest.approx([5.82842712, 5.41421356])
    assert stock([0, 0], [1, 0], [0, 1]) == [0, 0]  # at right angles
    assert stock([1, 1], [1, 1], [2, 1]) == [1, 1]  # one did not move
    assert stock([0, 0], [1, 0], [-0.5, 0.5]) == [0, 0]  # apart
    c = -1 / math.sqrt(2)
    assert stock([0, 0], [1, 0], [-0.5, 0.5], beyond=True) == pytest.approx([0.25 * 2 * c / (1 + c), 0.25 * 2 * c / (1 + c)])
    rng = np.random.default_rng(0)
    base = rng.standard_normal(40)
    rows = [base + rng.standard_normal(40) * 0.1 + 0.2 for _ in range(4)]
    deltas = [row - base for row in rows]
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for i, a in enumerate(deltas) for b in deltas[:i]]
    t = 4 * np.mean(cosines) / (1 + 3 * np.mean(cosines))
    assert stock(base.tolist(), *(row.tolist() for row in rows)) == pytest.approx(t * np.mean(rows, axis=0) + (1 - t) * base)


@pytest.mark.parametrize("name", [*REAL, *COMPLEX])
@pytest.mark.parametrize("count", [2, 3, 7])
@given(row=st.lists(SMALL, min_size=6, max_size=6))
def test_equal_checkpoints_stay_as_they_are(name: str, count: int, row: list[float]) -> None:
    inputs = [checkpoint(f"c{number}", {"w": (name, np.array(row))}) for number in range(count)]
    same = inputs[0]["w"].array().tobytes()
    combines: list[Combine] = [
        linear.mean(count),
        linear.weighted([0.1 * (n + 1) for n in range(count)]),
        linear.ema(count, 0.9),
    ]
    combines += [linear.task([0.3] * count, 0.7), ModelStock(count)]
    if count == 2:
        combines += [linear.lerp(0.3), Slerp(0.3), Slerp(0.7, raw=False)]
    for combine in combines:
        assert made(run(inputs, combine, base=inputs[0])) == same


@given(families(least=2, most=5), st.randoms())
def test_the_order_of_arguments_does_not_matter(inputs: list[Checkpoint], random: Any) -> None:
    first = inputs[0]
    rest = [replace(one, source=replace(one.source, path=one.source.path)) for one in inputs[1:]]
    random.shuffle(rest)
    if not fits(np.max(np.abs(exact(inputs)), axis=0) * 1.1, inputs):
        return
    assert made(run([first, *rest])) == made(run(inputs))


@pytest.mark.parametrize("name", ["f32", "bf16", "c64"])
def test_ends_are_the_inputs(name: str) -> None:
    odd = np.array([np.nan, 1e-40, -0.0, 3.0])  # even a NaN: nothing is computed
    inputs = [checkpoint("a", {"w": (name, odd)}), checkpoint("b", {"w": (name, np.arange(4.0))})]
    for combine in (linear.weighted([1, 0]), linear.lerp(0.0), linear.weighted([3, 0])):
        found = run(inputs, combine)
        assert made(found) == inputs[0]["w"].array().tobytes()
        assert found.checkpoint["w"].span is not None and not found.checkpoint["w"].computed  # copied, not read
    assert made(run(inputs, linear.lerp(1.0))) == inputs[1]["w"].array().tobytes()


def test_a_weight_of_zero_is_cast_once() -> None:
    inputs = [checkpoint("a", {"w": ("bf16", np.arange(4.0))}), checkpoint("b", {"w": ("f32", np.arange(4.0) + 2.0**-12)})]
    assert run(inputs, linear.lerp(1.0)).checkpoint["w"].dtype.name == "bf16"
    assert values(run(inputs, dtype=dtype("f64"))).tolist() == [(2 * n + 2.0**-12) / 2 for n in range(4)]


def test_sums_of_zero() -> None:
    inputs = [checkpoint(path, {"w": ("f32", np.ones(2))}) for path in "ab"]
    for weights in ([1, -1], [0, 0], [0.1, -0.1]):
        with pytest.raises(UsageError, match="zero"):
            linear.weighted(weights)
    two = [*inputs, checkpoint("c", {"x": ("f32", np.ones(2))})]
    with pytest.raises(UsageError, match="'w' add up to zero"):
        run(two, linear.weighted([1, -1, 1]), on_mismatch="union")


# Policies


def pair(first: Values, second: Values) -> list[Checkpoint]:
    return [checkpoint("a", first), checkpoint("b", second)]


def test_integers() -> None:
    same = pair({"w": ("f32", [1.0]), "n": ("i64", [1, 2])}, {"w": ("f32", [3.0]), "n": ("i64", [1, 2])})
    found = run(same)
    assert fates(found) == {"w": "mean", "n": "equal"}
    assert found.checkpoint["n"].array().tolist() == [1, 2]
    unlike = pair({"n": ("i64", [1, 2])}, {"n": ("i64", [1, 3])})
    with pytest.raises(MismatchError, match="integers of 'n' differ") as error:
        run(unlike).checkpoint["n"].array()
    assert error.value.path == "b" and "--rule 'n=first'" in (error.value.hint or "")
    for policy, wanted in (("first", [1, 2]), ("last", [1, 3]), ("max", [1, 3]), ("mean", [1, 2])):
        assert run(unlike, rules=[parse_rule(f"n={policy}")]).checkpoint["n"].array().tolist() == wanted
    with pytest.raises(MismatchError, match="i32"):
        run(pair({"n": ("i64", [1])}, {"n": ("i32", [1])}))
    with pytest.raises(MismatchError, match="f32"):
        run(pair({"n": ("i64", [1])}, {"n": ("f32", [1])}))
    with pytest.raises(DtypeError, match="bool"):
        run(pair({"n": ("bool", [True])}, {"n": ("bool", [False])}), rules=[parse_rule("n=mean")])
    with pytest.raises(DtypeError, match="c64"):
        run(pair({"n": ("c64", [1.0, 2.0])}, {"n": ("c64", [1.0, 3.0])}), rules=[parse_rule("n=max")])
    with pytest.raises(MismatchError, match="c64"):
        run(pair({"n": ("f32", [1.0])}, {"n": ("c64", [1.0, 3.0])}))


def test_batch_norms() -> None:
    def of(mean: float, count: int) -> Values:
        return {
            "bn.running_mean": ("f32", [mean]),
            "bn.num_batches_tracked": ("i64", count),
            "bn.weight": ("f32", [1.0]),
        }

    found = run(pair(of(1.0, 7), of(2.0, 5)))
    assert fates(found)["bn.num_batches_tracked"] == "max"
    assert found.checkpoint["bn.num_batches_tracked"].array().tolist() == 7
    assert found.checkpoint["bn.running_mean"].array().tolist() == [1.5]
    (warning,) = found.warnings
    assert warning.code == "batch-norm" and "recompute" in warning.message


def test_rules() -> None:
    inputs = pair(
        {"a.w": ("f32", [1.0]), "b.w": ("f32", [1.0]), "c.w": ("f32", [1.0]), "d.w": ("f32", [1.0])},
        {"a.w": ("f32", [3.0]), "b.w": ("f32", [3.0]), "c.w": ("f32", [3.0]), "d.w": ("f32", [3.0])},
    )
    base = checkpoint("base", {"c.w": ("f32", [9.0])})
    rules = [parse_rule(text) for text in ("a.*=last", "b.**=drop", "c.w=base", "*.w=max", "a.w=first", "no.*=mean")]
    found = run(inputs, rules=rules, base=base)
    assert {key: one.array().tolist() for key, one in found.checkpoint.items()} == {"a.w": [3.0], "c.w": [9.0], "d.w": [3.0]}
    assert fates(found) == {"a.w": "last", "b.w": "drop", "c.w": "base", "d.w": "max"}
    assert {fate.key: fate.why for fate in found.fates}["a.w"] == "--rule a.*=last"
    assert [warning.message for warning in found.warnings] == ["--rule no.*=mean matches no key"]
    with pytest.raises(UsageError, match=r"no\.\*=mean matches no key"):
        run(inputs, rules=rules, base=base, strict=True)
    with pytest.raises(MismatchError, match="refused"):
        run(inputs, rules=[parse_rule("d.w=error")])
    with pytest.raises(UsageError, match="from the base"):
        run(inputs, rules=[parse_rule("d.w=base")])
    for text in ("a", "a=b", "=mean", "a="):
        with pytest.raises(UsageError, match="no rule"):
            parse_rule(text)
    with pytest.raises(NoTensorsError):
        run(inputs, rules=[parse_rule("**=drop")])


def test_keys_that_differ() -> None:
    inputs = pair(
        {"w": ("f32", [1.0]), "only": ("f32", [5.0]), "head": ("f32", [1.0, 2.0])},
        {"w": ("f32", [3.0]), "more": ("f32", [7.0]), "head": ("f32", [1.0, 2.0, 3.0])},
    )
    with pytest.raises(MismatchError, match="no 'only'") as error:
        run(inputs)
    assert error.value.path == "b" and "intersect" in (error.value.hint or "")
    found = run(inputs, on_mismatch="intersect")
    assert list(found.checkpoint) == ["w"]
    assert fates(found) == {"w": "mean", "only": "left", "head": "left", "more": "left"}
    whys = {fate.key: fate.why for fate in found.fates}
    assert whys["only"] == "not in b" and whys["more"] == "not in a" and whys["head"] == "[3] in b, [2] in a"
    with pytest.raises(MismatchError, match=r"'head' is \[3\], in 'a' \[2\]") as error:
        run(inputs, on_mismatch="union")
    assert "--rule 'head=first'" in (error.value.hint or "")
    found = run(inputs, on_mismatch="union", rules=[parse_rule("head=last")])
    assert values(found, "only").tolist() == [5.0] and values(found, "more").tolist() == [7.0]
    assert values(found, "head").tolist() == [1.0, 2.0, 3.0]
    assert {fate.key: fate.inputs for fate in found.fates}["more"] == (1,)
    base = checkpoint("base", {"head": ("f32", [8.0]), "w": ("f32", [0.0])})
    found = run(inputs, on_mismatch="base", base=base)
    assert values(found, "head").tolist() == [8.0] and list(found.checkpoint) == ["w", "head"]
    with pytest.raises(UsageError, match="--base"):
        run(inputs, on_mismatch="base")


def test_a_union_weighs_those_that_have_a_key() -> None:
    inputs = [checkpoint(str(n), {"w": ("f32", [float(n)]), **({"x": ("f32", [float(n)])} if n else {})}) for n in range(3)]
    assert values(run(inputs, linear.weighted([2, 1, 3]), on_mismatch="union"), "x").tolist() == [(1 + 6) / 4]
    found = run(inputs, linear.ema(3, 0.5), on_mismatch="union")
    assert values(found, "w").tolist() == [0.25 * 1 + 0.5 * 2]
    assert values(found, "x").tolist() == [np.float32((0.25 * 1 + 0.5 * 2) / 0.75)]
    for combine in (linear.lerp(0.3), Slerp(0.3)):
        assert values(run(inputs[:2], combine, on_mismatch="union"), "x").tolist() == [1.0]


def test_wrappers() -> None:
    plain_keys: Values = {"l.w": ("f32", [1.0]), "l.b": ("f32", [1.0])}
    for front in ("module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module.module."):
        inputs = pair(plain_keys, {f"{front}{key}": ("f32", [3.0]) for key in plain_keys})
        assert list(run(inputs).checkpoint) == ["l.w", "l.b"]
        turned = run(inputs[::-1])
        assert list(turned.checkpoint) == [f"{front}l.w", f"{front}l.b"]
        assert values(turned, f"{front}l.b").tolist() == [2.0]
        (warning,) = turned.warnings
        assert warning.code == "prefix" and front in warning.message
        assert run(inputs, rules=[parse_rule("l.w=last")]).fates[0].policy == "last"
    inside = pair(plain_keys, {"l._orig_mod.w": ("f32", [3.0]), "l._orig_mod.b": ("f32", [3.0])})
    assert list(run(inside).checkpoint) == ["l.w", "l.b"]
    both = pair(
        {f"module.{key}": value for key, value in plain_keys.items()}, {f"module.{key}": v for key, v in plain_keys.items()}
    )
    assert not run(both).warnings and list(run(both).checkpoint) == ["module.l.w", "module.l.b"]
    with pytest.raises(MismatchError) as error:
        run(pair(plain_keys, {f"net.{key}": value for key, value in plain_keys.items()}))
    assert error.value.hint is not None and error.value.hint.startswith("wtool convert b NEW --strip-prefix net.")
    clash = pair({"_orig_mod.w": ("f32", [1.0]), "w": ("f32", [1.0])}, {"w": ("f32", [1.0])})
    with pytest.raises(KeyClashError):
        run(clash)
    averaged = pair(plain_keys, {"n_averaged": ("i64", 3), **{f"module.{key}": value for key, value in plain_keys.items()}})
    assert fates(run(averaged, on_mismatch="intersect"))["n_averaged"] == "left"


def test_prefixes() -> None:
    assert prefix_between(["m.a", "m.b"], ["a", "b"]) == ("m.", "")
    assert prefix_between(["a", "b"], ["m.x.a", "m.x.b"]) == ("", "m.x.")
    assert prefix_between(["a", "b"], ["m.a", "n.b"]) is None
    assert prefix_between([], []) is None


def test_tied_tensors_are_computed_once() -> None:
    def tied(path: str, value: float) -> Checkpoint:
        one = tensor("a", "f32", [value])
        return Checkpoint(
            {"a": one, "b": one.renamed("b"), "c": tensor("c", "f32", [value])}, Source(path, "torch", "zip", ())
        )

    spread = Spread(2)
    found = run([tied("x", 1.0), tied("y", 3.0)], replace(linear.mean(2), tell=spread.add))
    assert found.checkpoint.tied() == [["a", "b"]]
    apart = checkpoint("z", {"a": ("f32", [3.0]), "b": ("f32", [4.0]), "c": ("f32", [3.0])})
    found = run([tied("x", 1.0), apart])
    assert found.checkpoint.tied() == [] and values(found, "b").tolist() == [2.5]


@pytest.mark.parametrize("target", ["o.pth", "o.safetensors"])
def test_every_byte_is_read_once(tmp_path: Any, target: str) -> None:
    inputs, sources = [], []
    for number in range(3):
        source = Counting(MemoryBytes(np.full(5000, float(number), "f4").tobytes(), str(number)))
        one = LazyTensor.contiguous("a", dtype("f32"), (50, 100), source, 0)
        sources.append(source)
        inputs.append(Checkpoint({"a": one, "b": one.renamed("b")}, Source(str(number), "torch", "zip", ())))
    save_checkpoint(run(inputs).checkpoint, tmp_path / target)
    assert all(covered_once(source.ranges, 20_000) for source in sources)


def test_what_is_not_finite_names_file_and_tensor() -> None:
    bad = pair({"w": ("f32", [1.0, 2.0])}, {"w": ("f32", [1.0, math.nan])})
    with pytest.raises(NotFiniteError, match="'w' holds NaN") as error:
        run(bad).checkpoint["w"].array()
    assert error.value.path == "b"
    for combine, base in ((Slerp(0.5), None), (ModelStock(2), bad[0])):
        with pytest.raises(NotFiniteError, match="'w' holds NaN") as error:
            run(bad, combine, base=base)
        assert error.value.path == "b"


def test_packed_and_scales() -> None:
    def packed(path: str, data: bytes) -> Checkpoint:
        one = LazyTensor.contiguous("q", dtype("f4"), (4,), MemoryBytes(data, path), 0)
        two = LazyTensor.contiguous("s", dtype("f8_e8m0"), (2,), MemoryBytes(data, path), 0)
        return Checkpoint({"q": one, "s": two}, Source(path, "torch", "zip", ()))

    inputs = [packed("a", b"12"), packed("b", b"13")]
    with pytest.raises(UnsupportedError, match="packed") as error:
        run(inputs)
    assert "--rule 'q=first'" in (error.value.hint or "")
    found = run(inputs, rules=[parse_rule("q=first")])
    assert found.checkpoint["q"].array().tobytes() == b"12"
    with pytest.raises(MismatchError):
        found.checkpoint["s"].array()


def test_a_dtype_for_all_that_floats() -> None:
    inputs = pair(
        {"w": ("f32", [1.0]), "x": ("f32", [1.0]), "n": ("i64", [1])},
        {"w": ("f32", [3.0]), "x": ("f32", [2.0]), "n": ("i64", [1])},
    )
    found = run(inputs, rules=[parse_rule("x=last")], dtype=dtype("bf16"))
    assert {key: one.dtype.name for key, one in found.checkpoint.items()} == {"w": "bf16", "x": "bf16", "n": "i64"}
    assert values(found, "x").tolist() == [2.0]


def test_keeping_the_rest_of_the_last() -> None:
    inputs = pair({"w": ("f32", [1.0])}, {"module.w": ("f32", [3.0])})
    found = run(inputs)
    whole = replace(inputs[1], extras={"epoch": 3})
    kept = kept_in(whole, None, found, 1)
    assert kept.extras == {"epoch": 3} and kept["module.w"].array().tolist() == [2.0]
    with pytest.raises(MismatchError, match="not in both"):
        kept_in(checkpoint("b", {"module.w": ("f32", [1.0]), "module.x": ("f32", [1.0])}), None, found, 1)


def test_distances_and_outliers() -> None:
    inputs = [checkpoint(str(n), {"w": ("f32", [1.0 + 0.01 * n + (5 if n == 4 else 0)] * 8)}) for n in range(5)]
    spread = Spread(5)
    found = run(inputs, replace(linear.mean(5), tell=spread.add))
    mean = values(found)
    exactly = [float(np.linalg.norm(one - np.mean(exact(inputs), axis=0)) / np.linalg.norm(mean)) for one in exact(inputs)]
    assert spread.distances == pytest.approx(exactly, rel=1e-5)  # of five digits
    assert spread.outliers == [4]
    assert Spread(2).distances == [None, None] and Spread(2).outliers == []


MERGEKIT = """
import torch
from types import SimpleNamespace as Of
from mergekit.merge_methods import model_stock, slerp
a, b, c, base = (torch.from_numpy(given[name]) for name in ("a", "b", "c", "base"))
for t in (0.1, 0.5, 0.9):
    out[f"slerp {t}"] = slerp.slerp(torch.tensor([t]), a[None], b[None])[0].numpy()
group = Of(base=Of(tensor=base), non_base=[Of(tensor=one) for one in (a, b, c)])
out["stock"] = model_stock.model_stock_merge_method.implementation(group).numpy()
group.non_base.pop()
out["two"] = model_stock.model_stock_merge_method.implementation(group).numpy()
"""


def test_mergekit_gives_the_same(tmp_path: Any) -> None:
    rng = np.random.default_rng(5)
    base = rng.standard_normal(3000).astype("f4")
    rows = {name: base + (rng.standard_normal(3000) * 0.5 - 0.2).astype("f4") for name in "abc"}
    theirs = peer(MERGEKIT, tmp_path, base=base, **rows)
    inputs = [checkpoint(name, {"w": ("f32", row)}) for name, row in rows.items()]
    start = checkpoint("base", {"w": ("f32", base)})
    ours = {f"slerp {t}": run(inputs[:2], Slerp(t)) for t in (0.1, 0.5, 0.9)}
    for beyond in (False, True):
        ours["stock"] = run(inputs, ModelStock(3, beyond=beyond), base=start)
        ours["two"] = run(inputs[:2], ModelStock(2, beyond=beyond), base=start)
        for name, found in ours.items():
            assert np.allclose(values(found), theirs[name], rtol=1e-5, atol=1e-6), name


def test_mergekits_numbers() -> None:
    # of mergekit 0.1.5, printed with four digits
    a, b = [0.5, -1.25, 2.0, 0.125, -3.0], [1.5, 0.25, -1.0, 2.5, 0.75]
    inputs = [checkpoint("a", {"w": ("f32", a)}), checkpoint("b", {"w": ("f32", b)})]
    assert values(run(inputs, Slerp(0.3))) == pytest.approx([1.3320, -1.1195, 1.4596, 1.5074, -2.6038], abs=1e-4)
