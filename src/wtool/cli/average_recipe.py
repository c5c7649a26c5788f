"""The recipe of an average: what it was made of and how, kept in the report and in the output, and replayed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wtool.cli.average_methods import Settings
from wtool.errors import MismatchError, UsageError, WtoolError

KEY = "wtool.average"  # of the metadata of a safetensors output


@dataclass(frozen=True, slots=True)
class Part:
    """An input or a base: its path as it was given, and analysis.fingerprint of what was taken of it."""

    path: str
    fingerprint: str
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what the outcome is, except the values."""

    settings: Settings
    inputs: tuple[Part, ...]
    base: Part | None = None
    rules: tuple[str, ...] = ()
    on_mismatch: str = "error"
    dtype: str | None = None
    section: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    keep_extras: bool = False

    def data(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        from wtool import __version__

        return {
            "wtool": __version__,
            **self.settings.data(),
            "inputs": [_part(part) for part in self.inputs],
            "base": None if self.base is None else _part(self.base),
            "rules": list(self.rules),
            "on_mismatch": self.on_mismatch,
            "dtype": self.dtype,
            "section": self.section,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "keep_extras": self.keep_extras,
        }

    def text(self) -> str:
        """One line of JSON, for metadata."""
        return json.dumps(self.data(), ensure_ascii=True, separators=(",", ":"))


def _part(part: Part) -> dict[str, Any]:
    found = {"path": part.path, "fingerprint": part.fingerprint}
    return found if part.digest is None else {**found, "digest": part.digest}


def read_recipe(path: str) -> Recipe:
    """The recipe in a JSON report of `wtool average`, or in the metadata of its output. UsageError if there is none."""
    data = _found(path)
    try:
        known = dict(data)
        known.pop("wtool", None)
        inputs = tuple(_read(part) for part in known.pop("inputs"))
        base = known.pop("base", None)
        return Recipe(
            inputs=inputs,
            base=None if base is None else _read(base),
            rules=tuple(map(str, known.pop("rules", ()))),
            on_mismatch=str(known.pop("on_mismatch", "error")),
            dtype=known.pop("dtype", None),
            section=known.pop("section", None),
            include=tuple(known.pop("include", ())),
            exclude=tuple(known.pop("exclude", ())),
            keep_extras=bool(known.pop("keep_extras", False)),
            settings=Settings.of(known),
        )
    except UsageError as error:
        raise error.at(path) from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UsageError("its recipe is malformed", path=path) from None


def _found(path: str) -> Any:
    if os.path.isfile(path):
        with open(path, "rb") as file:
            text = file.read(1 << 26) if file.read(1) == b"{" else b""
        if text:
            try:
                data = json.loads(b"{" + text)
            except (ValueError, RecursionError):
                data = {}
            if isinstance(data, dict) and isinstance(data.get("recipe"), dict):
                return data["recipe"]
            if data:
                raise UsageError("holds no recipe", path=path, hint="a report: wtool average ... --json")
    from wtool.api import open_checkpoint

    try:
        text_found = open_checkpoint(path, section="all").metadata.get(KEY)
    except WtoolError as error:
        raise UsageError(f"is no recipe: {error.message}", path=path, hint="a report, or an output in safetensors") from None
    if text_found is None:
        raise UsageError(f"has no recipe in its metadata ({KEY})", path=path, hint="--recipe takes a JSON report, too")
    try:
        return json.loads(text_found)
    except (ValueError, RecursionError):
        raise UsageError("its recipe is malformed", path=path) from None


def _read(part: Any) -> Part:
    return Part(str(part["path"]), str(part["fingerprint"]), part.get("digest"))


def check_same(meant: Sequence[Part], found: Sequence[Part]) -> None:
    """MismatchError if an input is not what the recipe was made with."""
    for ours, theirs in zip(found, meant, strict=True):
        if ours.fingerprint != theirs.fingerprint:
            raise MismatchError(
                "is not the checkpoint that the recipe was made with",
                path=ours.path,
                hint="inputs on the command line take the places of the recipe's",
            )
