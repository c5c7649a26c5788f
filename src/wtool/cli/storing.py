"""`--store`: tensors that are mostly zero become smaller in the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wtool.errors import UsageError
from wtool.sizes import format_size

if TYPE_CHECKING:
    from wtool.checkpoint import Checkpoint
    from wtool.cli.console import Console


def check_layout(layout: str | None) -> None:
    """UsageError for a layout that there is not."""
    if layout is not None:
        from wtool.ops.store import LAYOUTS

        if layout not in LAYOUTS:
            raise UsageError(f"there is no layout '{layout}'", hint="--store " + ", ".join(LAYOUTS))


def stored(
    checkpoint: Checkpoint, layout: str, target: str, to: str | None, console: Console, jobs: int
) -> tuple[Checkpoint, dict[str, str]]:
    """The checkpoint with sparse tensors stored so, and what the output's metadata says of it. Reads all values once."""
    from wtool.analysis.counts import count
    from wtool.formats import registry
    from wtool.ops.store import Store
    from wtool.sparse import METADATA

    with console.progress("counting", checkpoint.nbytes) as advance:
        step = Store(layout, count(checkpoint.tensors, jobs, advance))
    found = step.layouts(checkpoint)
    if not found:
        console.note("no tensor is sparse enough to become smaller: all are stored dense")
        return checkpoint, {}
    smaller = step(checkpoint)
    console.note(
        f"{len(found):,} of {len(checkpoint):,} tensors are stored sparse, {format_size(smaller.nbytes)} for "
        f"{format_size(checkpoint.nbytes)}: no runtime reads that; `wtool convert --densify` gives them back"
    )
    told = registry.for_target(target, to).capabilities.metadata
    return smaller, {METADATA: step.metadata(checkpoint)} if told else {}
