"""TIES: differences from a base are trimmed to the largest, a sign is elected for each, and those that agree are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wtool import views
from wtool.dtypes import DType
from wtool.errors import UnsupportedError, UsageError
from wtool.kernels.elect import DIVISORS, VOTES, Elected, Election, Thin, Unready
from wtool.kernels.trim import ALL, NONE, Keep
from wtool.tensor import LazyTensor

if TYPE_CHECKING:
    from wtool.kernels.combine import Tell

COMPATS = ("paper", "mergekit", "peft")
SCOPES = ("tensor", "model")


@dataclass(frozen=True, slots=True)
class Thinned:
    """base + scale * merged(thinned (x_i - base)) in f64, rounded once; merged is a weighted sum or, with an `election`, that.

    `majority`: where the vote is 0, the sign that most votes of the model have counts (a minus if there is no such), as in the
    code of the authors of TIES. A first pass learns it; it becomes the `zero` of the election.
    """

    weights: tuple[float, ...]
    density: float
    scale: float = 1.0
    election: Election | None = None
    majority: bool = False
    tell: Tell | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.density <= 1.0:
            raise UsageError(f"the density is {self.density:g}", hint="the share of the differences that is kept, from 0 to 1")
        if self.election is not None and not (self.election.vote in VOTES and self.election.divisor in DIVISORS):
            raise UsageError(f"there is no vote '{self.election.vote}'", hint="one of " + ", ".join(VOTES))

    def thin(self, number: int, key: str) -> Thin:
        """What thins the differences of one tensor of one input; Unready before a first pass that it needs."""
        raise NotImplementedError

    @property
    def needs(self) -> str:
        """What a first pass must fill in: cuts, factors or nothing."""
        return ""

    @property
    def unready(self) -> bool:
        """Whether a first pass must come before values can be made."""
        return bool(self.needs) or self.majority

    def __call__(
        self,
        key: str,
        parts: Mapping[int, LazyTensor],
        base: LazyTensor | None,
        names: Sequence[str],
        order: Sequence[int],
        dtype: DType | None,
    ) -> LazyTensor:
        first = parts[min(parts)]
        base = self.usable(key, parts, base)
        if not first.elements:
            return first
        function = self.function(key, parts, base, names, order, dtype)
        return views.computed(key, [base, *(parts[number] for number in function.numbers)], function, function.target)

    def function(
        self,
        key: str,
        parts: Mapping[int, LazyTensor],
        base: LazyTensor,
        names: Sequence[str],
        order: Sequence[int],
        dtype: DType | None,
    ) -> Elected:
        """What computes a tensor from the base and the inputs called `numbers` of the answer."""
        first = parts[min(parts)]
        numbers = tuple(number for number in order if number in parts)
        return Elected(
            key,
            ("the base", *(names[number] for number in numbers)),
            (base.dtype, *(parts[number].dtype for number in numbers)),
            dtype if dtype is not None and first.dtype.floating else first.dtype,
            tuple(self.weights[number] for number in numbers),
            tuple(self.thin(number, key) for number in numbers),
            self.election,
            self.scale,
            self.tell,
            numbers,
        )

    @staticmethod
    def usable(key: str, parts: Mapping[int, LazyTensor], base: LazyTensor | None) -> LazyTensor:
        """The base of a tensor. UsageError if it has none of that shape; UnsupportedError for what has no order."""
        first = parts[min(parts)]
        if base is None or base.shape != first.shape:
            raise UsageError(f"the base has no '{key}' of shape {list(first.shape)}", hint="--base FILE, or --rule drops it")
        odd = next((tensor for tensor in (first, base, *parts.values()) if tensor.dtype.kind != "float"), None)
        if odd is not None:
            raise UnsupportedError(
                f"'{key}' is {odd.dtype}: the method is for real floating values", hint=f"--rule '{key}=first'"
            )
        return base


@dataclass(frozen=True, slots=True)
class Trim:
    """How many differences are kept of `elements`, and over what they are counted: each tensor, or the whole model.

    density * elements, rounded (half to even) or, with `whole`, cut to whole; plus `extra`, and not less than `least`. With
    `all_equal` also all that equal the smallest kept; else of equal ones the first, by key and flat index.
    """

    scope: str = "tensor"
    whole: bool = True
    extra: int = 0
    least: int = 0
    all_equal: bool = False

    def rank(self, density: float, elements: int) -> int:
        if density <= 0.0 or density >= 1.0:
            return elements if density > 0.0 else 0
        found = int(density * elements) if self.whole else round(density * elements)
        return min(max(found + self.extra, self.least), elements)


@dataclass(frozen=True, slots=True)
class Ties(Thinned):
    """TIES-Merging (Yadav et al. 2023, arXiv 2306.01708). `keeps`, by number of input and key, is for a first pass to fill."""

    trim: Trim = Trim()
    keeps: Mapping[tuple[int, str], Keep] | None = field(default=None, compare=False, repr=False)

    @property
    def needs(self) -> str:
        return "cuts" if 0.0 < self.density < 1.0 else ""

    def thin(self, number: int, key: str) -> Thin:
        if not self.needs:
            return ALL if self.density else NONE
        return Unready() if self.keeps is None else self.keeps[number, key]


_PRESETS: Mapping[str | None, tuple[Trim, Election, bool]] = {
    None: (Trim(whole=False), Election(), False),
    "paper": (Trim("model", extra=1, all_equal=True), Election(divisor="count"), True),
    "mergekit": (Trim(least=1), Election(zero=1), False),
    "peft": (Trim(), Election(weighted=False, zero=1, divisor="count"), False),
}


def election(compat: str | None, vote: str | None = None) -> tuple[Election, bool]:
    """The election of a preset, and whether the majority of the model decides where the vote is 0."""
    _, found, majority = _preset(compat)
    return replace(found, vote=vote or found.vote), majority


def ties(
    weights: Sequence[float],
    density: float,
    scale: float = 1.0,
    *,
    compat: str | None = None,
    scope: str | None = None,
    vote: str | None = None,
) -> Ties:
    """TIES as one of these; `scope` and `vote` change one thing about it.

    | | None | paper | mergekit | peft |
    |---|---|---|---|---|
    | trimmed over | tensor | model | tensor | tensor |
    | kept of n | round(density n) | int(density n) + 1 | int(density n), at least 1 | int(density n) |
    | equal to the smallest kept | first by flat index | all | first | first |
    | vote | weighted | weighted | weighted | unweighted |
    | a vote of 0 | leaves the base | the majority of the model | plus | plus |
    | divided by | weights that agree | their number | weights | number |

    paper is the code of the authors (github.com/prateeky2806/ties-merging), the others mergekit 0.1.5 and peft 0.21. Those two
    do not say which of equal magnitudes they keep, nor do they compute in f64.
    """
    trim, _, _ = _preset(compat)
    if scope is not None:
        if scope not in SCOPES:
            raise UsageError(f"there is no scope '{scope}'", hint="one of " + ", ".join(SCOPES))
        trim = replace(trim, scope=scope)
    found, majority = election(compat, vote)
    return Ties(tuple(weights), density, scale, found, majority and len(weights) > 1, trim=trim)


def _preset(compat: str | None) -> tuple[Trim, Election, bool]:
    if compat not in _PRESETS:
        raise UsageError(f"there is no preset '{compat}'", hint="--compat " + ", ".join(COMPATS))
    return _PRESETS[compat]
