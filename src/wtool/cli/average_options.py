"""The options of `wtool average`."""

from __future__ import annotations

from typing import Annotated

import typer

from wtool.cli import options
from wtool.cli.average_methods import COMPATS, METHODS

Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SRC...",
        help="Checkpoints in any format, or globs of them; with --last, --best or a range of steps also folders of them.",
        show_default=False,
    ),
]
Output = Annotated[str, typer.Option("--output", "-o", metavar="DST", help="The checkpoint to write.", show_default=False)]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help=f"{', '.join(METHODS)}. Default mean, with --weights weighted.",
        autocompletion=options.one_of(*METHODS),
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights", metavar="W,W,...", help="A weight for each input, as in 0.5,0.3,0.2; a mean divides by their sum."
    ),
]
Decay = Annotated[float | None, typer.Option("--decay", metavar="D", help="Of ema: how much of the past stays, such as 0.9.")]
T = Annotated[float | None, typer.Option("--t", metavar="T", help="Of lerp and slerp: 0 is the first input, 1 the second.")]
Base = Annotated[str | None, typer.Option("--base", metavar="SRC", help="What the inputs were trained from.")]
Scale = Annotated[
    float | None,
    typer.Option("--scale", metavar="X", help="Of task, ties and dare: times what is added to the base. Default 1."),
]
Density = Annotated[
    float | None,
    typer.Option("--density", metavar="D", help="Of ties and dare: the share of the differences that is kept, such as 0.2."),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", metavar="N", help="Of dare: what is dropped follows from it, the key and the place of the input. Default 0."
    ),
]
TrimScope = Annotated[
    str | None,
    typer.Option(
        "--trim-scope",
        metavar="SCOPE",
        help="Of ties: the largest differences of each tensor (default) or of the whole model (with --compat paper).",
        autocompletion=options.one_of("tensor", "model"),
    ),
]
Vote = Annotated[
    str | None,
    typer.Option(
        "--vote",
        metavar="KIND",
        help="Of ties and dare-ties: the sign of the sum of the differences, mass (default), or of most of them, frequency.",
        autocompletion=options.one_of("mass", "frequency"),
    ),
]
Compat = Annotated[
    str | None,
    typer.Option(
        "--compat",
        metavar="NAME",
        help="Where tools differ, whose way: paper, mergekit or (ties and dare) peft. slerp: mergekit (default) takes the "
        "vectors as they are, paper their directions; model-stock: mergekit goes beyond the base where inputs point apart.",
        autocompletion=options.one_of(*COMPATS),
    ),
]
Rules = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        metavar="GLOB=POLICY",
        help="mean, first, last, max, base, drop or error for some keys; the first that matches counts. Repeatable.",
    ),
]
OnMismatch = Annotated[
    str | None,
    typer.Option(
        "--on-mismatch",
        metavar="POLICY",
        help="Keys or shapes that differ: error (default), intersect (left out), union (averaged over those that have them), "
        "base (the base's).",
        autocompletion=options.one_of("error", "intersect", "union", "base"),
    ),
]
Last = Annotated[
    int | None,
    typer.Option(
        "--last", metavar="N", min=1, help="The N inputs of the largest step, else epoch, else number in their names."
    ),
]
Best = Annotated[
    int | None, typer.Option("--best", metavar="N", min=1, help="The N inputs of the best --metric; with --lower or --higher.")
]
Metric = Annotated[
    str | None,
    typer.Option("--metric", metavar="REGEX", help="Finds a number in a path: one group, as in 'val_loss=([0-9.]+)'."),
]
Lower = Annotated[bool, typer.Option("--lower", help="The lowest metric is the best.")]
Higher = Annotated[bool, typer.Option("--higher", help="The highest metric is the best.")]
MinStep = Annotated[int | None, typer.Option("--min-step", metavar="N", help="Only inputs of this step or later.")]
MaxStep = Annotated[int | None, typer.Option("--max-step", metavar="N", help="Only inputs of this step or earlier.")]
KeepExtras = Annotated[
    bool, typer.Option("--keep-extras", help="Take optimizer, epoch and all that is no weight from the last input.")
]
RecipeFile = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="FILE",
        help="Do again what a JSON report or a safetensors output tells; SRC, if given, take the places of its inputs.",
    ),
]
Digest = Annotated[
    bool, typer.Option("--digest", help="Put a digest of all values of each input into the recipe: reads them once more.")
]
