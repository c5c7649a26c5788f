"""What a layout of quantized tensors must answer: how weights lie in a file when they are fewer bits than numbers.

A layout is one object of the family `layouts`, which keeps these promises:

- `settle` fills in what a scheme leaves open, and refuses what the layout cannot say. `refuses` says of one tensor why not.
- `parts` answers from headers alone with the tensors that one weight becomes; values are read when they are written. What
  must be known of all values before (`wants`) a first pass gathers.
- A layout whose runtimes know no stacks of experts may have `split`: key of a stack -> the matrices in it, as views.
- `config` tells what runtimes want to read beside the tensors.
- `find` recognises its own among the tensors of a checkpoint, whoever wrote them, by keys, dtypes and shapes; it reads no
  more than a few small tensors. What it finds can be had as one dense tensor, exactly as the layout's runtime computes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from wtool.boxes import Shape
from wtool.dtypes import DType
from wtool.errors import UsageError
from wtool.tensor import LazyTensor

METHODS = ("rtn", "mse")
Group = int | Literal["tensor", "channel", "block"]
Wanted = Literal["largest", "mean"]
_TEXT = re.compile(r"([a-z0-9_-]+)((?::[a-z0-9]+)*)")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How weights are coded: `int4:g128`, `int8:channel`, `int4:g64:asym`, `f8-e4m3:block`, `nf4`, `q4_0`.

    `group` is how many weights of a row share a scale: a number, or all of a row ("channel"), of a block of 128 x 128, or of
    the tensor; None leaves it to the layout. `symmetric`: zero is code 0; else groups have zero points. `method`: "rtn" takes
    the scale from the largest magnitude, "mse" looks for the one of the least squared error; None: mse at 4 bits and below.
    """

    name: str
    group: Group | None = None
    symmetric: bool = True
    method: str | None = None

    def __str__(self) -> str:
        group = f":g{self.group}" if isinstance(self.group, int) else f":{self.group}" if self.group else ""
        return f"{self.name}{group}{'' if self.symmetric else ':asym'}"

    @property
    def searches(self) -> bool:
        """Whether the scale is searched for."""
        return self.method == "mse" if self.method else self.name in SEARCHED


# fmt: off
SCHEMES = (
    "f16", "bf16", "f8-e4m3", "f8-e5m2", "int8", "int4", "int3", "int2", "nf4", "nf4-nested", "fp4", "nvfp4", "mxfp4",
    "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k",
)
SEARCHED = frozenset({
    "int4", "int3", "int2", "nf4", "nf4-nested", "fp4", "nvfp4", "mxfp4", "q4_0", "q4_1",
    "q6_k", "q5_k", "q4_k", "q3_k", "q2_k",
})
# fmt: on
CASTS = ("f16", "bf16")
_ALIASES = {"f8": "f8-e4m3", "fp8": "f8-e4m3", "f8_e4m3": "f8-e4m3", "f8_e5m2": "f8-e5m2", "i8": "int8", "i4": "int4"}


def parse_scheme(text: str) -> Scheme:
    """`NAME[:gN|:channel|:tensor|:block][:asym|:sym][:rtn|:mse]`. UsageError."""
    found = _TEXT.fullmatch(text.strip().lower())
    name = found[1] if found else ""
    name = _ALIASES.get(name, name)
    if not found or name not in SCHEMES:
        raise UsageError(f"there is no scheme '{text}'", hint="one of " + ", ".join(SCHEMES) + "; then :g128, :channel, :asym")
    scheme = Scheme(name)
    for word in found[2].split(":")[1:]:
        if word in ("channel", "tensor", "block"):
            scheme = replace(scheme, group=word)  # type: ignore[arg-type]
        elif word in ("asym", "sym"):
            scheme = replace(scheme, symmetric=word == "sym")
        elif word in METHODS:
            scheme = replace(scheme, method=word)
        elif word.removeprefix("g").isdecimal() and 0 < int(word.removeprefix("g")) <= 1 << 20:
            scheme = replace(scheme, group=int(word.removeprefix("g")))
        else:
            raise UsageError(f"'{word}' says nothing of a scheme", hint=f"{name}:g128, {name}:channel, {name}:g64:asym")
    return scheme


@dataclass(frozen=True, slots=True)
class Seen:
    """What a first pass saw of a tensor's values: the largest magnitude, and the mean of those of blocks of 64."""

    largest: float
    mean: float = 0.0


@dataclass(frozen=True, slots=True)
class Quantized:
    """A tensor that was found to be stored quantized.

    `key`, `shape`, `dtype`: of the tensor that it stands for. `layout` and `scheme` name how; `parts` are the keys of all
    tensors that belong to it, the first being the one in whose place the dense tensor goes. `dense` makes it: a lazy tensor of
    f32 and of `shape`; it may read small parts, and raises CorruptError where parts do not belong together. `nbytes` are those
    of the parts.
    """

    key: str
    shape: Shape
    dtype: DType
    layout: str
    scheme: str
    parts: tuple[str, ...]
    nbytes: int
    dense: Callable[[], LazyTensor] = field(repr=False, compare=False)


# Ends of keys that stand beside quantized weights, in the layouts that wtool knows. The registry asks no layout without one.
_SIGNS = (
    "_packed", "_scale", "_scale_inv", "_scale_2", ".scale", ".scales", ".qweight", ".SCB", ".absmax", "._data", "._scale",
    "_qdata", "_scb",
)  # fmt: skip


def looks_quantized(tensors: Mapping[str, LazyTensor]) -> bool:
    """Whether it is worth asking the layouts."""
    return any(key.endswith(_SIGNS) or tensor.dtype.block is not None for key, tensor in tensors.items())


class Layout(Protocol):
    """A layout. One module-level object; no state."""

    @property
    def name(self) -> str: ...

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats (of adapters) it may be written in, the usual one first; empty where it is only read."""
        ...

    @property
    def schemes(self) -> tuple[str, ...]: ...

    def settle(self, scheme: Scheme) -> Scheme:
        """The scheme with nothing left open. UsageError for one that this layout has not."""
        ...

    def wants(self, scheme: Scheme) -> Wanted | None:
        """What of all values must be known before."""
        ...

    def refuses(self, scheme: Scheme, tensor: LazyTensor) -> str | None:
        """Why a floating tensor of two or more axes cannot be stored so, in a few words."""
        ...

    def parts(self, tensor: LazyTensor, scheme: Scheme, seen: Seen | None) -> list[LazyTensor]:
        """The tensors that `tensor` (of its stored dtype, under its key) becomes, with their keys."""
        ...

    def config(self, chosen: Mapping[str, Scheme], kept: Sequence[str]) -> dict[str, Any]:
        """What is merged into config.json: the schemes of quantized tensors, and keys of all others of 2 or 3 axes."""
        ...

    def metadata(self, chosen: Mapping[str, Scheme]) -> dict[str, str]:
        """What is added to the format's own metadata."""
        ...

    def find(
        self, tensors: Mapping[str, LazyTensor], config: Mapping[str, Any] | None, metadata: Mapping[str, str]
    ) -> list[Quantized]:
        """What is stored in this layout. `config` is the config.json beside the checkpoint."""
        ...
