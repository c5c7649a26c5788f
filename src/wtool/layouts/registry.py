"""Which layouts there are; a module is imported when it is first asked."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from wtool.errors import UsageError
from wtool.layout import Layout, Quantized, looks_quantized
from wtool.tensor import LazyTensor

# In the order in which they are asked: those that say more of themselves first.
_BUILTIN = {
    "compressed-tensors": "wtool.layouts.compressed_tensors",
    "fp8": "wtool.layouts.fp8",
    "quanto": "wtool.layouts.quanto",
    "torchao": "wtool.layouts.torchao",
    "gguf": "wtool.layouts.gguf",
    "bnb": "wtool.layouts.bnb",
    "gptq": "wtool.layouts.gptq",
    "awq": "wtool.layouts.awq",
    "mlx": "wtool.layouts.mlx",
    "plain": "wtool.layouts.plain",
}


def names() -> list[str]:
    """Of the layouts that can be written."""
    return [name for name in _BUILTIN if layout(name).formats]


def layout(name: str) -> Layout:
    """The layout of that name. UsageError."""
    if name not in _BUILTIN:
        raise UsageError(f"there is no layout '{name}'", hint="one of " + ", ".join(names()))
    found: Layout = import_module(_BUILTIN[name]).LAYOUT
    return found


def find(
    tensors: Mapping[str, LazyTensor], config: Mapping[str, Any] | None, metadata: Mapping[str, str]
) -> dict[str, Quantized]:
    """Key of the dense tensor -> what is stored quantized; a part belongs to the first layout that claims it."""
    if not looks_quantized(tensors):
        return {}
    found: dict[str, Quantized] = {}
    taken: set[str] = set()
    for name in _BUILTIN:
        for one in layout(name).find(tensors, config, metadata):
            if one.key not in found and not taken.intersection(one.parts):
                found[one.key] = one
                taken.update(one.parts)
    return found
