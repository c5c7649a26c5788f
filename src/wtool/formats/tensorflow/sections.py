"""Which variables are the model's, which an optimizer's, which neither: by the object graph, else by their names."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Container, Iterable

from wtool.checkpoint import Section, SectionKind
from wtool.formats.tensorflow.graph import SLOT, Graph
from wtool.keys import short_key

# The optimizers' own scopes and slots, as tf.compat.v1.train, tf.keras.optimizers and BERT's AdamW name them.
_NAMES = "adam|adamax|nadam|adamw|adamweightdecay|momentum|sgd|adagrad|adagradda|adadelta|rmsprop|ftrl|lamb|lars|lion"
_SCOPE = re.compile(rf"(?:training/)?(?:{_NAMES})(?:_\d+)?/", re.IGNORECASE)
_SLOT = re.compile(rf"(?:{_NAMES}|adam_m|adam_v|lamb_m|lamb_v)(?:_\d+)?", re.IGNORECASE)
_OPTIMIZER = re.compile(r"_?(?:\w+_)?optimizers?", re.IGNORECASE)
_COUNTERS = {"global_step", "save_counter", "step", "epoch", "train_step"}
_STATE = {"learning_rate", "iter", "iterations", "beta1_power", "beta2_power"}
_ROOTS = ("model", "net")
_METRICS = {"metrics", "_metrics", "_compile_metrics", "_loss_tracker", "compiled_metrics", "compiled_loss", "keras_api"}
# Names of children as they stand in a graph: field 2, length, text.
_KERAS = re.compile(rb"\x12(?:\x0b_operations|\x0b_functional|\x14_trainable_variables|\x07_kernel|\x07layer-0|\x09keras_api)")
_TELLING = re.compile("|".join(("[oO]ptimizer", SLOT.strip("/."), *sorted(_METRICS))).encode())

_SECTIONS: tuple[tuple[str, SectionKind], ...] = (
    ("model", "model"), ("ema", "ema"), ("optimizer", "optimizer"), ("other", "other"),
)  # fmt: skip


def sections(keys: Iterable[str], graph: Graph) -> tuple[Section, ...]:
    """The sections that have a key, each with its keys in the order given."""
    by_graph = _by_graph(graph)
    keys = list(keys)
    known = set(keys)
    kept: dict[SectionKind, list[str]] = {}
    for key in keys:
        kept.setdefault(by_graph.get(key) or _by_name(key, known), []).append(key)
    return tuple(Section(name, kind, tuple(kept[kind])) for name, kind in _SECTIONS if kind in kept)


def framework(graph: bytes) -> str:
    return "Keras" if _KERAS.search(graph) else "TensorFlow"


def worth_parsing(graph: bytes) -> bool:
    """Whether the graph can tell more than the keys do: of weights alone it cannot, and 100,000 of them take a second."""
    return bool(_TELLING.search(graph))


def _by_graph(graph: Graph) -> dict[str, SectionKind]:
    """What a variable is, by who owns it.

    An optimizer refers to the model's variables too, and a variable's key tells only the shortest way to it: in Keras 3 the
    weights of a model lie under `optimizer/_trainable_variables`. What the model reaches on its own is the model's.
    """
    optimizers, others = _owners(graph)
    slots = {slot.node for slot in graph.slots}
    seen: dict[int, SectionKind] = dict.fromkeys(others, "other")
    seen.update(dict.fromkeys(optimizers | slots, "optimizer"))
    searches: list[tuple[SectionKind, list[int]]] = [
        ("model", [0]), ("optimizer", [*optimizers, *slots]), ("other", [*others]),
    ]  # fmt: skip
    for kind, roots in searches:
        todo = roots
        while todo:
            for _, child in graph.children.get(todo.pop(), ()):
                if child not in seen:
                    seen[child] = kind
                    todo.append(child)
    return {attribute.key: seen.get(attribute.node, "model") for attribute in graph.attributes}


def _owners(graph: Graph) -> tuple[set[int], set[int]]:
    """The optimizers, and what is neither theirs nor the model's."""
    optimizers = {slot.owner for slot in graph.slots}
    others: set[int] = set()
    for number, children in graph.children.items():
        for name, child in children:
            if name in _METRICS or (not number and name in _COUNTERS):
                others.add(child)
            elif "ptimizer" in name and _OPTIMIZER.fullmatch(name):
                optimizers.add(child)
    optimizers.discard(0)
    return optimizers, others


def model_paths(graph: Graph) -> dict[str, str]:
    """Key -> the shortest path to the variable that leads through no optimizer, for those whose key leads through one."""
    optimizers, others = _owners(graph)
    paths: dict[int, tuple[str, ...]] = {0: ()}
    todo = deque([0])
    while todo:
        number = todo.popleft()
        for name, child in graph.children.get(number, ()):
            if child not in paths and child not in optimizers and child not in others:
                paths[child] = (*paths[number], name.replace(".", "..").replace("/", ".S"))
                todo.append(child)
    return {
        attribute.key: "/".join(paths[attribute.node])
        for attribute in graph.attributes
        if attribute.node in paths and any(map(_OPTIMIZER.fullmatch, short_key(attribute.key).split("/")))
    }


def whole_model(graph: Graph) -> str:
    """The name under which TensorFlow saved the one model (`model` of Checkpoint(model=net, optimizer=...)); else empty.

    Only the names that its guides use: of another, nobody could say whether it is the model or a module of it.
    """
    optimizers, others = _owners(graph)
    names = [name for name, child in graph.children.get(0, ()) if child not in optimizers and child not in others]
    written = all(attribute.full_name == short_key(attribute.key) for attribute in graph.attributes)
    return names[0] if len(names) == 1 and names[0] in _ROOTS and not written else ""


def _by_name(key: str, known: Container[str]) -> SectionKind:
    path = short_key(key)
    if SLOT in key or _SCOPE.match(path):
        return "optimizer"
    parts = path.split("/")
    base, _, leaf = path.rpartition("/")
    if leaf == "ExponentialMovingAverage":
        return "ema"
    if len(parts) == 1 and leaf in _COUNTERS:
        return "other"
    if (len(parts) == 1 and leaf in _STATE) or any(_OPTIMIZER.fullmatch(part) for part in parts):
        return "optimizer"
    return "optimizer" if _SLOT.fullmatch(leaf) and base in known else "model"
