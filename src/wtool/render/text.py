"""A report for a terminal or a pipe: plain columns and trees, in color where there is color."""

from __future__ import annotations

from collections.abc import Sequence

from wtool.render.heat import binned, ends, legend, lines, mark
from wtool.report import Bars, Block, Facts, Heat, Note, Report, Row, Table, printable

_RESET = "\x1b[0m"
_STYLES = {
    "bold": "\x1b[1m",
    "dim": "\x1b[2m",
    "good": "\x1b[32m",
    "warning": "\x1b[33m",
    "danger": "\x1b[1;31m",
    "cyan": "\x1b[36m",
}
_ASCII = str.maketrans({"×": "x"} | dict(zip("▁▂▃▄▅▆▇█", ".:-=+*#@", strict=True)))
_GAP = 2  # columns between columns
_LEAST = 12  # a label or value is never made narrower than this
_BAR = 30
_MARKS = 160  # of a heat map off a terminal


def to_text(reports: Sequence[Report], *, width: int | None, color: bool, unicode: bool) -> str:
    """Reports one after another. With `width`, wide columns lose their middle; without it nothing is shortened."""
    page = _Page(width, color, unicode)
    return "\n".join(page.report(report) for report in reports)


class _Page:
    def __init__(self, width: int | None, color: bool, unicode: bool) -> None:
        self.width = width
        self.color = color
        self.unicode = unicode
        self.guides = ("│  ", "├─ ", "└─ ", "   ") if unicode else ("|  ", "|- ", "`- ", "   ")

    def paint(self, text: str, style: str) -> str:
        return f"{_STYLES[style]}{text}{_RESET}" if self.color and text else text

    def report(self, report: Report) -> str:
        parts = [self.paint(self.wrap(self.safe(report.title)), "bold") + "\n"]
        previous: Block | None = None
        for block in report.blocks:
            # Notes stand together, and the first facts right under the title.
            first = previous is None and isinstance(block, Facts) and not block.title
            if not first and not (isinstance(block, Note) and isinstance(previous, Note)):
                parts.append("\n")
            if isinstance(block, Facts):
                parts.append(self.facts(block))
            elif isinstance(block, Table):
                parts.append(self.table(block))
            elif isinstance(block, Bars):
                parts.append(self.bars(block))
            elif isinstance(block, Heat):
                parts.append(self.heat(block))
            else:
                parts.append(self.note(block))
            previous = block
        return "".join(parts)

    def safe(self, text: str) -> str:
        text = printable(text)
        return text if self.unicode else text.translate(_ASCII)

    def title(self, title: str | None) -> str:
        return f"{self.paint(self.safe(title), 'bold')}\n" if title else ""

    def facts(self, facts: Facts) -> str:
        rows = [(self.safe(label), self.safe(value)) for label, value in facts.rows]
        widest = max((columns(label) for label, _ in rows), default=0)
        if self.width is not None:
            widest = min(widest, max(_LEAST, (self.width - 2 - _GAP) * 2 // 3))
        lines = [self.title(facts.title)]
        for label, value in rows:
            label = self.fit(label, widest)
            if self.width is not None:
                value = self.fit(value, max(_LEAST, self.width - 2 - widest - _GAP))
            lines.append(f"  {self.paint(pad(label, widest), 'dim')}{' ' * _GAP}{value}\n")
        return "".join(lines)

    def table(self, table: Table) -> str:
        guides = self.tree(table.rows)
        cells = [[self.safe(cell) for cell in row.cells] for row in table.rows]
        for line, guide in zip(cells, guides, strict=True):
            line[0] = guide + line[0]
        heads = [self.safe(column.title) for column in table.columns]
        while any(column.spare for column in table.columns) and self.too_wide(heads, cells):
            last = max(at for at, column in enumerate(table.columns) if column.spare)
            table = Table((*table.columns[:last], *table.columns[last + 1 :]), table.rows, table.title)
            for line in (heads, *cells):
                del line[last]
        if any(column.below for column in table.columns) and self.too_wide(heads, cells):
            return self.folded(table, heads, cells, guides)
        widths = [max([columns(head), *(columns(line[i]) for line in cells)]) for i, head in enumerate(heads)]
        self.narrow(widths, [column.keep for column in table.columns])
        numbers = [column.number for column in table.columns]
        lines = [self.title(table.title)]
        lines.append(f"  {self.paint(self.line(heads, widths, numbers), 'dim')}\n")
        for row, cell, guide in zip(table.rows, cells, guides, strict=True):
            text = self.line(cell, widths, numbers)
            if self.color:
                name = text[len(guide) : widths[0]]
                rest = text[widths[0] :]
                if row.heading:
                    text = self.paint(guide, "dim") + self.paint(name, "bold") + self.paint(rest, "dim")
                else:
                    text = self.paint(guide, "dim") + name + rest
            lines.append(f"  {text}\n")
        return "".join(lines)

    def too_wide(self, heads: Sequence[str], cells: Sequence[Sequence[str]]) -> bool:
        widths = [max(map(columns, column)) for column in zip(heads, *cells, strict=True)]
        return self.width is not None and 2 + sum(widths) + _GAP * (len(widths) - 1) > self.width

    def folded(self, table: Table, heads: list[str], cells: list[list[str]], guides: Sequence[str]) -> str:
        """The table with two lines a row: what may stand below does, behind an arrow, and the widest of what is too much."""
        upper = [at for at, column in enumerate(table.columns) if not column.below]
        full = [max(columns(row[at]) for row in (heads, *cells)) for at in range(len(heads))]
        while len(upper) > 2 and self.width and 2 + sum(full[at] + _GAP for at in upper) - _GAP > self.width:
            upper.remove(max(upper[1:], key=lambda at: full[at]))
        lower = [at for at in range(len(heads)) if at not in upper]
        above = Table(tuple(table.columns[at] for at in upper), ())
        widths = [full[at] for at in upper]
        self.narrow(widths, [column.keep for column in above.columns])
        numbers = [column.number for column in above.columns]
        arrow = "→ " if self.unicode else "-> "
        lines = [self.title(table.title), f"  {self.paint(self.line([heads[at] for at in upper], widths, numbers), 'dim')}\n"]
        for index, (row, cell, guide) in enumerate(zip(table.rows, cells, guides, strict=True)):
            text = self.line([cell[at] for at in upper], widths, numbers)
            lines.append(f"  {self.paint(text, 'bold') if row.heading else text}\n")
            under = self.under(guide, index + 1 < len(cells) and table.rows[index + 1].depth > row.depth)
            below = [cell[at] for at in lower if cell[at]]
            if below:
                room = max(_LEAST, self.width - 4 - columns(under) - columns(arrow)) if self.width else None
                for number, some in enumerate(self.packed(below, room)):
                    mark = arrow if not number else " " * columns(arrow)
                    lines.append(f"  {under}  {self.paint(mark + some, 'dim')}\n")
        return "".join(lines)

    def packed(self, pieces: Sequence[str], room: int | None) -> list[str]:
        """The pieces on as few lines as have room for them; one that is longer than a line is broken between words."""
        lines: list[str] = []
        for piece in pieces:
            joined = f"{lines[-1]}  {piece}" if lines else piece
            if room is None or columns(joined) <= room:
                lines[-1:] = [joined]
                continue
            lines.append("")
            for word in piece.split(" "):
                longer = f"{lines[-1]} {word}" if lines[-1] else word
                if lines[-1] and columns(longer) > room:
                    lines.append(word)
                else:
                    lines[-1] = longer
        return [line if room is None else self.fit(line, room) for line in lines if line]

    def under(self, guide: str, parent: bool) -> str:
        """What stands below a row's guide: its line goes on if it has later sisters, or children."""
        on = guide.replace(self.guides[1], self.guides[0]).replace(self.guides[2], self.guides[3])
        return on + (self.guides[0] if parent else "")

    def line(self, cells: Sequence[str], widths: Sequence[int], numbers: Sequence[bool]) -> str:
        shown = []
        for cell, width, number in zip(cells, widths, numbers, strict=True):
            cell = self.fit(cell, width)
            shown.append(" " * (width - columns(cell)) + cell if number else pad(cell, width))
        text = (" " * _GAP).join(shown).rstrip()
        if self.width is None or columns(text) + 2 <= self.width:
            return text
        # Too many columns for this terminal: what stands on the right is left out rather than wrapped.
        while columns(text) + 3 > self.width:
            text = text[:-1]
        return text + ("…" if self.unicode else ">")

    def narrow(self, widths: list[int], keep: Sequence[bool]) -> None:
        """Take from the widest columns that may be shortened until the line fits."""
        if self.width is None:
            return
        # Keys that have lost most of themselves are all alike: rather lose columns on the right.
        least = max(_LEAST, self.width * 3 // 8)
        over = 2 + sum(widths) + _GAP * (len(widths) - 1) - self.width
        while over > 0:
            wide = max((i for i in range(len(widths)) if not keep[i]), key=lambda i: widths[i], default=None)
            if wide is None or widths[wide] <= least:
                return
            less = min(over, widths[wide] - least)
            widths[wide] -= less
            over -= less

    def tree(self, rows: Sequence[Row]) -> list[str]:
        """The lines that join each row of a tree to its parent."""
        guides = [""] * len(rows)
        more: list[bool] = []  # for each depth, whether a later row of the same parent follows
        for index in range(len(rows) - 1, -1, -1):
            depth = rows[index].depth
            if depth:
                follows = depth < len(more) and more[depth]
                above = [self.guides[0] if d < len(more) and more[d] else self.guides[3] for d in range(1, depth)]
                guides[index] = "".join(above) + self.guides[1 if follows else 2]
            del more[depth + 1 :]
            more += [False] * (depth + 1 - len(more))
            more[depth] = True
        return guides

    def bars(self, bars: Bars) -> str:
        names = [self.safe(name) for name, _, _ in bars.rows]
        widest = max(map(columns, names), default=0)
        if self.width is not None:
            widest = min(widest, max(_LEAST, self.width // 2))
            names = [self.fit(name, widest) for name in names]
        most = max((value for _, value, _ in bars.rows), default=0) or 1
        shown = max((columns(text) for _, _, text in bars.rows), default=0)
        room = _BAR if self.width is None else max(4, min(_BAR, self.width - 2 - widest - shown - 2 * _GAP))
        lines = [self.title(bars.title)]
        for name, (_, value, text) in zip(names, bars.rows, strict=True):
            bar = ("█" if self.unicode else "#") * round(room * value / most)
            lines.append(f"  {pad(name, widest)}  {pad(self.safe(text), shown)}  {self.paint(bar, 'cyan')}".rstrip() + "\n")
        return "".join(lines)

    def heat(self, heat: Heat) -> str:
        """A line for each column of the map, a mark for each of its rows; where they are too many, neighbours share one."""
        names = [self.safe(name) for name in heat.columns]
        amounts = [f"{largest:.3g}" if largest else "" for _, _, largest in lines(heat)]
        widest, right = max(map(columns, names)), max(map(len, (*amounts, "most")))
        most = _MARKS
        if self.width is not None:
            widest = min(widest, max(_LEAST, self.width * 3 // 8))
            most = max(1, self.width - 2 - widest - right - 2 * _GAP)
        prefix, first, last = (self.safe(label) for label in ends(heat))
        heat = binned(heat, most)
        found = [self.paint(self.wrap(f"{self.safe(heat.title or '')}: {prefix}{first} to {last}"), "bold") + "\n"]
        wide, apart = len(heat.rows), " " * _GAP
        between = wide - columns(first) - columns(last)
        if between > 0:
            head = self.paint(f"{first}{' ' * between}{last}{apart}{'most':>{right}}", "dim")
            found.append(f"  {' ' * widest}{apart}{head}\n")
        for name, amount, (_, marks, _) in zip(names, amounts, lines(heat, unicode=self.unicode), strict=True):
            line = f"  {pad(self.fit(name, widest), widest)}{apart}{self.paint(marks, 'cyan')}"
            found.append(f"{line}{apart}{amount:>{right}}".rstrip() + "\n")
        said = [f"{mark(level, unicode=self.unicode)} {text}" for level, text in legend(heat)]
        found += [f"  {self.paint(line, 'dim')}\n" for line in self.packed(said, self.width and self.width - 2)]
        return "".join(found)

    def note(self, note: Note) -> str:
        text = self.safe(note.text)
        if note.level in ("warning", "danger"):
            word = note.level + ":"
            return f"{self.paint(word, note.level)}{self.wrap(f'{word} {text}')[len(word) :]}\n"
        text = self.wrap(text)
        return f"{self.paint(text, 'good') if note.level == 'good' else text}\n"

    def wrap(self, text: str) -> str:
        """A sentence broken between words where the terminal would break it anywhere."""
        if self.width is None:
            return text
        lines = [""]
        for word in text.split(" "):
            if lines[-1] and columns(lines[-1]) + 1 + columns(word) > self.width:
                lines.append(f"  {word}")
            else:
                lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
        return "\n".join(lines)

    def fit(self, text: str, width: int) -> str:
        """The text with its middle left out, if it is wider than `width`."""
        if columns(text) <= width:
            return text
        mark = "…" if self.unicode else "..."
        left = (width - len(mark)) // 2
        head, tail = "", ""
        for char in text:
            if columns(head + char) > left:
                break
            head += char
        for char in reversed(text):
            if columns(char + tail) > width - len(mark) - columns(head):
                break
            tail = char + tail
        return head + mark + tail


def columns(text: str) -> int:
    """How many columns of a terminal the text takes (wide East Asian characters take two)."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def pad(text: str, width: int) -> str:
    return text + " " * (width - columns(text))
