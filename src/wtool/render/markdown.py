"""A report as GitHub's Markdown, for a pull request or a model card."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from wtool.render.heat import binned, ends, legend, lines, mark
from wtool.report import Bars, Block, Facts, Heat, Note, Report, Row, Table, printable

_SIGNS = {"good": "✅ ", "warning": "⚠️ **warning:** ", "danger": "⛔ **danger:** "}
_MARKS = 64  # of a heat map, so that a comment has room for it


def to_markdown(reports: Sequence[Report]) -> str:
    return "\n".join(_report(report) for report in reports)


def _report(report: Report) -> str:
    return "\n\n".join((f"## {_text(report.title)}", *map(_block, report.blocks))) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Note):
        return _SIGNS.get(block.level, "") + _text(block.text)
    title = f"### {_text(block.title)}\n\n" if block.title else ""
    if isinstance(block, Facts):
        rows = [f"| {_text(label)} | {_text(value)} |" for label, value in block.rows]
        return title + "\n".join(("| | |", "|---|---|", *rows))
    if isinstance(block, Bars):
        rows = [f"| {_text(name)} | {_text(shown)} |" for name, _, shown in block.rows]
        return title + "\n".join(("| | |", "|---|---:|", *rows))
    if isinstance(block, Heat):
        return _heat(block)
    return title + _table(block)


def _heat(heat: Heat) -> str:
    prefix, first, last = ends(heat)
    heat = binned(heat, _MARKS)
    # Spaces would run together.
    rows = [
        f"| {_code(name)} | {_code(marks).replace(' ', '&nbsp;')} | {_text(f'{most:.3g}' if most else '')} |"
        for name, marks, most in lines(heat)
    ]
    said = " ".join(f"{_code(mark(level))} {_text(text)}" for level, text in legend(heat))
    head = f"| | {_text(f'{prefix}{first} to {last}')} | most |"
    return "\n".join((f"### {_text(heat.title or '')}\n", head, "|---|---|---:|", *rows, "", said))


def _table(table: Table) -> str:
    spare = [at for at, column in enumerate(table.columns) if column.spare]
    if spare:
        kept = [at for at in range(len(table.columns)) if at not in spare]
        rows = tuple(Row(tuple(row.cells[at] for at in kept), row.depth, row.heading) for row in table.rows)
        table = Table(tuple(table.columns[at] for at in kept), rows, table.title)
    lines = [
        "| " + " | ".join(_text(column.title) for column in table.columns) + " |",
        "|" + "|".join("---:" if column.number else "---" for column in table.columns) + "|",
    ]
    for row in table.rows:
        first, *rest = row.cells
        mark = "**" if row.heading else ""
        name = f"{'&emsp;' * row.depth}{mark}{_code(first)}{mark}"
        cells = (_code(cell) if column.code else _text(cell) for column, cell in zip(table.columns[1:], rest, strict=True))
        lines.append("| " + " | ".join((name, *cells)) + " |")
    return "\n".join(lines)


def _text(text: str) -> str:
    """Text that Markdown leaves as it is: no markup, no table cell, no link in it."""
    plain = escape(printable(text), quote=False)
    return "".join(f"&#{ord(char)};" if char in "|*_`[]\\~#@" else char for char in plain)


def _code(text: str) -> str:
    return f"<code>{_text(text)}</code>" if text else ""
