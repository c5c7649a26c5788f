"""Whole layers and experts left out, and what then belongs beside the tensors of a folder.

`drop(work, ...)` puts the smaller checkpoint into `work.part`, what is to be said of it into `work.dropped` and `work.asked`,
and the files of a Hugging Face folder, config.json told anew, into `work.beside`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wtool.errors import UsageError

if TYPE_CHECKING:
    from wtool.cli.pruning import Work

Layers = Annotated[
    str | None,
    typer.Option(
        "--drop-layers",
        metavar="N-M,N",
        help="Leave whole layers out and number those behind anew. From folder to folder config.json follows.",
    ),
]
LayersOf = Annotated[
    list[str] | None,
    typer.Option("--layers-of", metavar="PREFIX", help="Which list of layers, as in model.layers. Repeatable."),
]
Dropped = Annotated[
    str | None, typer.Option("--drop-experts", metavar="N-M,N", help="Leave these experts of every layer out.")
]
Kept = Annotated[
    int | None,
    typer.Option(
        "--experts",
        metavar="N",
        min=1,
        help="Keep N experts of every layer: those whose rows of the router have the largest L1 norms.",
    ),
]


def alone(others: Mapping[str, Any], what: str) -> None:
    """UsageError for options that are given and do not go with what is asked for."""
    given = next((name for name, value in others.items() if value), None)
    if given is not None:
        raise UsageError(f"{given} does not go with {what}")


def drop(work: Work, layers: str | None, layers_of: Sequence[str] | None, dropped: str | None, kept: int | None) -> None:
    """Leave out what is asked for. Reads headers, config.json and, to rank experts, the routers."""
    from wtool.cli import hf_config
    from wtool.formats import registry
    from wtool.ops.drop import drop_layers, experts_in, experts_left, parse_numbers, routers, strongest, without

    if layers_of and layers is None:
        raise UsageError("--layers-of is for --drop-layers")
    if dropped is not None and kept is not None:
        raise UsageError("--drop-experts and --experts contradict each other")
    folder = registry.is_folder_target(work.dst)
    before, config = work.part, hf_config.read(work.src)
    changed = None
    notes: list[str] = []
    said: dict[str, Any] = {}
    if layers is not None:
        shorter = drop_layers(work.part, layers, layers_of or ())
        said["layers"] = {prefix: list(shorter.numbers) for prefix, _ in shorter.lists}
        work.part = shorter(work.part)
        if folder and config is not None:
            changed, notes = hf_config.fewer_layers(config, dict(shorter.lists), shorter.numbers)
    if dropped is not None or kept is not None:
        found = experts_in(work.part)
        if dropped is not None:
            fewer = without(found, parse_numbers(dropped))
        else:
            from wtool.analysis.structure import router_norms

            fewer = strongest(found, router_norms(routers(found, work.part), name=work.src), kept or 0)
        said["experts"] = {base: [n for n in range(found[base].count) if n not in stay] for base, stay in fewer.kept}
        work.part = fewer(work.part)
        if folder and config is not None:
            changed = hf_config.fewer_experts(changed or config, *experts_left(found, fewer))
    if said:
        work.dropped = {
            **said,
            "tensors": len(before) - len(work.part),
            "bytes": before.nbytes - work.part.nbytes,
        }
    for note in notes:
        work.console.warn(f"{hf_config.NAME}: {note}", work.src)
    if folder and config is not None:
        work.beside, large = hf_config.files_beside(work.src, changed, work.dst)
        if large:
            work.console.note(f"too large to come along: {', '.join(large)}")
    elif said and config is not None:
        text = (
            f"no {hf_config.NAME} is written: that of the source counts what was left out; a folder as DST gets one that fits"
        )
        work.console.warn(text, work.dst)
