"""A report as one JSON object: the schema first, an entry of a list a line, nothing that is no JSON (NaN becomes null)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from wtool.report import Report


def to_json(reports: Sequence[Report], many: str) -> str:
    """The data of one report, or of several in an array named `many`. Pure ASCII, so that any stream can carry it."""
    if len(reports) == 1:
        return _object({"schema": reports[0].schema, **reports[0].data}, "") + "\n"
    bodies = ",\n    ".join(_object(report.data, "    ") for report in reports)
    schema = json.dumps(reports[0].schema) if reports else '""'
    return f'{{\n  "schema": {schema},\n  {json.dumps(many)}: [\n    {bodies}\n  ]\n}}\n'


def line(data: Mapping[str, Any]) -> str:
    """One object on one line."""
    return _dump(dict(data))


def _object(data: Mapping[str, Any], margin: str) -> str:
    """Built by hand: `indent` would put every number of a shape on its own line and take the slow encoder."""
    inside = margin + "  "
    members = []
    for key, value in data.items():
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], (dict, list)):
            shown = "[\n" + ",\n".join(f"{inside}  {_dump(item)}" for item in value) + f"\n{inside}]"
        elif isinstance(value, dict) and value:
            entries = (f"{inside}  {json.dumps(str(name))}: {_dump(item)}" for name, item in value.items())
            shown = "{\n" + ",\n".join(entries) + f"\n{inside}}}"
        else:
            shown = _dump(value)
        members.append(f"{inside}{json.dumps(key)}: {shown}")
    return "{\n" + ",\n".join(members) + f"\n{margin}}}"


def _dump(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
