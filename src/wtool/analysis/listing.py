"""A checkpoint as sorted lines of text that a line-by-line diff can tell apart: one line a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from json import dumps
from math import floor, isfinite, log10
from typing import Any

from wtool.analysis.parallel import ask
from wtool.analysis.plain import Plain
from wtool.checkpoint import Checkpoint
from wtool.keys import natural, short_key
from wtool.report import printable
from wtool.tensor import LazyTensor

_DIGITS = 16  # hex digits of a digest: 64 bits tell tensors of one repository apart
_LONG = 200  # characters of a value that are shown
_LEAVES = 500  # values of extras that have a line of their own


def listing(checkpoint: Checkpoint, jobs: int = 1) -> Iterator[str]:
    """Dangers, metadata and extras first, then every tensor in natural order of its key, each read once.

        # metadata format: pt
        # extras global_step: 120
        layers.0.weight  f32 [4, 3]  3f0c99d2a15be877  mean 0.0213 std 0.998 absmax 2.71

    Ends without newlines. The same for the same checkpoint on every machine: no paths, no dates. Columns are not aligned, so
    that a longer key changes no other line. The digest is the first 16 hex digits of the tensor's (docs/digest.md).
    """
    for name in sorted({found.name for found in checkpoint.globals if found.verdict == "dangerous"}):
        yield f"# DANGER: unpickling this file elsewhere would call {_said(name)}"
    for key, value in sorted(checkpoint.metadata.items()):
        yield f"# metadata {_said(key)}: {_said(value)}"
    yield from _extras(checkpoint)
    groups = [sorted(group, key=natural) for group in checkpoint.tied()]
    tied = {key: group[0] for group in groups for key in group[1:]}
    measured = ask(checkpoint.tensors, _measured, jobs)
    for key in sorted(checkpoint, key=natural):
        tensor = checkpoint[key]
        shape = ", ".join(map(str, tensor.shape))
        same = f"  = {printable(short_key(tied[key]))}" if key in tied else ""
        yield f"{printable(short_key(key))}  {tensor.dtype} [{shape}]  {measured[key]}{same}"


def _measured(tensor: LazyTensor) -> str:
    from wtool.errors import UnsupportedError
    from wtool.kernels.moments import Moments

    # The digest as analysis/digest defines it, taken in the same pass.
    state = blake2b(f"{tensor.dtype} {','.join(map(str, tensor.shape))}\n".encode("ascii"), digest_size=32)
    try:
        moments = Moments(tensor.dtype) if tensor.dtype.itemsize or tensor.dtype.block else None
    except UnsupportedError:
        moments = None
    for block in tensor.blocks():
        state.update(block.view("u1").data)
        if moments is not None:
            moments.add(block)
    said = state.hexdigest()[:_DIGITS]
    if moments is not None and moments.count:
        std = moments.std if isfinite(moments.std) else float("inf")  # squares beyond f64
        most = max(abs(moments.low), abs(moments.high))
        shown = f"{most}" if isinstance(most, int) else f"{most:.6g}"
        said += f"  mean {_rounded(moments.mean, std):.6g} std {std:.6g} absmax {shown}"
    if moments is not None:
        said += "".join(f" {name} {count}" for name, count in (("nan", moments.nan), ("inf", moments.inf)) if count)
    return said


def _rounded(mean: float, std: float) -> float:
    """The mean to a hundred-thousandth of the spread: what is below is the order in which a machine sums."""
    return round(mean, 5 - floor(log10(std))) + 0.0 if 0 < std < float("inf") else mean


def _extras(checkpoint: Checkpoint) -> Iterator[str]:
    """A line for each value; tensors in them have their own."""
    plain = Plain()
    left: list[tuple[str, str]] = []
    count = 0
    for name, value in sorted(((str(name), value) for name, value in checkpoint.extras.items()), key=lambda item: item[0]):
        for path, text in _leaves(plain(value), name):
            count += 1
            if count > _LEAVES:
                left.append((path, text))
            else:
                yield f"# extras {_said(path)}: {_said(text)}"
    if left:
        yield f"# extras: {len(left)} values more, blake2b {_short_digest(repr(left))}"


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Plain values as (dotted path, text), a line for each leaf or list of leaves."""
    if isinstance(value, dict) and list(value) == ["tensor"]:
        return
    if isinstance(value, dict) and list(value) == ["class"]:
        yield path, f"<{value['class']}>"
    elif isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}.{index}")
    else:
        yield path, value if isinstance(value, str) else dumps(value, ensure_ascii=False)


def _said(text: object) -> str:
    """A text in one line; of a long one the beginning, and a digest so that a change does not pass unseen."""
    whole = str(text)
    if len(whole) <= _LONG:
        return printable(whole)
    return f"{printable(whole[: _LONG // 2])}... ({len(whole)} characters, blake2b {_short_digest(whole)})"


def _short_digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGITS // 2).hexdigest()
