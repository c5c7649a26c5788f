"""Which variables are the model's, which an optimizer's, which neither: by the object graph, else by their names."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable

from wtool.checkpoint import Section, SectionKind
from wtool.formats.tensorflow.graph import SLOT, Node
from wtool.keys import short_key

# The optimizers' own scopes and slots, as tf.compat.v1.train, tf.keras.optimizers and BERT's AdamW name them.
_NAMES = "adam|adamax|nadam|adamw|adamweightdecay|momentum|sgd|adagrad|adagradda|adadelta|rmsprop|ftrl|lamb|lars|lion"
_SCOPE = re.compile(rf"(?:training/)?(?:{_NAMES})(?:_\d+)?/", re.IGNORECASE)
_SLOT = re.compile(rf"(?:{_NAMES}|adam_m|adam_v|lamb_m|lamb_v)(?:_\d+)?", re.IGNORECASE)
_OPTIMIZER = re.compile(r"_?(?:\w+_)?optimizers?", re.IGNORECASE)
_COUNTERS = {"global_step", "save_counter", "step", "epoch", "train_step"}
_STATE = {"learning_rate", "iter", "iterations", "beta1_power", "beta2_power"}
_METRICS = {"metrics", "_metrics", "_compile_metrics", "_loss_tracker", "compiled_metrics", "compiled_loss", "keras_api"}
_KERAS = {"_operations", "_functional", "_trainable_variables", "_kernel", "layer_with_weights-0", "layer-0", "keras_api"}

_SECTIONS: tuple[tuple[str, SectionKind], ...] = (
    ("model", "model"), ("ema", "ema"), ("optimizer", "optimizer"), ("other", "other"),
)  # fmt: skip


def sections(keys: Iterable[str], nodes: list[Node]) -> tuple[Section, ...]:
    """The sections that have a key, each with its keys in the order given."""
    by_graph = _by_graph(nodes)
    keys = list(keys)
    known = set(keys)
    kept: dict[SectionKind, list[str]] = {}
    for key in keys:
        kept.setdefault(by_graph.get(key) or _by_name(key, known), []).append(key)
    return tuple(Section(name, kind, tuple(kept[kind])) for name, kind in _SECTIONS if kind in kept)


def framework(nodes: list[Node]) -> str:
    return "Keras" if any(name in _KERAS for node in nodes for name, _ in node.children) else "TensorFlow"


def _by_graph(nodes: list[Node]) -> dict[str, SectionKind]:
    """What a variable is, by who owns it.

    An optimizer refers to the model's variables too, and a variable's key tells only the shortest way to it: in Keras 3 the
    weights of a model lie under `optimizer/_trainable_variables`. So what the model reaches on its own is the model's.
    """
    optimizers = {number for number, node in enumerate(nodes) if node.slots}
    others: set[int] = set()
    slots = {slot.node for node in nodes for slot in node.slots}
    for number, node in enumerate(nodes):
        for name, child in node.children:
            if _OPTIMIZER.fullmatch(name):
                optimizers.add(child)
            elif name in _METRICS or (not number and name in _COUNTERS):
                others.add(child)
    optimizers.discard(0)
    kinds: dict[str, SectionKind] = {}
    seen: set[int] = optimizers | others | slots
    for kind, roots in (("model", {0} if nodes else set()), ("optimizer", optimizers | slots), ("other", others)):
        todo = list(roots)
        while todo:
            number = todo.pop()
            for attribute in nodes[number].attributes:
                kinds.setdefault(attribute.key, kind)  # type: ignore[arg-type]
            for _, child in nodes[number].children:
                if child not in seen:
                    seen.add(child)
                    todo.append(child)
    return kinds


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
