"""Rules as the TOML of a recipe: those that differ only in their numbers as one, with slots."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from wtool.maps.guesses import Rule
from wtool.text import printable

_NUMBER = re.compile("[0-9]+")
_LETTERS = "ijklmnpqrstuvwxyz"
_LONGEST = 18  # digits of a number that a slot takes

Sides = tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Line:
    """One rule as it is written: the templates of either side, and what it stands for."""

    sides: Sides
    rules: tuple[Rule, ...]

    @property
    def slots(self) -> bool:
        return any("{" in text for side in self.sides for text in side)


def quoted(text: str) -> str:
    """A TOML basic string. ValueError for what TOML cannot hold: half of a surrogate pair."""
    found = []
    for char in text:
        if "\ud800" <= char <= "\udfff":
            raise ValueError("TOML has no such character")
        if char in '"\\':
            found.append("\\" + char)
        elif not char.isprintable():  # control characters must be escaped; what deceives the eye had better be
            found.append(f"\\U{ord(char):08X}")
        else:
            found.append(char)
    return '"' + "".join(found) + '"'


def comment(text: str) -> str:
    """A line of a comment: whatever a key holds, it ends where the line ends."""
    return "# " + printable(text)


def writable(text: str) -> bool:
    """Whether a template can stand for exactly this key: braces are slots, and there is no escape for them."""
    try:
        quoted(text)
    except ValueError:
        return False
    return "{" not in text and "}" not in text


def writable_rule(rule: Rule) -> bool:
    """Whether a recipe can have this rule; the path of a module may be empty, a key may not."""
    return all(writable(text) and (text or rule.paths is not None) for texts in written_sides(rule) for text in texts)


def written_sides(rule: Rule) -> Sides:
    if rule.paths is not None:
        return (rule.paths[0],), (rule.paths[1],)
    return rule.rows[0][0], rule.rows[0][1]


def lines(rules: Sequence[Rule], others: Sides) -> list[Line]:
    """The rules in as few lines as say nothing of other keys. `others` are paths and names of either side that have no rule.

    Lines without slots come first: what they take, those with slots need not spare.
    """
    groups: dict[object, list[Rule]] = {}
    for rule in rules:
        sides = written_sides(rule)
        masks = tuple(tuple(_NUMBER.sub("#", text) for text in side) for side in sides)
        groups.setdefault((masks, rule.paths is None, rule.kind, rule.values, rule.ops, bool(rule.doubt)), []).append(rule)
    made: list[Line] = []
    plain: list[Line] = []
    for group in groups.values():
        slotted = _slotted(group) if len(group) > 1 else None
        if slotted is None:
            plain += literal(group)
        else:
            made.append(Line(slotted, tuple(group)))
    while True:
        crowd = [Counter(_crowd(side, made, others)) for side in (0, 1)]
        wide = [line for line in made if _wide(line, crowd)]
        if not wide:
            return plain + made
        line = min(wide, key=lambda line: len(line.rules))
        made.remove(line)
        plain += literal(line.rules)


def literal(rules: Iterable[Rule]) -> list[Line]:
    return [Line(written_sides(rule), (rule,)) for rule in rules]


def _crowd(side: int, made: Sequence[Line], others: Sides) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Everything of a side that a template could take, as text without its numbers, and these."""
    texts = [text for line in made for rule in line.rules for text in written_sides(rule)[side]]
    for text in (*texts, *others[side]):
        yield _NUMBER.sub("#", text), tuple(_NUMBER.findall(text))


def _wide(line: Line, crowd: Sequence[Mapping[tuple[str, tuple[str, ...]], int]]) -> bool:
    """Whether a template of the line takes more than the line's own."""
    for side in (0, 1):
        for at, template in enumerate(line.sides[side]):
            own = {tuple(_NUMBER.findall(written_sides(rule)[side][at])) for rule in line.rules}
            mask = _NUMBER.sub("#", written_sides(line.rules[0])[side][at])
            fixed = [None if part.startswith("{") else part for part in re.findall(r"\{[^}]*\}|[0-9]+", template)]
            for other, numbers in crowd[side]:
                same = other == mask and numbers not in own
                if same and all(want in (None, number) for want, number in zip(fixed, numbers, strict=True)):
                    return True
    return False


def _slotted(group: Sequence[Rule]) -> Sides | None:
    """The templates of a group; None if its numbers are not those of one side, shifted, on the other."""
    columns: list[tuple[tuple[tuple[str, ...], ...], ...]] = []
    for side in (0, 1):
        texts = [written_sides(rule)[side] for rule in group]
        columns.append(
            tuple(tuple(zip(*(_NUMBER.findall(row[at]) for row in texts), strict=True)) for at in range(len(texts[0])))
        )
    flat = [column for side in columns for template in side for column in template]
    if any(len(text) > _LONGEST or (len(text) > 1 and text[0] == "0") for column in flat for text in column):
        return None
    slots: dict[tuple[str, ...], str] = {}
    for column in (column for template in columns[0] for column in template):
        if len(set(column)) > 1 and column not in slots:
            if len(slots) == len(_LETTERS):
                return None
            slots[column] = _LETTERS[len(slots)]
    shifts: dict[tuple[str, ...], tuple[str, int]] = {column: (letter, 0) for column, letter in slots.items()}
    used = set()
    for column in {column for template in columns[1] for column in template if len(set(column)) > 1}:
        for mine, letter in slots.items():
            apart = {int(b) - int(a) for a, b in zip(mine, column, strict=True)}
            if len(apart) == 1 and (letter not in used or column in shifts):
                shifts.setdefault(column, (letter, apart.pop()))
                used.add(letter)
                break
        else:
            return None
    if used != set(slots.values()):
        return None
    for own in columns:  # a template may not have one slot with two shifts, nor lack one
        for template in own:
            if {shifts[column][0] for column in template if len(set(column)) > 1} != used:
                return None
    left, right = (
        tuple(_filled(text, columns[side][at], shifts) for at, text in enumerate(written_sides(group[0])[side]))
        for side in (0, 1)
    )
    return left, right


def _filled(text: str, columns: Sequence[tuple[str, ...]], shifts: Mapping[tuple[str, ...], tuple[str, int]]) -> str:
    found = _NUMBER.split(text)
    said = found[0]
    for column, rest in zip(columns, found[1:], strict=True):
        if len(set(column)) > 1:
            letter, shift = shifts[column]
            said += "{" + letter + (f"{shift:+d}" if shift else "") + "}"
        else:
            said += column[0]
        said += rest
    return said


def recipe_text(
    head: Sequence[str],
    about: str,
    notes: Sequence[str],
    sides: Sequence[tuple[str, str]],
    made: Sequence[Line],
    drop: Mapping[str, Sequence[str]],
) -> str:
    """A whole recipe. `head` are comments, `sides` (name, layout)."""
    said = [comment(line) for line in head]
    said += ['schema = "wtool.map/1"', f"about = {quoted(about)}"]
    said += ["notes = [", *(f"  {quoted(note)}," for note in notes), "]"] if notes else []
    said += ["[sides]", *(f"{name} = {quoted(layout)}" for name, layout in sides)]
    if drop:
        said += ["[drop]", *(f"{name} = [{', '.join(map(quoted, globs))}]" for name, globs in drop.items())]
    for line in sorted(made, key=lambda line: line.rules[0].paths is not None):
        said += ["", *_one(line, [name for name, _ in sides])]
    return "\n".join(said) + "\n"


def _one(line: Line, names: Sequence[str]) -> list[str]:
    rule = line.rules[0]
    verdicts = Counter(rule.verdict for rule in line.rules)
    said = [
        comment("; ".join(f"{verdict}{f' ({count})' if len(line.rules) > 1 else ''}" for verdict, count in verdicts.items()))
    ]
    said += [comment(f"? {doubt}") for doubt in dict.fromkeys(rule.doubt for rule in line.rules) if doubt]
    said.append("[[tensor]]" if rule.paths is None else "[[module]]")
    for name, texts in zip(names, line.sides, strict=True):
        value = quoted(texts[0]) if len(texts) == 1 else "[" + ", ".join(map(quoted, texts)) + "]"
        said.append(f"{name} = {value}")
    if rule.kind is not None:
        said.append(f"kind = {quoted(rule.kind)}")
    if rule.values:
        said.append("with = { " + ", ".join(f"{name} = {value}" for name, value in rule.values) + " }")
    if rule.ops:
        said.append("ops = [" + ", ".join(map(quoted, rule.ops)) + "]")
    return said


def without_slots(made: Sequence[Line]) -> list[Line]:
    """The same rules, one by one."""
    return literal([replace(rule) for line in made for rule in line.rules])
