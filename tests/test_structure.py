"""Groups chosen by their norms: against plain numpy and torch.nn.utils.prune."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_patterns import random, tensor

from wtool.analysis import structure as module
from wtool.analysis.structure import router_norms, structured, sums
from wtool.bytesource import MemoryBytes
from wtool.dtypes import dtype
from wtool.errors import LimitError, NotFiniteError, UsageError
from wtool.kernels.patterns import Geometry, parse_structure
from wtool.tensor import LazyTensor


def mask(values: Any, text: str, sparsity: float, **options: Any) -> Any:
    """The mask of one tensor as an array of its shape."""
    found = structured({"w": tensor(values)}, parse_structure(text), sparsity, **options)["w"]
    return found.keeps(0, values.reshape(-1)).reshape(values.shape)


@pytest.mark.parametrize("amount", [0.0, 0.1, 0.25, 0.5, 0.77, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(40, 30), (16, 8, 3, 3), (12, 5, 7), (1, 9), (9, 1), (1000, 70)])
@pytest.mark.parametrize(("text", "dim"), [("row", 0), ("column", 1)])
@pytest.mark.parametrize(("norm", "n"), [("l1", 1), ("l2", 2)])
def test_masks_are_torchs(shape: tuple[int, ...], amount: float, text: str, dim: int, norm: str, n: int) -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    layer = torch.nn.Module()
    values = random(shape, seed=3)
    layer.weight = torch.nn.Parameter(torch.from_numpy(values))
    prune.ln_structured(layer, "weight", amount, n, dim)
    expected = layer.weight_mask.numpy().astype(bool)
    assert np.array_equal(mask(values, text, amount, norm=norm), expected)
    if len(shape) > 2 and dim == 0:
        assert np.array_equal(mask(values, "filter", amount, norm=norm), expected)


@pytest.mark.parametrize("sparsity", [0.3, 0.5])
def test_blocks_are_the_plain_ones(sparsity: float) -> None:
    values = random((32, 48), seed=4)
    blocks = values.reshape(8, 4, 3, 16).transpose(0, 2, 1, 3).reshape(24, 64)
    worst = np.argsort((blocks.astype("f8") ** 2).sum(1), kind="stable")[: round(sparsity * 24)]
    kept = np.ones(24, bool)
    kept[worst] = False
    expected = np.repeat(np.repeat(kept.reshape(8, 3), 4, axis=0), 16, axis=1)
    assert np.array_equal(mask(values, "block:4x16", sparsity), expected)


def test_blocks_at_the_edge_are_ranked_by_their_mean() -> None:
    values = np.ones((5, 5), "f4")
    values[4:, :] = 2  # blocks of two, or of one value, but larger
    values[:2, :2] = 0.5
    kept = mask(values, "block:2x2", 1 / 9)
    assert not kept[:2, :2].any() and kept.sum() == 21


def test_ties_keep_the_first() -> None:
    assert np.array_equal(mask(np.ones((6, 4), "f4"), "row", 0.5)[:, 0], np.arange(6) < 3)
    two = {"a": tensor(np.ones((2, 4), "f4")), "b": tensor(np.ones((3, 4), "f4"))}
    found = structured(two, parse_structure("row"), 0.4, scope=lambda _: 0)
    assert [found[key].kept for key in "ab"] == [b"\x03", b"\x01"]
    assert [found[key].left for key in "ab"] == [2, 1]


def test_a_global_scope_divides_by_the_size() -> None:
    """A long row of small values does not beat a short one of large values."""
    two = {"long": tensor(np.full((4, 1000), 0.1, "f4")), "short": tensor(np.full((4, 2), 0.5, "f4"))}
    found = structured(two, parse_structure("row"), 0.5, scope=lambda _: 0)
    assert (found["long"].left, found["short"].left) == (0, 4)
    layers = structured(two | {"other": tensor(np.ones((4, 2), "f4"))}, parse_structure("row"), 0.5, scope=len)
    assert layers["long"].left == 2 and layers["short"].left + layers["other"].left == 4


@pytest.mark.parametrize("shape", [(300, 1111), (3, 100_000), (1, 200_003), (200_003, 1), (70_000, 3)])
@pytest.mark.parametrize("text", ["row", "column", "block:16x16", "block:7x5"])
def test_sums_of_large_tensors(shape: tuple[int, int], text: str) -> None:
    values = random(shape, seed=5)
    geometry = Geometry.of(parse_structure(text), shape)
    row, column = np.indices(shape)
    numbers = (row // geometry.height * geometry.across + column // geometry.width).reshape(-1)
    for norm, plain in (("l2", values.astype("f8") ** 2), ("l1", np.abs(values.astype("f8")))):
        expected = np.bincount(numbers, plain.reshape(-1), geometry.count)
        np.testing.assert_allclose(sums(tensor(values), geometry, norm), expected, rtol=1e-12)


def test_strided_tensors_and_threads_give_the_same() -> None:
    values = random((400, 900), seed=6)
    plain = tensor(np.ascontiguousarray(values.T))
    turned = LazyTensor.strided("w", dtype("f32"), (900, 400), MemoryBytes(values.tobytes()), 0, (1, 900))
    for text in ("row", "column", "block:8x8"):
        one = structured({"w": plain, "v": plain}, parse_structure(text), 0.4, scope=lambda _: 0)
        two = structured({"w": turned, "v": plain}, parse_structure(text), 0.4, scope=lambda _: 0, jobs=4)
        assert one == two


def test_half_types() -> None:
    values = random((64, 32), "f4").astype("f2")
    assert np.array_equal(mask(values, "row", 0.5), mask(values.astype("f8"), "row", 0.5))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite(bad: float) -> None:
    values = np.arange(1, 41, dtype="f4").reshape(10, 4)
    values[2, 1] = bad
    with pytest.raises(NotFiniteError, match="'w' holds") as caught:
        mask(values, "row", 0.5, name="a.pth")
    assert caught.value.path == "a.pth"
    kept = mask(values, "row", 1 / 3, odd=True)[:, 0]  # three of the other nine
    assert kept.tolist() == [False, False, True, False, *[True] * 6]


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="'w' of 2 axes has no filters"):
        mask(random((4, 4)), "filter", 0.5)
    with pytest.raises(UsageError, match="sparsity"):
        mask(random((4, 4)), "row", 1.5)
    with pytest.raises(UsageError, match="norm"):
        mask(random((4, 4)), "row", 0.5, norm="l3")
    monkeypatch.setattr(module, "MOST", 15)
    with pytest.raises(LimitError, match="16 groups"):
        mask(random((4, 4)), "block:1x1", 0.5)


def test_router_norms() -> None:
    found = router_norms({"gate": tensor(np.array([[1, -2], [0.5, 0], [-3, -3]], "f4"))})
    assert found == {"gate": [3.0, 0.5, 6.0]}


def test_empty_tensors() -> None:
    assert mask(np.zeros((0, 4), "f4"), "row", 0.5).shape == (0, 4)
    assert mask(np.zeros((4, 0), "f4"), "block:2x2", 0.5).shape == (4, 0)
