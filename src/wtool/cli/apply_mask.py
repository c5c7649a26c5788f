"""`wtool apply-mask`: the masks of an earlier `wtool prune`, on another checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from wtool.cli import options, storing
from wtool.cli.console import Console
from wtool.cli.pruning import FailIf, Work


def apply_mask(
    src: options.Source,
    mask: Annotated[str, typer.Argument(metavar="MASK", help="What `wtool prune --mask-out` wrote.", show_default=False)],
    dst: options.Target,
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
    """Set to zero what masks say, as after training went on without them, and keep all else bit for bit."""
    from wtool.ops.prune import Fate

    work = Work(src, dst, section, to, max_shard, force, strict, jobs, memory, Console(quiet=quiet, verbose=verbose), store)
    work.show_as(json, format, report, fail_if, dry_run=dry_run)
    masks = work.masks(mask)
    tied = {work.part[key].identity or key for key in masks}
    found = [
        Fate(key, pruned, "" if pruned else "has no mask")
        for key, tensor in work.part.items()
        for pruned in [(tensor.identity or key) in tied]
    ]
    return work.finish(found, masks, {"mask": mask} | ({} if store is None else {"store": store}))
