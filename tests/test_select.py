"""The k largest magnitudes, against a stable argsort."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wtool import views
from wtool.analysis.select import Own, largest
from wtool.bytesource import MemoryBytes
from wtool.dtypes import dtype
from wtool.errors import NotFiniteError
from wtool.tensor import LazyTensor

Array = NDArray[Any]


class Held:
    """Magnitudes of arrays in memory, one for each column, in runs of a length."""

    def __init__(self, key: str, rows: Mapping[int, Array], run: int = 1000) -> None:
        self.key, self._rows, self._run = key, rows, run
        self.elements = len(next(iter(rows.values())))
        self.columns = list(rows)
        self.passes = 0

    def runs(self, columns: Sequence[int]) -> Iterator[tuple[int, list[Array]]]:
        self.passes += 1
        for at in range(0, self.elements, self._run):
            yield at, [np.abs(self._rows[c][at : at + self._run].astype("f8")).view("i8") for c in columns]


def kept(streams: Sequence[Held], column: int, found: Mapping[tuple[int, str], Any]) -> Array:
    masks = [found[column, s.key].mask(0, np.abs(s._rows[column].astype("f8"))) for s in streams if column in s.columns]
    return np.concatenate(masks) if masks else np.zeros(0, bool)


def oracle(streams: Sequence[Held], column: int, rank: int) -> Array:
    values = np.concatenate([np.abs(s._rows[column].astype("f8")) for s in streams if column in s.columns] or [np.zeros(0)])
    mask = np.zeros(len(values), bool)
    mask[np.argsort(-values, kind="stable")[:rank]] = True
    return mask


def check(streams: Sequence[Held], ranks: Mapping[int, int], **options: Any) -> None:
    found = largest(streams, ranks, **options)
    for column, rank in ranks.items():
        np.testing.assert_array_equal(kept(streams, column, found), oracle(streams, column, rank))


KINDS: dict[str, Any] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "single": lambda rng, n: rng.standard_normal(n).astype("f4"),
    "few kinds": lambda rng, n: rng.integers(-3, 4, n) * 0.5,
    "halves": lambda rng, n: (rng.standard_normal(n) * 100).round() / 1024,
    "one value": lambda rng, n: np.full(n, -2.5),
    "zeros": lambda rng, n: np.zeros(n),
    "nearly all zero": lambda rng, n: rng.standard_normal(n) * (rng.random(n) < 0.01),
    "all binades": lambda rng, n: np.ldexp(rng.random(n) + 0.5, rng.integers(-1070, 1020, n)),
    "small first": lambda rng, n: np.concatenate([np.zeros(n // 2), rng.random(n - n // 2) * 1e30]),
    "large first": lambda rng, n: np.sort(rng.random(n) * 1e20)[::-1] * 1e-30 ** np.linspace(0, 1, n),
    "one binade": lambda rng, n: 1 + rng.random(n) * 1e-12,
    "neighbours": lambda rng, n: np.nextafter(1.0, 2.0) ** rng.integers(0, 50_000, n),
}


@pytest.mark.parametrize("room", [1, 1 << 16, 24 << 20])
@pytest.mark.parametrize("kind", KINDS)
def test_one_tensor(kind: str, room: int) -> None:
    rng = np.random.default_rng(3)
    values = KINDS[kind](rng, 20_000)
    for rank in (0, 1, 77, 10_000, 19_999, 20_000):
        stream = Held("k", {0: values})
        check([stream], {0: rank}, room=room)
        assert stream.passes <= (11 if room == 1 else 7)


@given(
    seed=st.integers(0, 1 << 30),
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=3),
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=4),
    share=st.floats(0, 1),
    room=st.sampled_from([1, 1 << 14, 24 << 20]),
    jobs=st.sampled_from([1, 3]),
)
def test_many_tensors_and_columns(seed: int, kinds: list[str], sizes: list[int], share: float, room: int, jobs: int) -> None:
    rng = np.random.default_rng(seed)
    streams = [
        Held(f"k{at}", {c: KINDS[kind](rng, size) for c, kind in enumerate(kinds) if (c + at) % 4 or not c}, 700)
        for at, size in enumerate(sizes)
    ]
    totals = {c: sum(s.elements for s in streams if c in s.columns) for c in range(len(kinds))}
    check(streams, {c: round(share * total) for c, total in totals.items()}, room=room, jobs=jobs)


def test_all_equal_are_kept_on_demand() -> None:
    values = np.array([1.0, 2.0, -2.0, 3.0, 2.0])
    keep = largest([Held("k", {0: values})], {0: 2}, all_equal=True)[0, "k"]
    assert keep.mask(0, np.abs(values)).tolist() == [False, True, True, True, True]
    keep = largest([Held("k", {0: values})], {0: 2})[0, "k"]
    assert keep.mask(0, np.abs(values)).tolist() == [False, True, False, True, False]


def test_equal_ones_count_in_the_order_of_the_tensors() -> None:
    streams = [Held(key, {0: np.ones(4)}) for key in "abc"]
    found = largest(streams, {0: 6})
    assert [int(found[0, key].mask(0, np.ones(4)).sum()) for key in "abc"] == [4, 2, 0]


def test_few_passes() -> None:
    rng = np.random.default_rng(0)
    for values, room, passes in (
        (rng.standard_normal(200_000), 24 << 20, 1),  # all gathered
        (rng.standard_normal(200_000), 1 << 20, 3),  # a look, bins, what is in one bin
        ((rng.standard_normal(200_000) * 50).round() / 1024, 1 << 16, 4),  # and where the equal ones are
    ):
        stream = Held("k", {0: values})
        check([stream], {0: 40_000}, room=room)
        assert stream.passes <= passes


def test_a_mask_is_cut_where_the_runs_are() -> None:
    values = np.array([2.0, 1.0, 2.0, 2.0, 2.0])
    keep = largest([Held("k", {0: values})], {0: 3})[0, "k"]
    for run in (1, 2, 3, 5):
        parts = [keep.mask(at, values[at : at + run]) for at in range(0, 5, run)]
        assert np.concatenate(parts).tolist() == [True, False, True, True, False]
        thinned = values.copy()
        for at in range(0, 5, run):
            keep(at, thinned[at : at + run])
        assert thinned.tolist() == [2.0, 0.0, 2.0, 2.0, 0.0]


@pytest.mark.parametrize("kind", ["f4", "f2", "bfloat16", "i2"])
def test_the_values_of_tensors_themselves(kind: str) -> None:
    """As pruning cuts them: over several tensors, one of them lying transposed."""
    rng = np.random.default_rng(1)
    unit = dtype({"f4": "f32", "f2": "f16", "bfloat16": "bf16", "i2": "i16"}[kind])
    arrays = {key: (rng.standard_normal(shape) * 30).astype(unit.numpy()) for key, shape in (("a", (300, 200)), ("b", (7,)))}
    tensors = {k: LazyTensor.contiguous(k, unit, v.shape, MemoryBytes(v.tobytes()), 0) for k, v in arrays.items()}
    tensors["a"], arrays["a"] = views.transpose(tensors["a"], (1, 0)), arrays["a"].T
    for rank in (1, 5000, 60_000):
        found = largest([Own(tensor, "file") for tensor in tensors.values()], {0: rank}, room=1 << 16, jobs=2)
        values = np.concatenate([np.abs(array.astype("f8")).reshape(-1) for array in arrays.values()])
        mask = np.concatenate([found[0, k].mask(0, np.abs(v.astype("f8")).reshape(-1)) for k, v in arrays.items()])
        assert np.flatnonzero(mask).tolist() == sorted(np.argsort(-values, kind="stable")[:rank].tolist())


def test_what_is_not_finite_is_named() -> None:
    values = np.array([1.0, np.nan, 2.0])
    tensor = LazyTensor.contiguous("k", dtype("f64"), (3,), MemoryBytes(values.tobytes()), 0)
    with pytest.raises(NotFiniteError, match="'k' holds NaN") as error:
        largest([Own(tensor, "file")], {0: 1})
    assert error.value.path == "file"
