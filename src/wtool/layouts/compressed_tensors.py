"""compressed-tensors, which vLLM and transformers load: parts under the name of the weight, told of in config.json.

Source: compressed-tensors 0.20 (compressors/, quantization/quant_scheme.py, config/base.py):

    pack-quantized        weight_packed i32, weight_scale in the weight's dtype, weight_shape i64, weight_zero_point i32
    float-quantized       weight f8_e4m3, weight_scale [O, 1], [1] or [ceil(O / 128), ceil(I / 128)]
    nvfp4-pack-quantized  weight_packed u8, weight_scale f8_e4m3, weight_global_scale f32 [1]
    mxfp4-pack-quantized  weight_packed u8, weight_scale u8
    int-quantized, naive-quantized, mxfp8-quantized are only read: weight i8 or f8, weight_scale, weight_zero_point
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from wtool.bytesource import MemoryBytes
from wtool.dtypes import DType, dtype
from wtool.errors import UsageError
from wtool.kernels.affine import Affine
from wtool.kernels.minifloat import Float8, Grain, MxFloat4, NvFloat4
from wtool.layout import Quantized, Scheme, Seen, Wanted
from wtool.layouts import compressed_found, experts
from wtool.layouts.codecs import PackedInts, as_f32, weight_dtype
from wtool.layouts.floats import Floats, MxFloats, NvFloats
from wtool.quantized import LONGEST, Encoding
from wtool.tensor import LazyTensor

_BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}
_GRAINS: dict[Any, Grain] = {"tensor": "tensor", "channel": "row", "block": "block"}
_FLOATS: dict[str, tuple[str, int]] = {"nvfp4": ("nvfp4-pack-quantized", 16), "mxfp4": ("mxfp4-pack-quantized", 32)}


class CompressedTensors:
    name = "compressed-tensors"
    formats = ("safetensors",)
    schemes = ("int8", "int4", "int3", "int2", "f8-e4m3", "nvfp4", "mxfp4")

    def settle(self, scheme: Scheme) -> Scheme:
        if scheme.name not in self.schemes:
            raise UsageError(f"{self.name} has no scheme {scheme.name}", hint="it has " + ", ".join(self.schemes))
        if scheme.name in _FLOATS:
            group: Any = scheme.group or _FLOATS[scheme.name][1]
            allowed: tuple[Any, ...] = (_FLOATS[scheme.name][1],)
        elif scheme.name in _BITS:
            group = scheme.group or ("channel" if scheme.name == "int8" else 128)
            allowed = ("channel", 32, 64, 128)
        else:
            group, allowed = scheme.group or "channel", ("channel", "tensor", "block")
        if group not in allowed or (not scheme.symmetric and scheme.name not in _BITS):
            words = ", ".join(f"groups of {one}" if isinstance(one, int) else one for one in allowed)
            raise UsageError(f"{self.name} has no {replace(scheme, group=group)}", hint=f"{scheme.name} has {words}")
        return replace(scheme, group=group, method="mse" if scheme.searches else "rtn")

    def wants(self, scheme: Scheme) -> Wanted | None:
        return "largest" if scheme.name == "nvfp4" or scheme.group == "tensor" else None

    def refuses(self, scheme: Scheme, tensor: LazyTensor) -> str | None:
        columns = tensor.shape[-1]
        if not tensor.key.endswith(".weight"):
            return "its key does not end in .weight"
        if len(tensor.shape) != 2:
            return f"of {len(tensor.shape)} axes"
        if scheme.name in _BITS and columns < 32:
            return "rows shorter than 32"  # how many bits a code has would not show
        if isinstance(scheme.group, int) and columns % scheme.group:
            return f"rows of {columns:,} are no groups of {scheme.group}"
        return f"rows longer than {LONGEST:,}" if columns > LONGEST else None

    def split(self, tensors: Mapping[str, LazyTensor]) -> dict[str, list[LazyTensor]]:
        return experts.split(tensors)

    def parts(self, tensor: LazyTensor, scheme: Scheme, seen: Seen | None) -> list[LazyTensor]:
        row, key = weight_dtype(tensor.dtype), tensor.key
        greatest = seen.largest if seen else 0.0
        more: list[LazyTensor] = []
        names = [f"{key}_packed", f"{key}_scale", f"{key}_zero_point"]
        codec: Any
        if scheme.name in _BITS:
            group = scheme.group if isinstance(scheme.group, int) else None
            codec = PackedInts(Affine(_BITS[scheme.name], group, scheme.symmetric, row, scheme.searches))
            more.append(_constant(f"{key}_shape", "i64", np.asarray(tensor.shape, "<i8")))
        elif scheme.name == "nvfp4":
            nv = NvFloat4(row, scheme.searches)
            whole = nv.global_of(greatest)
            codec = NvFloats(nv, float(whole[0]))
            more.append(_constant(f"{key}_global_scale", "f32", whole.astype("<f4")))
        elif scheme.name == "mxfp4":
            codec = MxFloats(MxFloat4(row, scheme.searches))
        else:
            eight = Float8(dtype("f8_e4m3"), row, _GRAINS[scheme.group])
            names[0] = key
            if eight.grain == "tensor":
                scale = eight.scale_of(greatest).reshape(1)
                codec = Floats(eight, row, float(scale[0]))
                more.append(_constant(f"{key}_scale", row.name, scale))
            else:
                codec = Floats(eight, row)
        encoding = Encoding(key, as_f32(tensor), codec)
        return [*(encoding.part(at, name) for at, name in zip(range(len(encoding.parts)), names, strict=False)), *more]

    def config(self, chosen: Mapping[str, Scheme], kept: Sequence[str]) -> dict[str, Any]:
        schemes = list(dict.fromkeys(chosen.values()))
        formats = {scheme: _format(scheme) for scheme in schemes}
        groups = {
            f"group_{number}": {
                "targets": ["Linear"] if len(schemes) == 1 else _targets(key for key, one in chosen.items() if one == scheme),
                "weights": _weights(scheme),
                "input_activations": None,
                "output_activations": None,
                "format": formats[scheme],
            }
            for number, scheme in enumerate(schemes)
        }
        return {
            "quantization_config": {
                "config_groups": groups,
                "format": formats[schemes[0]] if len(set(formats.values())) == 1 else "mixed-precision",
                "ignore": _ignored(kept),
                "quant_method": "compressed-tensors",
                "quantization_status": "compressed",
            }
        }

    def metadata(self, chosen: Mapping[str, Scheme]) -> dict[str, str]:
        return {}

    def find(
        self, tensors: Mapping[str, LazyTensor], config: Mapping[str, Any] | None, metadata: Mapping[str, str]
    ) -> list[Quantized]:
        return compressed_found.find(self.name, tensors, config)


def _constant(key: str, name: str, values: Any) -> LazyTensor:
    """A small tensor whose values are known."""
    row: DType = dtype(name)
    return LazyTensor.contiguous(key, row, values.shape, MemoryBytes(values.tobytes(), key), 0)


def _targets(keys: Iterable[str]) -> list[str]:
    """Modules by their names. transformers knows the group of the experts by a pattern that says so."""
    modules = [key.removesuffix(".weight") for key in keys]
    alone = all(".experts." in module for module in modules)
    return [f"re:^{re.escape(module)}$" for module in modules] if alone else modules


def _ignored(keys: Iterable[str]) -> list[str]:
    """Modules that are not quantized. Of a stack of experts the matrices that runtimes make of it."""
    found = []
    for key in keys:
        module, _, stack = key.removesuffix(".weight").rpartition(".")
        if module.endswith("experts"):
            found.append(f"re:{re.escape(module)}[.].*")
        elif key.endswith(".weight"):
            found.append(f"{module}.{stack}" if module else stack)
    return list(dict.fromkeys(found))


def _format(scheme: Scheme) -> str:
    if scheme.name in _FLOATS:
        return _FLOATS[scheme.name][0]
    return "pack-quantized" if scheme.name in _BITS else "float-quantized"


def _weights(scheme: Scheme) -> dict[str, Any]:
    """One scheme as compressed-tensors' QuantizationArgs."""
    grouped = isinstance(scheme.group, int)
    strategy = "tensor_group" if scheme.name == "nvfp4" else "group" if grouped else scheme.group
    found: dict[str, Any] = {
        "num_bits": _BITS.get(scheme.name, 4 if scheme.name in _FLOATS else 8),
        "type": "int" if scheme.name in _BITS else "float",
        "symmetric": scheme.symmetric,
        "group_size": scheme.group if grouped else None,
        "strategy": strategy,
        "block_structure": [128, 128] if scheme.group == "block" else None,
        "dynamic": False,
        "actorder": None,
        "observer": "mse" if scheme.searches else "minmax",
        "observer_kwargs": {},
    }
    if scheme.name in _FLOATS:
        found["scale_dtype"] = "torch.float8_e4m3fn" if scheme.name == "nvfp4" else "torch.uint8"
    return found


LAYOUT = CompressedTensors()
