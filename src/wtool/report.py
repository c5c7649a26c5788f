"""Reports as values. A report is the JSON that scripts get, and the same as blocks that people get.

An analysis builds a report; a renderer (text, json, markdown, html) shows it; neither knows of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wtool.text import printable as printable


@dataclass(frozen=True, slots=True)
class Facts:
    """Labelled values, a line each."""

    rows: tuple[tuple[str, str], ...]
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a Table. `number` aligns right; `keep` is never shortened to fit a terminal.

    `below` goes on a line of its own where the terminal is too narrow for all in one; `spare` ones are left out there, the
    last first, and in a pull request; `code` is what a machine calls it.
    """

    title: str
    number: bool = False
    keep: bool = False
    below: bool = False
    code: bool = False
    spare: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Cells, and how deep the first one is indented (for a tree). `heading` rows stand out."""

    cells: tuple[str, ...]
    depth: int = 0
    heading: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Bars:
    """Labelled quantities drawn as bars; `shown` is how each quantity is written."""

    rows: tuple[tuple[str, float, str], ...]
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Heat:
    """A grid of quantities from 0 up, drawn as shades of their logarithm. `rows` and `columns` are labels.

    None is a place where there is nothing, an infinite quantity one that cannot be told. `scale` is the range of the shades,
    where several grids share one; else that of the cells.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[float | None, ...], ...]
    title: str | None = None
    scale: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence. `level`: "info", "good", "warning" or "danger"."""

    text: str
    level: str = "info"


Block = Facts | Table | Bars | Heat | Note


@dataclass(frozen=True, slots=True)
class Report:
    """`schema` ("wtool.inspect/1") and `data` are the JSON object; `blocks` are what people see; `exit_code` is 0 or 1."""

    schema: str
    title: str
    data: Mapping[str, Any]
    blocks: tuple[Block, ...] = ()
    exit_code: int = 0
