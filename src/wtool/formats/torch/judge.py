"""Loads what was written with PyTorch itself, as a user would: `torch.load(weights_only=True, mmap=True)`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from wtool.adapter import Judged
from wtool.dtypes import BY_TORCH
from wtool.errors import MissingExtraError, VerifyError
from wtool.formats.shards import INDEX
from wtool.sparse import TORCH_PARTS


def judge(path: str) -> Iterator[Judged]:
    """Every tensor, by the path of keys and indexes that leads to it, joined with dots, as the reader names it; of sparse
    ones the parts.

    `path` is a file, an index, or a folder with either. Raises MissingExtraError without PyTorch, VerifyError when it refuses
    the file.
    """
    try:
        import torch
    except ImportError:
        raise MissingExtraError(
            "PyTorch is not installed, and only it can check its own format", path=path, hint="pip install 'wtool[torch]'"
        ) from None
    for file in _files(path):
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # whatever it is, the file is not what PyTorch reads
            line = next(iter(str(error).splitlines()), type(error).__name__)
            raise VerifyError(f"torch.load refuses it: {line}", path=file) from error
        for key, tensor in _flat(loaded, torch.Tensor):
            for name, part in _parts(key, tensor):
                yield _judged(name, part)


def _flat(loaded: Any, kind: type) -> Iterator[tuple[str, Any]]:
    todo: list[tuple[str, Any]] = [("", loaded)]
    while todo:
        key, value = todo.pop()
        if isinstance(value, kind):
            yield key, value
            continue
        if isinstance(value, dict):
            inner = list(value.items())
        elif isinstance(value, list | tuple):
            inner = list(enumerate(value))
        else:
            continue
        todo += ((f"{key}.{name}" if key else str(name), item) for name, item in reversed(inner))


def _parts(key: str, tensor: Any) -> Iterator[tuple[str, Any]]:
    """The tensor, or, where it is sparse, those that it is made of."""
    names = TORCH_PARTS.get(str(tensor.layout))
    if names is None:
        yield key, tensor
        return
    for name in names:
        # What is not coalesced has its parts under other names only.
        yield f"{key}.{name}", getattr(tensor, f"_{name}" if str(tensor.layout) == "torch.sparse_coo" else name)()


def _judged(key: str, tensor: Any) -> Judged:
    import torch

    dtype = BY_TORCH[str(tensor.dtype).removeprefix("torch.")]
    flat = tensor.detach().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy() if flat.numel() else flat.new_empty(0, dtype=torch.uint8).numpy()
    return Judged(key, dtype.name, raw.view(dtype.numpy()).reshape(tuple(tensor.shape)))


def _files(path: str) -> list[str]:
    if os.path.isdir(path):
        names = sorted(os.listdir(path))
        index = next((name for name in names if name.endswith(INDEX)), None)
        if index is None:
            return [os.path.join(path, name) for name in names if name.endswith((".bin", ".pth", ".pt"))]
        path = os.path.join(path, index)
    if not path.endswith(INDEX):
        return [path]
    with open(path, encoding="utf-8") as file:
        shards = dict.fromkeys(json.load(file)["weight_map"].values())
    return [os.path.join(os.path.dirname(path), shard) for shard in shards]
