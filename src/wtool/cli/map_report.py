"""The recipes, the kinds of layers, and the check of a recipe as reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wtool.errors import NotFoundError
from wtool.maps.catalog import file_text, load, names, source_text, turned_name
from wtool.maps.kinds import HUB, Kind, shipped
from wtool.maps.recipe import Recipe, used_variables
from wtool.maps.table import mapped_blocks, mapped_data
from wtool.report import Block, Column, Facts, Note, Report, Row, Table, printable

if TYPE_CHECKING:
    from wtool.cli.map_check import Checked

_FEW = 12  # keys named on a line for people


def list_report() -> Report:
    """The shipped recipes."""
    recipes = [load(name) for name in names()]
    data = {"recipes": [{"name": r.name, "backwards": turned_name(r.name), **_outline(r)} for r in recipes]}
    columns = (
        Column("recipe", keep=True, code=True),
        Column("backwards", keep=True, code=True),
        Column("layouts: about", below=True),
    )
    rows = tuple(Row((r.name, turned_name(r.name), f"{' -> '.join(_layouts(r))}: {r.about}")) for r in recipes)
    note = Note("wtool convert SRC DST --map RECIPE; wtool map show RECIPE prints one to start your own from")
    return Report("wtool.map-list/1", f"{len(recipes)} recipes, each for both directions", data, (Table(columns, rows), note))


def kinds_report() -> Report:
    """The kinds of layers that come with wtool."""
    kinds = shipped()
    data = {
        "kinds": [
            {
                "name": kind.name,
                "about": kind.about,
                "inferred": not kind.explicit,
                "vars": dict(kind.vars),
                "leaves": [
                    {
                        "names": {layout: list(found) for layout, found in leaf.names.items()},
                        "ops": {layout: list(found) for layout, found in leaf.ops.items()},
                        "shape": None if leaf.shape is None else list(leaf.shape),
                        "optional": leaf.optional,
                    }
                    for leaf in kind.leaves
                ],
            }
            for kind in kinds.values()
        ]
    }
    rows = [row for kind in kinds.values() for row in _layouts_of(kind)]
    notes = (
        Note("A module rule without kind = takes the kind that the names and shapes of its tensors say."),
        Note("A tensor with ? may be missing. In parentheses: operations, which lead from torch; backwards they are undone."),
    )
    table = Table((Column("kind", code=True), Column("tensors", below=True)), tuple(rows))
    return Report("wtool.map-kinds/1", f"{len(kinds)} kinds of layers", data, (table, *notes))


def _layouts_of(kind: Kind) -> Iterable[Row]:
    """The kind, and a row for all layouts that name its tensors alike."""
    yield Row((kind.name, kind.about + (" (never inferred)" if kind.explicit else "")), heading=True)
    found: dict[str, list[str]] = {}
    for layout in kind.layouts():
        said = []
        for leaf in kind.leaves:
            if layout not in leaf.names:
                continue
            text = " + ".join(leaf.names[layout]) + ("?" if leaf.optional else "")
            if layout == HUB and leaf.shape is not None:
                text += " [" + " ".join(leaf.shape) + "]"
            ops = "; ".join(leaf.ops.get(layout, ()))
            said.append(f"{text} ({ops})" if ops else text)
        found.setdefault(", ".join(said), []).append(layout)
    for tensors, layouts in found.items():
        yield Row((", ".join(layouts), tensors), depth=1)


@dataclass(frozen=True)
class Shown:
    """A recipe's TOML, and whether its name asks for it backwards. `text` says so in a comment."""

    name: str
    written: str
    toml: str
    recipe: Recipe

    @property
    def backwards(self) -> bool:
        return self.recipe.turned

    @property
    def text(self) -> str:
        head = f"# {self.name} is this recipe, {self.written}, read backwards.\n" if self.backwards else ""
        return head + "".join(printable(line.replace("\t", "    ")) + "\n" for line in self.toml.splitlines())


def shown_source(name: str) -> Shown:
    """A shipped recipe or one in a file, as it is written. RecipeError if it is none."""
    recipe = load(name)
    if recipe.path is not None:
        return Shown(name, recipe.name, file_text(name), recipe)
    written = turned_name(name) if recipe.turned else name
    if written not in names():
        raise NotFoundError(f"there is no recipe '{name}'")
    return Shown(name, written, source_text(written), recipe)


def show_report(shown: Shown) -> Report:
    recipe = shown.recipe
    data = {
        "name": recipe.name,
        "path": recipe.path,
        "written_as": shown.written,
        "backwards": shown.backwards,
        **_outline(recipe),
        "drop": {name: list(globs) for (name, _), globs in zip(recipe.sides, recipe.drop, strict=True)},
        "rules": _rules(recipe),
        "toml": shown.toml,
    }
    columns = (Column("rule"), Column("from", code=True), Column("to", code=True), Column("kind or operations"))
    rows = tuple(
        Row((rule["rule"], ", ".join(rule["from"]), ", ".join(rule["to"]), rule.get("kind") or "; ".join(rule["ops"])))
        for rule in data["rules"]
    )
    notes = tuple(Note(note) for note in recipe.notes)
    return Report("wtool.map-show/1", recipe.name, data, (Note(recipe.about), _facts(recipe), Table(columns, rows), *notes))


def check_report(found: Checked) -> Report:
    """Exit code 1 if the recipe does not fit the checkpoint."""
    recipe, resolved = found.recipe, found.resolved
    done = () if resolved is None else (resolved,)
    mapped = mapped_data(done)
    fault = found.fault
    data: dict[str, Any] = {
        "recipe": recipe.name,
        "path": recipe.path,
        **_outline(recipe),
        "on": found.on,
        "like": found.like,
        "fits": found.fits,
        "fault": None if fault is None else {"code": fault.code, "message": fault.message, "hint": fault.hint},
        "leads_back": None if resolved is None or fault is not None else found.back is None,
        "doubts": list(found.doubts),
        "unmatched": list(found.unmatched),
        **{name: mapped[name] for name in ("map", "dropped", "filled", "unused")},
    }
    if found.on is None:
        said = "is a recipe"
    else:
        said = f"{'fits' if found.fits else 'does not fit'} {found.on}"
    blocks: list[Block] = [_facts(recipe, found.given, asked=found.on is None)]
    blocks[:0] = [Note(recipe.about)] if recipe.about and found.on is None else []
    if resolved is not None:
        blocks += mapped_blocks(done)
        blocks.append(_outcome(data, found))
    if fault is not None:
        blocks.append(Note(f"it does not fit: {fault.message}"))
        if fault.hint:
            blocks.append(Note(f"hint: {fault.hint}"))
    blocks += [Note(doubt, "warning") for doubt in found.doubts]
    blocks += [Note(f"note: {note}") for note in recipe.notes]
    return Report("wtool.map-check/1", f"{recipe.name} {said}", data, tuple(blocks), exit_code=int(found.fits is False))


def _outcome(data: Mapping[str, Any], found: Checked) -> Facts:
    exact = [row["exact"] for row in data["map"]]
    counts = [f"{exact.count(kind):,} {kind}" for kind in ("exact", "function", "lossy") if kind in exact]
    rows = [("mapped", ", ".join(counts) or "nothing")]
    dropped = [key for key in data["dropped"] if key not in set(found.unmatched)]
    kept = found.resolved is not None and bool(found.resolved.kept)
    keys = (
        ("dropped", dropped),
        ("filled", data["filled"]),
        ("kept" if kept else "unmatched", data["unmatched"]),
        ("unused", data["unused"]),
    )
    for word, some in keys:
        if some:
            more = f" and {len(some) - _FEW:,} more" if len(some) > _FEW else ""
            rows.append((word, f"{len(some):,}: {', '.join(some[:_FEW])}{more}"))
    if data["leads_back"]:
        rows.append(("backwards", f"all {found.came_back:,} mapped keys come back, with their shapes"))
    return Facts(tuple(rows))


def _facts(recipe: Recipe, given: Mapping[str, int] | None = None, *, asked: bool = True) -> Facts:
    """What a recipe is. `given` are variables that were set; `asked`: with those that it would ask for."""
    rows = [("sides", " -> ".join(f"{name} ({layout})" for name, layout in recipe.sides))]
    counts = (("module", recipe.modules), ("tensor", recipe.tensors), ("fill", recipe.fills))
    rows.append(("rules", ", ".join(f"{len(rules)} {word}" for word, rules in counts if rules)))
    known = []
    for name in _variables(recipe):
        value = (given or {}).get(name, recipe.vars.get(name))
        if isinstance(value, int) or (isinstance(value, str) and value.startswith("$")):
            known.append(f"{name} = {value}")
        elif asked:
            rows.append(("asks for", f"{name}: {value or 'the recipe does not say what it is'}"))
    return Facts((*rows, *((("variables", ", ".join(known)),) if known else ())))


def _outline(recipe: Recipe) -> dict[str, Any]:
    return {
        "about": recipe.about,
        "sides": [{"name": name, "layout": layout} for name, layout in recipe.sides],
        "vars": _variables(recipe),
        "notes": list(recipe.notes),
    }


def _variables(recipe: Recipe) -> dict[str, int | str | None]:
    """Name -> number; or, for one that must be set, the text that says what it is, None without one. References resolved."""
    found: dict[str, int | str | None] = {}
    for name in dict.fromkeys([*recipe.vars, *used_variables(recipe)]):
        value: int | str | None = recipe.vars.get(name)
        seen = {name}
        while isinstance(value, str) and value.startswith("$") and value[1:] not in seen:
            seen.add(value[1:])
            value = recipe.vars.get(value[1:])
        found[name] = value
    return found


def _rules(recipe: Recipe) -> list[dict[str, Any]]:
    tensors = [
        {
            "rule": "tensor",
            "from": [template.source for template in rule.sides[0]],
            "to": [template.source for template in rule.sides[1]],
            "ops": list(rule.ops),
        }
        for rule in recipe.tensors
    ]
    modules = [
        {
            "rule": "module",
            "from": [rule.sides[0].source],
            "to": [rule.sides[1].source],
            "kind": rule.kind,
            "flatten": list(rule.flatten),
            "ops": [],
        }
        for rule in recipe.modules
    ]
    return [*tensors, *modules]


def _layouts(recipe: Recipe) -> list[str]:
    return [layout for _, layout in recipe.sides]
