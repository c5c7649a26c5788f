"""The operations of a recipe against numpy, and every one of them undone."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtool.bytesource import MemoryBytes
from wtool.dtypes import dtype
from wtool.errors import MapError, RecipeError, WtoolError
from wtool.maps.steps import Step, Wanted, backwards, chain, parse_step
from wtool.tensor import LazyTensor

Array = np.ndarray[Any, Any]
NAMES = {np.dtype("f4"): "f32", np.dtype("f2"): "f16", np.dtype("f8"): "f64", np.dtype(ml_dtypes.bfloat16): "bf16"}
NAMES |= {np.dtype("i8"): "i64", np.dtype("u1"): "u8"}


class Unread(MemoryBytes):
    """A source that must not be read."""

    def pread(self, offset: int, nbytes: int) -> bytes:
        raise AssertionError("values were read")


def lazy(array: Array, key: str = "k", source: type[MemoryBytes] = MemoryBytes) -> LazyTensor:
    array = np.ascontiguousarray(array) if array.ndim else array
    return LazyTensor.contiguous(key, dtype(NAMES[array.dtype]), array.shape, source(array.tobytes()), 0)


def tensors(*arrays: Array, source: type[MemoryBytes] = MemoryBytes) -> list[LazyTensor]:
    return [lazy(array, f"k{number}", source) for number, array in enumerate(arrays)]


def count(shape: Sequence[int], kind: str = "f4", first: int = 0) -> Array:
    return np.arange(first, first + math.prod(shape)).reshape(shape).astype(kind)


def run(ops: str | list[str], *arrays: Array, parts: int = 1, shapes: tuple[Any, ...] = ()) -> list[Array]:
    """The values after these operations. Shapes are answered without reading, and are true."""
    steps = [parse_step(op) for op in ([ops] if isinstance(ops, str) else ops)]
    wanted = Wanted(parts, shapes)
    told = [(tensor.shape, tensor.dtype) for tensor in chain(steps, tensors(*arrays, source=Unread), wanted)]
    found = chain(steps, tensors(*arrays), wanted)
    assert told == [(tensor.shape, tensor.dtype) for tensor in found]
    pickled = pickle.loads(pickle.dumps(found))
    values = [tensor.array() for tensor in found]
    for one, other, tensor in zip(values, pickled, found, strict=True):
        assert one.shape == tensor.shape and one.dtype == tensor.dtype.numpy()
        assert one.tobytes() == other.array().tobytes() == b"".join(block.tobytes() for block in tensor.blocks(64))
    return values


def bits(found: Sequence[Array], expected: Sequence[Array]) -> bool:
    return [(a.shape, a.tobytes()) for a in found] == [(np.shape(b), np.asarray(b).tobytes()) for b in expected]


A, B, C = count((2, 6)), count((4, 3, 2, 5)), count((2, 6), first=100)

ONE: list[tuple[str, Array, Callable[[Array], Array]]] = [
    ("t", A, lambda a: a.T),
    ("permute 1 0", A, lambda a: a.T),
    ("permute 2 3 1 0", B, lambda a: a.transpose(2, 3, 1, 0)),
    ("permute 0", count((4,)), lambda a: a),
    ("flip 0", A, lambda a: a[::-1]),
    ("flip -1", A, lambda a: a[:, ::-1]),
    ("flip 0", count((1, 3)), lambda a: a),
    ("flip 0", count((0, 3)), lambda a: a),
    ("blocks 1 0 1 2", A, lambda a: a),
    ("blocks 1 2 0 1", A, lambda a: np.concatenate([a[:, 4:], a[:, :2], a[:, 2:4]], 1)),
    ("blocks -1 1 0", A, lambda a: np.concatenate([a[:, 3:], a[:, :3]], 1)),
    ("rearrange a b -> b a", A, lambda a: a.T),
    ("rearrange a (b c) -> b a c ; b=2", A, lambda a: a.reshape(2, 2, 3).transpose(1, 0, 2)),
    ("rearrange a (b c) -> b a c ; c=2", A, lambda a: a.reshape(2, 3, 2).transpose(1, 0, 2)),
    ("rearrange a (b c) -> (c b) a ; c=2", A, lambda a: a.reshape(2, 3, 2).transpose(2, 1, 0).reshape(6, 2)),
    ("rearrange (h d two) i -> (h two d) i ; h=2 two=2", count((8, 3)), lambda a: a.reshape(2, 2, 2, 3).swapaxes(1, 2)),
    ("rearrange (c m) 1 h w -> h w c m ; m=1", count((3, 1, 2, 2)), lambda a: a.transpose(2, 3, 0, 1)),
    ("rearrange (c m) 1 h w -> h w c m ; m=2", count((4, 1, 2, 2)), lambda a: a.reshape(2, 2, 2, 2).transpose(2, 3, 0, 1)),
    ("rearrange (c m) -> c m ; m?=1", count((3,)), lambda a: a.reshape(3, 1)),
    ("rearrange c -> 1 1 c", count((3,)), lambda a: a.reshape(1, 1, 3)),
    ("rearrange 1 c 1 -> c", count((1, 3, 1)), lambda a: a.reshape(3)),
    ("rearrange o (c h w) -> (h w c) o ; c=3 h=2 w=2", count((2, 12)), lambda a: a.reshape(2, 3, 2, 2).transpose(2, 3, 1, 0)),
    ("rearrange c () -> c", count((3, 1)), lambda a: a.reshape(3)),
    ("rearrange (a b) -> a b ; b=3", count((0,)), lambda a: a.reshape(0, 3)),
    ("add 1", A, lambda a: a + 1),
    ("add -0.5", A, lambda a: a - np.float32(0.5)),
    ("cast f16", A, lambda a: a.astype("f2")),
    ("cast f32", A, lambda a: a),
]


@pytest.mark.parametrize(("op", "array", "oracle"), ONE, ids=[op for op, _, _ in ONE])
def test_one_tensor_against_numpy(op: str, array: Array, oracle: Callable[[Array], Array]) -> None:
    [found] = run(op, array)
    expected = oracle(array)
    assert found.dtype == expected.dtype and bits([found], [expected.reshape(found.shape)])


SEVERAL: list[tuple[str, list[Array], int, list[Array]]] = [
    ("split 0", [A], 2, [A[:1], A[1:]]),
    ("split 1", [A], 3, [A[:, :2], A[:, 2:4], A[:, 4:]]),
    ("split -1 4 2", [A], 2, [A[:, :4], A[:, 4:]]),
    ("split 1 [1, 5]", [A], 2, [A[:, :1], A[:, 1:]]),
    ("concat 0", [A, C], 1, [np.concatenate([A, C])]),
    ("concat 1 6 6", [A, C], 1, [np.concatenate([A, C], 1)]),
    ("concat -1", [A[:, :1], A[:, 1:]], 1, [A]),
    ("stack 0", [A, C], 1, [np.stack([A, C])]),
    ("stack 2", [A, C], 1, [np.stack([A, C], 2)]),
    ("stack -1", [A, C], 1, [np.stack([A, C], -1)]),
    ("unstack 0", [B], 4, list(B)),
    ("unstack -1", [A], 6, [A[:, i] for i in range(6)]),
    ("tie", [A], 3, [A, A, A]),
    ("sum", [A, C], 1, [A + C]),
    ("sum", [A, C, A], 1, [(A + C) + A]),
    ("unabsorb", [A], 2, [np.zeros_like(A), A]),
]


@pytest.mark.parametrize(("op", "arrays", "parts", "expected"), SEVERAL, ids=[op for op, *_ in SEVERAL])
def test_several_tensors_against_numpy(op: str, arrays: list[Array], parts: int, expected: list[Array]) -> None:
    assert bits(run(op, *arrays, parts=parts), expected)


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", ml_dtypes.bfloat16, "i8"])
def test_sums_are_in_the_dtype_of_the_tensors(kind: Any) -> None:
    """One rounding, to that dtype: what the framework does when it adds the two biases."""
    rng = np.random.default_rng(0)
    one, two = ((rng.standard_normal(1000) * 100).astype(kind) for _ in range(2))
    [found] = run("sum", one, two)
    assert found.dtype == one.dtype
    if np.dtype(kind).itemsize == 2:
        assert found.tobytes() == (one.astype("f4") + two.astype("f4")).astype(kind).tobytes()
    assert found.tobytes() == (one + two).tobytes()
    [back] = run(["sum"], found, (one - one))
    assert back.tobytes() == found.tobytes()


def test_a_mean_and_a_bias() -> None:
    """unabsorb's way back: the norm's mean loses what the convolution added."""
    steps = backwards([parse_step("unabsorb")])
    bias, mean = count((3,)), count((3,), first=10)
    [found] = chain(steps, tensors(bias, mean), Wanted(1))
    assert bits([found.array()], [mean - bias])
    assert steps[0].status == "function" and parse_step("unabsorb").status == "exact"


def test_sum_backwards() -> None:
    steps = backwards([parse_step("sum")])
    found = chain(steps, tensors(A), Wanted(2))
    assert bits([tensor.array() for tensor in found], [A, np.zeros_like(A)])
    assert steps[0].status == "function" and steps[0].why


class TestTies:
    def test_equal(self) -> None:
        untie = backwards([parse_step("tie")])
        [found] = chain(untie, tensors(A, A.copy()), Wanted(1))
        assert bits([found.array()], [A])

    def test_unequal_is_found_when_it_is_read(self) -> None:
        other = A.copy()
        other[1, 5] += 1
        [found] = chain(backwards([parse_step("tie")]), tensors(A, other), Wanted(1))
        with pytest.raises(MapError, match="'k0' and 'k1' become one tensor but hold different values"):
            found.array()

    def test_nan_equals_itself_and_zero_not_minus_zero(self) -> None:
        nan = np.array([np.nan, 1], "f4")
        [found] = chain(backwards([parse_step("tie")]), tensors(nan, nan.copy()), Wanted(1))
        assert bits([found.array()], [nan])
        zeros = np.array([0.0], "f4"), np.array([-0.0], "f4")
        with pytest.raises(MapError, match="different values"):
            chain(backwards([parse_step("tie")]), tensors(*zeros), Wanted(1))[0].array()

    def test_alone(self) -> None:
        [given] = tensors(A)
        [found] = chain(backwards([parse_step("tie")]), [given], Wanted(1))
        assert found.span == given.span

    def test_tied_already_keeps_its_span(self) -> None:
        [given] = tensors(A)
        [found] = chain(backwards([parse_step("tie")]), [given, given.renamed("other")], Wanted(1))
        assert found.identity == given.identity and found.span == given.span

    @pytest.mark.parametrize("other", [A[:1], A.astype("f8")])
    def test_unlike_in_shape_or_dtype(self, other: Array) -> None:
        with pytest.raises(MapError, match="should be tied but are not alike"):
            chain(backwards([parse_step("tie")]), tensors(A, other), Wanted(1))

    def test_forwards_they_share(self) -> None:
        one, two = chain([parse_step("tie")], tensors(A), Wanted(2))
        assert one.identity == two.identity is not None


MISFITS: list[tuple[str, list[Array], int, str]] = [
    ("t", [B], 1, "takes 2 axes"),
    ("t", [count((3,))], 1, "has 1"),
    ("permute 2 1 0", [A], 1, "takes 3 axes"),
    ("flip 2", [A], 1, "no axis 2"),
    ("flip -3", [A], 1, "no axis -3"),
    ("blocks 1 1 0 2 3", [A], 1, "cannot be cut into 4 equal blocks"),
    ("split 1", [A], 4, "cannot be cut into 4 equal parts"),
    ("split 1 4 4", [A], 2, "do not add up"),
    ("split 0 1 1", [A], 3, "gives 2 tensors"),
    ("split 5", [A], 2, "no axis 5"),
    ("concat 0", [A, count((2, 5))], 1, "do not fit together"),
    ("concat 0", [A, count((2,))], 1, "do not fit together"),
    ("concat 1 2 2", [A, C], 1, "have the sizes 6 6"),
    ("stack 0", [A, count((2, 5))], 1, "different shapes"),
    ("stack 4", [A, C], 1, "no place for axis 4"),
    ("unstack 0", [A], 5, "gives 2 tensors"),
    ("unstack 2", [A], 5, "no axis 2"),
    ("sum", [A, count((2, 5))], 1, "differ in shape or dtype"),
    ("sum", [A, A.astype("f8")], 1, "differ in shape or dtype"),
    ("add 0.5", [A.astype("i8")], 1, "takes floating values"),
    ("add -1", [A.astype("u1")], 1, "takes floating values"),
    ("unabsorb", [A, A], 2, "takes one tensor"),
    ("tie", [A, A], 2, "takes one tensor"),
    ("rearrange a b c -> c b a", [A], 1, "takes 3 axes"),
    ("rearrange a (b c) -> b a c", [A], 1, "needs the size of 'b'"),
    ("rearrange a (b c) -> b a c ; b=4", [A], 1, "does not fit"),
    ("rearrange a (b c) -> b a c ; b=2 c=2", [A], 1, "does not fit"),
    ("rearrange a 1 -> a", [A], 1, "does not fit"),
    ("rearrange a (b c d) -> b a c d ; b=2", [A], 1, "needs the size of 'c'"),
    ("concat 0", [A], 2, "gives 1 tensors"),
]


@pytest.mark.parametrize(("op", "arrays", "parts", "word"), MISFITS, ids=[f"{op}~{word}" for op, _, _, word in MISFITS])
def test_shapes_that_do_not_fit_are_found_without_reading(op: str, arrays: list[Array], parts: int, word: str) -> None:
    with pytest.raises(MapError, match=re.escape(word)) as caught:
        chain([parse_step(op)], tensors(*arrays, source=Unread), Wanted(parts))
    assert "\n" not in caught.value.message and "k0" in caught.value.message


BAD = [
    ("", "no operation ''"),
    ("nosuch 1", "no operation 'nosuch'"),
    ("t 1", "nothing behind it"),
    ("permute", "each number"),
    ("permute 0 0", "each number"),
    ("permute 1 2", "each number"),
    ("permute x", "whole numbers"),
    ("flip", "axis"),
    ("flip 0 1", "one axis"),
    ("blocks 0", "order"),
    ("blocks 0 1 1", "each number"),
    ("split", "axis"),
    ("split 0 0 1", "positive"),
    ("split 0 -1", "positive"),
    ("stack 0 1", "one axis"),
    ("stack 9999999999999999", "whole numbers"),
    ("rearrange a b", "LEFT -> RIGHT"),
    ("rearrange a b -> a", "'b' stands on one side only"),
    ("rearrange a a -> a", "twice"),
    ("rearrange a (b -> a b", "no axis"),
    ("rearrange a b -> b a ; c=2", "there is no axis 'c'"),
    ("rearrange a b -> b a ; a", "no size"),
    ("rearrange a b -> b a ; a=0", "no size"),
    ("rearrange a b -> b a ; a=2 a=3", "twice"),
    ("rearrange ... a -> a ...", "no axis"),
    ("add x", "no 'add'"),
    ("add nan", "finite"),
    ("add inf", "finite"),
    ("cast f33", "f33"),
    ("cast", "no"),
    ("sum 1", "nothing behind it"),
]


@pytest.mark.parametrize(("text", "word"), BAD)
def test_bad_operations(text: str, word: str) -> None:
    with pytest.raises(WtoolError, match=re.escape(word)) as caught:
        parse_step(text)
    assert isinstance(caught.value, RecipeError) and "\n" not in caught.value.message


def test_one_way() -> None:
    step = parse_step("cast f16")
    assert step.one_way and step.status == "lossy"
    with pytest.raises(RecipeError, match="'cast f16' has no way back"):
        backwards([parse_step("t"), step])


def test_a_template_gives_the_sizes_that_are_missing() -> None:
    [found] = run("rearrange a (b c) -> b a c", A, shapes=((3, 2, 2),))
    assert bits([found], [A.reshape(2, 3, 2).transpose(1, 0, 2)])
    [found] = run(["rearrange a (b c) -> b a c", "permute 2 1 0"], A, shapes=((2, 2, 3),))
    assert bits([found], [A.reshape(2, 3, 2).transpose(2, 0, 1)])
    wide = count((2, 12))
    [found] = run(["rearrange a (b c) -> b a c", "permute 1 2 0"], wide, shapes=((2, 4, 3),))
    assert bits([found], [wide.reshape(2, 3, 4).transpose(0, 2, 1)])
    one, two = run("split 1", A, parts=2, shapes=((2, 5), (2, 1)))
    assert bits([one, two], [A[:, :5], A[:, 5:]])
    with pytest.raises(MapError, match="does not"):
        run("rearrange a (b c) -> b a c", A, shapes=((5, 2, 2),))


# Laws


KINDS = st.sampled_from([np.dtype("f4"), np.dtype("f2"), np.dtype(ml_dtypes.bfloat16), np.dtype("u1")])


@st.composite
def arranged(draw: st.DrawFn) -> tuple[list[str], list[Array], int]:
    """Operations that only move, tensors that they fit, and how many come out."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    kind = draw(KINDS)
    ops: list[str] = []
    arrays = [np.frombuffer(np.random.default_rng(draw(st.integers(0, 9))).bytes(math.prod(shape) * kind.itemsize), kind)]
    arrays = [arrays[0].reshape(shape)]
    for _ in range(draw(st.integers(1, 4))):
        rank = len(shape)
        name = draw(st.sampled_from(["permute", "flip", "blocks", "cut", "join", "one"]))
        axis = draw(st.integers(0, rank - 1))
        if name == "permute":
            order = draw(st.permutations(range(rank)))
            ops.append("permute " + " ".join(map(str, order)))
            shape = [shape[at] for at in order]
        elif name == "flip":
            ops.append(f"flip {axis}")
        elif name == "blocks":
            many = draw(st.sampled_from([n for n in (1, 2, 3) if shape[axis] % n == 0]))
            ops.append(f"blocks {axis} " + " ".join(map(str, draw(st.permutations(range(many))))))
        elif name == "cut" and rank < 5:
            size = draw(st.sampled_from([n for n in (1, 2, 3) if shape[axis] % n == 0]))
            names = "abcdefg"[:rank]
            left = " ".join(f"({n} z)" if at == axis else n for at, n in enumerate(names))
            order = draw(st.permutations([*names, "z"]))
            sizes = dict(zip(names, shape, strict=True)) | {names[axis]: shape[axis] // size, "z": size}
            ops.append(f"rearrange {left} -> {' '.join(order)} ; z={size}")
            shape = [sizes[n] for n in order]
        elif name == "join" and rank > 1:
            names = "abcdefg"[:rank]
            order = draw(st.permutations(names))
            given = " ".join(f"{n}={s}" for n, s in zip(names, shape, strict=True))
            ops.append(f"rearrange {' '.join(names)} -> {' '.join(order[:-2])} ({order[-2]} {order[-1]}) ; {given}")
            sizes = dict(zip(names, shape, strict=True))
            shape = [*(sizes[n] for n in order[:-2]), sizes[order[-2]] * sizes[order[-1]]]
        elif rank < 5:
            ops.append("rearrange " + " ".join("abcdefg"[:rank]) + " -> 1 " + " ".join("abcdefg"[:rank]))
            shape = [1, *shape]
    parts = draw(st.sampled_from([n for n in (1, 2, 3) if shape[0] % n == 0]))
    if draw(st.booleans()):
        ops.append("split 0")
    elif shape[0] > 1:
        ops.append("unstack 0")
        parts = shape[0]
    else:
        parts = 1
    return ops, arrays, parts


def through(steps: Sequence[Step], arrays: Sequence[Array], parts: int) -> list[Array]:
    return [tensor.array() for tensor in chain(steps, tensors(*arrays), Wanted(parts))]


@given(arranged())
def test_what_moves_comes_back_bit_for_bit(case: tuple[list[str], list[Array], int]) -> None:
    ops, arrays, parts = case
    steps = [parse_step(op) for op in ops]
    assert all(step.status == "exact" for step in steps)
    there = through(steps, arrays, parts)
    assert sorted(np.concatenate([a.ravel().view("u1") for a in there])) == sorted(arrays[0].ravel().view("u1"))
    back = backwards(steps)
    assert bits(through(back, there, len(arrays)), arrays)
    assert [step.text for step in backwards(back)] == [parse_step(step.text).text for step in backwards(back)]
    again = [parse_step(step.text) for step in back]
    assert bits(through(again, there, len(arrays)), arrays), "the text of a step that was turned says what it does"


@given(arranged())
def test_what_moves_one_tensor_can_be_asked_for_in_any_pieces(case: tuple[list[str], list[Array], int]) -> None:
    ops, arrays, parts = case
    for tensor in chain([parse_step(op) for op in ops], tensors(*arrays), Wanted(parts)):
        whole = tensor.array().tobytes()
        for nbytes in (1, 7, 64):
            assert b"".join(block.tobytes() for block in tensor.blocks(nbytes)) == whole


@given(st.text(st.sampled_from("tpermutsplirangflocksdv ()->;=0123456789abh[],?-.$"), max_size=30))
def test_any_text_is_an_operation_or_an_error(text: str) -> None:
    try:
        parse_step(text)
    except RecipeError as error:
        assert "\n" not in error.message
