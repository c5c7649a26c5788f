"""The options of a greedy soup, and what `average` does with them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Annotated

import typer

from wtool.cli import options
from wtool.errors import UsageError

if TYPE_CHECKING:
    from wtool.api import SavePlan
    from wtool.cli.average import Work
    from wtool.cli.console import Console
    from wtool.cli.evaluate import Evaluation
    from wtool.cli.kitchen import Story
    from wtool.ops.average import Averaged
    from wtool.ops.greedy import Objective

FAILURES = ("abort", "skip")
KEY = "wtool.soup"  # of the metadata of a safetensors output

Greedy = Annotated[
    bool, typer.Option("--greedy", help="A greedy soup: average those of the inputs that make the score of --eval no worse.")
]
Eval = Annotated[
    str | None,
    typer.Option(
        "--eval",
        metavar="COMMAND",
        help="Of --greedy: a shell command; {} is a checkpoint's path; its last line is a number or a JSON object.",
    ),
]
Maximize = Annotated[bool, typer.Option("--maximize", help="Of --greedy: a higher score is better.")]
Minimize = Annotated[bool, typer.Option("--minimize", help="Of --greedy: a lower score is better.")]
Field = Annotated[
    str | None,
    typer.Option("--field", metavar="NAME", help="Of --greedy: the score's name in the JSON object; dots go deeper."),
]
Accept = Annotated[
    str | None,
    typer.Option(
        "--accept",
        metavar="HOW",
        help="Of --greedy: ge takes an input if the score is no worse (default, as in the paper), gt if it is better.",
        autocompletion=options.one_of("ge", "gt"),
    ),
]
MinDelta = Annotated[
    float | None, typer.Option("--min-delta", metavar="X", help="Of --greedy: by how much at least the score gets better.")
]
Timeout = Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help="Of --greedy: how long one run may take.")]
OnFailure = Annotated[
    str | None,
    typer.Option(
        "--on-failure",
        metavar="HOW",
        help="Of --greedy, where there is no score: abort (default; a rerun goes on from there) or skip that input.",
        autocompletion=options.one_of(*FAILURES),
    ),
]
JournalFile = Annotated[
    str | None,
    typer.Option(
        "--journal",
        metavar="FILE",
        help="Of --greedy: where scores are kept, DST.soup.jsonl by default; remove it when what COMMAND reads has changed.",
    ),
]
Passes = Annotated[
    int | None,
    typer.Option(
        "--passes", metavar="K", min=1, help="Of --greedy: 2 tries once more what was left out, and so on. Default 1."
    ),
]


@dataclass(frozen=True, slots=True)
class Order:
    """What a greedy soup is asked to be."""

    evaluation: Evaluation
    objective: Objective
    skip: bool
    journal: str
    passes: int


def ordered(
    output: str,
    greedy: bool,
    command: str | None,
    maximize: bool,
    minimize: bool,
    field: str | None,
    accept: str | None,
    min_delta: float | None,
    timeout: float | None,
    on_failure: str | None,
    journal: str | None,
    passes: int | None,
) -> Order | None:
    """The options checked, before anything is opened; None without --greedy."""
    if not greedy:
        given = {
            "--eval": command,
            "--maximize": maximize or None,
            "--minimize": minimize or None,
            "--field": field,
            "--accept": accept,
            "--min-delta": min_delta,
            "--timeout": timeout,
            "--on-failure": on_failure,
            "--journal": journal,
            "--passes": passes,
        }
        stray = next((name for name, value in given.items() if value is not None), None)
        if stray is not None:
            raise UsageError(f"{stray} means nothing without --greedy")
        return None
    from wtool.cli.evaluate import Evaluation, shell_line
    from wtool.ops.greedy import ACCEPT, Objective

    if command is None:
        raise UsageError("--greedy needs --eval", hint="--eval 'python evaluate.py {}' --maximize")
    shell_line(command)
    if maximize == minimize:
        raise UsageError("--greedy needs --maximize or --minimize", hint="which way the score gets better")
    _one_of("--accept", accept, ACCEPT)
    _one_of("--on-failure", on_failure, FAILURES)
    if min_delta is not None and not (isfinite(min_delta) and min_delta >= 0):
        raise UsageError(f"--min-delta is {min_delta:g}", hint="0 or more")
    if timeout is not None and not (isfinite(timeout) and timeout > 0):
        raise UsageError(f"--timeout is {timeout:g}", hint="seconds, more than 0")
    path = journal if journal is not None else f"{output.rstrip(os.sep)}.soup.jsonl"
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise UsageError("the journal's folder does not exist", path=path)
    return Order(
        Evaluation(command, field, timeout),
        Objective(maximize, accept or "ge", min_delta or 0.0),
        on_failure == "skip",
        path,
        passes or 1,
    )


def _one_of(name: str, value: str | None, words: Sequence[str]) -> None:
    if value is not None and value not in words:
        raise UsageError(f"there is no {name} {value}", hint="one of " + ", ".join(words))


def cooked(
    order: Order,
    work: Work,
    *,
    shard: int | None,
    force: bool,
    jobs: int,
    memory: int | None,
    console: Console,
    dry_run: bool,
) -> tuple[Work, Story]:
    """What is left of the work, and why: the inputs of the soup, best first, or all of them for a dry run."""
    from wtool.api import save
    from wtool.cli.kitchen import Kitchen
    from wtool.cli.soup_story import WARNING, story_text
    from wtool.ops.linear import mean

    if work.asked.settings.method != "mean":
        raise UsageError(f"--greedy makes means, not {work.asked.settings.method}", hint="leave --method and --weights out")
    if work.asked.keep_extras:
        raise UsageError("--keep-extras takes those of the last input, and a soup has no last one")

    def mixed(numbers: Sequence[int], target: str) -> tuple[Averaged, SavePlan]:
        plan, found, _ = work.part(numbers, target).plan(mean(len(numbers)), shard, force)
        return found, plan

    def write(plan: SavePlan) -> None:
        save(plan, jobs=jobs, memory=memory)

    story = Kitchen(order, work.names, work.inputs, work.base, work.output, mixed, write, console).cook(dry_run=dry_run)
    if story.soup is None:
        return work, story
    console.warn(WARNING[1])
    left = work.part(story.soup.ingredients, work.output)
    left.told = {KEY: story_text(story)}
    return left, story
