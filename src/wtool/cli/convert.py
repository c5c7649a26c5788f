"""`wtool convert`: one checkpoint as another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from wtool.cli import options, storing
from wtool.cli.console import Console, report_kind, write_report
from wtool.errors import UsageError
from wtool.keys import TF_SUFFIX
from wtool.sizes import format_size, parse_size

if TYPE_CHECKING:
    from wtool.api import Loss, SavePlan
    from wtool.checkpoint import Checkpoint
    from wtool.cli.mapping import Choice
    from wtool.maps.resolve import Resolved

_VERIFY = ("digest", "framework", "none")
_NAMES = 12  # names of one kind of loss on a line


def convert(
    src: options.Source,
    dst: options.Target,
    to: options.To = None,
    dtype: options.Dtype = None,
    section: options.SectionName = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    strip_prefix: Annotated[
        str | None, typer.Option("--strip-prefix", metavar="PREFIX", help="Take PREFIX off the keys, as in 'module.'.")
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option("--rename", metavar="REGEX=>REPL", help="Rename keys, after --strip-prefix. Repeatable, in order."),
    ] = None,
    maps: options.Maps = None,
    reverse: options.Reverse = False,
    like: options.Like = None,
    set_: options.Variables = None,
    unmatched: options.Unmatched = None,
    densify: Annotated[
        bool, typer.Option("--densify", help="Make dense what is stored sparse (--store, torch's COO and CSR), bit for bit.")
    ] = False,
    dequantize: Annotated[
        bool,
        typer.Option(
            "--dequantize",
            help="Make plain numbers of what is stored quantized (compressed-tensors, GPTQ, AWQ, bitsandbytes, MLX, FP8...); "
            "--dtype says which.",
        ),
    ] = False,
    store: storing.Layout = None,
    max_shard: options.MaxShard = None,
    tied: Annotated[
        str | None,
        typer.Option(
            "--tied",
            metavar="POLICY",
            help="Tied tensors: keep-one, duplicate or error.",
            autocompletion=options.one_of("keep-one", "duplicate", "error"),
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", metavar="K=V", help="Add to the output's metadata. Repeatable.")
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(
            "--verify",
            metavar="[HOW]",
            help="Read the output back and compare: by digest (default), or with the framework itself.",
            autocompletion=options.one_of("digest", "framework"),
        ),
    ] = None,
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
    """Write a checkpoint in another format, dtype, sharding, or with other keys.

    The suffix of DST says the format: .safetensors, .pth .pt .bin (PyTorch), .ckpt (TensorFlow; --to torch for PyTorch),
    .gguf, a folder (safetensors). Streams; what is lost is said; the output is whole or absent.
    """
    from wtool.api import plan_save, save
    from wtool.cli.convert_report import convert_report
    from wtool.cli.dequantizing import files_of_dense, stored
    from wtool.cli.mapping import Choice

    kind = options.output_kind(json, format)
    if verify not in (None, *_VERIFY):
        raise UsageError(f"there is no way to verify called '{verify}'", hint="--verify, or --verify framework")
    how = None if verify == "none" else verify
    if report is not None:
        report_kind(report)
    shard = None if max_shard is None else parse_size(max_shard)
    bound = None if memory is None else parse_size(memory)
    added = _pairs(metadata or [])
    storing.check_layout(store, dst, to, shard)
    mapping = Choice(tuple(maps or ()), reverse, like, options.variables(set_ or []), unmatched, strict)
    console = Console(quiet=quiet, verbose=verbose)

    chosen, named, after, resolved = _prepare(
        src, dst, to, dtype, section, include, exclude, strip_prefix, rename, mapping, densify, dequantize
    )
    whole = chosen.whole
    count = options.worker_count(jobs)
    if store not in (None, "dense"):
        after, more, _ = storing.stored(after, store or "", dst, to, console, count)
        added = more | added
    plan = plan_save(
        after,
        dst,
        to=to,
        whole=whole,
        tied=tied,
        metadata=added,
        max_shard=shard,
        force=force,
        strict=strict,
        losses=mapping.losses(resolved, named),
    )
    _warn(console, after, plan)
    if not dequantize and plan.format != "gguf" and (said := stored(chosen.part, src)) is not None:
        lost = ", without its config.json" if plan.folder is not None else ""
        console.note(f"is stored quantized ({said}): its parts are copied{lost}; --dequantize makes plain numbers")
    beside = files_of_dense(src, dst) if dequantize and plan.folder is not None else {}
    renamed = sum(old != new for old, new in zip(chosen.part, named, strict=True))
    done = None
    if how is not None:
        from wtool.verify import check_ready

        check_ready(plan, how)
    if not dry_run:
        with console.progress("writing", sum(job.nbytes for job in plan.plan.jobs)) as advance:
            done = save(plan, jobs=count, memory=bound, progress=advance, beside=beside)
        if how is not None:
            from wtool.verify import verify as compare

            total = plan.checkpoint.nbytes * (1 if how == "framework" else 2)
            with console.progress("verifying", total) as advance:
                compare(plan, how, jobs=count, progress=advance)
    losses = plan.losses if done is None else done.losses
    found = convert_report(
        whole, plan, done, renamed=renamed, verified=how if done else None, jobs=count, memory=bound, resolved=resolved
    )
    if kind != "text":
        console.show([found.whole], kind)
    elif not quiet:
        console.show([found.brief], kind)
    for line in _said(losses, future=dry_run, all_names=verbose):
        console.note(line)
    for note in found.notes:
        console.note(f"note: {note}")
    if report is not None:
        write_report(report, [found.whole])
    return 0


class _Opened(NamedTuple):
    """A checkpoint, and what was chosen of it."""

    whole: Checkpoint
    part: Checkpoint


def _prepare(
    src: str,
    dst: str,
    to: str | None,
    dtype: str | None,
    section: str | None,
    include: list[str] | None,
    exclude: list[str] | None,
    strip_prefix: str | None,
    rename: list[str] | None,
    mapping: Choice,
    densify: bool,
    dequantize: bool,
) -> tuple[_Opened, Checkpoint, Checkpoint, tuple[Resolved, ...]]:
    """What was opened; the same (in the same order) with the names that were asked for; mapped and cast; how it was mapped."""
    from wtool.api import open_checkpoint
    from wtool.cli.dequantizing import plain_numbers, refuse_quantized
    from wtool.dtypes import dtype as named
    from wtool.formats import registry
    from wtool.keys import parse_rename
    from wtool.ops.convert import Convert

    renames = tuple(parse_rename(text) for text in rename or ())
    row = None if dtype is None else named(dtype)
    target = registry.for_target(dst, to)
    whole = open_checkpoint(src, section="all")
    if densify:
        from wtool.ops.densify import Densify

        whole = Densify()(whole)
    if dequantize:
        whole = plain_numbers(whole, src, dtype)
    part = Convert(include=tuple(include or ()), exclude=tuple(exclude or ()))(whole.section(section))
    if row is not None and not any(tensor.dtype.block for tensor in part.values()):  # which a cast decodes
        refuse_quantized(part, src, "--dtype would cast its scales, and codes only where they are floats")
    # TensorFlow's suffix means something to TensorFlow only; a recipe that reads it takes it off itself.
    short = whole.source.format == "tensorflow" and target.name != "tensorflow" and not mapping
    plain = Convert(short_keys=short, strip_prefix=strip_prefix or "", renames=renames)(part)
    mapped, resolved = mapping(plain, whole)
    short = bool(mapping) and target.name != "tensorflow" and any(key.endswith(TF_SUFFIX) for key in mapped)
    return _Opened(whole, part), plain, Convert(short_keys=short, dtype=row)(mapped), resolved


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UsageError(f"'{text}' is no metadata", hint="write KEY=VALUE")
        pairs[key] = value
    return pairs


def _warn(console: Console, checkpoint: Checkpoint, plan: SavePlan) -> None:
    for warning in checkpoint.warnings:
        console.warn(warning.message, checkpoint.source.path)
    dangerous = [found.name for found in checkpoint.globals if found.verdict == "dangerous"]
    if dangerous and not any(warning.code == "dangerous-globals" for warning in checkpoint.warnings):
        console.warn(
            f"loading this with pickle would call {', '.join(dangerous)}; wtool called nothing and writes only tensors",
            checkpoint.source.path,
        )
    for note in plan.notes:
        console.note(note)


def _said(losses: Sequence[Loss], *, future: bool, all_names: bool) -> list[str]:
    """What is lost, a line for each kind and reason: `lost: section optimizer (444 tensors, 996 MB): is not among ...`."""
    groups: dict[tuple[str, str], list[Loss]] = {}
    for loss in losses:
        groups.setdefault((loss.kind, loss.why), []).append(loss)
    lines = []
    for (kind, why), group in groups.items():
        names = [_named(loss) for loss in group]
        if not all_names and len(names) > _NAMES:
            names[_NAMES:] = [f"and {len(names) - _NAMES:,} more (--verbose names them)"]
        lines.append(f"{'would be lost' if future else 'lost'}: {kind} {', '.join(names)}: {why}")
    return lines


def _named(loss: Loss) -> str:
    if loss.kind == "section":
        return f"{loss.name} ({loss.count:,} {'tensor' if loss.count == 1 else 'tensors'}, {format_size(loss.nbytes)})"
    if loss.kind == "extras" and loss.count > 1:
        return f"{loss.name} ({loss.count:,} values)"
    return f"{loss.name} ({loss.count:,})" if loss.kind in ("overflow", "underflow") else loss.name
