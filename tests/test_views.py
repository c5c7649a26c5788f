"""Rearranged tensors: equal to numpy's, whatever chain of views made them, and still boxes."""

from __future__ import annotations

import pickle
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wtool import boxes, views
from wtool.bytesource import MemoryBytes
from wtool.dtypes import dtype
from wtool.errors import DtypeError, UnsupportedError
from wtool.kernels.cast import Cast
from wtool.tensor import LazyTensor


def lazy(array: Any, key: str = "t") -> LazyTensor:
    return LazyTensor.contiguous(key, dtype(array.dtype.name), array.shape, MemoryBytes(array.tobytes()), 0)


def factors(draw: Any, number: int) -> tuple[int, ...]:
    sizes = []
    while number > 1:
        divisor = draw(st.sampled_from([d for d in range(1, number + 1) if number % d == 0]))
        sizes.append(divisor)
        number //= divisor
        if len(sizes) > 3:
            sizes.append(number)
            break
    return tuple(sizes) or (1,)


@st.composite
def chains(draw: Any) -> tuple[Any, LazyTensor]:
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3)))
    array = np.arange(prod(shape), dtype=np.int16).reshape(shape)
    tensor = lazy(array)
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["arrange", "narrow", "flip", "concat", "reshape"]))
        axis = draw(st.integers(0, array.ndim - 1))
        if kind == "arrange":
            sizes = factors(draw, array.size)
            order = draw(st.permutations(range(len(sizes))))
            after = factors(draw, array.size)
            array = array.reshape(sizes).transpose(order).reshape(after)
            tensor = views.arrange(tensor, sizes, order, after)
        elif kind == "reshape":
            after = factors(draw, array.size)
            array, tensor = array.reshape(after), views.reshape(tensor, after)
        elif kind == "narrow":
            stop = draw(st.integers(1, array.shape[axis]))
            start = draw(st.integers(0, stop - 1))
            array = array[(slice(None),) * axis + (slice(start, stop),)]
            tensor = views.narrow(tensor, axis, start, stop)
        elif kind == "flip":
            array, tensor = np.flip(array, axis), views.flip(tensor, axis)
        elif array.size < 300:
            stop = draw(st.integers(1, array.shape[axis]))
            more = array[(slice(None),) * axis + (slice(0, stop),)]
            array = np.concatenate([array, more, array], axis)
            tensor = views.concat("t", [tensor, views.narrow(tensor, axis, 0, stop), tensor], axis)
    return array, tensor


@settings(max_examples=400, deadline=None)
@given(chain=chains(), small=st.booleans(), data=st.data())
def test_chains_of_views(chain: tuple[Any, LazyTensor], small: bool, data: Any) -> None:
    array, tensor = chain
    assert tensor.shape == array.shape
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(boxes, "_SCRATCH", 64)
            patch.setattr(boxes, "_GAP", 8)
        assert np.array_equal(tensor.array(), array)
        assert b"".join(block.tobytes() for block in tensor.blocks(6, stripe=32)) == array.tobytes()
        first = data.draw(st.integers(0, array.size))
        last = data.draw(st.integers(first, array.size))
        assert tensor.flat(first, last).tobytes() == array.reshape(-1)[first:last].tobytes()
        assert np.array_equal(tensor.rows(0, 1), array[:1])
    if tensor.span is not None:
        assert tensor.span.source.pread(tensor.span.offset, tensor.span.nbytes) == array.tobytes()


def test_what_only_reshapes_keeps_its_span() -> None:
    tensor = lazy(np.arange(24, dtype=np.float32).reshape(2, 12))
    assert views.arrange(tensor, (2, 1, 12), (1, 0, 2), (1, 24)).span == tensor.span
    assert views.concat("x", [tensor], 0).span == tensor.span
    halves = [views.narrow(tensor, 0, row, row + 1) for row in range(2)]
    assert all(half.span is not None for half in halves)


def test_a_head_wise_permutation_is_one_box() -> None:
    array = np.arange(8 * 6, dtype=np.float32).reshape(8, 6)
    turned = views.arrange(lazy(array), (2, 2, 2, 6), (0, 2, 1, 3), (8, 6))
    assert len(turned.boxes) == 1
    back = views.arrange(turned, (2, 2, 2, 6), (0, 2, 1, 3), (8, 6))
    assert back.span is not None, "there and back is verbatim"
    assert np.array_equal(turned.array(), array.reshape(2, 2, 2, 6).transpose(0, 2, 1, 3).reshape(8, 6))


def test_ties_survive() -> None:
    tensor = lazy(np.arange(6, dtype=np.float32).reshape(2, 3))
    one, two = (views.transpose(tensor.renamed(key), (1, 0)) for key in "ab")
    assert one.identity == two.identity is not None


def test_empty_and_scalar() -> None:
    empty = lazy(np.empty((0, 3), np.float32))
    assert views.transpose(empty, (1, 0)).array().shape == (3, 0)
    assert views.narrow(lazy(np.ones((2, 3), np.float32)), 0, 1, 1).array().shape == (0, 3)
    assert views.concat("c", [empty, lazy(np.ones((2, 3), np.float32)), empty], 0).array().shape == (2, 3)
    assert views.concat("c", [empty, empty], 0).shape == (0, 3)
    scalar = lazy(np.array(3, np.float32))
    assert views.reshape(scalar, (1, 1)).array().tolist() == [[3.0]]
    assert views.arrange(views.reshape(scalar, (1,)), (1, 1), (1, 0), ()).array() == 3


def test_through_kernels() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    cast = lazy(array).map(Cast(dtype("f32"), dtype("f16")))
    plain = lazy(array.astype(np.float16))
    joined = views.concat("x", [cast, plain], 0)
    assert joined.array().tolist() == np.concatenate([array, array]).astype(np.float16).tolist()
    assert views.transpose(cast, (1, 0)).array().tolist() == array.T.tolist()
    assert pickle.loads(pickle.dumps(views.transpose(joined, (1, 0)))).array().shape == (4, 6)


def test_computed_and_filled() -> None:
    a, b = np.arange(6, dtype=np.float32), np.full(6, 2, np.float32)
    total = views.computed("s", [lazy(a), lazy(b)], np.add)
    assert total.array().tolist() == (a + b).tolist()
    assert total.span is not None, "written as plain bytes"
    assert total.span.source.pread(3, 7) == (a + b).tobytes()[3:10]
    zeros = views.filled("z", dtype("bf16"), (2, 3), 0)
    assert zeros.array().tolist() == [[0, 0, 0]] * 2
    assert views.filled("z", dtype("i64"), (), 7).array() == 7
    assert zeros.identity != views.filled("z", dtype("bf16"), (2, 3), 0).identity, "two fills are not tied"


def test_packed_values() -> None:
    raw = LazyTensor.contiguous("p", dtype("f4"), (2, 4), MemoryBytes(bytes([0x21, 0x43, 0x65, 0x07])), 0)
    with pytest.raises(UnsupportedError, match="packed"):
        views.transpose(raw, (1, 0))
    assert views.reshape(raw, (4, 2)).array().tobytes() == raw.array().tobytes()
    unpacked = raw.map(Cast(dtype("f4"), dtype("f32")))
    assert views.transpose(unpacked, (1, 0)).array().tolist() == unpacked.array().reshape(2, 4).T.tolist()
    with pytest.raises(DtypeError):
        views.concat("x", [raw, unpacked], 0)
    with pytest.raises(DtypeError):
        views.filled("x", dtype("f4"), (2,), 0)
