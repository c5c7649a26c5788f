"""`wtool average`: several checkpoints as one."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wtool.cli import average_options as given
from wtool.cli import options, soup
from wtool.cli.average_recipe import KEY, Part, Recipe, check_same, read_recipe
from wtool.cli.console import Console, report_kind, write_report
from wtool.cli.dequantizing import refuse_quantized
from wtool.cli.inputs import Choice, Input, chosen
from wtool.errors import UsageError
from wtool.sizes import parse_size

if TYPE_CHECKING:
    from wtool.checkpoint import Checkpoint
    from wtool.ops.average import Averaged
    from wtool.ops.linear import Combine


def average(
    output: given.Output,
    src: given.Sources = None,
    method: given.Method = None,
    weights: given.Weights = None,
    decay: given.Decay = None,
    t: given.T = None,
    base: given.Base = None,
    scale: given.Scale = None,
    density: given.Density = None,
    seed: given.Seed = None,
    trim_scope: given.TrimScope = None,
    vote: given.Vote = None,
    compat: given.Compat = None,
    rule: given.Rules = None,
    on_mismatch: given.OnMismatch = None,
    last: given.Last = None,
    best: given.Best = None,
    metric: given.Metric = None,
    lower: given.Lower = False,
    higher: given.Higher = False,
    min_step: given.MinStep = None,
    max_step: given.MaxStep = None,
    keep_extras: given.KeepExtras = False,
    recipe: given.RecipeFile = None,
    digest: given.Digest = False,
    greedy: soup.Greedy = False,
    evaluate: soup.Eval = None,
    maximize: soup.Maximize = False,
    minimize: soup.Minimize = False,
    field: soup.Field = None,
    accept: soup.Accept = None,
    min_delta: soup.MinDelta = None,
    timeout: soup.Timeout = None,
    on_failure: soup.OnFailure = None,
    journal: soup.JournalFile = None,
    passes: soup.Passes = None,
    to: options.To = None,
    dtype: options.Dtype = None,
    section: options.SectionName = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    max_shard: options.MaxShard = None,
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
    from wtool.cli import average_methods as methods
    from wtool.cli.average_report import average_report

    kind = options.output_kind(json, format)
    if report is not None:
        report_kind(report)
    shard = None if max_shard is None else parse_size(max_shard)
    bound = None if memory is None else parse_size(memory)
    count = options.worker_count(jobs)
    console = Console(quiet=quiet, verbose=verbose)
    order = soup.ordered(
        output, greedy, evaluate, maximize, minimize, field, accept, min_delta, timeout, on_failure, journal, passes
    )
    choice = Choice(last, best, metric, lower, higher, min_step, max_step)
    numbers = {"decay": decay, "t": t, "scale": scale, "density": density, "seed": seed}
    settings = methods.settings(method, weights, **numbers, trim_scope=trim_scope, vote=vote, compat=compat)
    asked = Recipe(
        settings,
        (),
        None if base is None else Part(base, ""),
        tuple(rule or ()),
        on_mismatch or "error",
        dtype,
        section,
        tuple(include or ()),
        tuple(exclude or ()),
        keep_extras,
    )
    told = None
    if recipe is not None:
        _alone(asked)
        if order is not None:
            raise UsageError("--recipe says what is averaged, and --greedy finds it out")
        told = asked = read_recipe(recipe)
    picked = chosen(src or [part.path for part in asked.inputs], choice)
    work = Work(asked, picked, output, to, strict, alone=told is not None)  # a greedy soup may be of one
    work.warn(console)
    work.identify(count, whole=digest)
    if told is not None and not src:
        check_same((*told.inputs, *filter(None, [told.base])), (*work.asked.inputs, *filter(None, [work.asked.base])))
    if told is not None and len(told.inputs) != len(picked):
        raise UsageError(f"the recipe is for {len(told.inputs)} inputs, not {len(picked)}", path=recipe)

    story = None
    if order is not None:
        work, story = soup.cooked(
            order, work, shard=shard, force=force, jobs=count, memory=bound, console=console, dry_run=dry_run
        )
    combine = methods.method(asked.settings, len(work.picked), based=asked.base is not None)
    plan, found, spread = work.plan(combine, shard, force)
    if not dry_run and methods.two_passes(combine):
        combine = methods.prepared(combine, work.average, count, console)
        plan, found, spread = work.plan(combine, shard, force)
    for warning in found.warnings:
        console.warn(warning.message)
    done = None
    if not dry_run:
        from wtool.api import save

        with console.progress("averaging", sum(job.nbytes for job in plan.plan.jobs)) as advance:
            done = save(plan, jobs=count, memory=bound, progress=advance, collectors=[spread])
    for line in work.lost(plan.losses if done is None else done.losses, dry_run):
        console.note(line)
    shown = average_report(work, found, plan, done, spread if done else None, jobs=count, memory=bound, verbose=verbose)
    if story is not None:
        from wtool.cli.soup_story import with_story

        shown = with_story(shown, story)
    if not (quiet and kind == "text"):
        console.show([shown], kind)
    if report is not None:
        write_report(report, [shown])
    return 0


class Work:
    """What was asked for, with its inputs open: everything that decides what the outcome is."""

    def __init__(
        self, asked: Recipe, picked: Sequence[Input], output: str, to: str | None, strict: bool, *, alone: bool = False
    ) -> None:
        from wtool.api import open_checkpoint
        from wtool.cli.average_methods import BASED
        from wtool.dtypes import dtype as named
        from wtool.formats import registry
        from wtool.ops.average import MISMATCHES, parse_rule
        from wtool.ops.convert import Convert

        if not picked:
            raise UsageError("there are no inputs", hint="wtool average A B -o DST")
        if len(picked) == 1 and not alone and asked.settings.method not in BASED:
            raise UsageError(f"{picked[0].path} is the only input: nothing to average", hint="`wtool convert` copies one")
        if asked.on_mismatch not in MISMATCHES:
            raise UsageError(f"unknown policy '{asked.on_mismatch}'", hint="one of " + ", ".join(MISMATCHES))
        if asked.keep_extras and (asked.section == "all" or asked.include or asked.exclude):
            raise UsageError("--keep-extras takes the whole last input: it goes with no --include, --exclude or --section all")
        self.asked, self.picked, self.output, self.to, self.strict = asked, picked, output, to, strict
        self.rules = tuple(parse_rule(text) for text in asked.rules)
        self.dtype = None if asked.dtype is None else named(asked.dtype)
        self.metadata = registry.for_target(output, to).capabilities.metadata
        self.names = [one.path for one in picked]
        select = Convert(include=asked.include, exclude=asked.exclude)
        self.wholes = [open_checkpoint(path, section="all") for path in self.names]
        self.inputs = [select(whole.section(asked.section)) for whole in self.wholes]
        self.base: Checkpoint | None = None
        if asked.base is not None:
            self.base = open_checkpoint(asked.base.path, section=asked.section)
        for path, one in zip(self.names, self.inputs, strict=True):
            if not any(tensor.dtype.block for tensor in one.values()):  # which --dtype decodes
                refuse_quantized(one, path, "codes are no weights to average")
        self.told: dict[str, str] = {}  # more for the metadata of the outcome

    def part(self, numbers: Sequence[int], output: str) -> Work:
        """The same of some of the inputs, in this order, at another place. One alone is enough here."""
        some = copy(self)
        some.output = output
        some.picked, some.names = [self.picked[one] for one in numbers], [self.names[one] for one in numbers]
        some.wholes, some.inputs = [self.wholes[one] for one in numbers], [self.inputs[one] for one in numbers]
        some.asked = replace(self.asked, inputs=tuple(self.asked.inputs[one] for one in numbers))
        return some

    def warn(self, console: Console) -> None:
        """Say what the readers noticed, and what a pickle would have called."""
        for checkpoint in self.inputs if self.base is None else [*self.inputs, self.base]:
            for warning in checkpoint.warnings:
                console.warn(warning.message, checkpoint.source.path)
            dangerous = [found.name for found in checkpoint.globals if found.verdict == "dangerous"]
            if dangerous and not any(warning.code == "dangerous-globals" for warning in checkpoint.warnings):
                text = f"loading this with pickle would call {', '.join(dangerous)}"
                console.warn(f"{text}; wtool called nothing and writes only tensors", checkpoint.source.path)

    def identify(self, jobs: int, *, whole: bool) -> None:
        """Put the inputs into the recipe, by fingerprint or also by digest."""
        from wtool.analysis.digest import digest
        from wtool.analysis.fingerprint import fingerprint

        def part(path: str, checkpoint: Checkpoint) -> Part:
            return Part(path, fingerprint(checkpoint), digest(checkpoint, jobs).whole if whole else None)

        base = None
        if self.asked.base is not None and self.base is not None:
            base = part(self.asked.base.path, self.base)
        inputs = tuple(part(path, one) for path, one in zip(self.names, self.inputs, strict=True))
        self.asked = replace(self.asked, inputs=inputs, base=base)

    def average(self, combine: Combine) -> Averaged:
        """The outcome by a method, lazily."""
        from wtool.ops.average import average

        return average(
            self.inputs,
            self.names,
            combine,
            base=self.base,
            rules=self.rules,
            on_mismatch=self.asked.on_mismatch,
            dtype=self.dtype,
            strict=self.strict,
        )

    def plan(self, combine: Any, shard: int | None, force: bool) -> tuple[Any, Averaged, Any]:
        """The plan of writing, what is written, and what will learn how far the inputs lie from it."""
        from wtool.analysis.spread import Spread
        from wtool.api import plan_save
        from wtool.ops.average import kept_in

        spread = Spread(len(self.inputs))
        found = self.average(replace(combine, tell=spread.add))
        made, whole = found.checkpoint, self.wholes[0]
        if self.asked.keep_extras:
            made = whole = kept_in(self.wholes[-1], self.asked.section, found, len(self.inputs) - 1)
        made = replace(made, metadata={name: value for name, value in made.metadata.items() if name not in (KEY, soup.KEY)})
        plan = plan_save(
            made,
            self.output,
            to=self.to,
            whole=whole,
            metadata={KEY: self.asked.text(), **self.told} if self.metadata else {},
            max_shard=shard,
            force=force,
            strict=self.strict,
        )
        return plan, found, spread

    def lost(self, losses: Sequence[Any], future: bool) -> list[str]:
        """What of the inputs the outcome does not hold, in a line."""
        if not losses:
            return []
        names = list(dict.fromkeys(f"{loss.kind} {loss.name}" for loss in losses))
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        hint = "" if self.asked.keep_extras else "; --keep-extras takes those of the last input"
        hint = hint if any(loss.kind in ("section", "extras") for loss in losses) else ""
        return [f"{'would be left out' if future else 'left out'}: {', '.join(names[:6])}{more}{hint}"]


def _alone(asked: Recipe) -> None:
    if asked != Recipe(asked.settings.__class__(), ()):
        raise UsageError("--recipe says the method, its numbers and its rules: they cannot be given beside it")
