"""A recipe tried on real headers, there and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from wtool.api import open_checkpoint
from wtool.between import full_names, map_checkpoint, variable_names
from wtool.checkpoint import Checkpoint
from wtool.errors import DtypeError, KeyClashError, MapError, RecipeError, UsageError, WtoolError
from wtool.maps.catalog import load
from wtool.maps.match import UnsetVariable
from wtool.maps.names import written_key
from wtool.maps.recipe import Recipe
from wtool.maps.resolve import Resolved, resolve, source_names

_FAULTS = (MapError, KeyClashError, DtypeError)


@dataclass(frozen=True)
class Checked:
    """`fault` says why the recipe does not fit; `unmatched` are keys that no rule takes; `back` why it does not lead back.

    `resolved` is what it does, as far as it goes: None without a checkpoint, or where nothing can be said. `strict` says that
    what is only doubtful makes it not fit. `warnings` are what the reader of the checkpoint noticed.
    """

    name: str
    recipe: Recipe
    on: str | None = None
    like: str | None = None
    resolved: Resolved | None = None
    fault: WtoolError | None = None
    unmatched: tuple[str, ...] = ()
    back: str | None = None
    came_back: int = 0
    strict: bool = False
    given: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def doubts(self) -> tuple[str, ...]:
        """What `--strict` makes faults."""
        if self.resolved is None or self.fault is not None:
            return ()
        unused = tuple(f"no key met {rule}" for rule in self.resolved.unused)
        return (*unused, *self.resolved.warnings, *((self.back,) if self.back else ()))

    @property
    def fits(self) -> bool | None:
        if self.on is None:
            return None
        return self.fault is None and not (self.strict and self.doubts)


def check(
    name: str,
    on: str | None,
    like: str | None,
    *,
    reverse: bool,
    given: Mapping[str, int],
    unmatched: str | None,
    section: str | None,
    strict: bool,
) -> Checked:
    """The recipe of this name or file, on the headers of `on`. WtoolError where no answer can be given."""
    recipe = load(name)
    recipe = recipe.reverse() if reverse else recipe
    found = Checked(name, recipe, on, like, strict=strict, given=given)
    if on is None:
        return found
    known = variable_names(recipe)
    odd = next((name for name in given if name not in known), None)
    if odd is not None:
        hint = "it has " + ", ".join(sorted(known)) if known else "it has none"
        raise UsageError(f"the recipe '{recipe.name}' has no variable '{odd}'", hint=hint)
    whole = open_checkpoint(on, section="all")
    part = whole.section(section)
    found = replace(found, warnings=tuple(warning.message for warning in whole.warnings))
    try:
        mapped, (resolved,) = map_checkpoint(part, [recipe], like=like, given=given, unmatched=unmatched, whole=whole)
    except UnsetVariable:
        raise
    except _FAULTS as fault:
        return _at_fault(found, fault, part, whole, given)
    back, count = _back(recipe, part, whole, mapped, resolved, given)
    left = resolved.lost or resolved.kept
    return replace(found, resolved=resolved, unmatched=left, back=back, came_back=count)


def _at_fault(found: Checked, fault: WtoolError, part: Checkpoint, whole: Checkpoint, given: Mapping[str, int]) -> Checked:
    """What can be said although it does not fit: the rows that do, and the keys left over."""
    found = replace(found, fault=fault)
    try:
        _, (resolved,) = map_checkpoint(part, [found.recipe], given=given, unmatched="drop", whole=whole)
    except WtoolError:
        return found
    return replace(found, resolved=resolved, unmatched=resolved.lost)


def _back(
    recipe: Recipe, part: Checkpoint, whole: Checkpoint, mapped: Checkpoint, resolved: Resolved, given: Mapping[str, int]
) -> tuple[str | None, int]:
    """Why the recipe backwards does not bring every mapped key home, if it does not; and how many it brings."""
    names = {}
    if isinstance(mapped.structure, bytes):
        from wtool.formats.tensorflow.graph import full_names as names_in

        names = {key: name for key, name in names_in(mapped.structure).items() if key in mapped}
    try:
        back = resolve(recipe.reverse(), mapped, given=given, full_names=names, unmatched="keep")
    except RecipeError as error:
        return error.message, 0
    except _FAULTS as error:
        return f"backwards: {error.message}", 0
    home = source_names(recipe, part, full_names(part, whole))
    there = {tensor.key: tensor for tensor in back.tensors}
    if back.layout == "object":
        home = {key: written_key(name, "object") for key, name in home.items()}
    sources = [key for row in resolved.rows for key in row.sources]
    lost = [key for key in sources if home[key] not in there]
    other = [key for key in sources if home[key] in there and there[home[key]].shape != part[key].shape]
    if lost:
        return f"backwards, '{lost[0]}' does not come back" + (f", nor do {len(lost) - 1} more" if len(lost) > 1 else ""), 0
    if other:
        shapes = f"{list(part[other[0]].shape)} becomes {list(there[home[other[0]]].shape)}"
        return f"backwards, '{other[0]}' comes back in another shape: {shapes}", 0
    return None, len(sources)
