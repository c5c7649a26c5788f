"""MLX's layout, which mlx-lm loads: codes in words of 32 bits, and what its modes have beside them.

Of a weight [.., O, I], under the name of its module: `weight` u32 [.., O, I * b / 32], code j of a row at bits j * b, low end
first; `scales` and `biases` [.., O, I / g] in the weight's dtype, w = code * scale + bias (mode affine). Modes mxfp4, mxfp8
(groups of 32) and nvfp4 (of 16, no global scale) have `scales` u8 and no biases.
Source: mlx 0.32 (mx.quantize, nn/layers/quantized.py), load_model of mlx-lm's utils.py, which reads `model*.safetensors` and,
of config.json, "quantization": {"group_size", "bits", "mode", and by path of a module the same, or false}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import dtype
from wtool.errors import UnsupportedError, UsageError
from wtool.kernels.biased import Biased
from wtool.kernels.minifloat import MxFloat4, MxFloat8, NvFloat4
from wtool.kernels.packing import pack, unpack
from wtool.layout import Quantized, Scheme, Seen, Wanted, parse_scheme
from wtool.layouts.codecs import as_f32, weight_dtype
from wtool.layouts.floats import MxFloats, MxFloats8, NvFloats
from wtool.layouts.telling import damaged, usual_scheme
from wtool.quantized import LONGEST, Codec, Encoding, Part, decoded
from wtool.tensor import LazyTensor
from wtool.views import reshape

Array = NDArray[Any]

_BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}
_GROUPS = (64, 32, 128)
_READ = (2, 3, 4, 5, 6, 8)
_U32 = dtype("u32")
_F32 = dtype("f32")


@dataclass(frozen=True)
class Rows:
    """`weight` u32 [O, I * b / 32], `scales` and `biases` [O, I / group]."""

    biased: Biased
    step: int = 1

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        words, groups = columns * self.biased.bits // 32, columns // self.biased.group
        item = self.biased.dtype.itemsize
        scales = [Part(name, self.biased.dtype, (rows, groups), groups * item) for name in ("scales", "biases")]
        return (Part("weight", _U32, (rows, words), words * 4), *scales)

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        codes, scales, biases = self.biased.encode(x)
        return pack(codes, self.biased.bits), scales, biases

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        scales, biases = (part.reshape(-1, columns // self.biased.group) for part in parts[1:])
        words = parts[0].reshape(len(scales), -1).view(np.int32)
        return self.biased.decode(unpack(words, self.biased.bits, columns, signed=False), scales, biases)

    def ends(self, parts: Sequence[Array], row: int, columns: int) -> tuple[Array, Array]:
        scales, biases = (part.reshape(-1, columns // self.biased.group).astype(np.float32) for part in parts[1:])
        one = biases - np.float32(0.5) * scales
        two = biases + np.float32((1 << self.biased.bits) - 0.5) * scales
        return np.minimum(one, two), np.maximum(one, two)  # scales may be negative


@dataclass(frozen=True)
class Words:
    """A codec of two parts of bytes as mlx has them: the first in words of 32 bits, the second in u8."""

    inner: Codec
    step: int = 1

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        codes, scales = self.inner.parts(rows, columns)
        weight = Part("weight", _U32, (rows, codes.nbytes // rows // 4), codes.chunk)
        return weight, Part("scales", dtype("u8"), scales.shape, scales.chunk)

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        return self.inner.encode(x, row)

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        kinds = [part.dtype.numpy() for part in self.inner.parts(1, columns)]
        return self.inner.decode([part.view(kind) for part, kind in zip(parts, kinds, strict=True)], row, columns)


class Mlx:
    name = "mlx"
    formats = ("safetensors",)
    schemes = (*_BITS, "mxfp4")

    def settle(self, scheme: Scheme) -> Scheme:
        if scheme.name not in self.schemes:
            raise UsageError(f"{self.name} has no scheme {scheme.name}", hint="it has " + ", ".join(self.schemes))
        if scheme.name == "mxfp4":
            if scheme.group not in (None, 32) or not scheme.symmetric:
                raise UsageError(f"{self.name} has no {scheme}", hint="mxfp4 has groups of 32")
            return replace(scheme, group=32, method="mse" if scheme.searches else "rtn")
        group = scheme.group or _GROUPS[0]
        if group not in _GROUPS:
            raise UsageError(f"{self.name} has no {scheme}", hint="groups of 32, 64 or 128")
        return replace(scheme, group=group, symmetric=False, method="mse" if scheme.searches else "rtn")

    def wants(self, scheme: Scheme) -> Wanted | None:
        return None

    def refuses(self, scheme: Scheme, tensor: LazyTensor) -> str | None:
        assert isinstance(scheme.group, int)
        if not tensor.key.endswith(".weight"):
            return "its key does not end in .weight"
        if not tensor.elements or len(tensor.shape) > 3:
            return "of more than three axes" if tensor.elements else "empty"
        if tensor.shape[-1] % scheme.group:
            return f"rows of {tensor.shape[-1]:,} are no groups of {scheme.group}"
        return f"rows longer than {LONGEST:,}" if tensor.shape[-1] > LONGEST else None

    def parts(self, tensor: LazyTensor, scheme: Scheme, seen: Seen | None) -> list[LazyTensor]:
        assert isinstance(scheme.group, int)
        row, search = weight_dtype(tensor.dtype), scheme.method == "mse"
        codec: Codec = Words(MxFloats(MxFloat4(row, search)))
        if scheme.name in _BITS:
            codec = Rows(Biased(_BITS[scheme.name], scheme.group, row, search))
        encoding = Encoding(tensor.key, as_f32(tensor), codec)
        stem, lead = tensor.key.removesuffix("weight"), tensor.shape[:-1]
        return [reshape(encoding.part(at, stem + part.name), (*lead, part.shape[1])) for at, part in enumerate(encoding.parts)]

    def config(self, chosen: Mapping[str, Scheme], kept: Sequence[str]) -> dict[str, Any]:
        usual = usual_scheme(chosen)
        told: dict[str, Any] = {**_told(usual), "mode": usual.name if usual.name not in _BITS else "affine"}
        for key, scheme in chosen.items():
            if (scheme.name, scheme.group) != (usual.name, usual.group):
                mode = {} if scheme.name in _BITS and usual.name in _BITS else {"mode": _mode(scheme)}
                told[key.removesuffix(".weight")] = {**_told(scheme), **mode}
        told |= {key.removesuffix(".weight"): False for key in kept}
        return {"quantization": told, "quantization_config": told}

    def metadata(self, chosen: Mapping[str, Scheme]) -> dict[str, str]:
        return {"format": "mlx"}

    def find(
        self, tensors: Mapping[str, LazyTensor], config: Mapping[str, Any] | None, metadata: Mapping[str, str]
    ) -> list[Quantized]:
        told = _told_of(config, metadata)
        found = []
        for key, words in tensors.items():
            stem = key.removesuffix(".weight")
            scales, biases = tensors.get(f"{stem}.scales"), tensors.get(f"{stem}.biases")
            if stem == key or scales is None or words.dtype is not _U32 or not words.elements:
                continue
            if len(words.shape) < 2 or scales.shape[:-1] != words.shape[:-1] or not scales.elements:
                raise damaged(key, words, scales)
            found.append(_affine(stem, words, scales, biases, told) if biases is not None else _floats(stem, words, scales))
        return found


def _affine(stem: str, words: LazyTensor, scales: LazyTensor, biases: LazyTensor, told: Mapping[str, Any]) -> Quantized:
    key, wide, groups = words.key, words.shape[-1], scales.shape[-1]
    fits = biases.shape == scales.shape and biases.dtype is scales.dtype and scales.dtype.name in ("f32", "f16", "bf16")
    pairs = [(b, g) for g in _GROUPS for b in _READ if groups * g * b == wide * 32]
    if not fits or not pairs:
        raise damaged(key, words, scales, biases)
    one = told.get(stem)
    one = one if isinstance(one, dict) else told
    said = (one.get("bits"), one.get("group_size"))
    if said != (None, None) and said not in pairs:
        raise damaged(key, words, scales)
    bits, group = said if said in pairs else pairs[0]
    sure = said in pairs or len(pairs) == 1
    shape = (*words.shape[:-1], groups * group)
    codec = Rows(Biased(bits, group, scales.dtype))

    def dense() -> LazyTensor:
        if not sure:
            ways = ", ".join(f"{b} bits in groups of {g}" for b, g in pairs)
            hint = "config.json beside it says so under 'quantization': open the folder"
            raise UnsupportedError(f"'{key}', stored by mlx, may be {ways}: nothing tells which", hint=hint)
        return decoded(key, [words, scales, biases], codec, shape)

    scheme = str(Scheme(f"int{bits}", group, False))
    parts = (words, scales, biases)
    return Quantized(
        key, shape, scales.dtype, Mlx.name, scheme, tuple(one.key for one in parts), sum(one.nbytes for one in parts), dense
    )


def _floats(stem: str, words: LazyTensor, scales: LazyTensor) -> Quantized:
    ways: dict[int, tuple[Scheme, Codec]] = {
        4: (Scheme("mxfp4", 32), MxFloats(MxFloat4(_F32))),
        8: (Scheme("mxfp8", 32), MxFloats8(MxFloat8())),
        2: (Scheme("nvfp4", 16), NvFloats(NvFloat4(_F32), 1.0)),
    }
    words_each, rest = divmod(words.shape[-1], scales.shape[-1])
    if rest or words_each not in ways or scales.dtype.name != "u8":
        raise damaged(words.key, words, scales)
    scheme, inner = ways[words_each]
    assert isinstance(scheme.group, int)
    shape, codec = (*words.shape[:-1], scales.shape[-1] * scheme.group), Words(inner)
    parts = (words, scales)
    return Quantized(
        words.key,
        shape,
        dtype("bf16"),
        Mlx.name,
        str(scheme),
        tuple(part.key for part in parts),
        sum(part.nbytes for part in parts),
        lambda: decoded(words.key, parts, codec, shape),
    )


def _told(scheme: Scheme) -> dict[str, Any]:
    return {"group_size": scheme.group, "bits": _BITS.get(scheme.name, 4)}


def _mode(scheme: Scheme) -> str:
    return "affine" if scheme.name in _BITS else scheme.name


def _told_of(config: Mapping[str, Any] | None, metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """What config.json says, or, where there is none, what wtool said in the file."""
    for name in ("quantization", "quantization_config"):
        found = (config or {}).get(name)
        if isinstance(found, dict) and "bits" in found:
            return found
    try:
        said = json.loads(metadata.get("wtool.quantized", "{}"))
        if said["layout"] != Mlx.name:
            return {}
        (text,) = said["schemes"]
        scheme = parse_scheme(str(text))
    except (ValueError, TypeError, KeyError, UsageError):  # not ours, or of several schemes
        return {}
    return _told(scheme)


LAYOUT = Mlx()
