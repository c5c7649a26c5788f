"""GGUF's types: blocks of a row with their scales in one tensor, under its own key. What llama.cpp and its kin compute with.

The file's other keys (architecture, tokenizer) are not made up: from a GGUF they are carried on, else it holds weights only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.errors import UsageError
from wtool.kernels.ggml import decoder
from wtool.kernels.ggml_encode import encode
from wtool.layout import Quantized, Scheme, Seen, Wanted
from wtool.layouts.codecs import as_f32
from wtool.quantized import LONGEST, Encoding, Part, decoded
from wtool.tensor import LazyTensor

Array = NDArray[Any]


@dataclass(frozen=True)
class Blocks:
    """Rows of blocks: one part, of the block type itself."""

    row: DType
    method: str = "rtn"
    step: int = 1

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        return (Part("blocks", self.row, (rows, columns), self.row.nbytes(columns)),)

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        return (encode(self.row.name, x, self.method),)

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        rows = len(parts[0]) // self.row.nbytes(columns)
        values = np.empty((rows, columns), np.float32)
        decoder(self.row)(parts[0], values.reshape(-1))
        return values


class Gguf:
    name = "gguf"
    formats = ("gguf",)
    schemes = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k", "mxfp4")

    def settle(self, scheme: Scheme) -> Scheme:
        if scheme.name not in self.schemes:
            raise UsageError(f"GGUF has no scheme {scheme.name}", hint="it has " + ", ".join(self.schemes))
        if scheme.group is not None or not scheme.symmetric:
            raise UsageError(f"{scheme.name} has its own blocks and offsets: {scheme} cannot be asked for")
        return replace(scheme, method="mse" if scheme.searches else "rtn")

    def wants(self, scheme: Scheme) -> Wanted | None:
        return None

    def refuses(self, scheme: Scheme, tensor: LazyTensor) -> str | None:
        block, columns = dtype(scheme.name).block, tensor.shape[-1]
        if block is not None and columns % block[0]:
            return f"rows of {columns:,} are no blocks of {block[0]}"
        return f"rows longer than {LONGEST:,}" if columns > LONGEST else None

    def parts(self, tensor: LazyTensor, scheme: Scheme, seen: Seen | None) -> list[LazyTensor]:
        row = dtype(scheme.name)
        part = Encoding(tensor.key, as_f32(tensor), Blocks(row, scheme.method or "rtn")).part(0, tensor.key)
        return [replace(part, spec=replace(part.spec, shape=tensor.shape))]

    def config(self, chosen: Mapping[str, Scheme], kept: Sequence[str]) -> dict[str, Any]:
        return {}

    def metadata(self, chosen: Mapping[str, Scheme]) -> dict[str, str]:
        return {}

    def find(
        self, tensors: Mapping[str, LazyTensor], config: Mapping[str, Any] | None, metadata: Mapping[str, str]
    ) -> list[Quantized]:
        found = []
        for key, tensor in tensors.items():
            row = tensor.dtype
            if row.block is None or not tensor.elements or not tensor.shape or tensor.shape[-1] % row.block[0]:
                continue
            dense = partial(decoded, key, (tensor,), Blocks(row), tensor.shape)
            found.append(Quantized(key, tensor.shape, dtype("f32"), self.name, row.name, (key,), tensor.nbytes, dense))
        return found


LAYOUT = Gguf()
