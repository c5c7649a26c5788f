"""DARE: the mask bit for bit as documented, its statistics, and the rest against numpy and against mergekit and peft."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from thinned import Table, checkpoint, merged, peer

from wtool.analysis.thinning import Noting, prepared
from wtool.dtypes import dtype
from wtool.errors import NotFiniteError, UsageError
from wtool.kernels.dare import Drop, Mass
from wtool.kernels.rounding import narrow
from wtool.ops.average import average
from wtool.ops.dare import dare
from wtool.ops.ties import COMPATS

Array = NDArray[Any]
M64 = (1 << 64) - 1


def plain_mask(seed: int, number: int, key: str, density: float, count: int) -> list[bool]:
    """The mask in integers of Python, as kernels/dare describes it."""
    digest = blake2b(f"wtool dare 1\n{seed}\n{number}\n{key}".encode(), digest_size=16).digest()
    state, gamma = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little") | 1
    found = []
    for at in range((count + 1) // 2):
        z = (state + (at + 1) * gamma) & M64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
        z ^= z >> 31
        found += [z & 0xFFFFFFFF, z >> 32]
    return [half < round(density * 2**32) for half in found[:count]]


@given(
    seed=st.integers(-(1 << 70), 1 << 70),
    number=st.integers(0, 50),
    key=st.text(max_size=20).filter(lambda text: text.isprintable()),
    density=st.floats(2.0**-32, 1.0),
    start=st.integers(0, 200),
    count=st.integers(0, 200),
)
def test_the_mask_is_the_documented_one(seed: int, number: int, key: str, density: float, start: int, count: int) -> None:
    expected = plain_mask(seed, number, key, density, start + count)[start:]
    assert Drop(seed, number, key, density).mask(start, count).tolist() == expected


def test_the_mask_of_these_names_never_changes() -> None:
    mask = Drop(42, 1, "model.layers.0.mlp.up_proj.weight", 0.5).mask(0, 32)
    assert "".join("01"[kept] for kept in mask.tolist()) == GOLDEN_MASK


GOLDEN_MASK = "01001100111000111001111001101010"


def test_far_into_a_tensor() -> None:
    drop = Drop(1, 0, "k", 0.5)
    far = 3 * 10**10 + 1
    assert drop.mask(far, 100).tolist() == drop.mask(far - 7, 107).tolist()[7:]


@pytest.mark.parametrize("density", [0.05, 0.5, 0.9])
def test_as_many_as_asked_and_independent_of_one_another(density: float) -> None:
    n = 1 << 20
    deviation = (density * (1 - density) / n) ** 0.5
    masks = [Drop(*who, density).mask(0, n) for who in ((0, 0, "a"), (0, 1, "a"), (0, 0, "b"), (1, 0, "a"))]
    for mask in masks:
        assert abs(mask.mean() - density) < 5 * deviation
        for lag in (1, 2, 3, 64):  # neighbours, the two halves of an output among them
            assert abs((mask[:-lag] & mask[lag:]).mean() - density**2) < 5 * deviation
        runs = mask.reshape(-1, 64).sum(axis=1)
        assert abs(runs.var() / (64 * density * (1 - density)) - 1) < 0.06
    for one, other in pairwise(masks):
        assert abs((one & other).mean() - density**2) < 5 * deviation


def tables(seed: int, count: int, sizes: Sequence[int], kind: str) -> list[Table]:
    rng = np.random.default_rng(seed)
    unit = np.dtype(ml_dtypes.bfloat16) if kind == "bf16" else np.dtype(kind)
    base = {f"k{at}": rng.standard_normal(size).astype(unit) for at, size in enumerate(sizes)}
    return [base] + [
        {key: (v.astype("f8") + rng.standard_normal(v.shape) * 1e-2).astype(unit) for key, v in base.items()}
        for _ in range(count)
    ]


@given(
    seed=st.integers(0, 1 << 30),
    count=st.integers(1, 4),
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=3),
    kind=st.sampled_from(["f4", "f8", "bf16"]),
    density=st.sampled_from([0.05, 0.3, 0.9, 1.0]),
    scale=st.sampled_from([1.0, 0.4]),
    compat=st.sampled_from([None, *COMPATS]),
    elect=st.booleans(),
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
    elect: bool,
    jobs: int,
) -> None:
    base, *inputs = tables(seed, count, sizes, kind)
    weights = [0.3, 0.5, -0.25, 1.0][:count]
    thinned: list[dict[str, Array]] = []
    for number, table in enumerate(inputs):
        found = {}
        for key, values in table.items():
            delta = values.astype("f8") - base[key].astype("f8")
            out = delta * plain_mask(seed, number, key, density, len(delta))
            if compat == "mergekit":
                before, after = np.abs(delta).sum(), np.abs(out).sum()
                found[key] = out * (before / after) if min(before, after) >= 1e-7 and density < 1 else out
            else:
                found[key] = out / density
        thinned.append(found)
    first = {key: [table[key] * (1.0 if compat == "peft" and elect else w) for table, w in zip(thinned, weights, strict=True)]
             for key in base}  # fmt: skip
    signs = {key: np.sign(sum(rows[1:], rows[0])) for key, rows in first.items()}
    zero = {"mergekit": 1, "peft": 1, None: 0}.get(compat, -1)
    if compat == "paper" and count > 1 and sum(int(sign.sum()) for sign in signs.values()) > 0:
        zero = 1
    merging = merged(dare(weights, density, scale, seed=seed, compat=compat, elect=elect), base, inputs, jobs=jobs)
    for key, values in base.items():
        rows = [table[key] * w for table, w in zip(thinned, weights, strict=True)]
        if elect:
            sign = np.where(signs[key] == 0, zero, signs[key])
            agree = [row * sign > 0 for row in first[key]]
            total = sum(np.where(a, row, 0.0) for a, row in zip(agree, rows, strict=True))
            shares = [1.0] * count if compat in ("paper", "peft") else weights
            divisor = sum((a * w for a, w in zip(agree, shares, strict=True)), np.zeros(len(values)))
            divisor = np.ones(len(values)) if compat == "mergekit" else np.where(divisor == 0, 1.0, divisor)
            delta = total / divisor
        else:
            delta = sum(rows[1:], rows[0])
        exact = values.astype("f8") + scale * delta
        expected = np.empty(len(exact), values.dtype)
        narrow(exact, expected, dtype(values.dtype.name))
        if compat == "mergekit":  # numpy's sum of a whole array is not the exact one
            near = {"f4": 1e-6, "f8": 1e-13, "bf16": 1e-2}[kind]
            np.testing.assert_allclose(merging[key].astype("f8"), exact, rtol=near, atol=near)
        else:
            np.testing.assert_array_equal(merging[key].astype("f8"), expected.astype("f8"))


def test_neither_order_nor_threads_nor_blocks_change_a_bit() -> None:
    base, *inputs = tables(3, 3, [50_001, 70_000, 1234], "f4")
    for compat in (None, "mergekit"):
        method = dare([1.0] * 3, 0.3, seed=5, compat=compat, elect=True)
        expected = merged(method, base, inputs)
        turned = [dict(reversed(list(table.items()))) for table in (base, *inputs)]
        assert {key: v.tobytes() for key, v in merged(method, turned[0], turned[1:], jobs=4).items()} == {
            key: v.tobytes() for key, v in expected.items()
        }
        noting = Noting(method)
        opened, names = [checkpoint(table) for table in inputs], ["a", "b", "c"]
        average(opened, names, noting, base=checkpoint(base))
        found = average(opened, names, prepared(method, noting.asked), base=checkpoint(base)).checkpoint["k1"]
        for nbytes in (100, 4096, 1 << 20):
            assert b"".join(block.tobytes() for block in found.blocks(nbytes)) == expected["k1"].tobytes()
        for low, high in ((0, 7), (7, 8), (40_001, 69_999)):
            assert found.flat(low, high).tobytes() == expected["k1"][low:high].tobytes()


def test_the_factor_depends_not_on_the_runs() -> None:
    values = np.random.default_rng(0).standard_normal(100_000)
    drop = Drop(0, 0, "k", 0.1)
    factors = set()
    for run in (1 << 20, 16_384, 999, 77_777):
        mass = Mass(drop)
        for at in range(0, len(values), run):
            mass.add(values[at : at + run])
        factors.add(mass.factor())
    (factor,) = factors
    kept = drop.mask(0, len(values))
    assert factor == pytest.approx(np.abs(values).sum() / np.abs(values[kept]).sum(), rel=1e-12)


def test_density_one_keeps_all_and_zero_is_refused() -> None:
    base, one = tables(3, 1, [100], "f4")
    for compat in (None, *COMPATS):
        assert merged(dare([1.0], 1.0, compat=compat), base, [one])["k0"].tobytes() == one["k0"].tobytes()
        with pytest.raises(UsageError, match="density is 0"):
            dare([1.0], 0.0, compat=compat)
    with pytest.raises(UsageError, match="preset"):
        dare([1.0], 0.5, compat="mine")


def test_what_is_not_finite_is_named() -> None:
    base, one = tables(3, 1, [1000], "f4")
    for bad in (np.nan, np.inf):
        one["k0"][500] = bad
        for compat in (None, "mergekit"):
            with pytest.raises(NotFiniteError, match="'k0'"):
                merged(dare([1.0], 0.01, compat=compat), base, [one])


PEERS = """
import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import PerInputValues, TensorGroup
from peft.utils import merge_utils
base = torch.from_numpy(given["base"])
tensors = [torch.from_numpy(row) for row in given["inputs"]]
weights, density = given["weights"].tolist(), float(given["density"])
masks = []
torch.bernoulli = lambda _: masks.pop(0)
each = lambda values: PerInputValues(list(enumerate(values)))
for name in ("dare_linear", "dare_ties"):
    masks[:] = [torch.from_numpy(row) for row in given["masks"]]
    group = TensorGroup.from_tensors([base, *tensors], ids=["base", *range(len(tensors))], base_index=0)
    out["mergekit_" + name] = registry.get(name).merge_group(group, **{
        "weight": each(weights), "density": each([density] * len(tensors)), "lambda": 1.0,
        "normalize": False, "rescale": True, "int8_mask": False,
    }).numpy()
    masks[:] = [torch.from_numpy(row) for row in given["masks"]]
    merge = getattr(merge_utils, name)
    out["peft_" + name] = (base + merge([t - base for t in tensors], torch.tensor(weights, dtype=base.dtype), density)).numpy()
"""


def test_against_mergekit_and_peft(tmp_path: Path) -> None:
    """With our masks in place of torch.bernoulli. mergekit makes f32 of f64 on the way."""
    rng = np.random.default_rng(11)
    base = rng.standard_normal(5000)
    inputs = [base + rng.standard_normal(5000) for _ in range(3)]
    weights, density = [0.3, 0.5, 0.9], 0.4
    masks = np.array([Drop(9, number, "k", density).mask(0, 5000) for number in range(3)], "f8")
    found = peer(
        PEERS,
        tmp_path,
        base=base,
        inputs=np.array(inputs),
        masks=masks,
        weights=np.array(weights),
        density=np.array(density),
    )
    for name, values in found.items():
        compat, _, kind = name.partition("_")
        method = dare(weights, density, seed=9, compat=compat, elect=kind == "dare_ties")
        out = merged(method, {"k": base}, [{"k": values} for values in inputs])["k"]
        near = 1e-14 if compat == "peft" else 1e-6
        np.testing.assert_allclose(out, values, rtol=near, atol=near, err_msg=name)
