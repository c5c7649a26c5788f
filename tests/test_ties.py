"""TIES against numpy written out, sorting and whole, and against the code of mergekit and peft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from thinned import Table, checkpoint, merged, peer

from wtool import views
from wtool.analysis.spread import Spread
from wtool.analysis.thinning import Noting, prepared
from wtool.dtypes import dtype
from wtool.errors import DtypeError, NotFiniteError, UnsupportedError, UsageError
from wtool.kernels.rounding import narrow
from wtool.ops.average import average
from wtool.ops.ties import COMPATS, ties

Array = NDArray[Any]
PRESETS: tuple[str | None, ...] = (None, *COMPATS)
BF16 = np.dtype(ml_dtypes.bfloat16)


def kept(values: Array, rank: int, all_equal: bool) -> Array:
    """Which of the values are among the `rank` of largest magnitude; the first of equal ones, or all of them."""
    size = np.abs(values)
    mask = np.zeros(len(values), bool)
    mask[np.argsort(-size, kind="stable")[:rank]] = True
    return size >= size[mask].min() if all_equal and rank else mask


def oracle(
    base: Table,
    inputs: Sequence[Table],
    weights: Sequence[float],
    density: float,
    scale: float,
    compat: str | None,
    scope: str | None = None,
    vote: str | None = None,
) -> dict[str, Array]:
    """TIES in f64, one preset after the other, as the table of ops.ties says."""
    keys = sorted(base)
    whole = (scope or ("model" if compat == "paper" else "tensor")) == "model"
    groups = [keys] if whole else [[key] for key in keys]
    trimmed: list[dict[str, Array]] = []
    for table in inputs:
        found: dict[str, Array] = {}
        for group in groups:
            delta = np.concatenate([(table[key].astype("f8") - base[key].astype("f8")).reshape(-1) for key in group])
            count = len(delta)
            if density in (0.0, 1.0):
                rank = round(density) * count
            else:
                rank = {
                    None: round(density * count),
                    "paper": min(int(density * count) + 1, count),
                    "mergekit": min(max(int(density * count), 1), count),
                    "peft": int(density * count),
                }[compat]
            delta = delta * kept(delta, rank, compat == "paper" and 0.0 < density < 1.0)
            for key in group:
                size = base[key].size
                found[key], delta = delta[:size], delta[size:]
        trimmed.append(found)
    signs: dict[str, Array] = {}
    for key in keys:
        votes = []
        for table, weight in zip(trimmed, weights, strict=True):
            mine = table[key] if compat == "peft" else table[key] * weight
            votes.append(np.sign(mine) if vote == "frequency" else mine)
        signs[key] = np.sign(sum(votes[1:], votes[0]))
    zero = {"mergekit": 1, "peft": 1, None: 0}.get(compat, -1)
    if compat == "paper" and len(inputs) > 1 and sum(int(sign.sum()) for sign in signs.values()) > 0:
        zero = 1
    out: dict[str, Array] = {}
    for key in keys:
        sign = np.where(signs[key] == 0, zero, signs[key])
        total, divisor = np.zeros(base[key].size), np.zeros(base[key].size)
        for table, weight in zip(trimmed, weights, strict=True):
            mine = table[key]
            agree = np.sign(mine if compat == "peft" else mine * weight) * sign > 0
            total = total + np.where(agree, mine * weight, 0.0)
            divisor = divisor + np.where(agree, 1.0 if compat in ("paper", "peft") else weight, 0.0)
        delta = total / np.where(divisor == 0, 1.0, divisor)
        exact = base[key].astype("f8").reshape(-1) + scale * delta
        first = inputs[0][key].dtype
        out[key] = np.empty(len(exact), first)
        narrow(exact, out[key], dtype(first.name))
        out[key] = out[key].reshape(base[key].shape)
    return out


def same(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    assert set(found) == set(expected)
    for key, values in expected.items():
        assert found[key].dtype == values.dtype
        np.testing.assert_array_equal(found[key].astype("f8"), values.astype("f8"), err_msg=key)


def tables(seed: int, count: int, shapes: Mapping[str, tuple[int, ...]], kind: str, step: float = 1e-3) -> list[Table]:
    """A base and `count` inputs, their differences of both signs, many of them equal in the half types."""
    rng = np.random.default_rng(seed)
    unit = BF16 if kind == "bf16" else np.dtype(kind)
    base = {key: rng.standard_normal(shape).astype(unit) for key, shape in shapes.items()}
    found: list[Table] = [base]
    for _ in range(count):
        moves = {key: rng.standard_normal(shape) * step * (rng.random(shape) < 0.8) for key, shape in shapes.items()}
        found.append({key: (base[key].astype("f8") + moves[key]).astype(unit) for key in shapes})
    return found


@given(
    seed=st.integers(0, 1 << 30),
    count=st.integers(1, 4),
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=3),
    kind=st.sampled_from(["f4", "f8", "f2", "bf16"]),
    density=st.sampled_from([0.0, 0.01, 0.2, 0.29, 0.5, 0.999, 1.0]),
    scale=st.sampled_from([1.0, 0.4]),
    compat=st.sampled_from(PRESETS),
    scope=st.sampled_from([None, "tensor", "model"]),
    vote=st.sampled_from([None, "mass", "frequency"]),
    weighted=st.booleans(),
    jobs=st.sampled_from([1, 3]),
)
def test_every_preset_against_numpy(
    seed: int,
    count: int,
    sizes: list[int],
    kind: str,
    density: float,
    scale: float,
    compat: str | None,
    scope: str | None,
    vote: str | None,
    weighted: bool,
    jobs: int,
) -> None:
    if not sum(sizes):
        sizes = [*sizes, 5]
    base, *inputs = tables(seed, count, {f"k{at}": (size,) for at, size in enumerate(sizes)}, kind, 1e-2)
    weights = [0.3, 0.5, -0.25, 1.0][:count] if weighted else [1.0] * count
    method = ties(weights, density, scale, compat=compat, scope=scope, vote=vote)
    same(merged(method, base, inputs, jobs=jobs), oracle(base, inputs, weights, density, scale, compat, scope, vote))


@pytest.mark.parametrize("compat", PRESETS)
@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_thousands_of_equal_magnitudes_at_the_threshold(compat: str | None, scope: str) -> None:
    base, *inputs = tables(7, 3, {"b": (200, 400), "a": (77, 100), "c": (3,)}, "bf16", 1e-2)
    delta = np.abs(inputs[0]["b"].astype("f8") - base["b"].astype("f8")).reshape(-1)
    assert (delta == np.sort(delta)[-16_000]).sum() > 1000
    method = ties([1.0] * 3, 0.2, compat=compat, scope=scope)
    same(merged(method, base, inputs, jobs=2), oracle(base, inputs, [1.0] * 3, 0.2, 1.0, compat, scope))


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_many_inputs(scope: str) -> None:
    base, *inputs = tables(9, 15, {"a": (900,), "b": (100,)}, "f4", 1e-2)
    weights = [0.1 * at for at in range(1, 16)]
    method = ties(weights, 0.3, scope=scope)
    same(merged(method, base, inputs, jobs=2), oracle(base, inputs, weights, 0.3, 1.0, None, scope))


def test_exactly_so_many_are_kept() -> None:
    base = {"k": np.zeros(10_000, "f4")}
    one = {"k": np.ones(10_000, "f4")}
    for density in (0.1, 0.3333, 0.9):
        out = merged(ties([1.0], density), base, [one])["k"]
        assert np.flatnonzero(out).tolist() == list(range(round(density * 10_000)))


def test_what_is_kept_of_ten() -> None:
    """Where the implementations differ, in small: a quarter of ten values."""
    base, one = {"k": np.zeros(10)}, {"k": np.arange(1.0, 11.0)}
    found = {compat: int((merged(ties([1.0], 0.25, compat=compat), base, [one])["k"] != 0).sum()) for compat in PRESETS}
    assert found == {None: 2, "paper": 3, "mergekit": 2, "peft": 2}


def test_the_vote_and_the_divisor_of_each_preset() -> None:
    base = {"k": np.zeros(4)}
    rows = [[3.0, 1.0, 2.0, 5.0], [-1.0, -1.0, 4.0, 1.0], [-1.0, 0.0, 0.0, 1.0]]
    inputs = [{"k": np.array(row)} for row in rows]

    def of(weights: list[float], **options: Any) -> list[float]:
        return list(merged(ties(weights, 1.0, **options), base, inputs)["k"])

    ones = [1.0, 1.0, 1.0]
    assert of(ones)[:3] == [3.0, 0.0, 3.0]  # mass; a vote of 0 leaves the base; the mean of two
    assert of(ones, vote="frequency")[0] == -1.0
    assert of(ones, compat="paper")[1] == 1.0  # more values rose than fell
    assert of(ones, compat="mergekit")[1] == of(ones, compat="peft")[1] == 1.0
    half = [0.5, 0.5, 0.5]
    assert of(half)[2] == of(half, compat="mergekit")[2] == 3.0
    assert of(half, compat="paper")[2] == of(half, compat="peft")[2] == 1.5
    unlike = [0.1, 1.0, 1.0]  # weighted, the first is outvoted
    assert of(unlike, compat="mergekit")[0] == -1.0
    assert of(unlike, compat="peft")[0] == pytest.approx(0.3)


def test_the_majority_of_the_model_settles_a_vote_of_zero() -> None:
    for sign in (1.0, -1.0):
        base = {"a": np.zeros(2), "b": np.zeros(3)}
        inputs = [{"a": np.array([2.0, 0.0]), "b": sign * np.ones(3)}, {"a": np.array([-2.0, 0.0]), "b": np.zeros(3)}]
        assert merged(ties([1.0, 1.0], 1.0, compat="paper"), base, inputs)["a"].tolist() == [2.0 * sign, 0.0]


@pytest.mark.parametrize("kind", ["f4", "bf16"])
def test_identities(kind: str) -> None:
    base, one = tables(1, 1, {"k": (500,)}, kind)
    untouched = {key: values.tobytes() for key, values in base.items()}
    for compat in PRESETS:
        full = merged(ties([1.0] * 3, 1.0, compat=compat), base, [one] * 3)
        assert full["k"].tobytes() == one["k"].tobytes()
        for density, inputs in ((0.0, [one, one]), (0.3, [base, base])):
            out = merged(ties([1.0] * 2, density, compat=compat), base, inputs)
            assert {key: values.tobytes() for key, values in out.items()} == untouched


def test_zeros_of_the_base_keep_their_sign() -> None:
    base = {"k": np.array([-0.0, 0.0, -0.0], "f4")}
    one = {"k": np.array([-0.0, 0.0, 1.0], "f4")}
    out = merged(ties([1.0], 1.0), base, [one])["k"]
    assert np.signbit(out).tolist() == [True, False, False]


def test_neither_threads_nor_the_order_of_tensors_change_a_bit() -> None:
    base, *inputs = tables(5, 3, dict.fromkeys("dabc", (300,)), "bf16", 1e-2)
    expected = merged(ties([1.0] * 3, 0.3, compat="paper"), base, inputs)
    turned = [{key: table[key] for key in "abcd"} for table in (base, *inputs)]
    for scope in ("tensor", "model"):
        expected = merged(ties([1.0] * 3, 0.3, scope=scope), base, inputs)
        same(merged(ties([1.0] * 3, 0.3, scope=scope), turned[0], turned[1:], jobs=4), expected)


def test_neither_blocks_nor_the_way_values_lie_change_a_bit() -> None:
    base, one = tables(5, 1, {"k": (120, 300)}, "bf16", 1e-2)
    expected = merged(ties([1.0], 0.3), base, [one])["k"]
    turned = checkpoint({"k": np.ascontiguousarray(one["k"].T)})
    lying = replace(turned, tensors={"k": views.transpose(turned["k"], (1, 0))})
    noting = Noting(ties([1.0], 0.3))
    average([lying], ["x"], noting, base=checkpoint(base))
    found = average([lying], ["x"], prepared(noting.method, noting.asked), base=checkpoint(base)).checkpoint["k"]
    for nbytes in (100, 4098, 1 << 20):
        assert b"".join(block.tobytes() for block in found.blocks(nbytes)) == expected.tobytes()
    assert found.flat(10_001, 20_002).tobytes() == expected.reshape(-1)[10_001:20_002].tobytes()


def test_inputs_of_unlike_dtypes() -> None:
    base, *inputs = tables(5, 2, {"k": (400,)}, "f4", 1e-2)
    inputs = [{"k": inputs[0]["k"].astype(BF16)}, {"k": inputs[1]["k"].astype("f8")}]
    same(merged(ties([1.0] * 2, 0.3), base, inputs), oracle(base, inputs, [1.0] * 2, 0.3, 1.0, None))


def test_a_tensor_that_an_input_lacks() -> None:
    base, *inputs = tables(5, 2, {"k": (400,), "m": (50,)}, "f4", 1e-2)
    partial = [inputs[0], {"k": inputs[1]["k"]}]
    for scope in ("tensor", "model"):
        out = merged(ties([1.0] * 2, 0.3, scope=scope), base, partial, on_mismatch="union")
        if scope == "tensor":
            alone = oracle({"m": base["m"]}, [{"m": inputs[0]["m"]}], [1.0], 0.3, 1.0, None)
            np.testing.assert_array_equal(out["m"], alone["m"])
        first = np.concatenate([(inputs[0][key] - base[key].astype("f8")) for key in "km"])
        if scope == "model":
            mask = kept(first, round(0.3 * 450), False)[400:]
            np.testing.assert_array_equal(out["m"] != base["m"], mask & (first[400:] != 0))


def test_only_what_is_merged_counts_for_the_model() -> None:
    base, one = tables(5, 1, {"k": (400,), "left": (300,)}, "f4", 1e-2)
    base, one = {**base, "n": np.arange(9)}, {**one, "n": np.arange(9)}
    from wtool.ops.average import parse_rule

    out = merged(ties([1.0], 0.3, scope="model"), base, [one], rules=[parse_rule("left=first")])
    assert (out["k"] != base["k"]).sum() == round(0.3 * 400)
    np.testing.assert_array_equal(out["left"], one["left"])
    np.testing.assert_array_equal(out["n"], np.arange(9))


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["base", "in1"])
def test_what_is_not_finite_is_named(density: float, bad: float, where: str) -> None:
    base, *inputs = tables(2, 2, {"k": (30_000,)}, "f4")
    spoilt = {"k": (base if where == "base" else inputs[1])["k"].copy()}
    spoilt["k"][25_000] = bad
    base, inputs = (spoilt, inputs) if where == "base" else (base, [inputs[0], spoilt])
    with pytest.raises(NotFiniteError, match="'k' holds") as error:
        merged(ties([1.0] * 2, density), base, inputs)
    assert error.value.path == ("the base" if where == "base" else where)


def test_even_where_all_hold_it() -> None:
    bad = {"k": np.array([1.0, np.nan])}
    with pytest.raises(NotFiniteError):
        merged(ties([1.0] * 2, 1.0), bad, [bad, bad])


def test_what_cannot_be_done_is_said() -> None:
    base, one = tables(2, 1, {"k": (30,)}, "f4")
    with pytest.raises(UsageError, match="density"):
        ties([1.0], 1.5)
    with pytest.raises(UsageError, match="preset"):
        ties([1.0], 0.5, compat="mine")
    with pytest.raises(UsageError, match="scope"):
        ties([1.0], 0.5, scope="layer")
    with pytest.raises(UsageError, match="vote"):
        ties([1.0], 0.5, vote="loud")
    with pytest.raises(UsageError, match="base has no 'k'"):
        merged(ties([1.0], 0.5), {"other": base["k"]}, [one])
    with pytest.raises(UnsupportedError, match="real"):
        merged(ties([1.0], 0.5), {"k": np.ones(3, "c8")}, [{"k": np.ones(3, "c8")}])
    with pytest.raises(DtypeError, match="too large for f16"):
        merged(ties([1.0], 1.0, 1e6), {"k": np.zeros(3, "f2")}, [{"k": np.ones(3, "f2")}])
    with pytest.raises(DtypeError, match="differences"):
        merged(ties([1.0], 0.5), {"k": np.full(3, 1.7e308)}, [{"k": np.full(3, -1.7e308)}])


def test_distances_are_told() -> None:
    base, *inputs = tables(3, 2, {"k": (40_000,)}, "f4", 1e-1)
    spread = Spread(2)
    method = replace(ties([1.0] * 2, 0.5), tell=spread.add)
    out = merged(method, base, inputs)["k"].astype("f8")
    norm = float(np.linalg.norm(out))
    for number, table in enumerate(inputs):
        expected = float(np.linalg.norm(table["k"] - out)) / norm
        assert spread.distances[number] == pytest.approx(expected, rel=1e-5)


def test_specs_cost_no_reading() -> None:
    base, one = tables(3, 1, {"k": (40,)}, "f4")
    noting = Noting(ties([1.0], 0.5))
    average([checkpoint(one)], ["one"], noting, base=checkpoint(base))
    assert [asked.key for asked in noting.asked] == ["k"]
    assert prepared(ties([1.0], 1.0), noting.asked) == ties([1.0], 1.0)


PEERS = """
import torch
from mergekit.merge_methods.base import PerInputValues, TensorGroup
from mergekit.merge_methods import registry
from peft.utils import merge_utils
base = torch.from_numpy(given["base"])
tensors = [torch.from_numpy(row) for row in given["inputs"]]
for place, density in enumerate(given["densities"].tolist()):
    group = TensorGroup.from_tensors([base, *tensors], ids=["base", *range(len(tensors))], base_index=0)
    each = lambda values: PerInputValues(list(enumerate(values)))
    out[f"mergekit{place}"] = registry.get("ties").merge_group(group, **{
        "weight": each(given["weights"].tolist()), "density": each([density] * len(tensors)), "lambda": float(given["scale"]),
        "normalize": True, "rescale": False, "int8_mask": False,
    }).numpy()
    for vote in ("total", "frequency"):
        out[f"peft_{vote}{place}"] = (base + float(given["scale"]) * merge_utils.ties(
            [tensor - base for tensor in tensors], torch.from_numpy(given["weights"]), density, vote
        )).numpy()
"""


def test_against_mergekit_and_peft(tmp_path: Path) -> None:
    """In f64, on values whose magnitudes differ in f32 too, since mergekit compares those."""
    rng = np.random.default_rng(11)
    base, inputs = rng.standard_normal(5000), []
    for _ in range(4):
        inputs.append(base + rng.permutation(np.arange(1, 5001)) * rng.choice([-1e-4, 1e-4], 5000) * (1 + rng.random()))
    densities, weights = [0.0001, 0.2, 0.37, 0.9, 1.0], [0.3, 0.5, 0.9, 0.4]
    found = peer(
        PEERS,
        tmp_path,
        base=base,
        inputs=np.array(inputs),
        densities=np.array(densities),
        weights=np.array(weights),
        scale=np.array(0.7),
    )
    for place, density in enumerate(densities):
        for name, compat, vote in (
            ("mergekit", "mergekit", None),
            ("peft_total", "peft", None),
            ("peft_frequency", "peft", "frequency"),
        ):
            method = ties(weights, density, 0.7, compat=compat, vote=vote)
            out = merged(method, {"k": base}, [{"k": values} for values in inputs])["k"]
            np.testing.assert_allclose(out, found[f"{name}{place}"], rtol=0, atol=1e-14, err_msg=f"{name} {density}")


# Of mergekit 0.1.5, peft 0.21.2 and (with weights 1) the authors' code at 44e7891, on the values of the test below.
GOLDEN: Mapping[str, list[float]] = {
    "mergekit": [5.6, 5.6, -5.6, 3.675, 4.65, 3.5, 4.2, 0.0],
    "paper": [5.6, 4.2, -5.6, 3.85, 4.55, 3.5, 4.2, -2.8],
    "peft": [1.68, 2.8, -5.04, 2.205, 3.255, 1.4, 3.78, 0.0],
}


@pytest.mark.parametrize("compat", GOLDEN)
def test_against_what_they_once_said(compat: str) -> None:
    rows = [[8.0, -7.0, 1.0, 6.0, -2.0, 5.0, 3.0, -4.0], [-1.0, 8.0, 7.0, -3.0, 6.0, 5.0, -4.0, 2.0]]
    rows.append([2.0, 4.0, -8.0, 5.0, 7.0, -1.0, 6.0, -3.0])
    method = ties([1.0] * 3 if compat == "paper" else [0.3, 0.5, 0.9], 0.5, 0.7, compat=compat)
    out = merged(method, {"k": np.zeros(8)}, [{"k": np.array(row)} for row in rows])["k"]
    np.testing.assert_allclose(out, GOLDEN[compat], rtol=0, atol=1e-14)
