"""Extras as plain JSON values, however strange, deep, shared or large they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from wtool.checkpoint import Node, Opaque, TensorRef
from wtool.keys import short_key

_NODES = 20_000  # values shown in all
_DEPTH = 40
_TEXT = 10_000  # characters of one string
_HEAD = 40  # bytes shown of a bytes object


class Plain:
    """Turns extras into JSON values; `cut` says afterwards whether something was too much to show.

    Opaque objects become `{"class": name}`, tensors `{"tensor": key}`, bytes a text with their length, keys of dicts text.
    Values that are shared or hold themselves are shown again wherever they stand, up to 20,000 values and 40 levels in all.
    """

    def __init__(self) -> None:
        self.cut = False
        self._left = _NODES

    def __call__(self, value: Any, depth: int = 0) -> Any:
        self._left -= 1
        if value is None or isinstance(value, (bool, float)):
            return value
        if isinstance(value, int):
            return value if value.bit_length() <= 1024 else f"an integer of {value.bit_length()} bits"
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": len(value), "head": value[:_HEAD].hex()}
        if isinstance(value, complex):
            return [value.real, value.imag]
        if isinstance(value, Opaque):
            return {"class": value.name}
        if isinstance(value, TensorRef):
            return {"tensor": value.key}
        if depth >= _DEPTH:
            self.cut = True
            return "..."
        if isinstance(value, Node):
            return self._dict(value.items, depth)
        if isinstance(value, Mapping):
            return self._dict(tuple(value.items()), depth)
        if isinstance(value, (list, tuple, set, frozenset)):
            found: list[Any] = []
            for item in value:
                if self._left <= 0:
                    self.cut = True
                    found.append(f"... ({len(value) - len(found)} more)")
                    break
                found.append(self(item, depth + 1))
            return found
        return self._text(str(value))

    def _text(self, value: str) -> str:
        if len(value) <= _TEXT:
            return value
        self.cut = True
        return f"{value[:_TEXT]}... ({len(value)} characters)"

    def _dict(self, items: tuple[tuple[Any, Any], ...], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if self._left <= 0:
                self.cut = True
                found["..."] = f"{len(items) - len(found)} more"
                break
            name = key if isinstance(key, str) else str(self(key, depth + 1))
            found[name] = self(value, depth + 1)
        return found


def lines(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Plain values as (dotted path, short text) for people, a line for each leaf or short list."""
    if isinstance(value, dict) and list(value) == ["class"]:
        yield path, f"<{value['class']}>"
    elif isinstance(value, dict) and list(value) == ["bytes", "head"]:
        yield path, f"<{value['bytes']:,} bytes>"
    elif isinstance(value, dict) and list(value) == ["tensor"]:
        yield path, f"<tensor {value['tensor']}>"
    elif isinstance(value, dict) and (value or not path):
        for key, item in value.items():
            yield from lines(item, f"{path}.{short_key(key)}" if path else short_key(key))
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) and item for item in value):
        for index, item in enumerate(value):
            yield from lines(item, f"{path}.{index}")
    elif isinstance(value, list):
        shown = ", ".join(short(item) for item in value[:8])
        yield path, f"[{shown}]" if len(value) <= 8 else f"[{shown}, ...] ({len(value)} values)"
    else:
        yield path, short(value)


def short(value: Any, most: int = 120) -> str:
    """One value as a short text; what was cut is told by its length."""
    text = value if isinstance(value, str) else "null" if value is None else str(value)
    return text if len(text) <= most else f"{text[: most - 20]}... ({len(text)} characters)"
