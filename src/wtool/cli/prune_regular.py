"""`wtool prune --pattern` and `--structure`: what is asked for, and its masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from wtool.errors import UsageError

if TYPE_CHECKING:
    from wtool.analysis.pruning import Part, Share
    from wtool.kernels.masks import Mask
    from wtool.kernels.patterns import Structure
    from wtool.ops.prune import Fate
    from wtool.tensor import LazyTensor


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
        if one is None:
            return list(found)
        why = f"has no {one.kind}s"
        fits = {fate.key: one.fits(tensors[fate.key].shape) for fate in found}
        return [fate if not fate.pruned or fits[fate.key] else replace(fate, pruned=False, why=why) for fate in found]

    def checked(self, parts: Sequence[Part], name: str) -> None:
        """UsageError where a tensor cannot be pruned so. Reads nothing."""
        from wtool.kernels.patterns import pattern_mask

        if self.pattern is not None:
            for part in parts:
                pattern_mask(part.tensor, *self.pattern, name=name)

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
