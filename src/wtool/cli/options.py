"""The options that commands share, and what the shell offers to complete them with."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from wtool.errors import UsageError
from wtool.render import KINDS

_MOST = 500  # keys offered at once


def schemes(incomplete: str) -> list[str]:
    """Names of schemes of quantization."""
    from wtool.layout import SCHEMES

    return [name for name in SCHEMES if name.startswith(incomplete)]


def layouts(incomplete: str) -> list[str]:
    """Names of layouts of quantized tensors that can be written."""
    from wtool.layouts.registry import names

    return [name for name in names() if name.startswith(incomplete)]


def output_kind(json: bool, kind: str | None) -> str:
    """What `--json` and `--format` ask for together."""
    if kind is not None and kind not in KINDS:
        raise UsageError(f"there is no report format '{kind}'", hint="one of " + ", ".join(KINDS))
    if json and kind not in (None, "json"):
        raise UsageError(f"--json and --format {kind} contradict each other")
    return "json" if json else kind or "text"


def worker_count(jobs: int | None) -> int:
    """`--jobs`, or as many as this process has processors, at most 4: more wait for the disk."""
    import os

    return jobs or min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 4)


def _kinds(incomplete: str) -> list[str]:
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def _formats(incomplete: str) -> list[str]:
    try:
        from wtool.formats.registry import names

        return [name for name in names() if name.startswith(incomplete)]
    except Exception:  # a shell that waits for an answer is no place for an error
        return []


def _dtypes(incomplete: str) -> list[str]:
    from wtool.dtypes import BY_NAME

    return [name for name, row in BY_NAME.items() if row.floating and row.itemsize and name.startswith(incomplete)]


def _opened(ctx: typer.Context, section: str | None) -> Any:
    from wtool.api import open_checkpoint

    # An option that waits for its value ends the parsing before the arguments get their names.
    source = ctx.params.get("src") or ctx.params.get("a") or ctx.args
    path = source[0] if isinstance(source, (list, tuple)) else source
    return open_checkpoint(str(path), section=section)


def _keys(ctx: typer.Context, incomplete: str) -> list[str]:
    try:
        from wtool.keys import natural, short_key

        checkpoint = _opened(ctx, ctx.params.get("section"))
        found = sorted({short_key(key) for key in checkpoint}, key=natural)
    except Exception:  # as above
        return []
    return [key for key in found if key.startswith(incomplete)][:_MOST]


def _sections(ctx: typer.Context, incomplete: str) -> list[str]:
    try:
        names = [section.name for section in _opened(ctx, "all").sections]
    except Exception:  # as above
        return []
    return [name for name in (*names, "all") if name.startswith(incomplete)]


def recipe_names(incomplete: str) -> list[str]:
    """What completes the name of a recipe."""
    try:
        from wtool.maps.catalog import names, turned_name

        return [name for known in names() for name in (known, turned_name(known)) if name.startswith(incomplete)]
    except Exception:  # as above
        return []


def variables(texts: list[str]) -> dict[str, int]:
    """`--set NAME=N`."""
    found = {}
    for text in texts:
        name, sign, number = text.partition("=")
        if not sign or not name.isidentifier() or not number.isdecimal() or not 0 < len(number) < 13 or not int(number):
            raise UsageError(f"'{text}' sets no variable", hint="write NAME=N, as in heads=12")
        found[name] = int(number)
    return found


def one_of(*words: str) -> Any:
    """A completion that offers these words."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


_SOURCE = "A file, a sharded folder, an index.json, a TensorFlow prefix, or a folder that holds one of these."

Sources = Annotated[list[str], typer.Argument(metavar="SRC...", help=_SOURCE, show_default=False)]
Source = Annotated[str, typer.Argument(metavar="SRC", help=_SOURCE, show_default=False)]
Target = Annotated[
    str,
    typer.Argument(metavar="DST", help="The file, prefix or folder to write; the suffix says the format.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="The report as one JSON object; short for --format json.")]
Format = Annotated[
    str | None, typer.Option("--format", metavar="KIND", help="text, json, markdown or html.", autocompletion=_kinds)
]
ReportFile = Annotated[
    str | None,
    typer.Option("--report", metavar="FILE", help="Write the report to FILE too; .json .md .html .txt say its kind."),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="GLOB",
        help="Only keys that match; '*' stays inside a part, '**' crosses. Repeatable.",
        autocompletion=_keys,
    ),
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="GLOB", help="No keys that match. Repeatable.", autocompletion=_keys)
]
SectionName = Annotated[
    str | None,
    typer.Option(
        "--section",
        metavar="NAME",
        help="The part of the checkpoint; default: the model's weights; 'all' for everything.",
        autocompletion=_sections,
    ),
]
To = Annotated[
    str | None,
    typer.Option("--to", metavar="FORMAT", help="The format to write, when the suffix does not say.", autocompletion=_formats),
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", metavar="DTYPE", help="Cast floating tensors: f32, f16, bf16, f8_e4m3...", autocompletion=_dtypes),
]
Maps = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="NAME_OR_FILE",
        help="Map to another framework's names and layouts by a recipe; `wtool map list` names them. Repeatable, in order.",
        autocompletion=recipe_names,
    ),
]
Reverse = Annotated[bool, typer.Option("--reverse", help="Run the recipes of --map backwards.")]
Like = Annotated[
    str | None,
    typer.Option("--like", metavar="TEMPLATE", help="A checkpoint of the target model: take its keys, check its shapes."),
]
Variables = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=N", help="A number that a recipe needs, as in heads=12. Repeatable."),
]
Unmatched = Annotated[
    str | None,
    typer.Option(
        "--unmatched",
        metavar="POLICY",
        help="Keys that no rule of the recipe matches: error (default), keep or drop.",
        autocompletion=one_of("error", "keep", "drop"),
    ),
]
MaxShard = Annotated[
    str | None, typer.Option("--max-shard", metavar="SIZE", help="Cut into shards of at most SIZE (5GB), with an index.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would be written and lost; write nothing.")]
Strict = Annotated[bool, typer.Option("--strict", help="Any loss is an error (exit 2).")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", metavar="N", min=1, help="Tensors worked on in parallel.")]
Memory = Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="Bound on the memory for blocks, such as 256MB.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, notes or warnings.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show every line that is otherwise cut.")]
