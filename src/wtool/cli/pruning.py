"""What `wtool prune` and `wtool apply-mask` share: a source that is open, where it goes, and how it is told of."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from json import dumps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wtool.cli import options, storing
from wtool.cli.console import Console, report_kind, write_report
from wtool.cli.dequantizing import refuse_quantized
from wtool.errors import NotFiniteError, UsageError
from wtool.keys import short_key
from wtool.sizes import parse_size

if TYPE_CHECKING:
    from wtool.analysis.pruning import Part, Share
    from wtool.api import Loss, SavePlan
    from wtool.bytesource import ByteSource
    from wtool.checkpoint import Checkpoint
    from wtool.cli.prune_regular import Regular
    from wtool.kernels.masks import Mask
    from wtool.ops.prune import Fate

KEY = "wtool.prune"  # of the outcome's metadata
_NAMES = 6

FailIf = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-if",
        metavar="CHECK",
        help="Exit 1 if this holds of what was written, as in 'sparsity<0.9', 'energy<95%' or 'any.sparsity>0.99'. "
        "Repeatable.",
    ),
]


class Work:
    """A source that is open, and where it goes."""

    def __init__(
        self,
        src: str,
        dst: str,
        section: str | None,
        to: str | None,
        max_shard: str | None,
        force: bool,
        strict: bool,
        jobs: int | None,
        memory: str | None,
        console: Console,
        store: str | None = None,
    ) -> None:
        from wtool.api import open_checkpoint

        self.src, self.dst, self.section, self.to, self.console = src, dst, section, to, console
        self.shard = None if max_shard is None else parse_size(max_shard)
        self.memory = None if memory is None else parse_size(memory)
        storing.check_layout(store, dst, to, self.shard)
        self.store = None if store == "dense" else store
        self.force, self.strict = force, strict
        self.jobs = options.worker_count(jobs)
        self.whole = storing.dense(open_checkpoint(src, section="all"), console)
        self.part = self._short(self.whole.section(section))
        self.dropped: dict[str, Any] = {}  # what was left out of it
        self.beside: dict[str, ByteSource] = {}  # what else goes into the folder that is written
        for warning in self.part.warnings:
            console.warn(warning.message, src)
        dangerous = [found.name for found in self.part.globals if found.verdict == "dangerous"]
        if dangerous and not any(warning.code == "dangerous-globals" for warning in self.part.warnings):
            text = f"loading this with pickle would call {', '.join(dangerous)}"
            console.warn(f"{text}; wtool called nothing and writes only tensors", src)

    def _short(self, part: Checkpoint) -> Checkpoint:
        """Without what TensorFlow appends to every key, which means something to TensorFlow only."""
        from wtool.formats import registry
        from wtool.ops.rename import ShortKeys

        if self.whole.source.format != "tensorflow" or registry.for_target(self.dst, self.to).name == "tensorflow":
            return part
        return ShortKeys()(part)

    def show_as(
        self, json: bool, kind: str | None, report: str | None, checks: Sequence[str] | None, *, dry_run: bool
    ) -> None:
        """How the report is shown. UsageError before any work."""
        from wtool.cli.prune_checks import parse_check

        self.kind, self.report, self.dry_run = options.output_kind(json, kind), report, dry_run
        if report is not None:
            report_kind(report)
        self.checks = [parse_check(text) for text in checks or ()]
        if dry_run and self.checks:
            raise UsageError("--fail-if looks at what was written: not with --dry-run")

    @property
    def reads(self) -> bool:
        """Whether values are read: a dry run does so only to know how large they are when they are stored sparse."""
        return not self.dry_run or self.store is not None

    def fates(self, include: Sequence[str], exclude: Sequence[str]) -> list[Fate]:
        """What is pruned. Of several sections only the model's. QuantizedError if codes or scales were among it."""
        from wtool.keys import matcher
        from wtool.ops.prune import Fate, fates

        main = self.part.main_section()
        found = {fate.key: fate for fate in fates({key: self.part[key] for key in main.keys}, include, exclude)}
        wanted, unwanted = matcher(include or ("**",)), matcher(exclude)
        asked = {key for key in found if wanted(key) and not unwanted(key)}
        refuse_quantized(self.part, self.src, "its codes and scales are no weights to prune", asked)
        other = f"not of section {main.name}"
        return [found.get(key) or Fate(key, False, other) for key in self.part]

    def masks(self, path: str) -> dict[str, Mask]:
        from wtool.api import open_checkpoint
        from wtool.ops.prune import read_masks

        return read_masks(open_checkpoint(path, section="all"), self.part)

    def initial(self, path: str) -> Checkpoint:
        from wtool.api import open_checkpoint

        init = storing.dense(open_checkpoint(path, section="all"), self.console).section(self.section)
        if all(key in init for key in self.part):
            return init
        names = {short_key(key): key for key in self.part}
        return init.with_tensors(tensor.renamed(names.get(short_key(key), key)) for key, tensor in init.items())

    def mask_target(self, path: str, *others: str | None) -> str:
        taken = {os.path.realpath(one): one for one in (self.src, self.dst, *others) if one is not None}
        if os.path.realpath(path) in taken:
            raise UsageError(f"--mask-out is {taken[os.path.realpath(path)]} itself", path=path, hint="give it another name")
        return path

    def chosen(self, parts: Sequence[Part], share: Share, groups: Regular | None) -> dict[str, Mask]:
        from wtool.analysis.pruning import chosen

        try:
            if groups is not None:
                return groups.masks(parts, share, self.src, self.jobs)
            with self.console.progress("ranking", sum(part.tensor.nbytes for part in parts)) as advance:
                return chosen(parts, share, self.src, jobs=self.jobs, progress=advance)
        except NotFiniteError as error:
            hint = "--on-nan keep never prunes such values; --exclude leaves the tensor as it is"
            raise NotFiniteError(error.message, path=error.path, hint=hint) from None

    def pruned(self, masks: Mapping[str, Mask], init: Checkpoint | None, rest: str, tell: Any = None) -> Checkpoint:
        """What is written, all of it dense."""
        from dataclasses import replace

        from wtool.ops.prune import Prune

        made = Prune(masks, init, rest, tell)(self.part)
        return replace(made, metadata={name: value for name, value in made.metadata.items() if name != KEY})

    def plan(self, made: Checkpoint, asked: Mapping[str, Any], more: Mapping[str, str] | None = None) -> SavePlan:
        from wtool.api import plan_save
        from wtool.formats import registry

        told = registry.for_target(self.dst, self.to).capabilities.metadata
        return plan_save(
            made,
            self.dst,
            to=self.to,
            whole=self.whole,
            metadata={KEY: dumps(asked, separators=(",", ":")), **(more or {})} if told else {},
            max_shard=self.shard,
            force=self.force,
            strict=self.strict,
        )

    def finish(
        self,
        found: Sequence[Fate],
        masks: Mapping[str, Mask],
        asked: Mapping[str, Any],
        *,
        init: Checkpoint | None = None,
        rest: str = "init",
        expected: int | None = None,
        groups: Mapping[str, Any] | None = None,
        mask_out: str | None = None,
    ) -> int:
        """Write what the masks keep, and the masks; show the report. The exit code."""
        from wtool.analysis.shares import Shares
        from wtool.api import plan_save, save
        from wtool.cli.prune_report import prune_report
        from wtool.ops.prune import mask_checkpoint

        shares = Shares(init is not None) if self.reads else None
        made = self.pruned(masks, init, rest, None if shares is None else lambda key: shares.of(self.part[key]))
        layouts: dict[str, str] = {}
        more: dict[str, str] = {}
        if self.store is not None:  # what counts the values tells of them; parts are made of them again and again
            plain = self.pruned(masks, init, rest)
            made, more, layouts = storing.stored(plain, self.store, self.dst, self.to, self.console, self.jobs, made)
        plan = self.plan(made, asked, more)
        bits = None
        if mask_out is not None:
            bits = plan_save(mask_checkpoint(self.part, masks), mask_out, to="safetensors", force=self.force)
        done = None
        if not self.dry_run:
            if bits is not None:  # first: the output may take the place of the source
                with self.console.progress("writing the masks", sum(job.nbytes for job in bits.plan.jobs)) as advance:
                    save(bits, jobs=self.jobs, memory=self.memory, progress=advance, collectors=())
            learns = [] if shares is None or self.store is not None else [shares]
            with self.console.progress("writing", sum(job.nbytes for job in plan.plan.jobs)) as advance:
                done = save(plan, jobs=self.jobs, memory=self.memory, progress=advance, beside=self.beside, collectors=learns)
        losses = plan.losses if done is None else done.losses
        for note in (*plan.notes, *lost(losses, future=self.dry_run)):
            self.console.note(note)
        first = {self.part[key].identity or key: key for key in masks}
        owners = {key: first[who] for key, one in self.part.items() if (who := one.identity or key) in first}
        shown = prune_report(
            self.part,
            found,
            asked,
            plan,
            done,
            shares,
            owners=owners,
            checks=self.checks,
            expected=expected,
            groups=groups,
            dropped=self.dropped,
            beside=tuple(self.beside),
            store=self.store,
            layouts=layouts,
            verbose=self.console.verbose,
        )
        if not (self.console.quiet and self.kind == "text"):
            self.console.show([shown], self.kind)
        if self.report is not None:
            write_report(self.report, [shown])
        return 1 if shown.data["failed"] else 0


def lost(losses: Sequence[Loss], *, future: bool) -> list[str]:
    """What of the source the outcome does not hold, in a line."""
    if not losses:
        return []
    names = list(dict.fromkeys(f"{loss.kind} {loss.name}" for loss in losses))
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return [f"{'would be lost' if future else 'lost'}: {', '.join(names[:_NAMES])}{more}"]
