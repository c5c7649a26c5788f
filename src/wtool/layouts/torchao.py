"""torchao's tensors, flattened as its safetensors support does. Only read.

Source: torchao 0.18, prototype/safetensors: of X.weight the tensors X._weight_qdata i8 or f8 [O, I], X._weight_scale and
X._weight_zero_point [O, groups]; w = (code - zero) * scale. Its metadata, which tells the classes, is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wtool.layout import Quantized
from wtool.layouts.compressed_found import F8, eight, plain_ints
from wtool.layouts.reading import Reading
from wtool.tensor import LazyTensor

_QDATA = "_qdata"


class Torchao(Reading):
    name = "torchao"

    def find(
        self, tensors: Mapping[str, LazyTensor], config: Mapping[str, Any] | None, metadata: Mapping[str, str]
    ) -> list[Quantized]:
        found = []
        for key, codes in tensors.items():
            module, _, leaf = key.rpartition("._")
            if not module or not leaf.endswith(_QDATA) or len(codes.shape) != 2 or not codes.elements:
                continue
            leaf = leaf.removesuffix(_QDATA)
            scale, zero = (tensors.get(f"{module}._{leaf}_{name}") for name in ("scale", "zero_point"))
            if scale is not None and codes.dtype.name in F8:
                found.append(eight(self.name, f"{module}.{leaf}", codes, scale))
            elif scale is not None and codes.dtype.name == "i8" and scale.dtype.floating:
                found.append(plain_ints(self.name, f"{module}.{leaf}", codes, scale, zero))
        return found


LAYOUT = Torchao()
