"""What compressed-tensors wrote, by keys, dtypes and shapes; its configuration is asked only of rows too short to tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

from wtool.dtypes import DType, dtype
from wtool.errors import CorruptError, MismatchError, UnsupportedError
from wtool.kernels.affine import Affine
from wtool.kernels.minifloat import Float8, MxFloat4, MxFloat8, NvFloat4, grain
from wtool.layout import Quantized, Scheme
from wtool.layouts.codecs import PackedInts, PlainInts
from wtool.layouts.floats import Floats, MxFloats, MxFloats8, NvFloats
from wtool.quantized import Codec, decoded
from wtool.tensor import LazyTensor

_ACTIVATIONS = (
    *("input_scale", "input_zero_point", "input_global_scale"),
    *("output_scale", "output_zero_point"),
)
F8 = ("f8_e4m3", "f8_e5m2")
_GRAINS: dict[str, Any] = {"tensor": "tensor", "row": "channel", "block": "block"}


def find(layout: str, tensors: Mapping[str, LazyTensor], config: Mapping[str, Any] | None = None) -> list[Quantized]:
    """In the order of the tensors. CorruptError where parts do not belong together."""
    return list(_found(layout, tensors, _widths(config)))


def _widths(config: Mapping[str, Any] | None) -> frozenset[int]:
    """How many bits codes have, as far as the configuration says."""
    told = (config or {}).get("quantization_config")
    groups = told.get("config_groups") if isinstance(told, dict) else None
    every = [group.get("weights") for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    return frozenset(one["num_bits"] for one in every if isinstance(one, dict) and type(one.get("num_bits")) is int)


def _found(layout: str, tensors: Mapping[str, LazyTensor], widths: frozenset[int]) -> Iterator[Quantized]:
    for key, tensor in tensors.items():
        stem = key.removesuffix("_packed")
        scale = tensors.get(f"{stem}_scale")
        if scale is None or len(tensor.shape) != 2 or not tensor.elements:
            continue
        more = beside(stem, tensors)
        packed, row = stem != key, tensor.dtype.name
        zero, shape, whole = (tensors.get(f"{stem}_{name}") for name in ("zero_point", "shape", "global_scale"))
        if packed and row == "i32" and shape is not None:
            yield _packed_ints(layout, stem, tensor, scale, shape, zero, more, widths)
        elif packed and row == "u8" and scale.dtype.name == "f8_e4m3" and whole is not None:
            yield _nvfp4(layout, stem, tensor, scale, whole, more)
        elif packed and row == "u8" and scale.dtype.name == "u8":
            size = (tensor.shape[0], 2 * tensor.shape[1])
            if scale.shape != (size[0], size[1] / 32):
                raise damaged(stem, f"scales of shape {list(scale.shape)} do not fit codes of {list(tensor.shape)}")
            yield made(
                layout, stem, size, dtype("bf16"), Scheme("mxfp4", 32), [tensor, scale], MxFloats(MxFloat4(dtype("f32")))
            )
        elif not packed and row in F8:
            yield eight(layout, stem, tensor, scale, more)
        elif not packed and row == "i8" and scale.dtype.floating:
            yield plain_ints(layout, stem, tensor, scale, zero, more)


def made(
    layout: str,
    key: str,
    shape: tuple[int, ...],
    row: DType,
    scheme: Scheme,
    parts: Sequence[LazyTensor],
    codec: Codec,
    more: Sequence[LazyTensor] = (),
) -> Quantized:
    """A tensor that `codec` decodes from `parts`; `more` belong to it too."""
    every = (*parts, *more)
    dense = partial(decoded, key, tuple(parts), codec, shape)
    nbytes = sum(part.nbytes for part in every)
    return Quantized(key, shape, row, layout, str(scheme), tuple(part.key for part in every), nbytes, dense)


def beside(key: str, tensors: Mapping[str, LazyTensor]) -> list[LazyTensor]:
    """Scales of activations, which mean nothing without the weight's codes. UnsupportedError for an order of columns."""
    order = tensors.get(f"{key}_g_idx")
    if order is not None and order.elements and (order.array().reshape(-1)[1:] < order.array().reshape(-1)[:-1]).any():
        raise UnsupportedError(f"'{key}' has its columns in an order of their own (g_idx)", hint="actorder=weight has not")
    module = key.removesuffix("weight")
    names = (f"{module}{name}" for name in _ACTIVATIONS) if module != key else ()
    return [*(tensors[name] for name in names if name in tensors), *([] if order is None else [order])]


def damaged(key: str, why: str) -> CorruptError:
    return CorruptError(f"'{key}', stored quantized, is damaged: {why}")


def _packed_ints(
    layout: str,
    key: str,
    packed: LazyTensor,
    scale: LazyTensor,
    shape: LazyTensor,
    zero: LazyTensor | None,
    more: Sequence[LazyTensor],
    widths: frozenset[int],
) -> Quantized:
    if shape.elements != 2 or shape.dtype.kind != "int":
        raise damaged(key, f"its shape is {shape.dtype} {list(shape.shape)}")
    size = tuple(int(length) for length in shape.array().reshape(-1))
    if len(scale.shape) != 2 or min(*size, *scale.shape) < 1 or not scale.dtype.floating:
        raise damaged(key, f"its shape is {list(size)}, that of its scales {scale.dtype} {list(scale.shape)}")
    fitting = [b for b in range(2, 9) if packed.shape == (size[0], -(-size[1] * b // 32))]
    if zero is not None:
        fitting = [b for b in fitting if zero.shape == (-(-size[0] * b // 32), scale.shape[1])] or fitting
    if len(fitting) > 1:
        fitting = [b for b in fitting if b in widths] or fitting
    if not fitting or size[1] % scale.shape[1]:
        raise damaged(key, f"{list(packed.shape)} are no codes of {list(size)}")
    if len(fitting) > 1:
        raise damaged(key, f"its codes may have {' or '.join(map(str, fitting))} bits, and no config.json tells")
    bits = fitting[0]
    group = None if scale.shape[1] == 1 else size[1] // scale.shape[1]
    parts = [packed, scale, *([] if zero is None else [zero])]
    codec = PackedInts(Affine(bits, group, zero is None, scale.dtype))
    return made(
        layout, key, size, scale.dtype, Scheme(f"int{bits}", group or "channel", zero is None), parts, codec, [shape, *more]
    )


def _nvfp4(
    layout: str, key: str, packed: LazyTensor, scale: LazyTensor, whole: LazyTensor, more: Sequence[LazyTensor]
) -> Quantized:
    size = (packed.shape[0], 2 * packed.shape[1])
    if scale.shape != (size[0], size[1] / 16):
        raise damaged(key, f"scales of shape {list(scale.shape)} do not fit codes of {list(packed.shape)}")
    if whole.elements != 1 or not whole.dtype.floating:
        raise damaged(key, f"its global scale is {whole.dtype} {list(whole.shape)}")
    codec = NvFloats(NvFloat4(dtype("f32")), float(whole.array().reshape(-1)[0]))
    return made(layout, key, size, dtype("bf16"), Scheme("nvfp4", 16), [packed, scale], codec, [whole, *more])


def eight(layout: str, key: str, codes: LazyTensor, scale: LazyTensor, more: Sequence[LazyTensor] = ()) -> Quantized:
    """f8 codes, and scales that say by their shape what they are for, or (u8) are exponents of mxfp8."""
    rows, columns = codes.shape
    if scale.dtype.name in ("u8", "f8_e8m0") and columns % 32 == 0 and scale.shape == (rows, columns // 32):
        codec: Codec = MxFloats8(MxFloat8(codes.dtype))
        return made(layout, key, codes.shape, dtype("bf16"), Scheme("mxfp8", 32), [codes, scale], codec, more)
    try:
        kind = grain((rows, columns), scale.shape)
    except MismatchError as error:
        raise damaged(key, error.message) from None
    if not scale.dtype.floating or not scale.dtype.itemsize:
        raise damaged(key, f"its scales are {scale.dtype}")
    row = dtype("bf16") if scale.dtype.name == "f32" else scale.dtype
    scheme = Scheme(codes.dtype.name.replace("_", "-"), _GRAINS[kind])
    float8 = Float8(codes.dtype, row, kind)
    if kind == "tensor":
        one = float(scale.array().reshape(-1)[0])
        return made(layout, key, codes.shape, row, scheme, [codes], Floats(float8, scale.dtype, one), [scale, *more])
    return made(layout, key, codes.shape, row, scheme, [codes, scale], Floats(float8, scale.dtype), more)


def plain_ints(
    layout: str,
    key: str,
    codes: LazyTensor,
    scale: LazyTensor,
    zero: LazyTensor | None,
    more: Sequence[LazyTensor] = (),
) -> Quantized:
    """i8 codes with a scale, and perhaps a zero point, for the tensor, each row, or groups of a row."""
    rows, columns = codes.shape
    tall = scale.shape[0] if scale.shape else 1
    groups = prod(scale.shape[1:])
    if tall not in (1, rows) or (tall == 1 and rows > 1 and groups != 1) or groups < 1 or columns % groups:
        raise damaged(key, f"scales of shape {list(scale.shape)} do not fit codes of {list(codes.shape)}")
    group = None if groups == 1 else columns // groups
    scheme = Scheme("int8", "tensor" if tall < rows else group or "channel", zero is None)
    affine = Affine(8, group, zero is None, scale.dtype)
    parts = [codes, scale, *([] if zero is None else [zero])]
    if tall < rows:
        if zero is not None and zero.elements != 1:
            raise damaged(key, f"its zero points are {list(zero.shape)}")
        point = 0 if zero is None else int(zero.array().reshape(-1)[0])
        one = float(scale.array().astype("f4").reshape(-1)[0])
        codec: Codec = PlainInts(Affine(8, group, True, scale.dtype), one, point)
        return made(layout, key, codes.shape, scale.dtype, scheme, [codes], codec, [*parts[1:], *more])
    return made(layout, key, codes.shape, scale.dtype, scheme, parts, PlainInts(affine), more)
