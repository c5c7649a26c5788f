"""`--fit` and `--bits`: the mix of schemes that loses least within so many bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from wtool.errors import BudgetError, NotFiniteError
from wtool.sizes import format_size, parse_size

if TYPE_CHECKING:
    from wtool.analysis.budget import Choice, Unit
    from wtool.api import SavePlan
    from wtool.cli.quantizing import Quantizing


def fit(work: Quantizing, lay_out: Callable[[], SavePlan]) -> None:
    """Choose of what is allowed the mix that loses least and fits. BudgetError says the smallest that is possible."""
    from wtool.analysis.budget import TooSmall, best, measured
    from wtool.ops.quantize import fused_sets

    odd = {fate.key for fate in work.fates if fate.scheme is None}
    once: dict[object, str] = {}
    for key, schemes in work.allowed.items():
        if schemes and key not in odd:
            once.setdefault(work.part[key].identity or key, key)
    fused = fused_sets(list(once.values()))
    alone = set(once.values()).difference(*fused)
    sets = [*fused, *([key] for key in once.values() if key in alone)]
    kept = {key: _kept(work, key) for keys in sets for key in keys}
    total = sum(len(work.allowed[key]) for keys in sets for key in keys)
    with work.console.progress("trying", total) as advance:
        try:
            units = measured(work.part, sets, work.allowed, kept, work.layout, work.seen, work.jobs, advance)
        except NotFiniteError as error:
            raise error.at(work.src) from None
    least = [min(unit.choices, key=lambda one: (one.nbytes, one.loss)) for unit in units]
    budget, used = _budget(work), _used(work, units, least, lay_out)
    if used > budget:
        raise BudgetError(
            f"does not fit {_said(work, budget)}: the smallest is {_said(work, used)}",
            path=work.src,
            hint="--rest bf16, --candidates with fewer bits, or --scheme-for what is left as it is by default",
        )
    room = budget - used + sum(one.nbytes for one in least)
    while True:  # other schemes have other names and numbers of parts, so headers are a little longer or shorter
        try:
            mix = best(units, room)
        except TooSmall:
            mix = least
        used = _used(work, units, mix, lay_out)
        if used <= budget:
            return
        room -= used - budget


def _kept(work: Quantizing, key: str) -> int:
    from wtool.ops.quantize import Quantize

    return Quantize(work.layout, {}, rest=work.asked.rest).became(work.part[key])[0].nbytes


def _budget(work: Quantizing) -> int:
    if work.asked.fit is not None:
        return parse_size(work.asked.fit)
    return int((work.asked.bits or 0) * _weights(work) / 8)


def _weights(work: Quantizing) -> int:
    return sum(one.elements for one in {tensor.identity or key: tensor for key, tensor in work.part.items()}.values())


def _said(work: Quantizing, nbytes: int) -> str:
    if work.asked.fit is not None:
        return f"{format_size(nbytes)} ({nbytes:,} bytes)"
    return f"{8 * nbytes / _weights(work):.4f} bits a weight"


def _used(work: Quantizing, units: Sequence[Unit], choices: Sequence[Choice], lay_out: Callable[[], SavePlan]) -> int:
    """Take these choices; the bytes of all files, or (with --bits) of all tensors, that they make."""
    taken = {key: one.scheme for unit, one in zip(units, choices, strict=True) for key in unit.keys}
    first = {work.part[key].identity or key: key for key in taken}
    fates = []
    for fate in work.fates:
        key = first.get(work.part[fate.key].identity or fate.key)
        if key is not None and work.allowed.get(fate.key):
            scheme = taken[key]
            fate = replace(fate, scheme=scheme, why="" if scheme else "fits as it is")
        fates.append(fate)
    work.fates = fates
    plan = lay_out()
    if work.asked.fit is not None:
        return sum(file.size for file in plan.plan.layout.files)
    return sum(slot.nbytes for slot in plan.plan.layout.slots)
