"""First passes of pruning: how many values of which tensors go, and which ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, inf

import numpy as np

from wtool.analysis.bracket import ROOM, Cut, highest
from wtool.analysis.parallel import each
from wtool.analysis.ranked import Ranked, magnitude, unit_of
from wtool.dtypes import DType
from wtool.errors import UsageError
from wtool.kernels.buffers import CHUNK
from wtool.kernels.masks import Both, ByBits, ByChance, ByMagnitude, Everything, Finite, Mask
from wtool.kernels.trim import NONE, Keep
from wtool.tensor import LazyTensor

Progress = Callable[[int], None]

SCOPES = ("global", "layer", "tensor")
METHODS = ("magnitude", "random")
_NEVER = 1 << 62  # above every ticket


@dataclass(frozen=True, slots=True)
class Limit:
    """No group of tensors that match `glob` is to be sparser than `share`."""

    glob: str
    share: float


@dataclass(frozen=True, slots=True)
class Share:
    """How much goes: `sparsity` of the values of a scope, or, with `of_remaining`, of those that earlier masks keep.

    As torch.nn.utils.prune counts: `round(sparsity * values)`, half to even. With `keep_odd` values that are NaN or infinite
    stay and do not count; without, they are a NotFiniteError.
    """

    sparsity: float
    scope: str = "global"
    method: str = "magnitude"
    seed: int = 0
    of_remaining: bool = False
    keep_odd: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor to prune: its group under the scope, the group that a limit is for (with the limit), its earlier mask."""

    tensor: LazyTensor
    group: str = ""
    limited: tuple[str, float] | None = None
    before: Mask | None = None

    @property
    def key(self) -> str:
        return self.tensor.key


@dataclass(frozen=True, slots=True)
class _Member:
    part: Part
    gone: int
    odd: int

    @property
    def elements(self) -> int:
        return self.part.tensor.elements

    @property
    def able(self) -> int:
        """The most values that may be zero."""
        return self.elements - self.odd


def chosen(
    parts: Sequence[Part], share: Share, name: str, *, jobs: int = 1, progress: Progress | None = None
) -> dict[str, Mask]:
    """The mask of each tensor. What an earlier mask zeroed stays zero, and is never ranked. NotFiniteError.

    Exactly as many go as `share` says, of every group of the scope. Of equal magnitudes those go first that come last: by the
    natural order of keys, then by flat index. Random ones follow from the seed, the key and the flat index alone. Where a
    group that has a limit would be sparser, exactly `floor(limit * values)` of it go, and more of the others. UsageError
    where that cannot be, and where earlier masks prune more of everything than is asked for.
    """
    from wtool.keys import natural

    parts = sorted(parts, key=lambda part: natural(part.key))
    unit = unit_of([part.tensor.dtype for part in parts])
    work = _Work(share, name, unit, any(part.before is not None for part in parts), jobs, progress)
    members = work.members(parts)
    groups: dict[str, list[_Member]] = {}
    for member in members:
        groups.setdefault(member.part.group, []).append(member)
    masks: dict[str, Mask] = {}
    if len(groups) == 1:
        masks = work.solve(members, jobs, ROOM)
    else:
        room = ROOM // max(jobs, 1)
        for found in each(groups.values(), lambda group: work.solve(group, 1, room), jobs):
            masks |= found
    return {part.key: masks[part.key] for part in parts}


@dataclass(frozen=True, slots=True)
class _Work:
    share: Share
    name: str
    unit: DType  # whose magnitudes are ranked
    shifted: bool  # some values do not count: those of earlier masks
    jobs: int
    progress: Progress | None

    def members(self, parts: Sequence[Part]) -> list[_Member]:
        if not (self.share.keep_odd or self.shifted):
            return [_Member(part, 0, 0) for part in parts]
        counts = each(parts, self.count, self.jobs)
        return [_Member(part, *count) for part, count in zip(parts, counts, strict=True)]

    def count(self, part: Part) -> tuple[int, int]:
        """How many values are gone already, and how many of the others are not finite (0 where those are an error anyway)."""
        gone = 0
        if isinstance(part.before, ByBits):
            gone = part.tensor.elements - part.before.count(part.tensor.elements)
        elif part.before is not None:
            gone = self.lost(part.tensor, part.before)
        return gone, self.ranked(part).odd_ones() if self.share.keep_odd else 0

    def ranked(self, part: Part) -> Ranked:
        seed = self.share.seed if self.share.method == "random" else None
        return Ranked(part.tensor, self.unit, self.name, part.before, self.shifted, self.share.keep_odd, seed)

    def solve(self, members: Sequence[_Member], jobs: int, room: int) -> dict[str, Mask]:
        """The masks of the tensors of a group of the scope."""
        zeros = self.zeros(members)
        limits = self.limits(members)
        free = sum(member.able for member in members if member.part.limited is None)
        most = free + sum(limit for _, limit in limits.values())
        if zeros > most:
            total = sum(member.elements for member in members)
            raise UsageError(
                f"{zeros:,} of {total:,} values are to go, and the limits let {most:,} go",
                hint=f"--sparsity {floor(most / total * 1000) / 1000:g}, or higher limits",
            )
        masks: dict[str, Mask] = {}
        left = list(members)
        while left:
            found = self.largest(left, zeros, jobs, room)
            over: set[str] = set()
            for group, (some, limit) in limits.items():
                asked = [member for member in some if member in left]
                if asked and self.gone(asked, found, jobs) > limit:
                    over.add(group)
                    zeros -= limit
                    masks |= self.largest(asked, limit, jobs, room)
            if not over:
                return masks | found
            left = [member for member in left if member.part.limited is None or member.part.limited[0] not in over]
        return masks

    def zeros(self, members: Sequence[_Member]) -> int:
        """How many values of a group are to be zero, those that are already among them."""
        elements, gone = sum(member.able for member in members), sum(member.gone for member in members)
        if self.share.of_remaining:
            return gone + round(self.share.sparsity * (elements - gone))
        zeros = round(self.share.sparsity * elements)
        if zeros < gone and self.share.scope == "global":
            raise UsageError(
                f"the mask prunes {gone / elements:.6g} already, more than --sparsity {self.share.sparsity:g}",
                hint="--of-remaining prunes that share of what is left",
            )
        return max(zeros, gone)

    def limits(self, members: Sequence[_Member]) -> dict[str, tuple[list[_Member], int]]:
        """By group of a limit: its members, and the most values of them that may be zero."""
        groups: dict[str, list[_Member]] = {}
        for member in members:
            if member.part.limited is not None:
                groups.setdefault(member.part.limited[0], []).append(member)
        found = {}
        for group, some in groups.items():
            assert some[0].part.limited is not None
            share = Fraction(str(some[0].part.limited[1]))
            most = floor(share * sum(member.able for member in some))
            found[group] = some, max(most, sum(member.gone for member in some))
        return found

    def largest(self, members: Sequence[_Member], zeros: int, jobs: int, room: int) -> dict[str, Mask]:
        """The masks if of the values of these tensors so many are zero."""
        rank = sum(member.elements for member in members) - zeros
        if rank == sum(member.elements - member.gone for member in members):
            return {member.part.key: member.part.before or Everything() for member in members}
        ranked = [self.ranked(member.part) for member in members]
        cut = highest(ranked, rank, jobs=jobs, room=room, progress=self._bytes(members))
        return {member.part.key: self.mask(member.part, cut) for member in members}

    def mask(self, part: Part, cut: Cut) -> Mask:
        found: Mask
        rank = None if cut.rank is None else cut.rank - self.shifted
        until = cut.until.get(part.key, 0)
        if self.share.method == "random":
            found = ByChance(self.share.seed, part.key, _NEVER if rank is None else min(rank, _NEVER), until)
            found = Finite(found, part.tensor.dtype) if self.share.keep_odd else found
        else:
            threshold = inf if rank is None else magnitude(rank, self.unit)
            found = ByMagnitude(NONE if threshold == inf else Keep(threshold, until), part.tensor.dtype)
        return found if part.before is None else Both(part.before, found)

    def gone(self, members: Sequence[_Member], masks: Mapping[str, Mask], jobs: int) -> int:
        """How many values of these would go."""
        return sum(each([one.part for one in members], lambda part: self.lost(part.tensor, masks[part.key]), jobs))

    def lost(self, tensor: LazyTensor, mask: Mask) -> int:
        """How many values a mask does not keep."""
        start = gone = 0
        for block in tensor.blocks():
            for at in range(0, len(block), CHUNK):
                some = block[at : at + CHUNK]
                gone += len(some) - int(np.count_nonzero(mask.keeps(start + at, some)))
            start += len(block)
        return gone

    def _bytes(self, members: Sequence[_Member]) -> Progress | None:
        progress = self.progress
        if progress is None or not members:
            return None
        item = members[0].part.tensor.dtype.bits // 8
        return lambda elements: progress(elements * item)
