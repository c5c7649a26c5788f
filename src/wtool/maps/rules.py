"""The rules of a recipe, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wtool.maps.templates import Template


@dataclass(frozen=True)
class TensorRule:
    """Keys <-> keys. `ops` lead from the recipe's own first side to its second, whichever way round it is now.

    An `optional` rule may meet no key: it is for a part that not every model has. `when`: by side, a key that must be there
    for the rule to be tried, where that side is the source.
    """

    name: str
    sides: tuple[tuple[Template, ...], tuple[Template, ...]]
    ops: tuple[str, ...] = ()
    optional: bool = False
    when: tuple[Template | None, Template | None] = (None, None)


@dataclass(frozen=True)
class ModuleRule:
    """Module path <-> module path; the leaves are the kind's, which is inferred if None. `flatten`: sizes before Flatten.

    `optional` as in TensorRule.
    """

    name: str
    sides: tuple[Template, Template]
    kind: str | None = None
    flatten: tuple[str, ...] = ()
    values: Mapping[str, int | str] = field(default_factory=dict)
    optional: bool = False


@dataclass(frozen=True)
class FillRule:
    """A key of `side` (0 or 1) that has no partner: made with `value`, of the shape and dtype of the key `beside` it.

    With `copy` it is made only where no rule makes it, as another name of that key, which must be there as well as `beside`.
    """

    name: str
    side: int
    template: Template
    beside: Template
    value: float
    copy: Template | None = None


@dataclass(frozen=True)
class ShapeRule:
    """What a key of `side` (0 or 1) must look like, see maps.shapes; `wrong` says what it means if it does not."""

    name: str
    side: int
    template: Template
    axes: str
    wrong: str | None = None


@dataclass(frozen=True)
class AliasRule:
    """Another name that files of `side` (0 or 1) use for a key: read as if it were `real`, never written."""

    side: int
    template: Template
    real: Template
