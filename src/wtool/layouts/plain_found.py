"""What lies in the plain layout, by keys, dtypes and shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod

import numpy as np

from wtool.dtypes import dtype
from wtool.kernels.affine import Affine
from wtool.kernels.minifloat import SQUARE, Float8
from wtool.layout import Group, Quantized, Scheme
from wtool.layouts.floats import Floats
from wtool.layouts.grains import AlongRows, DownColumns, Given, Known, wide
from wtool.layouts.telling import damaged
from wtool.quantized import Codec, decoded
from wtool.tensor import LazyTensor, Shape
from wtool.views import reshape

_SCALES = ("f32", "f16", "bf16")
_F8 = {"f8_e4m3": "f8-e4m3", "f8_e5m2": "f8-e5m2"}
_AXES = 32  # of a tensor, at most: what numpy took for long


def found(layout: str, tensors: Mapping[str, LazyTensor], sure: bool) -> list[Quantized]:
    """In the order of the tensors. CorruptError for parts that do not fit, if it is `sure` that they are of this layout."""
    what = []
    for scale_key, scale in tensors.items():
        key = scale_key.removesuffix(".scale")
        codes = tensors.get(key)
        if key == scale_key or codes is None or scale.dtype.name not in _SCALES:
            continue
        if codes.dtype.name not in ("i8", "u8", *_F8):
            continue
        zero, shape = tensors.get(f"{key}.zero_point"), tensors.get(f"{key}.shape")
        one = _one(layout, codes, scale, zero, shape)
        if one is not None:
            what.append(one)
        elif sure:
            raise damaged(key, codes, scale, *(part for part in (zero, shape) if part is not None))
    return what


def _one(
    layout: str, codes: LazyTensor, scale: LazyTensor, zero: LazyTensor | None, told: LazyTensor | None
) -> Quantized | None:
    shape, bits = codes.shape, 8
    if codes.dtype.name == "u8":
        packed = None if told is None else _packed(codes, told)
        if packed is None:
            return None
        shape, bits = packed
    if len(shape) < 2 or not prod(shape) or (zero is not None and (zero.shape != scale.shape or zero.dtype.name != "i8")):
        return None
    f8 = codes.dtype.name in _F8
    name = _F8.get(codes.dtype.name, f"int{bits}")
    fit = _fit(shape, scale.shape, f8)
    if fit is None or (zero is not None and f8):
        return None
    group, down = fit
    whole = len(shape) < 4 or down
    columns = shape[-1] if whole else prod(shape[1:])
    parts = [part for part in (codes, scale, zero, told if bits < 8 else None) if part is not None]
    return Quantized(
        codes.key,
        shape,
        scale.dtype,
        layout,
        str(Scheme(name, group, zero is None)),
        tuple(part.key for part in parts),
        sum(part.nbytes for part in parts),
        _dense(codes, scale, zero, shape, columns, bits, fit),
    )


def _packed(codes: LazyTensor, told: LazyTensor) -> tuple[Shape, int] | None:
    """The shape that packed codes have, and their bits."""
    if told.dtype.name != "i64" or len(told.shape) != 1 or not 2 <= told.shape[0] <= _AXES:
        return None
    shape = tuple(int(length) for length in told.array())
    if min(shape) < 1:
        return None
    for rows, columns in ((shape[:-1], shape[-1]), (shape[:1], prod(shape[1:])))[: 1 if len(shape) < 4 else 2]:
        fitting = [bits for bits in (4, 3, 2) if codes.shape == (*rows, wide(columns, bits))]
        if len(fitting) == 1:
            return shape, fitting[0]
    return None


def _fit(shape: Shape, scale: Shape, f8: bool) -> tuple[Group, bool] | None:
    """The group of a scheme, and whether its scales lie down the columns; None where the scales do not fit."""
    if prod(scale) == 1 and (not scale or prod(shape[:-1]) > 1 or len(scale) == 1):
        return "tensor", False
    if len(scale) != len(shape):
        return None
    if len(shape) > 3:
        if scale == (shape[0], *(1 for _ in shape[1:])):
            return "channel", False
        return ("channel", True) if scale == (*(1 for _ in shape[1:]), shape[-1]) else None
    if scale[:-1] == shape[:-1] and scale[-1] > 0 and shape[-1] % scale[-1] == 0 and (scale[-1] == 1 or not f8):
        return ("channel" if scale[-1] == 1 else shape[-1] // scale[-1]), False
    even = scale[-2] > 0 and shape[-2] % scale[-2] == 0 and (scale[-2] == 1 or not f8)
    if scale[:-2] == shape[:-2] and scale[-1] == shape[-1] and even:
        return ("channel" if scale[-2] == 1 else shape[-2] // scale[-2]), True
    blocks = len(shape) == 2 and scale == (-(-shape[0] // SQUARE), -(-shape[1] // SQUARE))
    return ("block", False) if f8 and blocks else None


def _dense(
    codes: LazyTensor,
    scale: LazyTensor,
    zero: LazyTensor | None,
    shape: Shape,
    columns: int,
    bits: int,
    fit: tuple[Group, bool],
) -> Callable[[], LazyTensor]:
    group, down = fit
    rows = prod(shape) // columns
    affine = Affine(bits, group if isinstance(group, int) else None, zero is None, scale.dtype)
    rule = Float8(codes.dtype, dtype("f32"), "tensor") if codes.dtype.name in _F8 else affine

    def matrix(part: LazyTensor) -> LazyTensor:
        return reshape(part, (part.elements // part.shape[-1], part.shape[-1]))

    def given(width: int, each: int) -> LazyTensor:
        points = None if zero is None else zero.array().astype(np.float32).tobytes()
        known = Known(scale.array().astype(np.float32).tobytes(), width, points)
        return made(Given(rule, known, each), codes)

    def made(codec: Codec, *parts: LazyTensor) -> LazyTensor:
        return reshape(decoded(codes.key, parts, codec, shape if shape[-1] == columns else (rows, columns)), shape)

    def dense() -> LazyTensor:
        if group == "tensor":
            return given(1, rows)
        if group == "channel" and down:
            return given(columns, shape[-2] if len(shape) == 3 else rows)
        if isinstance(rule, Float8):
            kind: Codec = Floats(replace(rule, grain="block" if group == "block" else "row"), scale.dtype)
            return made(kind, codes, matrix(scale))
        parts = [codes, matrix(scale), *([] if zero is None else [matrix(zero)])]
        if len(shape) > 3:
            parts[1:] = [reshape(part, (rows, 1)) for part in parts[1:]]
        return made(
            DownColumns(replace(affine, group=None), group) if down and isinstance(group, int) else AlongRows(affine), *parts
        )

    return dense
