"""Masks by magnitude and by chance: counts, ties, torch's masks, tickets over several rounds."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from wtool.analysis import bracket
from wtool.analysis.bracket import ROOM, highest
from wtool.analysis.pruning import Part, Share, chosen
from wtool.analysis.ranked import Ranked, magnitude, unit_of
from wtool.analysis.shares import Shares
from wtool.api import open_checkpoint, save_checkpoint
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import dtype
from wtool.errors import CorruptError, MismatchError, NotFiniteError, UsageError
from wtool.kernels.masks import ByMagnitude
from wtool.kernels.trim import NONE, Keep
from wtool.ops.prune import Prune, fates, layer_of, mask_checkpoint, read_masks
from wtool.tensor import LazyTensor
from wtool.views import transpose

HALVES = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32, "f64": np.float64}
UNITS = {**HALVES, "f8_e4m3": ml_dtypes.float8_e4m3fn, "f8_e5m2": ml_dtypes.float8_e5m2}


def lazy(key: str, array: Any, row: str = "") -> LazyTensor:
    array = np.asarray(array)
    known = {np.dtype(unit): name for name, unit in UNITS.items()}
    found = dtype(row or known.get(array.dtype, array.dtype.name))
    return LazyTensor.contiguous(key, found, array.shape, MemoryBytes(array.tobytes()), 0)


def checkpoint(arrays: Mapping[str, Any]) -> Checkpoint:
    tensors = {key: lazy(key, value) for key, value in arrays.items()}
    return Checkpoint(tensors, Source("here", "torch", "zip", ()))


def random(seed: int, shape: tuple[int, ...], unit: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(unit)


def kept(tensor: LazyTensor, mask: Any) -> Any:
    return mask.keeps(0, tensor.array().reshape(-1)).reshape(tensor.shape)


def masks(tensors: Mapping[str, LazyTensor], share: Share, group: str = "", **more: Any) -> dict[str, Any]:
    groups = {"": lambda key: "", "tensor": lambda key: key, "layer": layer_of}[group]
    before, limits = more.pop("before", {}), more.pop("limits", {})
    parts = [Part(tensor, groups(key), limits.get(key), before.get(key)) for key, tensor in tensors.items()]
    found = chosen(parts, share, "here", **more)
    return {key: kept(tensors[key], mask) for key, mask in pickle.loads(pickle.dumps(found)).items()}


@pytest.mark.parametrize("unit", HALVES)
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_one_tensor_is_pruned_as_torch_does(unit: str, sparsity: float) -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    values = random(1, (40, 25), np.float64)
    if unit in ("bf16", "f16"):  # all magnitudes apart, so that no rule of ties is asked
        values = (np.arange(1000) + 1) * 2.0**-9
        words = np.random.default_rng(2).permutation(1000) + 0x1000
        values = words.astype(np.uint16).view(UNITS[unit]).astype(np.float64).reshape(40, 25)
        values[::2] *= -1
    values = values.astype(UNITS[unit])
    layer = torch.nn.Module()
    names = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "f64": torch.float64}
    layer.register_parameter("weight", torch.nn.Parameter(torch.tensor(values.astype("f8")).to(names[unit])))
    prune.l1_unstructured(layer, "weight", amount=sparsity)
    ours = masks({"w.weight": lazy("w.weight", values)}, Share(sparsity), "tensor")["w.weight"]
    assert (ours == layer.weight_mask.float().numpy().astype(bool)).all()
    assert np.count_nonzero(~ours) == round(sparsity * 1000)


@pytest.mark.parametrize("jobs", [1, 3])
def test_many_tensors_are_pruned_as_torch_does(jobs: int) -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    arrays = {f"layers.{n}.weight": random(n, (30 + n, 40)) * (n + 1) for n in range(12)}
    layers = [torch.nn.Linear(40, 30 + n) for n in range(12)]
    for layer, value in zip(layers, arrays.values(), strict=True):
        layer.weight.data = torch.from_numpy(value)
    prune.global_unstructured([(one, "weight") for one in layers], pruning_method=prune.L1Unstructured, amount=0.77)
    ours = masks({key: lazy(key, value) for key, value in arrays.items()}, Share(0.77), jobs=jobs)
    for layer, mask in zip(layers, ours.values(), strict=True):
        assert (mask == layer.weight_mask.numpy().astype(bool)).all()


def test_ties_go_from_the_end_and_exactly_as_many_as_asked() -> None:
    ones = {"a.10.weight": np.ones((10, 10), "f4"), "a.2.weight": np.full((10, 10), -1, ml_dtypes.bfloat16)}
    tensors = {key: lazy(key, value) for key, value in ones.items()}
    one = masks({"a.2.weight": tensors["a.2.weight"]}, Share(0.5))["a.2.weight"]
    assert one.reshape(-1).tolist() == [True] * 50 + [False] * 50
    both = masks(tensors, Share(0.25))
    assert both["a.2.weight"].all() and np.count_nonzero(both["a.10.weight"]) == 50
    many = {f"l.{n}.w": lazy(f"l.{n}.w", np.round(random(n, (50, 50)) * 2).astype(ml_dtypes.bfloat16)) for n in range(5)}
    found = masks(many, Share(0.6), jobs=2)
    flat = np.concatenate([np.abs(tensor.array().astype("f4")).reshape(-1) for tensor in many.values()])
    expected = np.ones(len(flat), bool)
    expected[np.argsort(-flat, kind="stable")[len(flat) - round(0.6 * len(flat)) :]] = False
    assert (np.concatenate([mask.reshape(-1) for mask in found.values()]) == expected).all()


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_every_dtype_has_the_exact_count(unit: str, sparsity: float) -> None:
    values = random(7, (64, 33)).astype(UNITS[unit])
    ours = masks({"w": lazy("w", values)}, Share(sparsity))["w"]
    assert np.count_nonzero(~ours) == round(sparsity * values.size)
    sizes = np.abs(values.astype("f8"))
    assert sizes[ours].min() >= sizes[~ours].max()


KINDS: dict[str, Any] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "few kinds": lambda rng, n: rng.integers(-3, 4, n) * 0.5,
    "one value": lambda rng, n: np.full(n, -2.5),
    "nearly all zero": lambda rng, n: rng.standard_normal(n) * (rng.random(n) < 0.01),
    "rising": lambda rng, n: np.sort(rng.standard_normal(n)),
    "unlike parts": lambda rng, n: rng.standard_normal(n) * np.repeat([1e-4, 1.0, 3.0, 1e3], -(-n // 4))[:n],
    "peaks where no sample is": lambda rng, n: np.where(np.arange(n) % 613 < 300, 1.0, 9.0) + rng.random(n),
}


@pytest.mark.parametrize("unit", ["bf16", "f32", "f64", "f8_e4m3"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("jobs", "room"), [(1, ROOM), (3, 1 << 12), (2, 0)])
def test_the_highest_are_those_of_a_stable_sort(kind: str, unit: str, jobs: int, room: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(bracket, "_PART", 30_011)
    rng = np.random.default_rng(5)
    values = KINDS[kind](rng, 150_001).clip(-300, 300).astype(UNITS[unit])
    cuts = [0, 70_000, 70_001, 70_003, 150_001]
    tensors = [lazy(f"h.{n}", values[a:b].reshape(1, -1)) for n, (a, b) in enumerate(pairwise(cuts))]
    turned = transpose(lazy("h.0", values[:70_000].reshape(100, 700).T), (1, 0))
    tensors[0] = turned.renamed("h.0")
    row = unit_of([tensors[0].dtype])
    order = np.argsort(-np.abs(values.astype("f8")), kind="stable")
    for rank in (0, 1, 7, 75_000, 75_003, 149_999, 150_001):
        cut = highest([Ranked(tensor, row, "here") for tensor in tensors], rank, jobs=jobs, room=room)
        expected = np.zeros(len(values), np.bool_)
        expected[order[:rank]] = True
        keeps = [Keep(0 if cut.rank is None else magnitude(cut.rank, row), cut.until.get(one.key, 0)) for one in tensors]
        masks = [
            ByMagnitude(NONE if cut.rank is None else keep, one.dtype).keeps(0, values[a:b])
            for keep, one, (a, b) in zip(keeps, tensors, pairwise(cuts), strict=True)
        ]
        np.testing.assert_array_equal(np.concatenate(masks), expected)


@pytest.mark.parametrize("unit", HALVES)
def test_what_is_not_finite_is_no_rank(unit: str) -> None:
    good = lazy("h", random(1, (3, 5)).astype(UNITS[unit]))
    for odd, said in ((np.nan, "NaN"), (-np.inf, "an infinity")):
        bad = lazy("x", np.array([[1, odd]]).astype(UNITS[unit]))
        for rank in (0, 3):
            with pytest.raises(NotFiniteError, match=f"'x' holds {said}"):
                highest([Ranked(one, good.dtype, "here") for one in (good, bad)], rank)
        assert Ranked(bad, good.dtype, "here", odd=True).odd_ones() == 1


def test_a_sample_that_misleads_costs_a_pass_and_no_more(monkeypatch: Any) -> None:
    """All values but those that the sample sees are larger."""
    values = np.full(200_000, 5.0, "f4") + np.arange(200_000, dtype="f4") / 1e6
    size = 32
    for number in range(512):
        at = number * 200_000 // 512
        values[at : at + size] = 1e-3 * number
    passes = []
    once = bracket._Passes.once
    monkeypatch.setattr(bracket._Passes, "once", lambda self, one: passes.append(one) or once(self, one))
    for rank in (20_000, 199_000):
        passes.clear()
        cut = highest([Ranked(lazy("h", values.reshape(1, -1)), dtype("f32"), "here")], rank)
        assert magnitude(cut.rank or 0, dtype("f32")) == np.sort(values)[-rank] and len(passes) <= 4


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e4, 1e30])
def test_energy_is_that_of_f64(unit: str, scale: float) -> None:
    with np.errstate(over="ignore"):
        values = (random(1, (300, 200)) * np.float32(scale)).astype(UNITS[unit])
    tensor = lazy("w", values)
    if not np.isfinite(values.astype("f8")).all():
        return
    shares = Shares()
    Prune(chosen([Part(tensor)], Share(0.7), "here"), tell=lambda key: shares.of(tensor))(checkpoint({"w": values}))[
        "w"
    ].array()
    exact = values.astype("f8") ** 2
    expected = np.sort(exact.reshape(-1))[42000:].sum() / exact.sum() if exact.any() else 1
    assert shares.energy(["w"]) == pytest.approx(expected, rel=1e-5)


def test_dtypes_are_mixed_by_value() -> None:
    arrays = {unit: random(n, (20, 30)).astype(UNITS[unit]) for n, unit in enumerate(UNITS)}
    found = masks({key: lazy(key, value) for key, value in arrays.items()}, Share(0.7))
    flat = np.concatenate([np.abs(arrays[key].astype("f8")).reshape(-1) for key in found])
    mask = np.concatenate([one.reshape(-1) for one in found.values()])
    assert np.count_nonzero(~mask) == round(0.7 * len(flat)) and flat[mask].min() >= flat[~mask].max()


def test_scopes_have_their_own_counts() -> None:
    arrays = {f"h.{n}.{name}.weight": random(n, (10, 10)) * (n + 1) for n in range(3) for name in "qk"}
    tensors = {key: lazy(key, value) for key, value in arrays.items()}
    gone = {
        scope: {k: np.count_nonzero(~m) for k, m in masks(tensors, Share(0.5, scope), scope).items()}
        for scope in ("layer", "tensor")
    }
    assert set(gone["tensor"].values()) == {50}
    assert [gone["layer"][f"h.{n}.q.weight"] + gone["layer"][f"h.{n}.k.weight"] for n in range(3)] == [100] * 3


@pytest.mark.parametrize(
    ("key", "layer"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "model.layers.3"),
        ("layer1.0.conv1.weight", "layer1.0"),
        ("encoder/layer_3/attention/kernel", "encoder/layer_3"),
        ("conv1.weight", "conv1"),
        ("lm_head.weight", "lm_head"),
        ("w", "w"),
        ("0.weight", "0"),
        ("fc.0", "fc"),
    ],
)
def test_layers_are_told_by_numbers(key: str, layer: str) -> None:
    assert layer_of(key) == layer


def test_limits_hold_and_the_others_give_more() -> None:
    arrays = {f"h.{n}.w": random(n, (20, 50)) * (1 + 3 * n) for n in range(4)}
    tensors = {key: lazy(key, value) for key, value in arrays.items()}
    limits = {"h.0.w": ("h.0", 0.55), "h.1.w": ("h.1", 0.6)}
    free = {key: np.count_nonzero(~mask) for key, mask in masks(tensors, Share(0.6)).items()}
    found = {key: np.count_nonzero(~mask) for key, mask in masks(tensors, Share(0.6), limits=limits).items()}
    assert free["h.0.w"] > 550 and found["h.0.w"] == 550 and found["h.1.w"] <= 600
    assert sum(found.values()) == 2400 and found["h.3.w"] > free["h.3.w"]
    with pytest.raises(UsageError, match="limits let 550 go"):
        masks({"h.0.w": tensors["h.0.w"]}, Share(0.6), limits=limits)


@pytest.mark.parametrize("scope", ["", "tensor"])
def test_chance_depends_on_seed_key_and_place_alone(scope: str) -> None:
    tensors = {key: lazy(key, random(1, (300, 210))) for key in ("a.weight", "b.weight")}
    one = masks(tensors, Share(0.8, method="random", seed=3), scope)
    two = masks(dict(reversed(tensors.items())), Share(0.8, method="random", seed=3), scope, jobs=3)
    assert all((one[key] == two[key]).all() for key in one)
    assert sum(np.count_nonzero(~mask) for mask in one.values()) == round(0.8 * 126000)
    assert (one["a.weight"] != one["b.weight"]).any()
    other = masks(tensors, Share(0.8, method="random", seed=4), scope)
    assert 0.6 < (one["a.weight"] == other["a.weight"]).mean() < 0.75
    # The same whatever the run begins with.
    mask = chosen([Part(tensors["a.weight"])], Share(0.5, method="random"), "here")["a.weight"]
    values = tensors["a.weight"].array().reshape(-1)
    whole = mask.keeps(0, values)
    assert (mask.keeps(12345, values[12345:20001]) == whole[12345:20001]).all()


def test_what_is_not_finite_is_named_or_stays() -> None:
    values = random(1, (10, 10))
    values[3, 4], values[5, 5] = np.nan, -np.inf
    tensors = {"w.weight": lazy("w.weight", values)}
    for method in ("magnitude", "random"):
        with pytest.raises(NotFiniteError, match="holds NaN"):
            masks(tensors, Share(0.5, method=method))
        found = masks(tensors, Share(0.5, method=method, keep_odd=True))["w.weight"]
        assert found[3, 4] and found[5, 5] and np.count_nonzero(~found) == 49
        everything = masks(tensors, Share(1.0, method=method, keep_odd=True))["w.weight"]
        assert np.count_nonzero(everything) == 2 and everything[3, 4]


@pytest.mark.parametrize("sparsity", [0.55, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("keep_odd", [False, True])
def test_halves_have_the_rounds_of_singles(sparsity: float, keep_odd: bool) -> None:
    arrays = {f"h.{n}": random(n, (60, 71)).astype(ml_dtypes.bfloat16) for n in range(3)}
    if keep_odd:
        arrays["h.1"][2, 3], arrays["h.2"][4, 4:9] = np.nan, np.inf
    found = []
    for unit in (ml_dtypes.bfloat16, np.float32):
        source = checkpoint({key: value.astype(unit) for key, value in arrays.items()})
        first = chosen([Part(source[key]) for key in arrays], Share(0.5, method="random", keep_odd=keep_odd), "here")
        share = Share(sparsity, keep_odd=keep_odd)
        masks = chosen([Part(source[key], before=first[key]) for key in arrays], share, "here", jobs=2)
        found.append(np.concatenate([kept(source[key], mask) for key, mask in masks.items()]))
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_rounds_never_revive_and_count_what_is_asked(method: str) -> None:
    arrays = {f"h.{n}.w": random(n, (40, 50)) for n in range(3)}
    arrays["h.0.w"][:5] = 0
    tensors = {key: lazy(key, value) for key, value in arrays.items()}
    bits: dict[str, Any] = {}
    before: dict[str, Any] = {key: np.ones((40, 50), bool) for key in arrays}
    expected = 0
    for number in range(4):
        # What was pruned has been trained on: its values are the largest there are.
        for key in arrays:
            arrays[key] = np.where(before[key], arrays[key] * (1 + 0.1 * number), 100).astype("f4")
        tensors = {key: lazy(key, value) for key, value in arrays.items()}
        expected += round(0.2 * (6000 - expected))
        parts = [Part(tensor, "", None, bits.get(key)) for key, tensor in tensors.items()]
        found = chosen(parts, Share(0.2, method=method, of_remaining=True, seed=number), "here")
        source = checkpoint(arrays)
        packed = mask_checkpoint(source, found)
        bits = read_masks(packed, source)
        now = {key: kept(tensors[key], mask) for key, mask in bits.items()}
        assert sum(np.count_nonzero(~mask) for mask in now.values()) == expected
        assert all(not (now[key] & ~before[key]).any() for key in now)
        before = now
    total = chosen([Part(t, "", None, bits[k]) for k, t in tensors.items()], Share(0.75, method=method), "here")
    assert sum(np.count_nonzero(~kept(tensors[key], mask)) for key, mask in total.items()) == 4500
    with pytest.raises(UsageError, match="the mask prunes"):
        chosen([Part(t, "", None, bits[k]) for k, t in tensors.items()], Share(0.5, method=method), "here")


def test_rounds_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    values = random(4, (37, 29))
    layer = torch.nn.Linear(29, 37)
    layer.weight.data = torch.from_numpy(values.copy())
    source = checkpoint({"weight": values})
    bits = None
    for _ in range(4):
        prune.l1_unstructured(layer, "weight", amount=0.3)
        found = chosen([Part(source["weight"], before=bits)], Share(0.3, of_remaining=True), "here")
        bits = read_masks(mask_checkpoint(source, found), source)["weight"]
        assert (kept(source["weight"], bits) == layer.weight_mask.numpy().astype(bool)).all()


def test_a_round_may_have_masks_for_some_tensors_only() -> None:
    tensors = {key: lazy(key, random(n, (20, 20))) for n, key in enumerate("ab")}
    first = chosen([Part(tensors["a"])], Share(0.5), "here")
    both = chosen([Part(tensors["a"], before=first["a"]), Part(tensors["b"])], Share(0.5), "here")
    flat = np.abs(np.concatenate([tensor.array().reshape(-1) for tensor in tensors.values()]))
    gone = [np.count_nonzero(~kept(tensors[key], mask)) for key, mask in both.items()]
    assert sum(gone) == 400 and gone[0] >= 200 and flat.size == 800


def test_bits_outside_the_mask_are_untouched() -> None:
    values = random(1, (4, 4))
    values[0, 0] = -0.0
    values.view("u4")[0, 1] = 0x7FC12345
    source = checkpoint({"a.weight": values, "n": np.arange(4)})
    tensors = {"a.weight": source["a.weight"]}
    mask = chosen([Part(tensors["a.weight"])], Share(0.5, keep_odd=True), "here")
    shares = Shares()
    after = Prune(mask, tell=lambda key: shares.of(source[key]))(source)
    found = after["a.weight"].array()
    stays = kept(tensors["a.weight"], mask["a.weight"])
    assert (found.view("u4") == np.where(stays, values.view("u4"), 0)).all()
    assert after["n"].span == source["n"].span and shares.kept == {"a.weight": 8}
    finite = np.where(np.isfinite(values), values, 0).astype("f8")
    assert shares.energy(["a.weight"]) == pytest.approx((finite[stays] ** 2).sum() / (finite**2).sum(), rel=1e-6)


def test_tied_tensors_are_pruned_once_and_stay_tied(tmp_path: Path) -> None:
    one = lazy("a.weight", random(1, (8, 8)))
    source = Checkpoint({"a.weight": one, "b.weight": one.renamed("b.weight")}, Source("here", "torch", "zip", ()))
    after = Prune(chosen([Part(one)], Share(0.5), "here"))(source)
    assert after.tied() == [["a.weight", "b.weight"]]
    save_checkpoint(after, tmp_path / "x.pth")
    again = open_checkpoint(tmp_path / "x.pth")
    assert again.tied() == [["a.weight", "b.weight"]] and np.count_nonzero(again["b.weight"].array()) == 32


def test_survivors_are_rewound() -> None:
    trained, init = random(1, (8, 8)), random(2, (8, 8))
    source, first = (checkpoint({"a.weight": w, "a.bias": w[0]}) for w in (trained, init))
    mask = chosen([Part(source["a.weight"])], Share(0.5), "here")
    stays = kept(source["a.weight"], mask["a.weight"])
    for rest, bias in (("init", init[0]), ("source", trained[0])):
        after = Prune(mask, first, rest)(source)
        assert (after["a.weight"].array() == np.where(stays, init, 0)).all() and (after["a.bias"].array() == bias).all()
    with pytest.raises(MismatchError, match="it has no 'a"):
        Prune(mask, checkpoint({"b": init}))(source)
    with pytest.raises(MismatchError, match=r"f64 \[8, 8\], not f32"):
        Prune(mask, checkpoint({"a.weight": init.astype("f8"), "a.bias": init[0]}))(source)


def test_views_that_are_not_contiguous_are_pruned_by_value() -> None:
    values = random(1, (30, 50))
    turned = transpose(lazy("w", values), (1, 0))
    mask = chosen([Part(turned)], Share(0.7), "here")
    straight = chosen([Part(lazy("w", values.T.copy()))], Share(0.7), "here")
    assert (kept(turned, mask["w"]) == kept(lazy("w", values.T.copy()), straight["w"])).all()
    source = Checkpoint({"w": turned}, Source("here", "torch", "zip", ()))
    bits = mask_checkpoint(source, mask)["w"].array()
    assert (bits == np.packbits(kept(turned, mask["w"]).reshape(-1), bitorder="little")).all()


def test_shapes_that_are_odd() -> None:
    values = {
        "row": random(1, (1, 7)),
        "one": random(2, (1, 1)),
        "none": np.zeros((0, 4), "f4"),
        "deep": random(3, (2, 3, 1, 5)),
    }
    source = checkpoint(values)
    assert [fate.key for fate in fates(source) if fate.pruned] == ["row", "one", "deep"]
    parts = [Part(source[key]) for key in ("row", "one", "deep")]
    found = chosen(parts, Share(0.5), "here")
    assert sum(np.count_nonzero(~kept(source[key], mask)) for key, mask in found.items()) == 19
    assert (Prune(found)(source)["none"].array() == values["none"]).all()


def test_what_is_kept_has_a_reason() -> None:
    square = np.ones((4, 4), "f4")
    source = checkpoint(
        {
            "h.0.q.weight": square,
            "h.0.q.bias": square[0],
            "h.0.ln_1.weight": square[0],
            "wte.weight": square,
            "embeddings.word_embeddings.weight": square,
            "cls_token": np.ones((1, 1, 4), "f4"),
            "relative_bias": square,
            "mixer.token_mix.fc.weight": square,
            "ids": np.ones((4, 4), "i8"),
            "params/LayerNorm_0/scale": square[0],
        }
    )
    table = source.tensors | {"lm_head.weight": source["wte.weight"].renamed("lm_head.weight")}
    found = {fate.key: fate.why for fate in fates(table)}
    assert (
        found
        == {
            "h.0.q.weight": "",
            "h.0.q.bias": "a bias",
            "h.0.ln_1.weight": "a norm",
            "wte.weight": "an embedding",
            "embeddings.word_embeddings.weight": "an embedding",
            "cls_token": "an embedding",
            "relative_bias": "a bias",
            "mixer.token_mix.fc.weight": "",
            "ids": "i64: no weights",
            "params/LayerNorm_0/scale": "a norm",
            "lm_head.weight": "tied to wte.weight",
        }
        or found["lm_head.weight"] == "an embedding"
    )
    assert [fate.key for fate in fates(table, include=["wte.*", "**.bias"]) if fate.pruned] == ["h.0.q.bias", "wte.weight"]
    assert not any(fate.pruned for fate in fates(source, exclude=["**"]))
    with pytest.raises(UsageError, match="no key matches 'x'"):
        fates(source, include=["x"])


def test_mask_files_that_are_wrong() -> None:
    source = checkpoint({"a": random(1, (5, 5))})
    good = mask_checkpoint(source, chosen([Part(source["a"])], Share(0.5), "here"))
    with pytest.raises(CorruptError, match="holds no masks"):
        read_masks(source, source)
    with pytest.raises(MismatchError, match=r"for \[5, 5\], not \[25\]"):
        read_masks(good, checkpoint({"a": random(1, (25,))}))
    with pytest.raises(MismatchError, match="masks 'a'"):
        read_masks(good, checkpoint({"b": random(1, (5, 5))}))
    for text in ("{", "[]", '{"version":2,"shapes":{"a":[5,5]}}', '{"version":1,"shapes":{"b":[5,5]}}'):
        with pytest.raises(CorruptError):
            read_masks(Checkpoint(good.tensors, good.source, metadata={"wtool.mask": text}), source)
    short = {"a": lazy("a", np.zeros(3, "u1"), "u8")}
    with pytest.raises(CorruptError, match="one bit for each"):
        read_masks(Checkpoint(short, good.source, metadata=good.metadata), source)
    with pytest.raises(MismatchError, match="a mask for 'z'"):
        Prune({"z": read_masks(good, source)["a"]})(source)
