"""What every layout keeps, checked in one way: see the tests of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from wtool import views
from wtool.api import open_checkpoint, plan_save, save
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import BY_NUMPY, dtype
from wtool.errors import CorruptError
from wtool.kernels.cast import Cast
from wtool.layout import Scheme, Seen, parse_scheme
from wtool.layouts import registry
from wtool.ops.quantize import Quantize
from wtool.tensor import LazyTensor

Array = Any
DTYPES = ("f64", "f32", "f16", "bf16")


def lazy(key: str, values: Array) -> LazyTensor:
    values = np.ascontiguousarray(values) if values.ndim else values
    return LazyTensor.contiguous(key, BY_NUMPY[values.dtype.name], values.shape, MemoryBytes(values.tobytes(), "test"), 0)


def weights(shape: tuple[int, ...], row: str = "f32", seed: int = 0) -> Array:
    """Small weights in a dtype, with a run of zeros."""
    values = np.random.default_rng(seed).standard_normal(shape) * 0.05
    values.reshape(-1)[: min(200, values.size // 4)] = 0
    return values.astype(ml_dtypes.bfloat16 if row == "bf16" else dtype(row).numpy())


def checkpoint(tensors: Mapping[str, LazyTensor]) -> Checkpoint:
    return Checkpoint(dict(tensors), Source("made", "safetensors", "file", (("made", 1 << 20),)))


def settled(layout: str, scheme: str) -> Scheme:
    return registry.layout(layout).settle(parse_scheme(scheme))


def seen(tensor: LazyTensor) -> Seen:
    values = np.abs(tensor.array().astype(np.float64))
    return Seen(float(values.max(initial=0)), float(values.mean()) if values.size else 0.0)


def quantize(layout: str, scheme: str, tensors: Mapping[str, LazyTensor], only: tuple[str, ...] = ()) -> Checkpoint:
    """All tensors of two axes and more (or `only` these keys) in a layout."""
    chosen = {key: settled(layout, scheme) for key in (only or tensors) if len(tensors[key].shape) > 1}
    for key, one in chosen.items():
        assert registry.layout(layout).refuses(one, tensors[key]) is None, key
    looks = {key: seen(tensors[key]) for key in chosen}
    return Quantize(registry.layout(layout), chosen, looks)(checkpoint(tensors))


def written(made: Checkpoint, path: Path, jobs: int = 2, **options: Any) -> Checkpoint:
    save(plan_save(made, str(path), force=True, **options), jobs=jobs)
    return open_checkpoint(str(path))


def arrays(layout: str, scheme: str, values: Array, key: str = "m.weight") -> dict[str, Array]:
    """The parts of one weight."""
    made = quantize(layout, scheme, {key: lazy(key, values)})
    return {part: tensor.array().reshape(tensor.shape) for part, tensor in made.tensors.items()}


def dense(
    parts: Mapping[str, Array], config: Mapping[str, Any] | None = None, metadata: Mapping[str, str] | None = None
) -> Array:
    """The one weight that is found in parts."""
    (one,) = registry.find({key: lazy(key, values) for key, values in parts.items()}, config, metadata or {}).values()
    made = one.dense()
    values = made.array()
    assert values.shape == one.shape == made.shape
    assert one.nbytes == sum(part.nbytes for part in parts.values())
    assert set(one.parts) == set(parts)
    middle = made.elements // 3
    last = min(middle + 70, made.elements)
    assert np.array_equal(made.flat(middle, last), values.reshape(-1)[middle:last])
    return values


def sqnr(values: Array, coded: Array) -> float:
    x, y = values.astype(np.float64), coded.astype(np.float64)
    return float(10 * np.log10((x**2).sum() / max(((x - y) ** 2).sum(), 1e-300)))


def same_for_any_arrangement(layout: str, scheme: str, shape: tuple[int, ...], path: Path, key: str = "m.weight") -> None:
    """Transposed or cast storage, one thread or three: the same bytes."""
    values = weights(shape, "f16")
    order = (*range(values.ndim - 2), values.ndim - 1, values.ndim - 2)
    turned = views.transpose(lazy(key, np.ascontiguousarray(values.transpose(order))), order)
    plain = quantize(layout, scheme, {key: lazy(key, values)})
    expected = {part: tensor.array().tobytes() for part, tensor in plain.tensors.items()}
    assert turned.span is None
    for number, tensor in enumerate((lazy(key, values), turned)):
        for jobs in (1, 3):
            made = written(quantize(layout, scheme, {key: tensor}), path / f"{number}-{jobs}.safetensors", jobs)
            assert {part: one.array().tobytes() for part, one in made.tensors.items()} == expected
    wide = lazy(key, values.astype(np.float32)).map(Cast(dtype("f32"), dtype("f16")))
    cast = quantize(layout, scheme, {key: wide})
    assert {part: one.array().tobytes() for part, one in cast.tensors.items()} == expected


def ties_once(layout: str, scheme: str, path: Path, shape: tuple[int, ...] = (64, 128)) -> None:
    """Tied weights are coded once and stay tied."""
    one = lazy("a.weight", weights(shape))
    made = quantize(layout, scheme, {"a.weight": one, "b.weight": one.renamed("b.weight")})
    for part, tensor in made.tensors.items():
        if part.startswith("a."):
            other = made.tensors["b." + part[2:]]
            assert tensor.identity == other.identity
    again = written(made, path / "tied.safetensors")
    found = registry.find(again.tensors, None, {}) if layout != "mlx" else {}
    assert all(np.array_equal(found["a.weight"].dense().array(), it.dense().array()) for it in found.values())


@st.composite
def damages(draw: st.DrawFn, parts: Mapping[str, Array]) -> dict[str, Array]:
    """The parts with one gone, of another dtype, cut, of another shape, or of other bytes."""
    found = dict(parts)
    key = draw(st.sampled_from(sorted(found)))
    values = found[key]
    how = draw(st.sampled_from(["gone", "dtype", "cut", "shape", "bytes", "empty"]))
    if how == "gone":
        del found[key]
    elif how == "dtype":
        found[key] = np.zeros(values.shape, draw(st.sampled_from(["u1", "i1", "i4", "u4", "i8", "f4", "f2", "f8"])))
    elif how == "cut" and values.ndim:
        axis = draw(st.integers(0, values.ndim - 1))
        found[key] = np.take(values, range(draw(st.integers(0, values.shape[axis]))), axis=axis)
    elif how == "shape":
        size = prod(values.shape)
        found[key] = values.reshape(draw(st.sampled_from([(size,), (1, size), (size, 1), (1, size, 1)])))
    elif how == "bytes" and values.size:
        many = draw(st.integers(1, min(64, values.nbytes)))
        raw = bytearray(values.tobytes())
        raw[:many] = draw(st.binary(min_size=many, max_size=many))
        found[key] = np.frombuffer(bytes(raw), values.dtype).reshape(values.shape)
    else:
        found[key] = np.zeros((0, *values.shape[1:]), values.dtype)
    return found


def survives(parts: Mapping[str, Array], config: Mapping[str, Any] | None, metadata: Mapping[str, str]) -> None:
    """Whatever the parts are: a CorruptError that names a key, nothing found, or values of the shape that is told."""
    try:
        for one in registry.find({key: lazy(key, values) for key, values in parts.items()}, config, metadata).values():
            with np.errstate(all="ignore"):
                assert one.dense().array().shape == one.shape
    except CorruptError as error:
        assert "m." in str(error) or "m/" in str(error)


def each_dtype(check: Callable[[Array, str], None], shape: tuple[int, ...]) -> None:
    for row in DTYPES:
        check(weights(shape, row), row)
