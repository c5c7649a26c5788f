"""compressed-tensors, which vLLM and transformers load: parts under the name of the weight, told of in config.json.

Source: compressed-tensors 0.20 (compressors/, quantization/quant_scheme.py, config/base.py): `pack-quantized` is
`weight_packed` i32, `weight_scale` in the weight's dtype, `weight_shape` i64 and, unless symmetric, `weight_zero_point` i32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from wtool.bytesource import MemoryBytes
from wtool.dtypes import dtype
from wtool.errors import CorruptError, UsageError
from wtool.kernels.affine import Affine
from wtool.layout import Quantized, Scheme, Seen, Wanted
from wtool.layouts.codecs import PackedInts, as_f32, weight_dtype
from wtool.quantized import LONGEST, Encoding, decoded
from wtool.tensor import LazyTensor

_BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}


class CompressedTensors:
    name = "compressed-tensors"
    formats = ("safetensors",)
    schemes = ("int8", "int4", "int3", "int2")

    def settle(self, scheme: Scheme) -> Scheme:
        if scheme.name not in self.schemes:
            raise UsageError(f"{self.name} has no scheme {scheme.name}", hint="it has " + ", ".join(self.schemes))
        group = scheme.group or ("channel" if scheme.name == "int8" else 128)
        if group not in ("channel", 32, 64, 128):
            raise UsageError(f"{self.name} has no {scheme}", hint="groups of 32, 64 or 128, or channel")
        return replace(scheme, group=group, method="mse" if scheme.searches else "rtn")

    def wants(self, scheme: Scheme) -> Wanted | None:
        return None

    def refuses(self, scheme: Scheme, tensor: LazyTensor) -> str | None:
        if not tensor.key.endswith(".weight"):
            return "its key does not end in .weight"
        if isinstance(scheme.group, int) and tensor.shape[-1] % scheme.group:
            return f"rows of {tensor.shape[-1]:,} are no groups of {scheme.group}"
        return f"rows longer than {LONGEST:,}" if tensor.shape[-1] > LONGEST else None

    def parts(self, tensor: LazyTensor, scheme: Scheme, seen: Seen | None) -> list[LazyTensor]:
        group = scheme.group if isinstance(scheme.group, int) else None
        affine = Affine(_BITS[scheme.name], group, scheme.symmetric, weight_dtype(tensor.dtype), scheme.searches)
        encoding = Encoding(tensor.key, as_f32(tensor), PackedInts(affine))
        stem = tensor.key
        found = [encoding.part(at, f"{stem}_{part.name}") for at, part in enumerate(encoding.parts)]
        shape = MemoryBytes(np.asarray(tensor.shape, "<i8").tobytes(), "shape")
        return [*found, LazyTensor.contiguous(f"{stem}_shape", dtype("i64"), (len(tensor.shape),), shape, 0)]

    def config(self, chosen: Mapping[str, Scheme], kept: Sequence[str]) -> dict[str, Any]:
        schemes = list(dict.fromkeys(chosen.values()))
        groups = {
            f"group_{number}": {
                "targets": ["Linear"] if len(schemes) == 1 else _modules(key for key, one in chosen.items() if one == scheme),
                "weights": _weights(scheme),
                "input_activations": None,
                "output_activations": None,
            }
            for number, scheme in enumerate(schemes)
        }
        return {
            "quantization_config": {
                "config_groups": groups,
                "format": "pack-quantized",
                "ignore": _modules(kept),
                "quant_method": "compressed-tensors",
                "quantization_status": "compressed",
            }
        }

    def metadata(self, chosen: Mapping[str, Scheme]) -> dict[str, str]:
        return {}

    def find(
        self, tensors: Mapping[str, LazyTensor], config: Mapping[str, Any] | None, metadata: Mapping[str, str]
    ) -> list[Quantized]:
        found = []
        for key, packed in tensors.items():
            stem = key.removesuffix("_packed")
            scale, shape = tensors.get(f"{stem}_scale"), tensors.get(f"{stem}_shape")
            if stem == key or scale is None or shape is None or packed.dtype.name != "i32" or len(packed.shape) != 2:
                continue
            found.append(_packed_ints(stem, packed, scale, shape, tensors.get(f"{stem}_zero_point")))
        return found


def _packed_ints(key: str, packed: LazyTensor, scale: LazyTensor, shape: LazyTensor, zero: LazyTensor | None) -> Quantized:
    size = tuple(int(length) for length in shape.array())
    if shape.shape != (2,) or len(scale.shape) != 2 or min(size) < 1:
        raise CorruptError(f"'{key}', stored quantized, is damaged: its shape is {list(size)}")
    bits = next((b for b in range(2, 9) if packed.shape == (size[0], -(-size[1] * b // 32))), None)
    if bits is None or size[1] % scale.shape[1]:
        raise CorruptError(f"'{key}', stored quantized, is damaged: {list(packed.shape)} are no codes of {list(size)}")
    group = None if scale.shape[1] == 1 else size[1] // scale.shape[1]
    parts = [packed, scale, *([] if zero is None else [zero])]
    codec = PackedInts(Affine(bits, group, zero is None, scale.dtype))
    scheme = Scheme(f"int{bits}", group or "channel", zero is None)
    return Quantized(
        key,
        size,
        scale.dtype,
        CompressedTensors.name,
        str(scheme),
        tuple(part.key for part in (*parts, shape)),
        sum(part.nbytes for part in (*parts, shape)),
        lambda: decoded(key, parts, codec, size),
    )


def _modules(keys: Any) -> list[str]:
    return [key.removesuffix(".weight") for key in keys]


def _weights(scheme: Scheme) -> dict[str, Any]:
    """One scheme as compressed-tensors' QuantizationArgs."""
    grouped = isinstance(scheme.group, int)
    return {
        "num_bits": _BITS[scheme.name],
        "type": "int",
        "symmetric": scheme.symmetric,
        "group_size": scheme.group if grouped else None,
        "strategy": "group" if grouped else "channel",
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
        "observer": "mse" if scheme.searches else "minmax",
        "observer_kwargs": {},
    }


LAYOUT = CompressedTensors()
