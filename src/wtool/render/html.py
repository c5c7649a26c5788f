"""A report as one HTML page that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from wtool.render.heat import ODD, STEPS, binned, legend, levels
from wtool.report import Bars, Block, Column, Facts, Heat, Note, Report, Table, printable

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --soft: #66707c; --line: #e3e7eb; --paper: #fff; --back: #f4f6f8;
  --accent: #2563ad; --warn: #9a6700; --danger: #b3261e; --good: #1a7f37; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e4e8ec; --soft: #98a2ad; --line: #2d333b; --paper: #1a1e24; --back: #12151a;
  --accent: #6cb0ff; --warn: #e0b040; --danger: #ff8078; --good: #5fcf7a; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem 1rem; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 68rem; margin: 0 auto 1.5rem; padding: 1.5rem 2rem; background: var(--paper); border: 1px solid var(--line);
  border-radius: 10px; overflow-x: auto; }
h1 { margin: 0 0 1rem; font-size: 1.15rem; overflow-wrap: anywhere; }
h2 { margin: 1.8rem 0 .5rem; font-size: 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.5rem; margin: .8rem 0; }
dt { color: var(--soft); overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--soft); border-bottom: 1px solid var(--line);
  padding: .3rem .8rem .3rem 0; }
td { padding: .15rem .8rem .15rem 0; border-bottom: 1px solid var(--line); vertical-align: top; white-space: nowrap; }
td:first-child, td.c { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .9em; white-space: normal;
  overflow-wrap: anywhere; }
tr.heading td { font-weight: 600; } tr.heading td:not(:first-child) { font-weight: 400; color: var(--soft); }
.n { text-align: right; } .n:last-child { padding-right: 0; }
@media (max-width: 56rem) { .s { display: none; } }
.bar { display: block; height: .8em; background: var(--accent); border-radius: 3px; min-width: 1px; }
table.heat { width: auto; } table.heat th { padding: 0 .5rem 0 0; border: 0; font-size: .8em; }
table.heat thead th { height: 9rem; vertical-align: bottom; padding: 0; }
table.heat thead span { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; }
table.heat td { width: 1.5rem; min-width: 1.5rem; height: 1.1rem; padding: 0; border: 1px solid var(--paper); }
.h { background: color-mix(in oklab, var(--accent) var(--h), var(--back)); } .h.odd { background: var(--danger); }
.legend { color: var(--soft); font-size: .85em; } .legend span { margin-right: 1.2em; white-space: nowrap; }
.legend i { display: inline-block; width: 1.5rem; height: .8rem; margin-right: .4em; vertical-align: -.05rem; }
p { margin: .4rem 0; } .warning { color: var(--warn); } .danger { color: var(--danger); font-weight: 600; }
.good { color: var(--good); }
"""

_ROWS = 200  # of a heat map


def to_html(reports: Sequence[Report]) -> str:
    title = _text(reports[0].title) if len(reports) == 1 else f"{len(reports)} reports"
    return "".join(
        (
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n",
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n<body>\n",
            *(piece for report in reports for piece in _report(report)),
            "</body>\n</html>\n",
        )
    )


def _report(report: Report) -> Iterator[str]:
    yield f"<main>\n<h1>{_text(report.title)}</h1>\n"
    for block in report.blocks:
        yield from _block(block)
    yield "</main>\n"


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Note):
        word = f"{block.level}: " if block.level in ("warning", "danger") else ""
        yield f'<p class="{block.level}">{word}{_text(block.text)}</p>\n'
        return
    if block.title:
        yield f"<h2>{_text(block.title)}</h2>\n"
    if isinstance(block, Facts):
        yield "<dl>\n"
        for label, value in block.rows:
            yield f"<dt>{_text(label)}</dt><dd>{_text(value)}</dd>\n"
        yield "</dl>\n"
    elif isinstance(block, Bars):
        most = max((value for _, value, _ in block.rows), default=0) or 1
        yield "<table>\n"
        for name, quantity, shown in block.rows:
            bar = f'<span class="bar" style="width:{max(0, 100 * quantity / most):.1f}%"></span>'
            yield f'<tr><td>{_text(name)}</td><td class="n">{_text(shown)}</td><td style="width:60%">{bar}</td></tr>\n'
        yield "</table>\n"
    elif isinstance(block, Heat):
        yield from _heat(block)
    else:
        yield from _table(block)


def _heat(heat: Heat) -> Iterator[str]:
    heat = binned(heat, _ROWS)
    heads = "".join(f'<th scope="col"><span>{_text(name)}</span></th>' for name in heat.columns)
    yield f'<table class="heat">\n<thead><tr><th></th>{heads}</tr></thead>\n<tbody>\n'
    for name, row, shades in zip(heat.rows, heat.cells, levels(heat), strict=True):
        cells = ""
        for column, cell, shade in zip(heat.columns, row, shades, strict=True):
            if cell is None or shade is None:
                cells += "<td></td>"
            else:
                said = "equal" if not cell else "NaN, infinite, or zero before" if shade == ODD else f"{cell:.3g}"
                cells += f'<td {_shade(shade)} title="{_text(f"{name}.{column}: {said}")}"></td>'
        yield f'<tr><th scope="row">{_text(name)}</th>{cells}</tr>\n'
    keys = "".join(f"<span><i {_shade(level)}></i>{_text(text)}</span>" for level, text in legend(heat))
    yield f'</tbody>\n</table>\n<p class="legend">{keys}</p>\n'


def _shade(level: int) -> str:
    if level == ODD:
        return 'class="h odd"'
    # The first step is told from none at a glance.
    return f'class="h" style="--h:{20 + 80 * (level - 1) // (STEPS - 1) if level else 0}%"'


def _table(table: Table) -> Iterator[str]:
    kinds = [_classes(column) for column in table.columns]
    heads = "".join(f"<th{kind}>{_text(column.title)}</th>" for kind, column in zip(kinds, table.columns, strict=True))
    yield f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n"
    for row in table.rows:
        first, *rest = row.cells
        indent = f' style="padding-left:{1.2 * row.depth:.1f}em"' if row.depth else ""
        cells = "".join(f"<td{kind}>{_text(cell)}</td>" for kind, cell in zip(kinds[1:], rest, strict=True))
        heading = ' class="heading"' if row.heading else ""
        yield f"<tr{heading}><td{indent}>{_text(first)}</td>{cells}</tr>\n"
    yield "</tbody>\n</table>\n"


def _classes(column: Column) -> str:
    names = [name for name, has in (("n", column.number), ("c", column.code), ("s", column.spare)) if has]
    return f' class="{" ".join(names)}"' if names else ""


def _text(text: str) -> str:
    return escape(printable(text))
