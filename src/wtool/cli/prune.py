"""`wtool prune`: weights become zero, exactly as many as asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wtool.cli import drops, options, storing
from wtool.cli.console import Console
from wtool.cli.pruning import FailIf, Work
from wtool.errors import NoTensorsError, UsageError

if TYPE_CHECKING:
    from wtool.analysis.pruning import Limit, Part, Share
    from wtool.checkpoint import Checkpoint
    from wtool.kernels.masks import Mask
    from wtool.ops.prune import Fate

_ON_NAN = ("error", "keep")


def prune(
    src: options.Source,
    dst: options.Target,
    sparsity: Annotated[
        float | None,
        typer.Option(
            "--sparsity", metavar="SHARE", min=0.0, max=1.0, help="The share of zeros, such as 0.9.", show_default=False
        ),
    ] = None,
    scope: Annotated[
        str,
        typer.Option(
            "--scope",
            metavar="SCOPE",
            help="global: that share of all weights together; layer, tensor: of each.",
            autocompletion=options.one_of("global", "layer", "tensor"),
        ),
    ] = "global",
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="NAME",
            help="magnitude: the smallest go; random.",
            autocompletion=options.one_of("magnitude", "random"),
        ),
    ] = "magnitude",
    pattern: Annotated[
        str | None,
        typer.Option("--pattern", metavar="N:M", help="Of every M values in a row only the N largest stay, as in 2:4."),
    ] = None,
    structure: Annotated[
        str | None,
        typer.Option(
            "--structure",
            metavar="KIND",
            help="Zero whole groups, those of the smallest norm: row, column, filter or block:16x16. --sparsity is of groups.",
            autocompletion=options.one_of("row", "column", "filter", "block:16x16"),
        ),
    ] = None,
    norm: Annotated[
        str | None,
        typer.Option(
            "--norm", metavar="NAME", help="Of --structure: l2 (default) or l1.", autocompletion=options.one_of("l2", "l1")
        ),
    ] = None,
    drop_layers: drops.Layers = None,
    layers_of: drops.LayersOf = None,
    drop_experts: drops.Dropped = None,
    experts: drops.Kept = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Of random: what goes follows from it. Default 0.")
    ] = None,
    at_most: Annotated[
        list[str] | None,
        typer.Option(
            "--at-most",
            metavar="[GLOB=]SHARE",
            help="No layer is sparser than this, counting its keys that match; the others give more. The first that matches a "
            "key counts. Repeatable.",
        ),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option("--mask", metavar="FILE", help="What an earlier round pruned: stays zero, and is not ranked again."),
    ] = None,
    of_remaining: Annotated[
        bool, typer.Option("--of-remaining", help="With --mask: --sparsity is a share of the weights that it keeps.")
    ] = False,
    mask_out: Annotated[
        str | None,
        typer.Option("--mask-out", metavar="FILE", help="Write the masks too: safetensors, one bit for each weight."),
    ] = None,
    rewind: Annotated[
        str | None,
        typer.Option("--rewind", metavar="INIT", help="A checkpoint: the weights that stay take their values of there."),
    ] = None,
    rest: Annotated[
        str | None,
        typer.Option(
            "--rest",
            metavar="FROM",
            help="With --rewind: all other tensors are those of init (default) or source.",
            autocompletion=options.one_of("init", "source"),
        ),
    ] = None,
    on_nan: Annotated[
        str,
        typer.Option(
            "--on-nan",
            metavar="POLICY",
            help="NaN or Inf among the weights: error, or keep (never pruned, not counted).",
            autocompletion=options.one_of(*_ON_NAN),
        ),
    ] = "error",
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="GLOB", help="Prune the floating tensors that match, and no others. Repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="GLOB", help="Keep these as they are. Repeatable.")
    ] = None,
    section: options.SectionName = None,
    to: options.To = None,
    store: storing.Layout = None,
    max_shard: options.MaxShard = None,
    fail_if: FailIf = None,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    strict: options.Strict = False,
    jobs: options.Jobs = None,
    memory: options.Memory = None,
    json: options.Json = False,
    format: options.Format = None,
    report: options.ReportFile = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Set weights to zero by magnitude, at random, in patterns or groups: an exact share of them, with masks.

    Or leave whole layers or experts out. Norms, biases and embeddings are kept, and all that has fewer than two axes;
    --include and --exclude decide otherwise. Zeros are stored like other values, and the file is as large as before, unless
    --store says otherwise.
    """
    from wtool.analysis.pruning import METHODS, SCOPES, Share
    from wtool.cli import prune_regular as regular
    from wtool.ops.prune import RESTS

    for value, words, what in (
        (scope, SCOPES, "scope"),
        (method, METHODS, "method"),
        (on_nan, _ON_NAN, "policy"),
        (rest or "init", RESTS, "source of the rest"),
    ):
        if value not in words:
            raise UsageError(f"there is no {what} '{value}'", hint="one of " + ", ".join(words))
    if sparsity is not None and sparsity != sparsity:  # what is no number passes every bound
        raise UsageError("--sparsity is a share from 0 to 1, not NaN")
    if seed is not None and method != "random":
        raise UsageError("--seed is for --method random")
    if of_remaining and mask is None:
        raise UsageError("--of-remaining needs --mask")
    if rest is not None and rewind is None:
        raise UsageError("--rest needs --rewind")
    groups = regular.parse(pattern, structure, norm, sparsity)
    if groups is not None:
        if method == "random":
            raise UsageError("--method random goes with neither --pattern nor --structure")
        if pattern is not None:  # of every M values, and of every layer, it takes the same
            drops.alone({"--at-most": at_most, "--of-remaining": of_remaining}, "--pattern, which takes the same everywhere")
    out: dict[str, Any] = {"drop_layers": drop_layers, "layers_of": layers_of, "drop_experts": drop_experts}
    out = {name: value for name, value in (out | {"experts": experts}).items() if value}
    zeroes = groups is not None or sparsity is not None
    if not zeroes and not out:
        raise UsageError("how many are to go?", hint="--sparsity 0.9, --pattern 2:4, --drop-layers 20-27 or --experts 6")
    if out:  # masks and initial values are of layers that have other numbers
        drops.alone({"--mask": mask, "--rewind": rewind}, "--drop-layers, --drop-experts or --experts")
    if not zeroes:
        only: dict[str, Any] = {"--include": include, "--exclude": exclude, "--mask-out": mask_out, "--fail-if": fail_if}
        only |= {"--at-most": at_most, "--method random": method == "random"}
        drops.alone(only, "what only leaves layers or experts out")
    if pattern is not None and scope != "global":
        raise UsageError("--pattern has no --scope: it is the same everywhere")
    share = Share(sparsity or 0.0, scope, method, seed or 0, of_remaining, on_nan == "keep")
    asked: dict[str, Any] = {"method": method} | ({} if sparsity is None else {"sparsity": sparsity, "scope": scope})
    asked |= {} if groups is None else groups.told()
    asked |= {"seed": share.seed} if method == "random" else {}
    asked |= {"at_most": list(at_most)} if at_most else {}
    asked |= {"of_remaining": True} if of_remaining else {}
    asked |= {"on_nan": on_nan} if on_nan != "error" else {}
    asked |= {"include": list(include)} if include else {}
    asked |= {"exclude": list(exclude)} if exclude else {}
    asked = (asked if zeroes else {}) | out | ({} if store is None else {"store": store})
    limits = [parse_limit(text) for text in at_most or ()]
    work = Work(src, dst, section, to, max_shard, force, strict, jobs, memory, Console(quiet=quiet, verbose=verbose), store)
    work.show_as(json, format, report, fail_if, dry_run=dry_run)
    drops.drop(work, drop_layers, layers_of, drop_experts, experts)
    if not zeroes:
        return work.finish([], {}, asked)
    found = work.fates(include or (), exclude or ())
    if groups is not None:
        found = groups.fitting(found, work.part)
    before = {} if mask is None else work.masks(mask)
    init = None if rewind is None else work.initial(rewind)
    outs = None if mask_out is None else work.mask_target(mask_out, mask, rewind)
    parts = _parts(work.part, found, before, limits, share)
    if not parts:
        raise NoTensorsError("no tensor is to be pruned", path=src, hint="--include names keys; -n says why they are kept")
    left = {key: one for key, one in before.items() if key not in {part.key for part in parts}}
    if groups is not None:
        groups.checked(parts, src)
    if not work.reads:
        masks = _blank([*(part.key for part in parts), *left])
        expected = None if before or on_nan != "error" else groups.expected(parts) if groups else _expected(parts, share)
        of = None if groups is None else groups.groups(parts)
        return work.finish(found, masks, asked, init=init, rest=rest or "init", expected=expected, groups=of, mask_out=outs)
    # Whatever forbids the output is found before the values are read.
    work.plan(work.pruned(_blank([part.key for part in parts]), init, rest or "init"), asked)
    masks = work.chosen(parts, share, groups)
    of = None if groups is None else groups.groups(parts, masks)
    return work.finish(found, left | masks, asked, init=init, rest=rest or "init", groups=of, mask_out=outs)


def _expected(parts: Sequence[Part], share: Share) -> int:
    """How many values would be zero."""
    sizes: dict[str, int] = {}
    for part in parts:
        sizes[part.group] = sizes.get(part.group, 0) + part.tensor.elements
    return sum(round(share.sparsity * size) for size in sizes.values())


def parse_limit(text: str) -> Limit:
    """`GLOB=SHARE`, or a share for all. UsageError."""
    from wtool.analysis.pruning import Limit
    from wtool.keys import matcher

    glob, _, number = text.rpartition("=")
    try:
        share = float(number)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"'{text}' is no limit", hint="GLOB=SHARE, as in 'h.0.**=0.5', the share from 0 to 1")
    matcher((glob or "**",))
    return Limit(glob or "**", share)


def _blank(keys: Sequence[str]) -> dict[str, Mask]:
    from wtool.kernels.masks import Everything

    return dict.fromkeys(keys, Everything())


def _parts(
    part: Checkpoint, found: Sequence[Fate], before: Mapping[str, Mask], limits: Sequence[Limit], share: Share
) -> list[Part]:
    """The tensors to prune, tied ones once. UsageError for a limit that is for none of them."""
    from wtool.analysis.pruning import Part
    from wtool.keys import natural
    from wtool.ops.prune import layer_of, matching

    def group(key: str) -> str:
        return {"global": "", "layer": layer_of(key), "tensor": key}[share.scope]

    globs = [matching((limit.glob,)) for limit in limits]
    earlier = {part[key].identity or key: mask for key, mask in before.items()}
    used: set[int] = set()
    parts: dict[object, Part] = {}
    for key in sorted((fate.key for fate in found if fate.pruned), key=natural):
        who = part[key].identity or key
        number = next((number for number, matches in enumerate(globs) if matches(key)), None)
        limited = None
        if number is not None:
            used.add(number)
            name = key if share.scope == "tensor" else layer_of(key)
            limited = f"{number} {name}", limits[number].share
        if who not in parts:
            parts[who] = Part(part[key].renamed(key), group(key), limited, earlier.get(who))
    idle = next((limit for number, limit in enumerate(limits) if number not in used), None)
    if idle is not None:
        raise UsageError(f"no tensor that is pruned matches '{idle.glob}' of --at-most, or an earlier one takes them all")
    return list(parts.values())
