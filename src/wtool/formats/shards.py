"""How a checkpoint is cut into several files: which tensors go where, the files' names, and the index.

Names, split and index are those of huggingface_hub (serialization/_base.py, `split_state_dict_into_shards_factory`, and
`save_torch_state_dict`), so that what is written here is what transformers and diffusers would have written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from wtool.errors import UnsafeError
from wtool.tensor import TensorSpec

INDEX = ".index.json"
SHARD = re.compile(r"(.+)-(\d{5,})-of-(\d{5,})(\.[A-Za-z0-9.]+)")


class Pattern(NamedTuple):
    """Names of files: `model` + `.safetensors`, or `model-00001-of-00003.safetensors`."""

    stem: str
    suffix: str

    def name(self, number: int = 1, total: int = 1) -> str:
        middle = "" if total == 1 else f"-{number:05d}-of-{total:05d}"
        return f"{self.stem}{middle}{self.suffix}"


WEIGHTS = Pattern("model", ".safetensors")


def split(specs: Iterable[TensorSpec], most: int | None, pattern: Pattern) -> dict[str, list[TensorSpec]]:
    """File name -> its tensors, in order, each file at most `most` bytes of values; None is one file.

    Greedy in the order given, as huggingface_hub's: a tensor larger than `most` has a file of its own, placed before the
    file that is being filled. Tensors without values all follow the first of them, since to huggingface_hub they share one
    (empty) storage.
    """
    shards: list[list[TensorSpec]] = []
    current: list[TensorSpec] = []
    filled = 0
    empty: list[TensorSpec] = []
    for spec in specs:
        nbytes = spec.nbytes
        if not nbytes:
            empty.append(spec)
            if len(empty) > 1:
                continue
        if most is not None and nbytes > most:
            shards.append([spec])
            continue
        if most is not None and filled + nbytes > most:
            shards.append(current)
            current, filled = [], 0
        current.append(spec)
        filled += nbytes
    if current or not shards:
        shards.append(current)
    if len(empty) > 1:
        home = next(shard for shard in shards if empty[0] in shard)
        home += empty[1:]
    return {pattern.name(number, len(shards)): shard for number, shard in enumerate(shards, 1)}


def index_file(shards: Mapping[str, list[TensorSpec]], metadata: Mapping[str, str], pattern: Pattern) -> tuple[str, bytes]:
    """Name and bytes of the index, byte for byte as huggingface_hub writes it."""
    total = sum(spec.nbytes for specs in shards.values() for spec in specs)
    weights = {spec.key: name for name, specs in shards.items() for spec in specs}
    table = {"metadata": {"total_size": total, **metadata}, "weight_map": weights}
    return pattern.name() + INDEX, json.dumps(table, indent=2).encode()


def plain_name(name: str) -> str:
    """The name of a shard that an index gives, if it stays in the index's folder. Else UnsafeError."""
    if not name or name in (".", "..") or any(mark in name for mark in "/\\:\0"):
        raise UnsafeError(f"names the shard {name[:120]!r}: a shard must be a file beside its index")
    return name
