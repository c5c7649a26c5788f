"""The object graph: how tf.train.Checkpoint remembers which object had which variable.

A TrackableObjectGraph (tensorflow/core/protobuf/trackable_object_graph.proto) lies as a 0-d string tensor under KEY. A
variable is a node with an attribute VARIABLE_VALUE, whose checkpoint_key is always `<path>/.ATTRIBUTES/VARIABLE_VALUE`: when
TensorFlow restores it cuts the key there, so no other key will do. full_name is the name by which Saver knows it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

from wtool.formats.protobuf import bytes_field, fields, number_field, text_field
from wtool.keys import TF_SUFFIX, short_key

KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
SLOT = "/.OPTIMIZER_SLOT/"
_ATTRIBUTES = "/.ATTRIBUTES/"
_VALUE = "VARIABLE_VALUE"
_HAS_VALUES = bytes_field(5, number_field(1, 1))


class Slot(NamedTuple):
    """A variable that an optimizer keeps for another one. Variables are numbers of nodes."""

    variable: int
    name: str
    node: int


class Attribute(NamedTuple):
    full_name: str
    key: str


class Node(NamedTuple):
    """An object: its children by name, its values, and (an optimizer's) slots."""

    children: list[tuple[str, int]]
    attributes: list[Attribute]
    slots: list[Slot]


def parse_graph(data: bytes) -> list[Node]:
    """The nodes, the root first. References to nodes that are not there are left out. CorruptError if it is malformed."""
    raw = [value for number, _, value in fields(data) if number == 1 and isinstance(value, bytes)]
    count = len(raw)
    nodes = []
    for message in raw:
        node = Node([], [], [])
        for number, _, value in fields(message):
            if not isinstance(value, bytes) or number > 3:
                continue
            part = {index: found for index, _, found in fields(value)}
            if number == 1 and 0 <= _number(part, 1) < count:
                node.children.append((_text(part, 2), _number(part, 1)))
            elif number == 2:
                node.attributes.append(Attribute(_text(part, 2), _text(part, 3)))
            elif number == 3 and max(_number(part, 1), _number(part, 3)) < count:
                node.slots.append(Slot(_number(part, 1), _text(part, 2), _number(part, 3)))
        nodes.append(node)
    return nodes


def _number(part: Mapping[int, int | bytes], index: int) -> int:
    value = part.get(index, 0)
    return value if isinstance(value, int) else 0


def _text(part: Mapping[int, int | bytes], index: int) -> str:
    value = part.get(index, b"")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def prune_graph(data: bytes, keys: Container[str]) -> bytes:
    """The graph without the values whose key is not among `keys`, and without the slots that thereby hold nothing."""
    empty = {
        number
        for number, node in enumerate(parse_graph(data))
        if node.attributes and not any(attribute.key in keys for attribute in node.attributes)
    }
    out = []
    for _, _, message in fields(data):
        kept = []
        for number, _, value in fields(message if isinstance(message, bytes) else b""):
            if not isinstance(value, bytes):
                continue  # a node has no numbers
            part = {index: found for index, _, found in fields(value)} if number in (2, 3) else {}
            if (number == 2 and _text(part, 3) not in keys) or (number == 3 and _number(part, 3) in empty):
                continue
            kept.append(bytes_field(number, value))
        out.append(bytes_field(1, b"".join(kept)))
    return b"".join(out)


class Tree(NamedTuple):
    """A graph as bytes, and for each plain key the further key that objects can be restored by."""

    graph: bytes
    aliases: dict[str, str]


class _Object:
    """A node that is being built."""

    __slots__ = ("attributes", "children", "slots")

    def __init__(self) -> None:
        self.children: dict[str, int] = {}
        self.attributes: list[tuple[str, str, str]] = []  # name, full_name, key
        self.slots: list[Slot] = []


def build_graph(keys: Iterable[str]) -> Tree:
    """The graph of the objects that the keys form, the parts of a key being the names of children.

    Plain keys (`encoder.0.kernel`, `bert/encoder/kernel`) are cut at `/` and `.` and get an alias that ends as object keys do.
    Plain keys whose path is not unique, leads on to another key, or has an empty part are left out: they have only their name.
    """
    keys = list(keys)
    objects = [_Object()]
    aliases = _aliases(keys)
    slots = []
    for key in keys:
        path, found, name = key.rpartition(_ATTRIBUTES)
        if not found:
            if key in aliases:
                node = _grow(objects, short_key(aliases[key]).split("/"))
                objects[node].attributes.append((_VALUE, key, aliases[key]))
        elif SLOT in path:
            slots.append((path, name, key))
        else:
            objects[_grow(objects, map(_unescaped, path.split("/")))].attributes.append((name, path, key))
    for path, name, key in slots:
        variable, _, slot = path.partition(SLOT)
        owner, _, leaf = slot.rpartition("/")
        objects.append(_Object())
        number = len(objects) - 1
        objects[number].attributes.append((name, path, key))
        target = _grow(objects, map(_unescaped, variable.split("/")))
        optimizer = _grow(objects, map(_unescaped, owner.split("/")))
        objects[optimizer].slots.append(Slot(target, _unescaped(leaf), number))
    # tf.train.Checkpoint.restore() wants its own save_counter matched as well; one without a value will do.
    _grow(objects, ["save_counter"])
    return Tree(b"".join(bytes_field(1, _message(node)) for node in objects), aliases)


def _aliases(keys: list[str]) -> dict[str, str]:
    taken = set(keys)
    paths: dict[str, list[str]] = {}
    for key in keys:
        if _ATTRIBUTES not in key:
            paths.setdefault(key.replace(".", "/"), []).append(key)
    branches = {path[:at] for path in paths for at, letter in enumerate(path) if letter == "/"}
    return {
        same[0]: path + TF_SUFFIX
        for path, same in paths.items()
        if len(same) == 1 and path not in branches and path + TF_SUFFIX not in taken and "" not in path.split("/")
    }


def _grow(objects: list[_Object], path: Iterable[str]) -> int:
    """The number of the object at the end of `path`, which is made as far as it is not there."""
    number = 0
    for part in path:
        children = objects[number].children
        if part not in children:
            children[part] = len(objects)
            objects.append(_Object())
        number = children[part]
    return number


def _unescaped(part: str) -> str:
    """The name of a child as it is; in keys `.` is written `..`, and `/` is written `.S`."""
    return part.replace("..", "\0").replace(".S", "/").replace("\0", ".") if "." in part else part


def _message(node: _Object) -> bytes:
    children = (number_field(1, number) + text_field(2, name) for name, number in node.children.items())
    values = (text_field(1, name) + text_field(2, full) + text_field(3, key) for name, full, key in node.attributes)
    slots = (number_field(1, slot.variable) + text_field(2, slot.name) + number_field(3, slot.node) for slot in node.slots)
    return b"".join(
        (
            *(bytes_field(1, part) for part in children),
            *(bytes_field(2, part) for part in values),
            *(bytes_field(3, part) for part in slots),
            _HAS_VALUES if node.children or node.attributes else b"",
        )
    )
