"""The comparisons of `wtool prune --fail-if`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wtool.cli.checks import Comparison, comparison

_HINT = "sparsity or energy, of any tensor with any. before it, then < > <= or >= and a number: 'sparsity<0.9'"


@dataclass(frozen=True, slots=True)
class Check:
    """A comparison that makes a report fail: of the whole, or of any tensor that was pruned."""

    is_so: Comparison

    @property
    def text(self) -> str:
        return self.is_so.text

    def fails(self, data: Mapping[str, Any]) -> bool:
        """Whether it holds. A sparsity is compared by counts: the one nearest to the bound is equal to it."""
        if not self.is_so.prefixed:
            return self._holds(data, data["weights"])
        return any(self._holds(row, row["elements"]) for row in data["tensors"] if row["pruned"])

    def _holds(self, row: Mapping[str, Any], elements: int) -> bool:
        if self.is_so.name == "sparsity":
            return self.is_so.holds(row["zeros"], round(self.is_so.bound * elements))
        return self.is_so.holds(row[self.is_so.name])


def parse_check(text: str) -> Check:
    """`sparsity<0.9`, `energy < 95%`, `any.sparsity>0.99`. UsageError."""
    return Check(comparison(text, "any", ("sparsity", "energy"), _HINT))
