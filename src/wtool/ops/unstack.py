"""Stacks of experts become the matrices that a layout's runtimes look for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from wtool.checkpoint import Checkpoint
from wtool.tensor import LazyTensor


@dataclass(frozen=True)
class Unstack:
    """Every tensor that is a key of `pieces` becomes these, in its place."""

    pieces: Mapping[str, Sequence[LazyTensor]] = field(repr=False)

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        tensors: dict[str, LazyTensor] = {}
        for key, tensor in checkpoint.tensors.items():
            tensors |= {one.key: one for one in self.pieces.get(key, (tensor,))}
        sections = tuple(
            replace(section, keys=tuple(new for key in section.keys for new in self._keys(key)))
            for section in checkpoint.sections
        )
        history = (*checkpoint.history, self)
        return replace(checkpoint, tensors=tensors, sections=sections, structure=None, history=history)

    def _keys(self, key: str) -> list[str]:
        return [one.key for one in self.pieces[key]] if key in self.pieces else [key]
