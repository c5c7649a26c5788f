"""GPTQ's layout, which vLLM, GPTQModel and transformers load: codes packed along the inputs, parts transposed.

Of a weight [O, I], under the name of its module: `qweight` i32 [I * b / 32, O], `qzeros` i32 [I / g, O * b / 32], `scales`
[I / g, O], `g_idx` i32 [I], the group of each input. Code j of a column lies at bit j * b, low end first. Version 1
("checkpoint_format": "gptq") stores zero points less one, version 2 ("gptq_v2") as they are.
Sources: AutoGPTQ's auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py; what is told in config.json: GPTQConfig of transformers
5.23, quantization/auto_gptq.py and utils/gptq_utils.py of vLLM, quantization/config.py of GPTQModel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.bytesource import MemoryBytes
from wtool.dtypes import DType, dtype
from wtool.errors import CorruptError, UsageError
from wtool.kernels.affine import Affine
from wtool.kernels.packing import pack, unpack
from wtool.layout import Quantized, Scheme, Seen, Wanted
from wtool.layouts.codecs import as_f32
from wtool.layouts.columns import is_gptq, misfit, turned
from wtool.layouts.telling import damaged, told_of, usual_scheme
from wtool.quantized import Encoding, Part, decoded
from wtool.tensor import LazyTensor

Array = NDArray[Any]

_BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}
_STEM = ".qweight"


@dataclass(frozen=True)
class Rows:
    """Rows of a weight as GPTQ has them, not transposed: `packed` [O, I * b / 32], `scale` [O, groups] and, where zero points
    are stored, `zero_point` [O * b / 32, groups], each less `less`. `order`: the group (i32) of each column, if not in turn.
    """

    affine: Affine
    groups: int
    zeros: bool = False
    less: int = 1
    order: bytes = b""

    @property
    def step(self) -> int:
        return 32 // gcd(32, self.affine.bits) if self.zeros else 1

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        bits, i32, groups = self.affine.bits, dtype("i32"), self._groups(columns)
        wide = columns * bits // 32
        found = (
            Part("packed", i32, (rows, wide), self.step * wide * 4),
            Part("scale", self.affine.dtype, (rows, groups), self.step * groups * self.affine.dtype.itemsize),
        )
        zeros = Part("zero_point", i32, (rows * bits // 32, groups), self.step * bits // 32 * groups * 4)
        return (*found, zeros) if self.zeros else found

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        codes, scales, _ = self.affine.encode(x)
        return pack(codes, self.affine.bits), scales

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        codes, scales, zeros = self._found(parts, columns)
        if not self.order:
            return self.affine.decode(codes, scales, zeros)
        order = np.frombuffer(self.order, np.int32)
        values = codes.astype(np.float32)
        if zeros is not None:
            values -= zeros.astype(np.float32)[:, order]
        values *= scales.astype(np.float32)[:, order]
        return values

    def ends(self, parts: Sequence[Array], row: int, columns: int) -> tuple[Array, Array]:
        _, scales, zeros = self._found(parts, columns)
        wide = scales.astype(np.float32)
        shift = np.float32(0) if zeros is None else zeros.astype(np.float32)
        return (np.float32(self.affine.lowest - 0.5) - shift) * wide, (np.float32(self.affine.highest + 0.5) - shift) * wide

    def _found(self, parts: Sequence[Array], columns: int) -> tuple[Array, Array, Array | None]:
        bits, groups = self.affine.bits, self._groups(columns)
        scales = parts[1].reshape(-1, groups)
        codes = unpack(parts[0].reshape(len(scales), -1), bits, columns)
        if not self.zeros:
            return codes, scales, None
        stored = unpack(parts[2].reshape(-1, groups), bits, len(codes), axis=0, signed=False)
        # 0 is stored as -1, of which only the low bits are left: AutoGPTQ masks after it has added one.
        zeros = ((stored + np.uint8(self.less)) & np.uint8((1 << bits) - 1)) - np.uint8(1 << bits - 1)
        return codes, scales, zeros.view(np.int8)

    def _groups(self, columns: int) -> int:
        return columns // self.affine.group if self.affine.group else self.groups


class Gptq:
    name = "gptq"
    formats = ("safetensors",)
    schemes = ("int8", "int4", "int3", "int2")

    def settle(self, scheme: Scheme) -> Scheme:
        if scheme.name not in self.schemes:
            raise UsageError(f"{self.name} has no scheme {scheme.name}", hint="it has " + ", ".join(self.schemes))
        if not scheme.symmetric:
            raise UsageError(f"{self.name} is written symmetric: runtimes refuse the rest of version 1", hint="--layout awq")
        group = scheme.group or 128
        if group not in (32, 64, 128):
            raise UsageError(f"{self.name} has no {scheme}", hint="groups of 32, 64 or 128")
        return replace(scheme, group=group, method="mse" if scheme.searches else "rtn")

    def wants(self, scheme: Scheme) -> Wanted | None:
        return None

    def refuses(self, scheme: Scheme, tensor: LazyTensor) -> str | None:
        return misfit(tensor, scheme, 32 // gcd(32, _BITS[scheme.name]))

    def parts(self, tensor: LazyTensor, scheme: Scheme, seen: Seen | None) -> list[LazyTensor]:
        assert isinstance(scheme.group, int)
        outputs, inputs = tensor.shape
        bits, group = _BITS[scheme.name], scheme.group
        affine = Affine(bits, group, True, scale_dtype(tensor.dtype), scheme.searches)
        encoding = Encoding(tensor.key, as_f32(tensor), Rows(affine, 0))
        stem = tensor.key.removesuffix(".weight")
        zeros = pack(np.full((1, outputs), (1 << bits - 1) - 1, np.uint8), bits)
        groups = MemoryBytes((np.arange(inputs, dtype="<i4") // group).tobytes(), "groups")
        i32, shape = dtype("i32"), (inputs // group, zeros.shape[1])
        return [
            turned(encoding.part(0, f"{stem}.qweight")),
            LazyTensor.strided(f"{stem}.qzeros", i32, shape, MemoryBytes(zeros.tobytes(), "zero points"), 0, (0, 1)),
            turned(encoding.part(1, f"{stem}.scales")),
            LazyTensor.contiguous(f"{stem}.g_idx", i32, (inputs,), groups, 0),
        ]

    def config(self, chosen: Mapping[str, Scheme], kept: Sequence[str]) -> dict[str, Any]:
        usual = usual_scheme(chosen)
        modules = {key.removesuffix(".weight"): scheme for key, scheme in chosen.items()}
        others = {name: scheme for name, scheme in modules.items() if (scheme.name, scheme.group) != (usual.name, usual.group)}
        left = [key.removesuffix(".weight") for key in kept]
        found: dict[str, Any] = {
            "quant_method": "gptq",
            "checkpoint_format": "gptq",
            "bits": _BITS[usual.name],
            "group_size": usual.group,
            "desc_act": False,
            "sym": True,
            "lm_head": "lm_head" in modules,
        }
        rules: dict[str, dict[str, Any]] = {f"-:^{re.escape(name)}$": {} for name in left}
        for name, scheme in others.items():
            rules[f"+:^{re.escape(name)}$"] = {"bits": _BITS[scheme.name], "group_size": scheme.group}
        if rules:
            found["dynamic"] = rules
        if any(re.search(r"\.\d+\.", name) for name in left):  # else a loader takes all of a block's for quantized
            found["modules_in_block_to_quantize"] = [list(modules)]
        return {"quantization_config": found}

    def metadata(self, chosen: Mapping[str, Scheme]) -> dict[str, str]:
        return {}

    def find(
        self, tensors: Mapping[str, LazyTensor], config: Mapping[str, Any] | None, metadata: Mapping[str, str]
    ) -> list[Quantized]:
        told = told_of(config)
        found = []
        for key, packed in tensors.items():
            stem = key.removesuffix(_STEM)
            zeros, scales = tensors.get(f"{stem}.qzeros"), tensors.get(f"{stem}.scales")
            if stem == key or zeros is None or scales is None or not is_gptq(packed, zeros, scales):
                continue
            found.append(_found(stem, packed, zeros, scales, tensors.get(f"{stem}.g_idx"), told))
        return found


def _found(
    stem: str, packed: LazyTensor, zeros: LazyTensor, scales: LazyTensor, index: LazyTensor | None, told: Mapping[str, Any]
) -> Quantized:
    key = f"{stem}.weight"
    groups, outputs = scales.shape
    bits = next((b for b in _BITS.values() if zeros.shape == (groups, outputs * b // 32) and outputs * b % 32 == 0), None)
    if bits is None or zeros.dtype is not packed.dtype or packed.shape[0] * 32 % bits:
        raise damaged(key, zeros, scales)
    inputs = packed.shape[0] * 32 // bits
    if not 0 < groups <= inputs or scales.dtype.name not in ("f16", "bf16", "f32"):
        raise damaged(key, packed, scales)
    if index is not None and (index.shape != (inputs,) or index.dtype.name not in ("i32", "i64")):
        raise damaged(key, packed, index)
    parts = [packed, zeros, scales, *([] if index is None else [index])]
    size = told.get("group_size")
    group = size if isinstance(size, int) and size > 0 and -(-inputs // size) == groups else -(-inputs // groups)

    def dense() -> LazyTensor:
        order = _order(key, index, inputs, groups, group)
        even = not order and inputs % groups == 0
        affine = Affine(bits, inputs // groups if even else None, False, scales.dtype)
        codec = Rows(affine, groups, True, _less(zeros, bits, told), order)
        return decoded(key, [turned(packed), turned(scales), turned(zeros)], codec, (outputs, inputs))

    scheme = Scheme(f"int{bits}", group if groups > 1 else "channel", told.get("sym") is not False)
    names = tuple(part.key for part in parts)
    size_of = sum(part.nbytes for part in parts)
    return Quantized(key, (outputs, inputs), scales.dtype, Gptq.name, str(scheme), names, size_of, dense)


def _order(key: str, index: LazyTensor | None, inputs: int, groups: int, group: int) -> bytes:
    """The group of each column, where columns do not lie group by group, all of one size. CorruptError."""
    usual = np.arange(inputs, dtype=np.int32) // group
    order = usual if index is None else index.array()
    if order.min() < 0 or order.max() >= groups:
        raise CorruptError(f"'{key}', stored quantized, is damaged: its g_idx names groups other than {groups} there are")
    even = inputs % groups == 0 and np.array_equal(order, np.arange(inputs) // (inputs // groups))
    return b"" if even else order.astype(np.int32).tobytes()


def _less(zeros: LazyTensor, bits: int, told: Mapping[str, Any]) -> int:
    """What stored zero points lack: 1 in version 1, 0 in version 2.

    Of symmetric weights all are the middle code, and tell it themselves: there are files that are of version 2 and are said
    to be of version 1.
    """
    claim = 0 if str(told.get("checkpoint_format", told.get("format", ""))).lower() == "gptq_v2" else 1
    if told.get("sym") is False:
        return claim
    many = 32 // gcd(32, bits) * bits // 32  # words that hold whole codes
    words = zeros.flat(0, min(zeros.elements, 1 << 16) // many * many)
    stored = unpack(words.reshape(1, -1), bits, len(words) * 32 // bits, signed=False)
    middle = 1 << bits - 1
    if (stored == stored[0, 0]).all() and stored[0, 0] in (middle - 1, middle):
        return middle - int(stored[0, 0])
    return claim


def scale_dtype(row: DType) -> DType:
    """What runtimes of half types compute with: bf16 for weights of bf16, else f16."""
    return row if row.name == "bf16" else dtype("f16")


LAYOUT = Gptq()
