"""A checkpoint as sorted lines of text that a line-by-line diff can tell apart: one line a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

from wtool.analysis.parallel import ask
from wtool.analysis.plain import Plain, lines
from wtool.checkpoint import Checkpoint
from wtool.keys import natural, short_key
from wtool.tensor import LazyTensor

_DIGITS = 16  # hex digits of a digest: 64 bits tell tensors of one repository apart


def listing(checkpoint: Checkpoint, jobs: int = 1) -> Iterator[str]:
    """Metadata and plain extras first, then every tensor in natural order of its key, each read once.

        # metadata format: pt
        # extras global_step: 120
        layers.0.weight  f32 [4, 3]  3f0c99d2a15be877  mean 0.0213 std 0.998 absmax 2.71

    Ends without newlines. The same for the same checkpoint on every machine: no paths, no dates. The digest is the first 16
    hex digits of the tensor's (docs/digest.md).
    """
    for key, value in sorted(checkpoint.metadata.items()):
        yield f"# metadata {key}: {_line(value)}"
    for name, text in lines(Plain()(_plain_extras(checkpoint))):
        yield f"# extras {name}: {_line(text)}"
    tied = {key: group[0] for group in checkpoint.tied() for key in group[1:]}
    measured = ask(checkpoint.tensors, _measured, jobs)
    for key in sorted(checkpoint, key=natural):
        tensor = checkpoint[key]
        shape = ", ".join(map(str, tensor.shape))
        same = f"  = {_line(short_key(tied[key]))}" if key in tied else ""
        yield f"{_line(short_key(key))}  {tensor.dtype} [{shape}]  {measured[key]}{same}"


def _measured(tensor: LazyTensor) -> str:
    from wtool.errors import UnsupportedError
    from wtool.kernels.moments import Moments

    # The digest as analysis/digest defines it, taken in the same pass.
    state = blake2b(f"{tensor.dtype} {','.join(map(str, tensor.shape))}\n".encode("ascii"), digest_size=32)
    try:
        moments = Moments(tensor.dtype) if tensor.dtype.bits >= 8 else None
    except UnsupportedError:
        moments = None
    for block in tensor.blocks():
        state.update(block.view("u1").data)
        if moments is not None:
            moments.add(block)
    said = state.hexdigest()[:_DIGITS]
    if moments is not None and moments.count:
        said += f"  mean {moments.mean:.6g} std {moments.std:.6g} absmax {max(abs(moments.low), abs(moments.high)):.6g}"
    if moments is not None and (moments.nan or moments.inf):
        said += f" nan {moments.nan} inf {moments.inf}"
    return said


def _plain_extras(checkpoint: Checkpoint) -> dict[str, object]:
    """Those that are numbers, words and their like: an optimizer's state is not for a diff."""
    return {
        str(name): value
        for name, value in checkpoint.extras.items()
        if value is None or isinstance(value, (bool, int, float, str))
    }


def _line(text: str) -> str:
    return str(text).replace("\r", "\\r").replace("\n", "\\n")
