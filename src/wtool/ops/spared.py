"""Which tensors an operation that loses something leaves alone, unless it is told otherwise: norms, biases, embeddings."""

from __future__ import annotations

import re
from functools import cache

from wtool.keys import SEPARATORS, short_key
from wtool.tensor import LazyTensor

_WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_NORMS = frozenset(["norm", "ln", "bn", "gn", "layernorm", "batchnorm", "groupnorm", "instancenorm", "rmsnorm"])
_EMBEDDINGS = frozenset(["embedding", "embeddings", "embeds"])


def no_weights(tensor: LazyTensor) -> str:
    """Why a tensor holds no weights that could be changed; empty if it does."""
    row = tensor.dtype
    if not tensor.elements:
        return "empty"
    if row.kind == "complex":
        return "complex"
    if not row.floating:
        return f"{row}: no weights"
    if not row.itemsize:
        return f"{row}: packed"
    return "scales of other tensors" if row.name == "f8_e8m0" else ""


def spared(key: str, tensor: LazyTensor) -> str:
    """Why weights are better left as they are: they are a norm's, a bias or an embedding; empty if they are none."""
    parts = re.split(f"[{re.escape(SEPARATORS)}]", short_key(key))
    leaf, module = words(parts[-1]), words(parts[-2]) if len(parts) > 1 else frozenset()
    if leaf & {"bias", "biases", "beta"}:
        return "a bias"
    if len(tensor.shape) < 2:
        norm = (leaf | module) & _NORMS or any(word.endswith("norm") for word in module)
        return "a norm" if norm or leaf & {"gamma"} else "of fewer than two axes"
    if module & _NORMS:
        return "a norm"
    return "an embedding" if (leaf | module) & _embeddingwords() else ""


def words(part: str) -> frozenset[str]:
    return frozenset(word.lower() for word in _WORD.findall(part))


@cache
def _embeddingwords() -> frozenset[str]:
    from wtool.maps.kinds import shipped

    return _EMBEDDINGS.union(shipped()["embedding"].words)
