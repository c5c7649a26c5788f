"""The comparisons of `wtool prune --fail-if`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wtool.errors import UsageError

_CHECK = re.compile(r"\s*(any\.)?(sparsity|energy)\s*(<=|>=|<|>)\s*([0-9.]+(?:e-?[0-9]+)?)\s*(%?)\s*")


@dataclass(frozen=True, slots=True)
class Check:
    """A comparison that makes a report fail: of the whole, or of any tensor that was pruned."""

    text: str
    any: bool
    name: str
    sign: str
    bound: float

    def fails(self, data: Mapping[str, Any]) -> bool:
        """Whether it holds. A sparsity is compared by counts: the one nearest to the bound is equal to it."""
        if not self.any:
            return self._holds(data, data["weights"])
        return any(self._holds(row, row["elements"]) for row in data["tensors"] if row["pruned"])

    def _holds(self, row: Mapping[str, Any], elements: int) -> bool:
        value, bound = row[self.name], self.bound
        if self.name == "sparsity":
            value, bound = row["zeros"], round(self.bound * elements)
        return bool({"<": value < bound, ">": value > bound, "<=": value <= bound, ">=": value >= bound}[self.sign])


def parse_check(text: str) -> Check:
    """`sparsity<0.9`, `energy < 95%`, `any.sparsity>0.99`. UsageError."""
    found = _CHECK.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        bound = float(found[4]) / (100 if found[5] else 1)
    except ValueError:
        hint = "sparsity or energy, of any tensor with any. before it, then < > <= or >= and a number: 'sparsity<0.9'"
        raise UsageError(f"'{text}' is no comparison", hint=hint) from None
    return Check(text, found[1] is not None, found[2], found[3], bound)
