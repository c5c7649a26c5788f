"""wtool's own layout, for any format and any framework: values beside their scales, and nothing else needed to read them.

Of a weight KEY of some shape S:

- `KEY`: its codes. int8: i8 of shape S. f8: f8 of shape S. int4, int3, int2: u8, packed along the last axis: code j, with
  2 ** (b - 1) added, lies at bits j * b of its row, low end first, and a row ends on a whole byte: [.., ceil(last * b / 8)].
- `KEY.scale`: in the weight's dtype (f32 for f64), with as many axes as S: an axis of length 1 is shared by all, any other
  is cut into equal groups; of one scale for the tensor the shape is []. For f8 in blocks, one for each 128 x 128.
- `KEY.zero_point`: i8, of the shape of the scale; only where codes are not symmetric.
- `KEY.shape`: i64, S; only beside packed codes. Of weights of more than three axes the first remains, the others are one row.

weight = (code - zero point) * scale. Scales are shared along the inputs: the last axis, but all axes before the last where the
key ends in `kernel` (TensorFlow and Flax: [inputs, outputs]).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from wtool.bytesource import MemoryBytes
from wtool.dtypes import DType, dtype
from wtool.errors import UsageError
from wtool.kernels.affine import Affine
from wtool.kernels.minifloat import SQUARE, Float8, Grain
from wtool.keys import SEPARATORS, short_key
from wtool.layout import Quantized, Scheme, Seen, Wanted
from wtool.layouts.codecs import as_f32, weight_dtype
from wtool.layouts.floats import Floats
from wtool.layouts.grains import AlongRows, DownColumns, Given, Known, Measured, ScaleBytes, wide
from wtool.layouts.plain_found import found
from wtool.quantized import LONGEST, Codec, Encoding
from wtool.tensor import LazyTensor, Shape
from wtool.views import reshape

_BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}
_F8 = {"f8-e4m3": "f8_e4m3", "f8-e5m2": "f8_e5m2"}
_SHORTEST = 8  # columns of packed codes: those of fewer do not tell their bits


class Plain:
    name = "plain"
    formats = ("safetensors", "torch", "tensorflow")
    schemes = (*_BITS, *_F8)

    def settle(self, scheme: Scheme) -> Scheme:
        if scheme.name not in self.schemes:
            raise UsageError(f"{self.name} has no scheme {scheme.name}", hint="it has " + ", ".join(self.schemes))
        ints = scheme.name in _BITS
        group = scheme.group or (128 if ints and scheme.name != "int8" else "channel")
        if not scheme.symmetric and (not ints or group == "tensor"):
            raise UsageError(f"{self.name} has no {scheme}", hint="without :asym")
        if group == "block" if ints else isinstance(group, int):
            raise UsageError(f"{self.name} has no {scheme}", hint=":gN is for ints, :block for f8; :channel, :tensor")
        searches = scheme.searches and ints and group != "tensor"
        if scheme.method == "mse" and not searches:
            raise UsageError(f"{self.name} does not search for scales of {scheme}", hint="--method rtn")
        return replace(scheme, group=group, method="mse" if searches else "rtn")

    def wants(self, scheme: Scheme) -> Wanted | None:
        return "largest" if scheme.group == "tensor" else None

    def refuses(self, scheme: Scheme, tensor: LazyTensor) -> str | None:
        shape, down = tensor.shape, is_kernel(tensor.key)
        if not tensor.elements:
            return "empty"
        if len(shape) > 3 and scheme.group not in ("tensor", "channel"):
            return "of more than three axes"
        if len(shape) != 2 and scheme.group == "block":
            return "no matrix"
        columns = _columns(tensor)
        if _BITS.get(scheme.name, 8) < 8 and columns < _SHORTEST:
            return f"rows of fewer than {_SHORTEST}"
        if down and scheme.group == "channel" and scheme.method == "mse":
            return "scales of columns are not searched for: --method rtn"
        if isinstance(scheme.group, int):
            length = shape[-2] if down else columns
            if length % scheme.group:
                return f"{'columns' if down else 'rows'} of {length:,} are no groups of {scheme.group}"
            columns *= scheme.group if down else 1
        return f"rows longer than {LONGEST:,}" if columns > LONGEST else None

    def parts(self, tensor: LazyTensor, scheme: Scheme, seen: Seen | None) -> list[LazyTensor]:
        key, shape, columns = tensor.key, tensor.shape, _columns(tensor)
        rows, row = prod(shape) // columns, weight_dtype(tensor.dtype)
        whole = shape if len(shape) < 4 or is_kernel(key) else (rows, columns)
        values = reshape(as_f32(tensor), (rows, columns))
        codec, scales = self._codec(values, key, shape, scheme, row, seen)
        bits = _BITS.get(scheme.name, 8)
        encoding = Encoding(key, values, codec)
        codes = reshape(encoding.part(0, key), shape if bits == 8 else (*whole[:-1], wide(columns, bits)))
        scale_shape = _scale_shape(shape, scheme, is_kernel(key))
        made = [
            reshape(encoding.part(at, f"{key}.{one.name}"), scale_shape)
            for at, one in enumerate(codec.parts(rows, columns))
            if at
        ]
        if bits < 8:
            told = MemoryBytes(np.asarray(shape, "<i8").tobytes(), "shape")
            made.append(LazyTensor.contiguous(f"{key}.shape", dtype("i64"), (len(shape),), told, 0))
        return [codes, *(reshape(one, scale_shape) for one in scales), *made]

    def _codec(
        self, values: LazyTensor, key: str, shape: Shape, scheme: Scheme, row: DType, seen: Seen | None
    ) -> tuple[Codec, list[LazyTensor]]:
        """What codes the values [rows, columns], and the scales that are no part of it."""
        group = scheme.group if isinstance(scheme.group, int) else None
        rule: Affine | Float8
        if scheme.name in _F8:
            grain: Grain = "block" if scheme.group == "block" else "row" if scheme.group == "channel" else "tensor"
            rule = Float8(dtype(_F8[scheme.name]), row, grain)
        else:
            rule = Affine(_BITS[scheme.name], group, scheme.symmetric, row, scheme.method == "mse")
        if scheme.group == "tensor":
            assert seen is not None
            most = np.full(1, seen.largest, np.float32)
            scale = rule.scale_of(most) if isinstance(rule, Float8) else rule.scales_of(-most, most)[0]
            known = Known(scale.astype(np.float32).tobytes(), 1)
            source = MemoryBytes(scale.tobytes(), "scale")
            return Given(rule, known, values.shape[0]), [LazyTensor.contiguous(f"{key}.scale", row, (), source, 0)]
        if scheme.group == "channel" and is_kernel(key):
            each = shape[-2] if len(shape) == 3 else values.shape[0]
            measured = Measured(values, each, rule)
            count = values.elements // each
            scales = [LazyTensor.contiguous(f"{key}.scale", row, (count,), ScaleBytes(measured, row, count), 0)]
            if not scheme.symmetric:
                zeros, i8 = ScaleBytes(measured, dtype("i8"), count, True), dtype("i8")
                scales.append(LazyTensor.contiguous(f"{key}.zero_point", i8, (count,), zeros, 0))
            return Given(rule, measured, each), scales
        if isinstance(rule, Float8):
            return Floats(rule, row), []
        if group is not None and is_kernel(key):
            return DownColumns(replace(rule, group=None), group), []
        return AlongRows(rule), []

    def config(self, chosen: Mapping[str, Scheme], kept: Sequence[str]) -> dict[str, Any]:
        return {}

    def metadata(self, chosen: Mapping[str, Scheme]) -> dict[str, str]:
        return {}

    def find(
        self, tensors: Mapping[str, LazyTensor], config: Mapping[str, Any] | None, metadata: Mapping[str, str]
    ) -> list[Quantized]:
        """What does not fit is damaged where the metadata says that the layout is this, and else none of it."""
        try:
            told = json.loads(metadata.get("wtool.quantized", "null"))
        except ValueError:
            told = None
        sure = isinstance(told, dict) and told.get("layout") == self.name
        return found(self.name, tensors, sure)


def is_kernel(key: str) -> bool:
    """Whether outputs are the last axis."""
    return re.split(f"[{re.escape(SEPARATORS)}]", short_key(key))[-1] == "kernel"


def _columns(tensor: LazyTensor) -> int:
    """Of the matrix that a tensor is to its codec."""
    shape = tensor.shape
    return shape[-1] if len(shape) < 4 or is_kernel(tensor.key) else prod(shape[1:])


def _scale_shape(shape: Shape, scheme: Scheme, down: bool) -> Shape:
    if scheme.group == "tensor":
        return ()
    if scheme.group == "block":
        return (-(-shape[0] // SQUARE), -(-shape[1] // SQUARE))
    if len(shape) > 3:
        return (*(1 for _ in shape[1:]), shape[-1]) if down else (shape[0], *(1 for _ in shape[1:]))
    group = scheme.group
    if down:
        return (*shape[:-2], shape[-2] // group if isinstance(group, int) else 1, shape[-1])
    return (*shape[:-1], shape[-1] // group if isinstance(group, int) else 1)


LAYOUT = Plain()
