"""`--store`: tensors that are mostly zero become smaller in the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from wtool.cli import options
from wtool.errors import UsageError
from wtool.sizes import format_size

if TYPE_CHECKING:
    from wtool.checkpoint import Checkpoint
    from wtool.cli.console import Console


Layout = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="LAYOUT",
        help="Store tensors that are mostly zero as what is left: bitmask, csr, auto (the smaller) or dense; wtool reads it "
        "back with --densify, runtimes do not. torch-csr, torch-coo: torch's own sparse tensors, in a .pth.",
        autocompletion=options.one_of("dense", "bitmask", "csr", "auto", "torch-csr", "torch-coo"),
    ),
]


def check_layout(layout: str | None, target: str, to: str | None, shard: int | None = None) -> None:
    """UsageError for a layout that there is not, or not in this format."""
    if layout is None:
        return
    from wtool.formats import registry
    from wtool.ops.store import LAYOUTS, TORCH

    if layout not in LAYOUTS:
        raise UsageError(f"there is no layout '{layout}'", hint="--store " + ", ".join(LAYOUTS))
    if layout in TORCH:
        adapter = registry.for_target(target, to)
        if not adapter.capabilities.sparse:
            hint = "a .pth holds them; bitmask, csr and auto go into every format"
            raise UsageError(f"--store {layout} is of torch's own tensors, which {adapter.name} does not have", hint=hint)
        if shard is not None:
            raise UsageError(f"--store {layout} goes into one file: no --max-shard")


def dense(checkpoint: Checkpoint, console: Console) -> Checkpoint:
    """A checkpoint of which the tensors that are stored sparse have been made dense, for commands that look at weights."""
    from wtool.ops.densify import Densify
    from wtool.sparse import stored_sparse

    found = stored_sparse(checkpoint.tensors, checkpoint.extras)
    if not found:
        return checkpoint
    many = "1 tensor is stored sparse, and" if len(found) == 1 else f"{len(found):,} tensors are stored sparse, and"
    console.note(f"{checkpoint.source.path}: {many} made dense first")
    return Densify()(checkpoint)


class Smaller(NamedTuple):
    """The checkpoint with sparse tensors stored so, what the output's metadata says of it, and key -> layout of them."""

    checkpoint: Checkpoint
    metadata: dict[str, str]
    layouts: dict[str, str]


def stored(
    checkpoint: Checkpoint,
    layout: str,
    target: str,
    to: str | None,
    console: Console,
    jobs: int,
    seen: Checkpoint | None = None,
) -> Smaller:
    """Reads all values once: those of `seen`, if it is given, which are the same and may tell somebody of being read."""
    from wtool.analysis.counts import count
    from wtool.formats import registry
    from wtool.ops.store import TORCH, Store
    from wtool.sparse import METADATA

    with console.progress("counting", checkpoint.nbytes) as advance:
        step = Store(layout, count((seen or checkpoint).tensors, jobs, advance))
    found = step.layouts(checkpoint)
    if not found:
        console.note("no tensor is sparse enough to become smaller: all are stored dense")
        return Smaller(checkpoint, {}, {})
    smaller = step(checkpoint)
    size = f"{format_size(smaller.nbytes)} for {format_size(checkpoint.nbytes)}"
    whom = "torch.load gives sparse tensors, which few models take" if layout in TORCH else "no runtime reads that"
    text = f"{len(found):,} of {len(checkpoint):,} tensors are stored sparse, {size}: {whom}"
    console.note(f"{text}; `wtool convert --densify` gives them back")
    told = layout not in TORCH and registry.for_target(target, to).capabilities.metadata
    return Smaller(smaller, {METADATA: step.metadata(checkpoint)} if told else {}, found)
