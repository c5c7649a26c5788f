"""Scores of checkpoints and of soups, as a journal keeps them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from wtool.bytesource import LocalFile

if TYPE_CHECKING:
    from wtool.checkpoint import Checkpoint
    from wtool.cli.console import Console
    from wtool.cli.soup import Order

SCHEMA = "wtool.soup/1"
_PIECE = 1 << 20


class Key(NamedTuple):
    """What a score belongs to: ingredients by digest, best first, and what was made of them (None: one, as it is)."""

    command: str
    field: str | None
    made: str | None
    digests: tuple[str, ...]


class Scores:
    """Those that the entries of a journal hold. What is no score, or not as this version writes them, is passed over."""

    def __init__(self, order: Order, entries: Sequence[Mapping[str, Any]]) -> None:
        self._said = {
            "command": order.evaluation.command,
            "field": order.evaluation.field,
            "objective": "maximize" if order.objective.maximize else "minimize",
        }
        self.found: dict[Key, tuple[float, float]] = {}
        self._digests: dict[str, str] = {}
        self._last: Mapping[str, Any] | None = None
        for entry in entries:
            if entry.get("kind") == "run":
                self._last = entry
            elif entry.get("kind") == "score":
                self._take(entry)

    def _take(self, entry: Mapping[str, Any]) -> None:
        score, seconds = entry.get("score"), entry.get("seconds")
        if not isinstance(score, float) or not isinstance(seconds, float):
            return
        try:
            parts = {str(part["path"]): str(part["digest"]) for part in entry["ingredients"]}
            key = Key(str(entry["command"]), entry["field"], entry["made"], tuple(parts.values()))
            self.found[key] = (score, seconds)
        except (KeyError, TypeError):
            return
        self._digests.update(parts)

    def key(self, made: str | None, digests: Sequence[str]) -> Key:
        return Key(str(self._said["command"]), self._said["field"], made, tuple(digests))

    def changed(self, path: str, digest: str) -> bool:
        """Whether this file had other bytes when it was last scored."""
        return self._digests.get(os.path.abspath(path), digest) != digest

    def entry(self, kind: str, paths: Sequence[str], digests: Sequence[str | None], **more: object) -> dict[str, Any]:
        """A line for the journal."""
        parts = [
            {"path": os.path.abspath(path)} | ({"digest": digest} if digest else {})
            for path, digest in zip(paths, digests, strict=True)
        ]
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return {"kind": kind, "at": at, **self._said, "ingredients": parts, **more}

    def notice(self, made: str, path: str, console: Console) -> None:
        """Say what is not as it was when the journal was last used. `made` is of all ingredients together."""
        last, now = self._last, self._said
        if last is None or not self.found:
            return
        for name in ("command", "field"):
            if last.get(name) != now[name]:
                was, is_ = (f"the {name} '{one}'" if one is not None else f"no {name}" for one in (last.get(name), now[name]))
                console.warn(f"the last run was with {was}: its scores are not used with {is_}", path)
                return
        if last.get("objective") != now["objective"]:
            text = f"the last run was to {last.get('objective')}; its scores are used to {now['objective']}"
            console.warn(text, path)
        if last.get("made") != made:
            text = "inputs or options differ from those of the last run: soups that are made otherwise are scored again"
            console.warn(text, path)


def digest_of(checkpoint: Checkpoint) -> str:
    """BLAKE2b with 32 bytes, in hex, over the files of a checkpoint: of each its size, as 8 bytes little-endian, and bytes.

    Of all bytes and not of the values, as a command may read what stands beside the tensors.
    """
    state = blake2b(digest_size=32)
    buffer = memoryview(bytearray(_PIECE))
    for path, _ in checkpoint.source.files:
        source = LocalFile(path)
        state.update(source.size.to_bytes(8, "little"))
        for done in range(0, source.size, _PIECE):
            piece = buffer[: min(_PIECE, source.size - done)]
            source.readinto(done, piece)
            state.update(piece)
    return state.hexdigest()


def state_of(checkpoint: Checkpoint) -> list[tuple[int, ...]]:
    """What changes when one of its files does: device, inode, size and time of the last change."""
    found: list[tuple[int, ...]] = []
    for path, _ in checkpoint.source.files:
        try:
            info = os.stat(path)
        except OSError:
            found.append(())
        else:
            found.append((info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns))
    return found
