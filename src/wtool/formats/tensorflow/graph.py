"""The object graph: how tf.train.Checkpoint remembers which object had which variable.

A TrackableObjectGraph (tensorflow/core/protobuf/trackable_object_graph.proto) lies as a 0-d string tensor under KEY. A
variable is a node with an attribute VARIABLE_VALUE, whose checkpoint_key is always `<path>/.ATTRIBUTES/VARIABLE_VALUE`: when
TensorFlow restores it cuts the key there, so no other key will do. full_name is the name by which Saver knows it.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping
from typing import NamedTuple

from wtool.formats.protobuf import BYTES, VARINT, bytes_field, fields, number_field, text_field
from wtool.keys import TF_SUFFIX, short_key

KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
SLOT = "/.OPTIMIZER_SLOT/"
_ATTRIBUTES = "/.ATTRIBUTES/"
# What Keras 3 calls an object in a variable's path, and in the object graph.
_KERAS = {
    "kernel": "_kernel",
    "embeddings": "_embeddings",
    "lstm_cell": "cell",
    "gru_cell": "cell",
    "simple_rnn_cell": "cell",
    "query": "_query_dense",
    "key": "_key_dense",
    "value": "_value_dense",
    "attention_output": "_output_dense",
}
_VALUE = "VARIABLE_VALUE"
_HAS_VALUES = bytes_field(5, number_field(1, 1))
_NUMBER_1, _NUMBER_3 = (number << 3 | VARINT for number in (1, 3))
_MESSAGE_1, _MESSAGE_2, _MESSAGE_3 = (number << 3 | BYTES for number in (1, 2, 3))


class Attribute(NamedTuple):
    """A value of the object number `node`."""

    node: int
    full_name: str
    key: str


class Slot(NamedTuple):
    """A variable (node number `node`) that an optimizer (`owner`) keeps for another one (`variable`)."""

    owner: int
    variable: int
    node: int


class Graph(NamedTuple):
    """Objects by number, 0 the root. `children` has (name, number) of those objects that have any."""

    children: dict[int, list[tuple[str, int]]]
    attributes: list[Attribute]
    slots: list[Slot]


EMPTY = Graph({}, [], [])


def parse_graph(data: bytes) -> Graph:
    """References to objects that are not there are left out. CorruptError if the message is malformed."""
    nodes = [value for tag, value in fields(data) if tag == _MESSAGE_1]
    count = len(nodes)
    graph = Graph({}, [], [])
    for number, node in enumerate(nodes):
        children = []
        for tag, value in fields(node):
            if tag == _MESSAGE_1:
                part = dict(fields(value))
                child = part.get(_NUMBER_1, 0)
                if child < count:
                    children.append((part.get(_MESSAGE_2, b"").decode("utf-8", "replace"), child))
            elif tag == _MESSAGE_2:
                part = dict(fields(value))
                full_name, key = part.get(_MESSAGE_2, b""), part.get(_MESSAGE_3, b"")
                graph.attributes.append(
                    Attribute(number, full_name.decode("utf-8", "replace"), key.decode("utf-8", "replace"))
                )
            elif tag == _MESSAGE_3:
                part = dict(fields(value))
                variable, kept = part.get(_NUMBER_1, 0), part.get(_NUMBER_3, 0)
                if max(variable, kept) < count:
                    graph.slots.append(Slot(number, variable, kept))
        if children:
            graph.children[number] = children
    return graph


def prune_graph(data: bytes, keys: Container[str]) -> bytes:
    """The graph without the values whose key is not among `keys`, and without the slots that thereby hold nothing."""
    attributes = parse_graph(data).attributes
    full = {attribute.node for attribute in attributes if attribute.key in keys}
    empty = {attribute.node for attribute in attributes} - full
    out = []
    for message, node in fields(data):
        kept = []
        for tag, value in fields(node) if message == _MESSAGE_1 else ():
            if tag == _MESSAGE_2 and dict(fields(value)).get(_MESSAGE_3, b"").decode("utf-8", "replace") not in keys:
                continue
            if tag == _MESSAGE_3 and dict(fields(value)).get(_NUMBER_3, 0) in empty:
                continue
            if tag & 7 == BYTES:  # there is nothing else in a node
                kept.append(bytes_field(tag >> 3, value))
        out.append(bytes_field(1, b"".join(kept)))
    return b"".join(out)


def full_names(data: bytes) -> dict[str, str]:
    """Key -> the name of the variable, which in Keras 3 is its path."""
    return {attribute.key: attribute.full_name for attribute in parse_graph(data).attributes if attribute.full_name}


def aliases(keys: Collection[str]) -> dict[str, str]:
    """The object key under which each plain key can stand as well: its parts as a path.

    Plain keys whose path is not unique, leads on to another key, or has an empty part get none: they have only their name.
    """
    paths: dict[str, list[str]] = {}
    for key in keys:
        if not is_object_key(key):
            paths.setdefault(key.replace(".", "/"), []).append(key)
    branches: set[str] = set()
    for path in paths:
        above = path.rpartition("/")[0]
        while above and above not in branches:
            branches.add(above)
            above = above.rpartition("/")[0]
    taken = set(keys)
    return {
        same[0]: alias(same[0])
        for path, same in paths.items()
        if len(same) == 1 and path not in branches and alias(same[0]) not in taken and "" not in path.split("/")
    }


def is_object_key(key: str) -> bool:
    return _ATTRIBUTES in key


def alias(key: str) -> str:
    """The object key of a plain key."""
    return key.replace(".", "/") + TF_SUFFIX


class _Object:
    """A node that is being built."""

    __slots__ = ("attributes", "children", "slots")

    def __init__(self) -> None:
        self.children: dict[str, int] = {}
        self.attributes: list[tuple[str, str, str]] = []  # name, full_name, key
        self.slots: list[tuple[int, str, int]] = []  # variable, name, node


def build_graph(keys: Iterable[str], also: Mapping[str, str]) -> bytes:
    """The graph of the objects that the keys form, the parts of a key being the names of children.

    Plain keys (`encoder.0.kernel`, `bert/encoder/kernel`) are in it by their alias, the object key that `also` gives. Their
    objects have the names of Keras' objects as well, so that layers restore what their variables' paths name.
    """
    objects = [_Object()]
    slots = []
    for key in keys:
        path, found, name = key.rpartition(_ATTRIBUTES)
        if not found:
            if key in also:
                objects[_grow(objects, short_key(also[key]).split("/"))].attributes.append((_VALUE, key, also[key]))
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
        objects[optimizer].slots.append((target, _unescaped(leaf), number))
    for node in objects if also else ():
        for name, number in list(node.children.items()):
            node.children.setdefault(_in_keras(name), number)
    # tf.train.Checkpoint.restore() wants its own save_counter matched as well; one without a value will do.
    _grow(objects, ["save_counter"])
    return b"".join(bytes_field(1, _message(node)) for node in objects)


def _in_keras(part: str) -> str:
    """What Keras 3 calls the object that a path calls so; wrapped layers are named after the layer in them."""
    way, mark, _ = part.partition("_")
    return f"{way}_layer" if mark and way in ("forward", "backward") else _KERAS.get(part, part)


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
    slots = (number_field(1, target) + text_field(2, name) + number_field(3, number) for target, name, number in node.slots)
    return b"".join(
        (
            *(bytes_field(1, part) for part in children),
            *(bytes_field(2, part) for part in values),
            *(bytes_field(3, part) for part in slots),
            _HAS_VALUES,
        )
    )
