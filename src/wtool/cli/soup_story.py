"""How a greedy soup came about, for a report and for the metadata of the outcome."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

from wtool.cli.kitchen import Story
from wtool.report import Block, Column, Facts, Report, Row, Table

WARNING = (
    "selected-on",
    "the inputs were chosen by this score, which flatters the soup: score it once more on data that chose nothing",
)


def with_story(report: Report, story: Story) -> Report:
    """The report of an average with `greedy` in its JSON and the story in its blocks."""
    data = {**report.data, "greedy": story_data(story)}
    if story.soup is not None:
        code, message = WARNING
        data["warnings"] = [*data.get("warnings", ()), {"code": code, "message": message}]
    return replace(report, data=data, blocks=(*report.blocks, *_blocks(story)))


def story_data(story: Story) -> dict[str, Any]:
    """`soup` and `best` are null, and `rounds` empty, for a dry run."""
    order, soup = story.order, story.soup
    own = {numbers[0]: told for numbers, told in story.told.items() if len(numbers) == 1}
    best = None if soup is None else soup.ingredients[0]
    return {
        "objective": {
            "goal": "maximize" if order.objective.maximize else "minimize",
            "command": order.evaluation.command,
            "field": order.evaluation.field,
            "accept": order.objective.accept,
            "min_delta": order.objective.min_delta,
            "passes": order.passes,
        },
        "journal": order.journal,
        "most": story.most,
        "known": story.known,
        "evaluated": _evaluated(story),
        "rounds": [
            {
                "round": trial.round,
                "path": story.names[trial.ingredient],
                "digest": story.digests[trial.ingredient],
                "own": trial.own,
                "own_seconds": own[trial.ingredient].seconds,
                "score": trial.score,
                "seconds": story.told[trial.tried].seconds,
                "accepted": trial.accepted,
                "error": story.told[trial.tried].error,
            }
            for trial in (() if soup is None else soup.trials)
        ],
        "best": None if soup is None or best is None else {"path": story.names[best], "score": own[best].score},
        "soup": None if soup is None else {"paths": [story.names[one] for one in soup.ingredients], "score": soup.score},
    }


def story_text(story: Story) -> str:
    """For metadata: the ingredients by name and digest, and their scores. Names without folders, and not the command: a file
    that is handed on does not tell of the machine that it was made on.
    """
    soup = story.soup
    assert soup is not None
    rounds = [
        {
            "name": os.path.basename(story.names[trial.ingredient].rstrip(os.sep)),
            "digest": story.digests[trial.ingredient],
            "own": trial.own,
            "score": trial.score,
            "accepted": trial.accepted,
        }
        for trial in soup.trials
    ]
    goal = "maximize" if story.order.objective.maximize else "minimize"
    return json.dumps({"goal": goal, "score": soup.score, "rounds": rounds}, separators=(",", ":"))


def _blocks(story: Story) -> tuple[Block, ...]:
    soup, count = story.soup, len(story.names)
    if soup is None:
        rows = [("greedy", f"at most {story.most} evaluations of {count} inputs and their soups")]
        if story.known:
            rows.append(("known", f"{story.known} scores in {story.order.journal}"))
        rows.append(("command", story.order.evaluation.command))
        return (Facts(tuple(rows), "Greedy soup"),)
    columns = (
        Column("Round", number=True),
        Column("Input", keep=True),
        Column("Its own score", number=True),
        Column("Score with it", number=True),
        Column("Accepted"),
    )
    rows_of_trials = tuple(
        Row(
            (
                str(trial.round),
                story.names[trial.ingredient],
                _shown(trial.own),
                _shown(trial.score),
                "yes" if trial.accepted else story.told[trial.tried].error or "no",
            )
        )
        for trial in soup.trials
    )
    best = soup.trials[0].own
    facts = (
        ("best input", f"{story.names[soup.ingredients[0]]}, {_shown(best)}"),
        ("soup", f"{len(soup.ingredients)} of {count} inputs, {_shown(soup.score)}"),
        ("evaluations", f"{_evaluated(story)} run, {story.known} known from {story.order.journal}"),
    )
    return (Table(columns, rows_of_trials, "Greedy soup"), Facts(facts))


def _evaluated(story: Story) -> int:
    return sum(told.score is not None and not told.reused for told in story.told.values())


def _shown(score: float | None) -> str:
    return "-" if score is None else f"{score:.10g}"
