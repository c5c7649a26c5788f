"""`wtool average`: several checkpoints as one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, cast

import typer

from wtool.cli import options
from wtool.cli.console import Console, report_kind, write_report
from wtool.errors import UsageError
from wtool.sizes import parse_size

if TYPE_CHECKING:
    from wtool.api import SavePlan
    from wtool.checkpoint import Checkpoint
    from wtool.ops.average import Averaged
    from wtool.ops.linear import Combine, Linear
    from wtool.ops.ties import Thinned

METHODS = ("mean", "weighted", "swa", "ema", "lerp", "task", "ties", "dare", "dare-ties")
_THINNED = ("ties", "dare", "dare-ties")


def average(
    src: options.Sources,
    output: Annotated[str, typer.Option("--output", "-o", metavar="DST", help="The checkpoint to write.", show_default=False)],
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help=f"{', '.join(METHODS)}. Default mean, with --weights weighted.",
            autocompletion=options.one_of(*METHODS),
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="W,W,...", help="A weight for each input, as in 0.5,0.3,0.2.")
    ] = None,
    decay: Annotated[float | None, typer.Option("--decay", metavar="D", help="Of ema: how much of the past stays.")] = None,
    t: Annotated[float | None, typer.Option("--t", metavar="T", help="Of lerp: 0 is the first input, 1 the second.")] = None,
    base: Annotated[str | None, typer.Option("--base", metavar="SRC", help="What the inputs were trained from.")] = None,
    scale: Annotated[
        float,
        typer.Option("--scale", metavar="X", help="Of task, ties and dare: times what is added to the base."),
    ] = 1.0,
    density: Annotated[
        float | None,
        typer.Option("--density", metavar="D", help="Of ties and dare: the share of the differences that is kept."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Of dare: what the mask follows from. Default 0.")
    ] = None,
    compat: Annotated[
        str | None,
        typer.Option(
            "--compat",
            metavar="NAME",
            help="Of ties and dare: count as paper, mergekit or peft do.",
            autocompletion=options.one_of("paper", "mergekit", "peft"),
        ),
    ] = None,
    trim_scope: Annotated[
        str | None,
        typer.Option(
            "--trim-scope",
            metavar="SCOPE",
            help="Of ties: the largest differences of each tensor or of the whole model.",
            autocompletion=options.one_of("tensor", "model"),
        ),
    ] = None,
    vote: Annotated[
        str | None,
        typer.Option(
            "--vote",
            metavar="KIND",
            help="Of ties and dare-ties: the sign of the sum of differences (mass) or of most of them (frequency).",
            autocompletion=options.one_of("mass", "frequency"),
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            "--rule", metavar="GLOB=POLICY", help="mean, first, last, max, base, drop or error for some keys. Repeatable."
        ),
    ] = None,
    on_mismatch: Annotated[
        str,
        typer.Option(
            "--on-mismatch",
            metavar="POLICY",
            help="Keys or shapes that differ: error, intersect, union or base.",
            autocompletion=options.one_of("error", "intersect", "union", "base"),
        ),
    ] = "error",
    to: options.To = None,
    dtype: options.Dtype = None,
    section: options.SectionName = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    max_shard: Annotated[
        str | None, typer.Option("--max-shard", metavar="SIZE", help="Cut into shards of at most SIZE.")
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
    """Average checkpoints: a mean, SWA, EMA, model soups, task arithmetic; in float64, rounded once, in constant memory.

    Inputs may be in any mix of formats, dtypes and shardings; the outcome has the keys and dtypes of the first.
    """
    from wtool.analysis.spread import Spread
    from wtool.analysis.thinning import Noting, prepared
    from wtool.api import open_checkpoint, plan_save, save
    from wtool.cli.average_report import average_report
    from wtool.dtypes import dtype as named
    from wtool.ops.average import MISMATCHES, parse_rule
    from wtool.ops.average import average as combine
    from wtool.ops.convert import Convert

    kind = options.output_kind(json, format)
    if report is not None:
        report_kind(report)
    if on_mismatch not in MISMATCHES:
        raise UsageError(f"unknown policy '{on_mismatch}'", hint="one of " + ", ".join(MISMATCHES))
    chosen: Linear | Thinned
    if method in _THINNED:
        chosen = _thinned(len(src), method, weights, scale, base, density, seed, compat, trim_scope, vote)
    elif unused := _given(density=density, seed=seed, compat=compat, trim_scope=trim_scope, vote=vote):
        raise UsageError(f"{unused} means nothing to {method or 'a mean'}", hint="--method ties, dare or dare-ties")
    else:
        chosen = _method(len(src), method, weights, decay, t, scale, base)
    rules = tuple(parse_rule(text) for text in rule or ())
    row = None if dtype is None else named(dtype)
    shard = None if max_shard is None else parse_size(max_shard)
    bound = None if memory is None else parse_size(memory)
    console = Console(quiet=quiet, verbose=verbose)
    select = Convert(include=tuple(include or ()), exclude=tuple(exclude or ()))

    def opened(path: str) -> Checkpoint:
        return select(open_checkpoint(path, section=section))

    inputs = [opened(path) for path in src]
    spread = Spread(len(inputs))
    origin = None if base is None else opened(base)

    def planned(how: Combine) -> tuple[Averaged, SavePlan]:
        found = combine(inputs, src, how, base=origin, rules=rules, on_mismatch=on_mismatch, dtype=row)
        return found, plan_save(found.checkpoint, output, to=to, max_shard=shard, force=force, strict=strict)

    chosen = replace(chosen, tell=spread.add)
    if method in _THINNED:
        noting = Noting(cast("Thinned", chosen))
        found, plan = planned(noting)
        if not dry_run:
            with console.progress("looking", noting.nbytes) as advance:
                ready = prepared(noting.method, noting.asked, jobs=options.worker_count(jobs), progress=advance)
            found, plan = planned(ready)
    else:
        found, plan = planned(chosen)
    for warning in found.warnings:
        console.warn(warning.message)
    done = None
    if not dry_run:
        with console.progress("averaging", sum(job.nbytes for job in plan.plan.jobs)) as advance:
            done = save(plan, jobs=options.worker_count(jobs), memory=bound, progress=advance)
    shown = average_report(found, src, plan, done, spread if done else None)
    if not (quiet and kind == "text"):
        console.show([shown], kind)
    if report is not None:
        write_report(report, [shown])
    return 0


def _method(
    count: int, name: str | None, weights: str | None, decay: float | None, t: float | None, scale: float, base: str | None
) -> Linear:
    from wtool.ops import linear

    given = None if weights is None else _weights(weights, count)
    name = name or ("weighted" if given is not None else "mean")
    if name not in METHODS:
        raise UsageError(f"there is no method '{name}'", hint="one of " + ", ".join(METHODS))
    if given is not None and name not in ("weighted", "task"):
        raise UsageError(f"--weights mean nothing to {name}")
    if name == "weighted":
        if given is None:
            raise UsageError("weighted needs --weights")
        return linear.weighted(given)
    if name == "ema":
        if decay is None:
            raise UsageError("ema needs --decay", hint="such as --decay 0.9")
        return linear.ema(count, decay)
    if name == "lerp":
        if count != 2 or t is None:
            raise UsageError("lerp takes two inputs and --t")
        return linear.lerp(t)
    if name == "task":
        if base is None:
            raise UsageError("task needs --base, what the inputs were trained from")
        return linear.task(given or (1.0,) * count, scale)
    return linear.mean(count)


def _given(**given: object) -> str | None:
    return next((f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None), None)


def _thinned(
    count: int,
    name: str | None,
    weights: str | None,
    scale: float,
    base: str | None,
    density: float | None,
    seed: int | None,
    compat: str | None,
    scope: str | None,
    vote: str | None,
) -> Thinned:
    from wtool.ops.dare import dare
    from wtool.ops.ties import ties

    given = (1.0,) * count if weights is None else _weights(weights, count)
    if base is None:
        raise UsageError(f"{name} needs --base, what the inputs were trained from")
    if density is None:
        raise UsageError(f"{name} needs --density, the share of the differences that is kept", hint="such as --density 0.2")
    unused = _given(seed=seed) if name == "ties" else _given(trim_scope=scope)
    unused = unused or (_given(vote=vote) if name == "dare" else None)
    if unused:
        raise UsageError(f"{unused} means nothing to {name}")
    if name == "ties":
        return ties(given, density, scale, compat=compat, scope=scope, vote=vote)
    return dare(given, density, scale, seed=seed or 0, compat=compat, elect=name == "dare-ties", vote=vote)


def _weights(text: str, count: int) -> tuple[float, ...]:
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"'{text}' are no weights", hint="numbers with commas between, as in 0.5,0.3,0.2") from None
    if len(found) != count:
        raise UsageError(f"there are {len(found)} weights for {count} inputs")
    if not all(abs(weight) < float("inf") for weight in found):
        raise UsageError("a weight is not finite")
    return found
