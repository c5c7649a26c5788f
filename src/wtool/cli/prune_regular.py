"""`wtool prune --pattern` and `--structure`: what is asked for, and its masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from wtool.errors import UsageError

if TYPE_CHECKING:
    from wtool.analysis.pruning import Part, Share
    from wtool.kernels.masks import Mask
    from wtool.kernels.patterns import Structure
    from wtool.ops.prune import Fate
    from wtool.tensor import LazyTensor


_SHOWN = 6  # keys in a hint


@dataclass(frozen=True)
class Regular:
    """N of every M values stay, or whole groups go."""

    pattern: tuple[int, int] | None
    structure: Structure | None
    norm: str
    sparsity: float

    def told(self) -> dict[str, Any]:
        """For the report and the outcome's metadata."""
        if self.pattern is not None:
            return {"pattern": "{}:{}".format(*self.pattern)}
        return {"structure": str(self.structure), "norm": self.norm}

    def fitting(self, found: Sequence[Fate], tensors: Mapping[str, LazyTensor]) -> list[Fate]:
        """The tensors that have such groups; the others are kept."""
        one = self.structure
        why = "has no rows" if one is None else f"has no {one.kind}s"
        shapes = {fate.key: tensors[fate.key].shape for fate in found}
        fits = {key: len(shape) > 1 if one is None else one.fits(shape) for key, shape in shapes.items()}
        return [fate if not fate.pruned or fits[fate.key] else replace(fate, pruned=False, why=why) for fate in found]

    def checked(self, parts: Sequence[Part], name: str) -> None:
        """UsageError where tensors cannot be pruned so, told all at once. Reads nothing."""
        if self.pattern is None:
            return
        size = self.pattern[1]
        rows = {part.key: prod(part.tensor.shape[1:]) for part in parts}
        odd = [part for part in parts if rows[part.key] % size]
        if odd:
            first, more = odd[0], f", as those of {len(odd) - 1} more" if len(odd) > 1 else ""
            said = "x".join(map(str, first.tensor.shape))
            text = f"'{first.key}' is {said}: its rows of {rows[first.key]} are no multiple of {size}{more}"
            excluded = " ".join(f"--exclude '{part.key}'" for part in odd[:_SHOWN]) + (" ..." if len(odd) > _SHOWN else "")
            raise UsageError(text, path=name, hint=f"{excluded} leaves {'it' if len(odd) == 1 else 'them'} as before")

    def expected(self, parts: Sequence[Part]) -> int | None:
        """How many values would be zero, where that can be told of shapes."""
        if self.pattern is None:
            return None
        n, m = self.pattern
        return sum(part.tensor.elements // m * (m - n) for part in parts)

    def groups(self, parts: Sequence[Part], masks: Mapping[str, Mask] | None = None) -> dict[str, Any] | None:
        """For the report: how many groups there are, and, of the masks that were found, how many are zeroed."""
        from wtool.kernels.masks import Both
        from wtool.kernels.patterns import ByGroups, Geometry

        if self.structure is None:
            return None
        count = sum(Geometry.of(self.structure, part.tensor.shape).count for part in parts)
        left = 0
        for mask in (masks or {}).values():
            mask = mask.two if isinstance(mask, Both) else mask
            assert isinstance(mask, ByGroups)
            left += mask.left
        return {"kind": str(self.structure), "groups": count, "zeroed": None if masks is None else count - left}

    def masks(self, parts: Sequence[Part], share: Share, name: str, jobs: int) -> dict[str, Mask]:
        """By key. Patterns are found when they are used; groups in a pass over the values.

        NotFiniteError unless the share keeps what is odd. What earlier masks zeroed stays zero, and is not ranked again.
        """
        from wtool.analysis.structure import structured
        from wtool.kernels.masks import Both

        if self.pattern is not None:
            return {part.key: self._pattern(part, name, odd=share.keep_odd) for part in parts}
        assert self.structure is not None
        scopes = {part.key: part.group for part in parts}
        before = {part.key: part.before for part in parts if part.before is not None}
        found = structured(
            {part.key: part.tensor for part in parts},
            self.structure,
            self.sparsity,
            scope=scopes.__getitem__,
            norm=self.norm,
            odd=share.keep_odd,
            before=before,
            of_remaining=share.of_remaining,
            exact=share.scope == "global",
            limits={part.key: part.limited for part in parts if part.limited is not None},
            name=name,
            jobs=jobs,
        )
        return {key: Both(before[key], mask) if key in before else mask for key, mask in found.items()}

    def _pattern(self, part: Part, name: str, *, odd: bool) -> Mask:
        from wtool.kernels.masks import Pruned
        from wtool.kernels.patterns import pattern_mask
        from wtool.kernels.within import Within
        from wtool.views import computed

        assert self.pattern is not None
        if part.before is None:
            return pattern_mask(part.tensor, *self.pattern, odd=odd, name=name)
        left = computed(part.key, [part.tensor], Pruned(part.before))  # what completes a group is as the group is
        return Within(part.before, pattern_mask(left, *self.pattern, odd=odd, name=name))


def parse(pattern: str | None, structure: str | None, norm: str | None, sparsity: float | None) -> Regular | None:
    """What the options ask for; None where they are not there. UsageError where they contradict one another."""
    if pattern is not None and (structure is not None or sparsity is not None):
        raise UsageError(f"--pattern says how many stay: it goes with no --{'structure' if structure else 'sparsity'}")
    if norm is not None and structure is None:
        raise UsageError("--norm is for --structure")
    if pattern is None and structure is None:
        return None
    from wtool.analysis.structure import NORMS
    from wtool.kernels.patterns import parse_pattern, parse_structure

    if pattern is not None:
        return Regular(parse_pattern(pattern), None, "", 0.0)
    assert structure is not None
    if sparsity is None:
        raise UsageError("--structure needs --sparsity, the share of groups that go")
    if norm not in (None, *NORMS):
        raise UsageError(f"there is no norm '{norm}'", hint="one of " + ", ".join(NORMS))
    return Regular(None, parse_structure(structure), norm or "l2", sparsity)
