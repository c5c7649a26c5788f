"""Dense layers that may stand behind Flatten: torch flattens channels first, the others last, and no shape tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from wtool.errors import MapError
from wtool.maps.kinds import HUB
from wtool.maps.modules import Row
from wtool.maps.step import Wanted
from wtool.maps.steps import chain
from wtool.tensor import LazyTensor, Shape


def flat_doubts(rows: Iterable[Row], layouts: tuple[str, str], tensors: Mapping[str, LazyTensor]) -> list[str]:
    """A sentence for each dense layer whose inputs are several times the channels of the convolution before it.

    Only for layers whose kind was inferred; `rows` in the order of the keys. What stands in between cannot be seen.
    """
    if HUB not in layouts or layouts[0] == layouts[1]:
        return []
    found = []
    channels, conv = 0, ""
    for row in rows:
        shape = _in_torch(row, layouts, tensors)
        if row.kind.startswith(("conv", "depthwise", "separable")) and len(shape) > 2:
            channels, conv = shape[int("transpose" in row.kind)], row.sources[0]
        elif row.kind == "dense" and len(shape) == 2 and channels:
            times, rest = divmod(shape[1], channels)
            if not row.told and not rest and times > 1:
                found.append(
                    f"'{row.sources[0]}' has {shape[1]} inputs, {times} times the {channels} channels of '{conv}': behind "
                    f'Flatten it needs a rule with flatten = "{channels} H W"; a rule with kind = "dense" alone says '
                    "that it is not"
                )
            channels = 0
    return found


def _in_torch(row: Row, layouts: tuple[str, str], tensors: Mapping[str, LazyTensor]) -> Shape:
    """The shape of the first tensor of a row on torch's side; empty if it cannot be told yet."""
    here = [tensors[name] for name in row.sources]
    if layouts[0] == HUB or not row.kind:
        return here[0].shape
    try:
        return chain(row.steps, here, Wanted(len(row.targets)))[0].shape
    except MapError:
        return ()
