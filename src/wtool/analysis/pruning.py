"""First passes of pruning: how many values of which tensors go, and which ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, inf

import numpy as np
from numpy.typing import NDArray

from wtool.analysis.halved import largest_halves
from wtool.analysis.parallel import each
from wtool.analysis.search import TOP
from wtool.analysis.select import ROOM, Magnitudes, Own, largest
from wtool.errors import UsageError
from wtool.kernels.combine import PIECE, blame, wide
from wtool.kernels.masks import Both, ByBits, ByChance, ByMagnitude, Everything, Finite, Mask, tickets
from wtool.kernels.trim import ALL, Keep
from wtool.tensor import LazyTensor

Progress = Callable[[int], None]

SCOPES = ("global", "layer", "tensor")
METHODS = ("magnitude", "random")
_SLOT = 92


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
class _Ranked:
    """The magnitudes (or tickets) of a tensor of which some values do not count.

    Those pruned before come last of all, as 0, those not finite first of all; what is between is one more than it was.
    """

    part: Part
    share: Share
    name: str
    columns: Sequence[int] = (0,)

    @property
    def key(self) -> str:
        return self.part.key

    @property
    def elements(self) -> int:
        return self.part.tensor.elements

    def runs(self, columns: Sequence[int]) -> Iterator[tuple[int, list[NDArray[np.int64]]]]:
        for start, values, kept in self.pieces():
            if self.share.method == "random":
                bits = tickets(self.share.seed, self.key, start, len(values))
            else:
                bits = np.abs(values).view(np.int64)
            np.add(bits, 1, out=bits)
            np.copyto(bits, TOP - 1, where=~np.isfinite(values))
            np.copyto(bits, 0, where=~kept)
            yield start, [bits] * len(columns)

    def pieces(self) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.bool_]]]:
        """Runs of the values and of which of them the earlier mask keeps. NotFiniteError for one that it keeps."""
        start = 0
        before = self.part.before or Everything()
        for block in self.part.tensor.blocks():
            for at in range(0, len(block), PIECE):
                some = block[at : at + PIECE]
                values = wide(some, self.part.tensor.dtype, _SLOT)
                kept = before.keeps(start + at, some)
                if not self.share.keep_odd:
                    blame(self.key, [self.name], [values[kept]])
                yield start + at, values, kept
            start += len(block)

    def count(self) -> tuple[int, int]:
        """How many values are gone already, and how many of the others are not finite (0 where those are an error anyway)."""
        if not self.share.keep_odd and (self.part.before is None or isinstance(self.part.before, ByBits)):
            return 0 if self.part.before is None else self.elements - self.part.before.count(self.elements), 0
        gone = odd = 0
        for _, values, kept in self.pieces():
            gone += len(kept) - int(np.count_nonzero(kept))
            odd += int(np.count_nonzero(~np.isfinite(values) & kept))
        return gone, odd


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
    halves = share.method == "magnitude" and len(rows := {part.tensor.dtype for part in parts}) == 1 and rows.pop().bits == 16
    shifted = not halves and (share.keep_odd or share.method == "random" or any(part.before is not None for part in parts))
    work = _Work(share, name, halves, shifted, jobs, progress)
    members = work.members(parts)
    groups: dict[str, list[_Member]] = {}
    for member in members:
        groups.setdefault(member.part.group, []).append(member)
    keeps: dict[str, Keep] = {}
    if len(groups) == 1:
        keeps = work.solve(members, jobs, ROOM)
    else:
        room = ROOM // max(jobs, 1)
        for found in each(groups.values(), lambda group: work.solve(group, 1, room), jobs):
            keeps |= found
    return {part.key: work.mask(part, keeps[part.key]) for part in parts}


@dataclass(frozen=True, slots=True)
class _Work:
    share: Share
    name: str
    halves: bool  # all are of one dtype of two bytes
    shifted: bool  # the ranks are those of _Ranked, one more than the bits of the values
    jobs: int
    progress: Progress | None

    def members(self, parts: Sequence[Part]) -> list[_Member]:
        if not self.share.keep_odd and not any(part.before for part in parts):
            return [_Member(part, 0, 0) for part in parts]
        counts = each(parts, lambda part: _Ranked(part, self.share, self.name).count(), self.jobs)
        return [_Member(part, *count) for part, count in zip(parts, counts, strict=True)]

    def solve(self, members: Sequence[_Member], jobs: int, room: int) -> dict[str, Keep]:
        """What is kept of each tensor of a group of the scope."""
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
        keeps: dict[str, Keep] = {}
        left = list(members)
        while left:
            found = self.largest(left, zeros, jobs, room)
            over: set[str] = set()
            for group, (some, limit) in limits.items():
                asked = [member for member in some if member in left]
                if asked and self.gone(asked, found, jobs) > limit:
                    over.add(group)
                    zeros -= limit
                    keeps |= self.largest(asked, limit, jobs, room)
            if not over:
                return keeps | found
            left = [member for member in left if member.part.limited is None or member.part.limited[0] not in over]
        return keeps

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

    def largest(self, members: Sequence[_Member], zeros: int, jobs: int, room: int) -> dict[str, Keep]:
        if self.halves:
            tensors = [member.part.tensor for member in members]
            rank = sum(tensor.elements for tensor in tensors) - zeros
            before = {one.part.key: one.part.before for one in members if one.part.before is not None}
            tell = self._bytes(members)
            return largest_halves(tensors, rank, self.name, before=before, odd=self.share.keep_odd, jobs=jobs, progress=tell)
        streams: list[Magnitudes] = [self.stream(member.part) for member in members]
        rank = sum(member.elements for member in members) - zeros
        found = largest(streams, {0: rank}, jobs=jobs, room=room, progress=self._bytes(members))
        return {key: keep for (_, key), keep in found.items()}

    def stream(self, part: Part) -> Magnitudes:
        if not self.shifted:
            return Own(part.tensor, self.name)
        return _Ranked(part, self.share, self.name)

    def mask(self, part: Part, keep: Keep) -> Mask:
        """Of this part, by what is kept of its ranks."""
        found: Mask
        bits = int(np.float64(keep.threshold).view(np.int64))
        if self.shifted and 0 < bits < TOP - 1:
            bits -= 1
        if keep == ALL:
            found = Everything()
        elif self.share.method == "random":
            found = ByChance(self.share.seed, part.key, bits, keep.until)
            found = Finite(found, part.tensor.dtype) if self.share.keep_odd else found
        else:
            threshold = inf if keep.threshold == inf else float(np.int64(bits).view(np.float64))
            found = ByMagnitude(Keep(threshold, keep.until), part.tensor.dtype)
        return found if part.before is None else Both(part.before, found)

    def gone(self, members: Sequence[_Member], keeps: Mapping[str, Keep], jobs: int) -> int:
        """How many values of these would go."""

        def count(part: Part) -> int:
            mask, start, gone = self.mask(part, keeps[part.key]), 0, 0
            for block in part.tensor.blocks():
                for at in range(0, len(block), PIECE):
                    some = block[at : at + PIECE]
                    gone += len(some) - int(np.count_nonzero(mask.keeps(start + at, some)))
                start += len(block)
            return gone

        return sum(each([member.part for member in members], count, jobs))

    def _bytes(self, members: Sequence[_Member]) -> Progress | None:
        progress = self.progress
        if progress is None or not members:
            return None
        item = members[0].part.tensor.dtype.bits // 8
        return lambda elements: progress(elements * item)
