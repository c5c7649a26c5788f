"""`wtool quantize`: weights as codes and scales, in the layouts that runtimes load, and what it cost."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from wtool.cli import options
from wtool.cli.console import Console, report_kind, write_report
from wtool.errors import UsageError

_ON_NAN = ("error", "keep")


def quantize(
    src: options.Source,
    dst: options.Target,
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme",
            metavar="NAME",
            help="How weights are coded: int8, int4, int3, int2, f8-e4m3, nvfp4, mxfp4, nf4, q4_k, f16..., and as in "
            "int4:g64:asym how they share scales.",
            autocompletion=options.schemes,
            show_default=False,
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            metavar="NAME",
            help="How codes lie in a file: compressed-tensors (default; vLLM, transformers), gguf, mlx, bnb, gptq, awq.",
            autocompletion=options.layouts,
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            metavar="N",
            help="Weights that share a scale: 32, 64, 128; channel (a row), block (128 x 128) or tensor.",
            autocompletion=options.one_of("32", "64", "128", "channel", "block", "tensor"),
        ),
    ] = None,
    asymmetric: Annotated[bool, typer.Option("--asymmetric", help="Groups have zero points.")] = False,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="rtn: scales from the largest magnitude; mse: of the least squared error, the default at 4 bits and below.",
            autocompletion=options.one_of("rtn", "mse"),
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option("--fit", metavar="SIZE", help="Find the mix of schemes that loses least and fits, such as 4GB."),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option("--bits", metavar="N", min=0.1, help="The same for a mean of bits a weight, all tensors counted."),
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(
            "--candidates",
            metavar="NAME,NAME",
            help="What --fit and --bits choose from, as in int4:g128,int8; default: what suits the layout.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="GLOB", help="Quantize the tensors that match, and no others. Repeatable."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", metavar="GLOB", help="Leave these too, besides what is left by default. Repeatable."),
    ] = None,
    scheme_for: Annotated[
        list[str] | None,
        typer.Option(
            "--scheme-for",
            metavar="GLOB=NAME",
            help="Another scheme for keys that match, or none: '**.down_proj.weight=int8'. The first that matches counts.",
        ),
    ] = None,
    rest: Annotated[
        str | None,
        typer.Option(
            "--rest",
            metavar="DTYPE",
            help="Cast what is f32 and not quantized: bf16 or f16.",
            autocompletion=options.one_of("bf16", "f16"),
        ),
    ] = None,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="A source that is quantized already is decoded first.")
    ] = False,
    on_nan: Annotated[
        str,
        typer.Option(
            "--on-nan",
            metavar="POLICY",
            help="NaN or Inf in a tensor: error, or keep (the tensor stays as it is).",
            autocompletion=options.one_of(*_ON_NAN),
        ),
    ] = "error",
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Read the output back and tell the error of every tensor.")
    ] = True,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if",
            metavar="CHECK",
            help="Exit 1 if this holds of what was written: 'sqnr<18' (of any tensor), 'total.sqnr<20', 'bits>4.6'. "
            "Repeatable.",
        ),
    ] = None,
    section: options.SectionName = None,
    to: options.To = None,
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
    """Make checkpoints smaller that real runtimes load: int8, int4, fp8, nvfp4, nf4, GGUF types; and say what it cost.

    Floating matrices are quantized; norms, biases, embeddings, output layers, routers, convolutions and small tensors are
    not, and every tensor that is left is told with the reason. A Hugging Face folder gives a folder, its config.json told of
    it. `wtool convert --dequantize` is the way back.
    """
    from wtool.cli.fitting import fit as fit_into
    from wtool.cli.quantize_report import parse_check, quantize_report
    from wtool.cli.quantizing import Asked, Quantizing

    kind = options.output_kind(json, format)
    if report is not None:
        report_kind(report)
    if on_nan not in _ON_NAN:
        raise UsageError(f"there is no policy '{on_nan}'", hint="one of " + ", ".join(_ON_NAN))
    if rest not in (None, "bf16", "f16"):
        raise UsageError(f"--rest is no dtype that saves anything: '{rest}'", hint="bf16 or f16")
    checks = [parse_check(text) for text in fail_if or ()]
    if checks and (dry_run or not measure):
        raise UsageError("--fail-if looks at what was written: not with --dry-run or --no-measure")
    if scheme is None and fit is None and bits is None:
        raise UsageError("with which scheme?", hint="--scheme int4, int8, f8-e4m3, nvfp4, nf4, q4_k..., or --fit 4GB")
    if sum(one is not None for one in (scheme, fit, bits)) > 1:
        raise UsageError("--scheme, --fit and --bits exclude one another", hint="--scheme-for settles single tensors")
    if candidates is not None and scheme is not None:
        raise UsageError("--candidates is for --fit and --bits", hint="leave one of them out")
    asked = Asked(
        scheme,
        layout,
        group,
        asymmetric,
        method,
        tuple(only or ()),
        tuple(skip or ()),
        tuple(scheme_for or ()),
        rest,
        fit,
        bits,
        candidates,
    )
    console = Console(quiet=quiet, verbose=verbose)
    work = Quantizing(src, dst, asked, console, section=section, to=to, jobs=jobs, requantize=requantize)
    work.choose(keep_odd=on_nan == "keep", dry_run=dry_run)
    lay_out = partial(work.plan, max_shard=max_shard, force=force, strict=strict)
    if scheme is None:
        fit_into(work, lay_out)
    plan = lay_out()
    done = None if dry_run else work.write(plan, memory)
    lost = work.measure(plan) if done is not None and measure else None
    shown = quantize_report(work, plan, done, lost, checks, verbose=verbose)
    for note in (*plan.notes, *work.notes(plan, future=dry_run)):
        console.note(note)
    if not (quiet and kind == "text"):
        console.show([shown], kind)
    if report is not None:
        write_report(report, [shown])
    return 1 if shown.data["failed"] else 0
