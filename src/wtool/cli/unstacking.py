"""Which stacks of experts are taken apart before they are quantized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wtool.checkpoint import Checkpoint
    from wtool.layout import Layout
    from wtool.ops.quantize import Rules
    from wtool.tensor import LazyTensor


def unstacked(checkpoint: Checkpoint, rules: Sequence[Rules], layout: Layout) -> Checkpoint:
    """The checkpoint with the stacks taken apart of which `rules` would quantize anything then; else itself."""
    from wtool.layout import CASTS
    from wtool.ops.quantize import fates
    from wtool.ops.unstack import Unstack

    split = getattr(layout, "split", None)
    pieces: dict[str, list[LazyTensor]] = split(checkpoint.tensors) if split else {}
    if not pieces:
        return checkpoint
    whole = Unstack(pieces)(checkpoint)
    coded = {
        one.key
        for rule in rules
        for one in fates(whole.tensors, rule, layout)
        if one.scheme is not None and one.scheme.name not in CASTS
    }
    modules = {key: key.removesuffix(".weight").rpartition(".")[0] for key in pieces}
    wanted = {modules[key] for key, parts in pieces.items() if any(one.key in coded for one in parts)}
    some = {key: parts for key, parts in pieces.items() if modules[key] in wanted}
    return Unstack(some)(checkpoint) if some else checkpoint
