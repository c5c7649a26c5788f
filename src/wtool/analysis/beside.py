"""What differs between two checkpoints beside their tensors: extras, metadata, which keys are tied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from wtool.analysis.diff import Diff
from wtool.analysis.plain import Plain
from wtool.checkpoint import Checkpoint
from wtool.keys import merged, natural, pattern, short_key

_MOST = 1000  # entries told

Entry = dict[str, Any]


def extras(diff: Diff) -> list[Entry]:
    """`key`, `a`, `b` of what is no tensor and stands on both sides with other values. Bytes and objects are not looked at."""
    return _differing(*(dict(_leaves(Plain()(dict(side.extras)))) for side in (diff.a, diff.b)))


def metadata(diff: Diff) -> list[Entry]:
    """`key`, `a`, `b` of the strings that both formats' own maps have."""
    return _differing(diff.a.metadata, diff.b.metadata)


def tied(diff: Diff) -> list[Entry]:
    """Groups of keys that both have and that only one side (`in`) keeps as one tensor."""
    groups = {
        side: {frozenset(short_key(key) for key in group) for group in checkpoint.tied()}
        for side, checkpoint in (("a", diff.a), ("b", diff.b))
    }
    shared = {short_key(key) for key in diff.a} & {short_key(key) for key in diff.b}
    found = []
    for side, other in (("a", "b"), ("b", "a")):
        alone = [group & shared for group in groups[side]]
        keys = [sorted(group, key=natural) for group in alone if len(group) > 1 and not any(group <= g for g in groups[other])]
        found += [{"in": side, "keys": some} for some in sorted(keys)]
    return found


def left_out(side: Checkpoint, alone: Iterable[str]) -> list[str]:
    """Those of the keys that stand `alone` on their side that are tied to one that does not."""
    only = set(alone)
    there = {tensor.identity for key, tensor in side.items() if key not in only} - {None} if only else set()
    return [key for key in alone if side[key].identity in there]


def said(entries: list[Entry], most: int) -> str:
    """`epoch 3 -> 5, ...`: numbered ones together, the first few."""
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        groups.setdefault((pattern(entry["key"]), f"{_short(entry['a'])} -> {_short(entry['b'])}"), []).append(entry["key"])
    texts = [f"{merged(keys)} {change}" for (_, change), keys in groups.items()]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most:,} more" if len(texts) > most else "")


def _differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[Entry]:
    # By what is written, so that a NaN is like itself and 1 unlike 1.0 and True.
    keys = [key for key in one if key in two and repr(one[key]) != repr(two[key])]
    return [{"key": key, "a": one[key], "b": two[key]} for key in sorted(keys, key=natural)[:_MOST]]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        if list(value) not in (["bytes", "head"], ["class"], ["tensor"]):
            for key, item in value.items():
                yield from _leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}.{index}")
    else:
        yield path, value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:30]}... ({len(text)} characters)"
