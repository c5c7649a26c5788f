"""Tensors as a tree of the parts of their keys, repeated layers shown once: `layers.{0-47}`.

Siblings are shown as one only when everything below them is equal: names, dtypes and shapes. A part may carry its number
inside (`layer_{0-11}`); a chain of groups with one child each is one row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import prod

from wtool.keys import natural, short_key
from wtool.tensor import TensorSpec

_PARTS = re.compile(r"[./]?[^./]+|[./]")
_NUMBERED = re.compile(r"(.*?)([0-9]+)([^0-9]*)", re.DOTALL)
_RUNS = 12  # runs of numbers in one label
_DEPTH = 60  # parts of a key that become levels; a hostile key has thousands, and the last level takes the rest


@dataclass(slots=True)
class Branch:
    """A row of the tree: a group of tensors, or one tensor (`spec`), that stands `repeats` times under its parent.

    `label` begins with its separator, as in `.layers.{0-47}`. `tensors`, `elements` and `nbytes` count everything below it,
    repeats of its own and of its parents included. A key may be both a tensor and the beginning of others.
    """

    label: str
    repeats: int
    spec: TensorSpec | None
    children: list[Branch]
    tensors: int
    elements: int
    nbytes: int

    @property
    def name(self) -> str:
        """The label as it reads at the start of a row."""
        return self.label.lstrip("./") or self.label


@dataclass(slots=True)
class _Node:
    spec: TensorSpec | None = None
    children: dict[str, _Node] = field(default_factory=dict)
    number: int = 0  # equal for equal subtrees
    tensors: int = 0
    elements: int = 0
    nbytes: int = 0


def parts(key: str) -> list[str]:
    """A key cut before each separator; joined, they are the key again."""
    found = _PARTS.findall(key) or [key]
    return found if len(found) <= _DEPTH else [*found[: _DEPTH - 1], "".join(found[_DEPTH - 1 :])]


def tree(specs: Iterable[TensorSpec]) -> list[Branch]:
    """The collapsed tree of the tensors, siblings in order of first appearance but numbered ones by number."""
    root = _Node()
    for spec in specs:
        node = root
        for part in parts(short_key(spec.key)):
            child = node.children.get(part)
            if child is None:
                child = node.children[part] = _Node()
            node = child
        if node.spec is not None:  # two stored keys with one short form
            node = node.children[spec.key] = _Node()
        node.spec = spec
    _measure(root, {})
    return _branches(root, 1)


def _measure(node: _Node, known: dict[object, int]) -> None:
    """Sums and identity of every subtree, from the leaves up."""
    below: list[tuple[str, int]] = []
    for part, child in node.children.items():
        _measure(child, known)
        below.append((part, child.number))
        node.tensors += child.tensors
        node.elements += child.elements
        node.nbytes += child.nbytes
    own = None
    if node.spec is not None:
        own = (node.spec.dtype.name, node.spec.shape)
        elements = prod(node.spec.shape)
        node.tensors += 1
        node.elements += elements
        node.nbytes += node.spec.dtype.nbytes(elements)
    below.sort()
    node.number = known.setdefault((own, tuple(below)), len(known))


def _branches(node: _Node, times: int) -> list[Branch]:
    """The children of a node whose own parents repeat it `times` times."""
    families: dict[object, list[tuple[str, _Node]]] = {}
    for part, child in node.children.items():
        numbered = _NUMBERED.fullmatch(part)
        family: object = part if numbered is None else (numbered[1], numbered[3])
        families.setdefault(family, []).append((part, child))
    found = []
    for members in families.values():
        if len(members) == 1:
            part, child = members[0]
            found.append(_branch(part, child, 1, times))
            continue
        alike: dict[int, list[tuple[str, _Node]]] = {}
        for part, child in sorted(members, key=lambda member: natural(member[0])):
            alike.setdefault(child.number, []).append((part, child))
        for same in alike.values():
            for label, count in collapse([part for part, _ in same]):
                found.append(_branch(label, same[0][1], count, times))
    return found


def _branch(label: str, node: _Node, repeats: int, times: int) -> Branch:
    times *= repeats
    while repeats == 1 and node.spec is None and len(node.children) == 1:
        ((part, child),) = node.children.items()
        label, node = label + part, child
    children = _branches(node, times)
    branch = Branch(label, times, node.spec, children, node.tensors * times, node.elements * times, node.nbytes * times)
    # A chain: a group whose only row is another group reads as one row, `encoder.layer.{0-11}`.
    if repeats == 1 and node.spec is None and len(children) == 1:
        only = children[0]
        only.label = label + only.label
        return only
    return branch


def collapse(names: list[str]) -> Iterator[tuple[str, int]]:
    """Names that differ in their last number only, in natural order, as few: (`a.{0-2,5}.w`, 4).

    A list of more than 12 runs is given in several.
    """
    runs: list[list[str]] = []
    counts: list[int] = []
    last: int | None = None
    head = tail = ""
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match is None:
            yield name, 1
            continue
        head, text, tail = match.groups()
        value = int(text) if len(text) < 20 else None  # int() refuses more than 4300 digits
        if runs and value is not None and last is not None and value == last + 1:
            runs[-1][1:] = [text]
            counts[-1] += 1
        else:
            runs.append([text])
            counts.append(1)
        last = value
    for first in range(0, len(runs), _RUNS):
        some = runs[first : first + _RUNS]
        inside = ",".join("-".join(run) for run in some)
        many = len(some) > 1 or len(some[0]) > 1
        yield f"{head}{{{inside}}}{tail}" if many else f"{head}{inside}{tail}", sum(counts[first : first + _RUNS])
