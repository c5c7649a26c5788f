"""Tensors that are stored as several: their parts are told by the ends of their keys. docs/sparse.md describes the layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wtool.tensor import LazyTensor

METADATA = "wtool.sparse"  # where a format has metadata, how many tensors are stored in which layout
PARTS = {
    "bitmask": ("shape", "compressed", "bitmask", "row_offsets"),
    "csr": ("shape", "crow_indices", "col_indices", "values"),
}
# torch's own sparse tensors, of which a pickle holds the size beside the parts.
TORCH_PARTS = {
    "torch.sparse_coo": ("indices", "values"),
    "torch.sparse_csr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_bsr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_csc": ("ccol_indices", "row_indices", "values"),
    "torch.sparse_bsc": ("ccol_indices", "row_indices", "values"),
}
_DEEP = 64


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor stored as parts: its key, its layout ("bitmask", "csr" or torch's own), name of a part -> key.

    `size` is what torch says of the shape; the others have a part for it.
    """

    key: str
    layout: str
    parts: Mapping[str, str]
    size: tuple[int, ...] | None = None


def stored_sparse(tensors: Mapping[str, LazyTensor], extras: Mapping[str, Any]) -> list[Stored]:
    """What is stored sparse among the tensors, in their order. Looks at keys, dtypes and numbers of axes, never at values."""
    found = []
    for name in tensors:
        for layout, marker in (("bitmask", ".bitmask"), ("csr", ".crow_indices")):
            key = name.removesuffix(marker)
            if key != name and key:
                parts = {part: f"{key}.{part}" for part in PARTS[layout]}
                if all(whole in tensors for whole in parts.values()) and _looks(layout, tensors, parts):
                    found.append(Stored(key, layout, parts))
    ours = {stored.key for stored in found}
    for key, size, layout in _sizes(extras):
        parts = {part: f"{key}.{part}" for part in TORCH_PARTS[layout]}
        if key not in ours and all(whole in tensors for whole in parts.values()):
            found.append(Stored(key, layout, parts, size))
    place = {key: at for at, key in enumerate(tensors)}
    return sorted(found, key=lambda stored: min(place[key] for key in stored.parts.values()))


def _looks(layout: str, tensors: Mapping[str, LazyTensor], parts: Mapping[str, str]) -> bool:
    part = {name: tensors[key] for name, key in parts.items()}
    axes = {"bitmask": 2}
    if any(len(tensor.shape) != axes.get(name, 1) for name, tensor in part.items() if name != "shape"):
        return False  # CompressedTensors writes shapes of one or two axes
    whole = ("i64",) if layout == "bitmask" else ("i32", "i64")
    others = [name for name in part if name not in ("shape", "compressed", "values", "bitmask")]
    return (
        part["shape"].dtype.name == "i64"
        and all(part[name].dtype.name in whole for name in others)
        and ("bitmask" not in part or part["bitmask"].dtype.name == "u8")
    )


def _sizes(extras: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...], str]]:
    """Key, size and layout of each of torch's sparse tensors."""
    found = []
    stack: list[tuple[str, Mapping[str, Any], int]] = [("", extras, 0)]
    while stack:
        prefix, some, depth = stack.pop()
        for name, value in some.items():
            if isinstance(value, Mapping):
                layout, size = value.get("layout"), value.get("size")
                if isinstance(layout, str) and layout in TORCH_PARTS and isinstance(size, list | tuple):
                    if all(type(length) is int and length >= 0 for length in size):
                        found.append((f"{prefix}{name}", tuple(size), layout))
                elif depth < _DEEP:
                    stack.append((f"{prefix}{name}.", value, depth + 1))
    return found


def without_sizes(extras: Mapping[str, Any], keys: set[str], prefix: str = "") -> dict[str, Any]:
    """The extras without torch's notes on these tensors, and without what was only there to hold these."""
    found = {}
    for name, value in extras.items():
        key = f"{prefix}{name}"
        if key in keys and isinstance(value, Mapping):
            continue
        if isinstance(value, Mapping) and any(one.startswith(f"{key}.") for one in keys):
            value = without_sizes(value, keys, f"{key}.")
            if not value:
                continue
        found[name] = value
    return found
