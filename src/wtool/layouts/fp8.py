"""Small floats as others store them: DeepSeek's FP8 blocks, FP8 with scales beside, ModelOpt's NVFP4. Only read.

    DeepSeek V3     weight f8_e4m3 [O, I], weight_scale_inv f32 [ceil(O / 128), ceil(I / 128)]: w = code * scale_inv
    ModelOpt NVFP4  weight u8 [O, I / 2], weight_scale f8_e4m3 [O, I / 16], weight_scale_2 f32: w = code * scale * scale_2,
                    the reciprocal of compressed-tensors' weight_global_scale

FP8 weights with weight_scale are found as compressed-tensors' own, whoever wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wtool.dtypes import dtype
from wtool.kernels.minifloat import NvFloat4
from wtool.layout import Quantized, Scheme
from wtool.layouts.compressed_found import beside, damaged, eight, made
from wtool.layouts.floats import NvFloats
from wtool.layouts.reading import Reading
from wtool.tensor import LazyTensor


class SmallFloats(Reading):
    name = "fp8"

    def find(
        self, tensors: Mapping[str, LazyTensor], config: Mapping[str, Any] | None, metadata: Mapping[str, str]
    ) -> list[Quantized]:
        found = []
        for key, codes in tensors.items():
            scale, inverse, second = (tensors.get(f"{key}_{name}") for name in ("scale", "scale_inv", "scale_2"))
            if len(codes.shape) != 2 or not codes.elements:
                continue
            if inverse is not None and codes.dtype.name in ("f8_e4m3", "f8_e5m2"):
                found.append(eight(self.name, key, codes, inverse, beside(key, tensors)))
            elif second is not None and scale is not None and codes.dtype.name == "u8" and scale.dtype.name == "f8_e4m3":
                found.append(self._modelopt(key, codes, scale, second, beside(key, tensors)))
        return found

    def _modelopt(
        self, key: str, codes: LazyTensor, scale: LazyTensor, second: LazyTensor, more: list[LazyTensor]
    ) -> Quantized:
        if scale.shape != (codes.shape[0], codes.shape[1] / 8):
            raise damaged(key, f"scales of shape {list(scale.shape)} do not fit codes of {list(codes.shape)}")
        if second.elements != 1 or not second.dtype.floating:
            raise damaged(key, f"its weight_scale_2 is {second.dtype} {list(second.shape)}")
        size = (codes.shape[0], 2 * codes.shape[1])
        codec = NvFloats(NvFloat4(dtype("f32")), float(second.array().reshape(-1)[0]), reciprocal=True)
        return made("modelopt", key, size, dtype("bf16"), Scheme("nvfp4", 16), [codes, scale], codec, [second, *more])


LAYOUT = SmallFloats()
