"""The table of tensors that an operation leaves as they are, and why."""

from __future__ import annotations

from collections.abc import Iterable

from wtool.keys import merged, natural, pattern, short_key
from wtool.report import Column, Row, Table

_ROWS = 40


def untouched(pairs: Iterable[tuple[str, str]], verb: str, *, verbose: bool) -> Table | None:
    """Pairs of key and reason, repeated layers in a row; `verb` is what was done to them: "Kept", "Left"."""
    groups: dict[tuple[str, str], list[str]] = {}
    for key, why in pairs:
        groups.setdefault((short_key(why), pattern(short_key(key))), []).append(short_key(key))
    rows = [
        Row((merged(sorted(keys, key=natural)), f"{len(keys):,}", why))
        for (why, _), keys in sorted(groups.items(), key=lambda item: (item[0][0], natural(item[1][0])))
    ]
    if not rows:
        return None
    cut = rows if verbose else rows[:_ROWS]
    whole = len(cut) == len(rows)
    title = f"{verb} as they are" if whole else f"{verb}: the first {_ROWS} of {len(rows)} rows; --verbose all"
    return Table((Column("keys", keep=True), Column("tensors", number=True), Column("why", below=True)), tuple(cut), title)
