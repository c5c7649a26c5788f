"""Comparisons that make a report fail, as --fail-if takes them: a name, a sign and a number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from wtool.errors import UsageError


@dataclass(frozen=True, slots=True)
class Comparison:
    """`text` as it was given; whether it had the prefix; what is compared with which number."""

    text: str
    prefixed: bool
    name: str
    sign: str
    bound: float

    def holds(self, value: float, bound: float | None = None) -> bool:
        """Whether it holds of a value; with another bound than its own, of that."""
        bound = self.bound if bound is None else bound
        return {"<": value < bound, ">": value > bound, "<=": value <= bound, ">=": value >= bound}[self.sign]


def comparison(text: str, prefix: str, names: Sequence[str], hint: str) -> Comparison:
    """`NAME<0.9`, `prefix.NAME >= 95%`. UsageError with the hint."""
    pattern = rf"\s*({prefix}\.)?({'|'.join(names)})\s*(<=|>=|<|>)\s*(-?[0-9.]+(?:e[+-]?[0-9]+)?)\s*(%?)\s*"
    found = re.fullmatch(pattern, text)
    try:
        if found is None:
            raise ValueError
        bound = float(found[4]) / (100 if found[5] else 1)
    except ValueError:
        raise UsageError(f"'{text}' is no comparison", hint=hint) from None
    return Comparison(text, found[1] is not None, found[2], found[3], bound)
