"""DARE: differences from a base drop out at random and the rest is scaled up, before they are added or elected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from wtool.errors import UsageError
from wtool.kernels.dare import Drop
from wtool.kernels.elect import Thin, Unready
from wtool.ops.ties import COMPATS, Thinned, election


@dataclass(frozen=True, slots=True)
class Dare(Thinned):
    """Drop and rescale (Yu et al. 2023, arXiv 2311.03099): each difference is kept with probability `density`.

    What is kept is divided by `density` or, with `by_mass`, multiplied so that the sum of the magnitudes of each tensor is
    what it was; these `factors`, by number of input and key, are for a first pass to fill. The mask depends on `seed`, the
    number of the input, the key and the flat index, and on nothing else: kernels/dare says how.
    """

    seed: int = 0
    by_mass: bool = False
    factors: Mapping[tuple[int, str], float] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super(Dare, self).__post_init__()
        if not self.density:
            raise UsageError("the density is 0", hint="dare keeps a share of the differences, above 0 up to 1")

    @property
    def needs(self) -> str:
        return "factors" if self.by_mass and self.density < 1.0 else ""

    def thin(self, number: int, key: str) -> Thin:
        bare = self.bare(number, key)
        if not self.needs:
            return bare if self.by_mass else replace(bare, divisor=self.density)
        return Unready() if self.factors is None else replace(bare, factor=self.factors[number, key])

    def bare(self, number: int, key: str) -> Drop:
        """The mask without the scaling."""
        return Drop(self.seed, number, key, self.density)


def dare(
    weights: Sequence[float],
    density: float,
    scale: float = 1.0,
    *,
    seed: int = 0,
    compat: str | None = None,
    elect: bool = False,
    vote: str | None = None,
) -> Dare:
    """DARE and a weighted sum or, with `elect`, the election of TIES without its trimming.

    paper and peft divide by the density, as without `compat`; mergekit keeps the L1 norm of each tensor, and its dare_ties
    adds up what agrees instead of averaging it.
    """
    if compat is not None and compat not in COMPATS:
        raise UsageError(f"there is no preset '{compat}'", hint="--compat " + ", ".join(COMPATS))
    found, majority = election(compat, vote) if elect else (None, False)
    if found is not None and compat == "mergekit":
        found = replace(found, divisor="none")
    return Dare(tuple(weights), density, scale, found, majority and len(weights) > 1, seed=seed, by_mass=compat == "mergekit")
