"""A report as text: for a terminal, a script, a pull request or a browser."""

from __future__ import annotations

from collections.abc import Sequence

from wtool.report import Report

KINDS = ("text", "json", "markdown", "html")
SUFFIXES = {".txt": "text", ".json": "json", ".md": "markdown", ".markdown": "markdown", ".html": "html", ".htm": "html"}


def render(
    reports: Sequence[Report],
    kind: str,
    *,
    width: int | None = None,
    color: bool = False,
    unicode: bool = True,
    many: str = "reports",
) -> str:
    """One or more reports of a schema as one text of that kind, ending in a newline.

    `width` is the columns of a terminal, None where nothing may be shortened; `color` and `unicode` say what it can show.
    `many` is the name of the array that several reports become in JSON.
    """
    if kind == "json":
        from wtool.render.json import to_json

        return to_json(reports, many)
    if kind == "markdown":
        from wtool.render.markdown import to_markdown

        return to_markdown(reports)
    if kind == "html":
        from wtool.render.html import to_html

        return to_html(reports)
    from wtool.render.text import to_text

    return to_text(reports, width=width, color=color, unicode=unicode)
