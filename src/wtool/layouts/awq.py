"""AWQ's layout (the GEMM version), which vLLM, AutoAWQ and transformers load: four bits, packed along the outputs.

Of a weight [O, I], under the name of its module: `qweight` i32 [I, O / 8], `qzeros` i32 [I / g, O / 8], `scales` f16
[I / g, O]; nibble i of a word is output 0, 2, 4, 6, 1, 3, 5, 7 of eight. w = (code - zero point) * scale.
Sources: AutoAWQ's awq/modules/linear/gemm.py, awq/utils/packing_utils.py and awq/models/_config.py; what is told in
config.json: AwqConfig of transformers 5.23, quantization/auto_awq.py of vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import dtype
from wtool.errors import CorruptError, UnsupportedError, UsageError
from wtool.kernels.affine import Affine
from wtool.kernels.packing import pack_awq, unpack_awq
from wtool.layout import Quantized, Scheme, Seen, Wanted
from wtool.layouts.codecs import as_f32
from wtool.layouts.columns import is_gptq, misfit, turned
from wtool.layouts.telling import damaged, told_of
from wtool.quantized import Encoding, Part, decoded
from wtool.tensor import LazyTensor

Array = NDArray[Any]

_EIGHT = 8  # outputs in a word


@dataclass(frozen=True)
class Rows:
    """Rows as AWQ has them, not transposed: `packed` [O / 8, I], `scale` [O, groups], `zero_point` like `packed`."""

    affine: Affine
    step: int = _EIGHT

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        i32, scale, groups = dtype("i32"), self.affine.dtype, self._groups(columns)
        return (
            Part("packed", i32, (rows // _EIGHT, columns), columns * 4),
            Part("scale", scale, (rows, groups), _EIGHT * groups * scale.itemsize),
            Part("zero_point", i32, (rows // _EIGHT, groups), groups * 4),
        )

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        codes, scales, zeros = self.affine.encode(x)
        assert zeros is not None
        return pack_awq(codes).T, scales, pack_awq(zeros).T

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        return self.affine.decode(unpack_awq(parts[0].reshape(-1, columns).T), *self._scales(parts, columns))

    def ends(self, parts: Sequence[Array], row: int, columns: int) -> tuple[Array, Array]:
        scales, zeros = self._scales(parts, columns)
        wide, shift = scales.astype(np.float32), zeros.astype(np.float32)
        return (np.float32(self.affine.lowest - 0.5) - shift) * wide, (np.float32(self.affine.highest + 0.5) - shift) * wide

    def _scales(self, parts: Sequence[Array], columns: int) -> tuple[Array, Array]:
        groups = self._groups(columns)
        return parts[1].reshape(-1, groups), unpack_awq(parts[2].reshape(-1, groups).T)

    def _groups(self, columns: int) -> int:
        return columns // self.affine.group if self.affine.group else 1


class Awq:
    name = "awq"
    formats = ("safetensors",)
    schemes = ("int4",)

    def settle(self, scheme: Scheme) -> Scheme:
        group = scheme.group or 128
        if scheme.name != "int4" or group not in (32, 64, 128):
            raise UsageError(f"{self.name} has no {scheme}", hint="it has int4, in groups of 32, 64 or 128")
        return replace(scheme, group=group, symmetric=False, method="mse" if scheme.searches else "rtn")

    def wants(self, scheme: Scheme) -> Wanted | None:
        return None

    def refuses(self, scheme: Scheme, tensor: LazyTensor) -> str | None:
        return misfit(tensor, scheme, _EIGHT)

    def parts(self, tensor: LazyTensor, scheme: Scheme, seen: Seen | None) -> list[LazyTensor]:
        assert isinstance(scheme.group, int)
        affine = Affine(4, scheme.group, False, dtype("f16"), scheme.searches)
        encoding = Encoding(tensor.key, as_f32(tensor), Rows(affine))
        stem = tensor.key.removesuffix(".weight")
        names = {"qweight": 0, "qzeros": 2, "scales": 1}
        return [turned(encoding.part(number, f"{stem}.{name}")) for name, number in names.items()]

    def config(self, chosen: Mapping[str, Scheme], kept: Sequence[str]) -> dict[str, Any]:
        groups = {scheme.group for scheme in chosen.values()}
        if len(groups) > 1:
            raise UsageError(f"{self.name} has one size of groups for all", hint="the same :gN in all schemes")
        return {
            "quantization_config": {
                "quant_method": "awq",
                "version": "gemm",
                "bits": 4,
                "group_size": next(iter(groups), 128),
                "zero_point": True,
                "modules_to_not_convert": [key.removesuffix(".weight") for key in kept],
            }
        }

    def metadata(self, chosen: Mapping[str, Scheme]) -> dict[str, str]:
        return {}

    def find(
        self, tensors: Mapping[str, LazyTensor], config: Mapping[str, Any] | None, metadata: Mapping[str, str]
    ) -> list[Quantized]:
        version = str(told_of(config).get("version", told_of(config).get("format", "gemm"))).lower()
        found = []
        for key, packed in tensors.items():
            stem = key.removesuffix(".qweight")
            if stem == key or packed.dtype.name != "i32":
                continue
            zeros, scales = tensors.get(f"{stem}.qzeros"), tensors.get(f"{stem}.scales")
            if zeros is None and scales is None:
                continue
            if zeros is None or scales is None:
                there = next(part for part in (zeros, scales) if part is not None)
                missing = "qzeros" if zeros is None else "scales"
                raise CorruptError(f"'{stem}.weight', stored quantized, is damaged: '{there.key}' is there, no {missing}")
            if _is_awq(packed, zeros, scales):
                found.append(_found(stem, packed, zeros, scales))
            elif not is_gptq(packed, zeros, scales):
                if version not in ("gemm", "gptq", "gptq_v2"):
                    raise UnsupportedError(f"'{key}' lies as version {version} of AWQ has it: only gemm is read")
                raise damaged(f"{stem}.weight", packed, zeros, scales)
        return found


def _is_awq(packed: LazyTensor, zeros: LazyTensor, scales: LazyTensor) -> bool:
    whole = all(len(tensor.shape) == 2 for tensor in (packed, zeros, scales))
    return whole and packed.dtype.name == "i32" and packed.elements > 0 and packed.shape[1] * _EIGHT == scales.shape[1]


def _found(stem: str, packed: LazyTensor, zeros: LazyTensor, scales: LazyTensor) -> Quantized:
    key = f"{stem}.weight"
    inputs, (groups, outputs) = packed.shape[0], scales.shape
    fits = zeros.dtype is packed.dtype and zeros.shape == (groups, outputs // _EIGHT)
    if not fits or not groups or inputs % groups or scales.dtype.name not in ("f16", "bf16", "f32"):
        raise damaged(key, packed, zeros, scales)
    codec = Rows(Affine(4, inputs // groups if groups > 1 else None, False, scales.dtype))
    parts = (packed, zeros, scales)
    return Quantized(
        key,
        (outputs, inputs),
        scales.dtype,
        Awq.name,
        str(Scheme("int4", inputs // groups if groups > 1 else "channel", False)),
        tuple(part.key for part in parts),
        sum(part.nbytes for part in parts),
        lambda: decoded(key, [turned(packed), turned(scales), turned(zeros)], codec, (outputs, inputs)),
    )


LAYOUT = Awq()
