"""The mix of schemes for a budget: against all mixes there are, and what is measured on samples."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wtool.analysis.budget import Choice, TooSmall, Unit, best, hull, measured
from wtool.bytesource import MemoryBytes
from wtool.dtypes import dtype
from wtool.layout import parse_scheme
from wtool.layouts.registry import layout
from wtool.tensor import LazyTensor

choices = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 1000)), min_size=1, max_size=4)


def units_of(rows: list[list[tuple[int, int]]]) -> list[Unit]:
    return [
        Unit((str(number),), tuple(Choice(None, nbytes, float(loss)) for nbytes, loss in row))
        for number, row in enumerate(rows)
    ]


def total(found: list[Choice]) -> tuple[int, float]:
    return sum(one.nbytes for one in found), sum(one.loss for one in found)


@given(st.lists(choices, min_size=1, max_size=4), st.integers(1, 240))
@settings(deadline=None, max_examples=300)
def test_it_fits_and_no_single_change_is_better(rows: list[list[tuple[int, int]]], budget: int) -> None:
    units = units_of(rows)
    least = sum(min(nbytes for nbytes, _ in row) for row in rows)
    if least > budget:
        with pytest.raises(TooSmall) as told:
            best(units, budget)
        assert told.value.nbytes == least
        return
    found = best(units, budget)
    nbytes, loss = total(found)
    assert nbytes <= budget
    for number, unit in enumerate(units):
        for one in unit.choices:
            if one.loss < found[number].loss:
                assert nbytes - found[number].nbytes + one.nbytes > budget
    # The hull's bound: no mix is better than the best one by more than what one step of a hull saves.
    exact = min(total(list(mix))[1] for mix in product(*(unit.choices for unit in units)) if total(list(mix))[0] <= budget)
    step = max(
        (a.loss - b.loss for unit in units for a, b in zip(hull(unit.choices), hull(unit.choices)[1:], strict=False)),
        default=0,
    )
    assert loss <= exact + step


def test_on_the_hull_the_mix_is_the_best_there_is() -> None:
    units = units_of([[(10, 100), (20, 40), (40, 10)], [(10, 500), (20, 100), (40, 20)], [(5, 9), (50, 0)]])
    for budget in (25, 35, 45, 65, 85, 130):
        exact = min(total(list(mix))[1] for mix in product(*(unit.choices for unit in units)) if total(list(mix))[0] <= budget)
        assert total(best(units, budget))[1] <= exact * 1.5 + 9
    assert total(best(units, 130)) == (130, 30.0)


def test_a_hull_is_convex() -> None:
    found = hull([Choice(None, *row) for row in ((10, 100.0), (20, 90.0), (30, 20.0), (30, 25.0), (40, 30.0), (50, 10.0))])
    assert [(one.nbytes, one.loss) for one in found] == [(10, 100.0), (30, 20.0), (50, 10.0)]


def test_losses_are_those_of_the_codes() -> None:
    values = np.random.default_rng(1).standard_normal((64, 256)).astype("f4")
    tensor = LazyTensor.contiguous("a.weight", dtype("f32"), values.shape, MemoryBytes(values.tobytes()), 0)
    one = layout("compressed-tensors")
    schemes = [one.settle(parse_scheme(text)) for text in ("int4:rtn", "int8")]
    tensors = {"a.weight": tensor}
    (unit,) = measured(tensors, [["a.weight"]], {"a.weight": schemes}, {"a.weight": tensor.nbytes}, one, {}, 2)
    by_name = {str(choice.scheme): choice for choice in unit.choices}
    assert by_name["None"].loss == 0 and by_name["None"].nbytes == values.nbytes
    found = next(iter(one.find({part.key: part for part in one.parts(tensor, schemes[0], None)}, None, {})))
    error = found.dense().array().astype("f8") - values
    assert by_name["int4:g128"].loss == pytest.approx((error**2).sum(), rel=1e-6)
    assert by_name["int4:g128"].nbytes == found.nbytes
    assert by_name["int8:channel"].loss < by_name["int4:g128"].loss / 50


def test_large_tensors_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    from wtool.analysis import budget

    values = np.random.default_rng(1).standard_normal((4096, 128)).astype("f4")
    tensor = LazyTensor.contiguous("a.weight", dtype("f32"), values.shape, MemoryBytes(values.tobytes()), 0)
    one = layout("compressed-tensors")
    parts = one.parts(tensor, one.settle(parse_scheme("int4:rtn")), None)
    whole = budget.sampled(parts)
    monkeypatch.setattr(budget, "SAMPLE", 1 << 14)
    assert budget.sampled(parts) == pytest.approx(whole, rel=0.15)
    assert budget.sampled(parts) != whole
