"""The names that a recipe uses for the keys of a checkpoint, by the layout of its side."""

from __future__ import annotations

import re
from collections.abc import Mapping

from wtool.checkpoint import Checkpoint
from wtool.errors import MapError
from wtool.keys import TF_SUFFIX, short_key

WRAPPED = ("forward_", "backward_")
_WRAPPED = re.compile(rf"(?:^|(?<=/))({'|'.join(WRAPPED)})[^/]+/(?=(lstm|gru|simple_rnn)_cell/)")
_FUNCTIONAL = ("_operations", "_layers", "_tracked")
_COLLECTIONS = ("params", "batch_stats")


class GraphNames(dict[str, str]):
    """Key -> full_name in TensorFlow's object graph. `paths`: key -> path of the object, where the key is another one.

    `root` is the name under which the one model was saved, as in tf.train.Checkpoint(model=net).
    """

    def __init__(self, full_names: Mapping[str, str], paths: Mapping[str, str], root: str) -> None:
        super().__init__(full_names)
        self.paths, self.root = paths, root


def recipe_names(checkpoint: Checkpoint, layout: str, full_names: Mapping[str, str]) -> dict[str, str]:
    """Key -> name. `full_names` are what TensorFlow's object graph calls the variables, by key.

    - keras: the variable's path. An object-based checkpoint has it as full_name; MapError if two variables share one there.
    - object: the path in the object graph, without `/.ATTRIBUTES/VARIABLE_VALUE`, through the model and no optimizer.
    - flax: parts divided by `.`; `params` stands in front where no collection is named.
    - nnx: parts divided by `.`; there are no collections.
    - torch, mlx: the key.
    """
    if layout == "keras" and any(key.endswith(TF_SUFFIX) for key in checkpoint):
        names = {key: full_names.get(key) or short_key(key) for key in checkpoint}
        _unique(names, checkpoint)
        return names
    if layout in ("flax", "nnx"):
        slashed = not any("." in key for key in checkpoint)
        names = {key: key.replace("/", ".") if slashed else key for key in checkpoint}
        starts = tuple(collection + "." for collection in _COLLECTIONS)
        if layout == "flax" and not any(name.startswith(starts) for name in names.values()):
            names = {key: f"params.{name}" for key, name in names.items()}
        return names
    return {key: _path(key, full_names) if layout == "object" else short_key(key) for key in checkpoint}


def _path(key: str, full_names: Mapping[str, str]) -> str:
    """The path of an object, through the model."""
    return (full_names.paths.get(key) if isinstance(full_names, GraphNames) else None) or short_key(key)


def plain_wrapped(name: str) -> str:
    """A Keras path with the layers of a Bidirectional under one name: forward_lstm for forward_lstm_7."""
    return _WRAPPED.sub(r"\1\2/", name)


def own_prefix(names: Mapping[str, str], layout: str, full_names: Mapping[str, str]) -> str:
    """What stands before every name and is the model's own: no module of torch's is called so.

    A Keras Sequential model puts its name before every path; tf.train.Checkpoint(model=net) puts `model` before every object.
    Where the first part is one of the model's objects, it stays.
    """
    starts = {name.partition("/")[0] for name in names.values()}
    if len(starts) != 1 or not full_names or not all(name.count("/") > 1 for name in names.values()):
        return ""
    start = starts.pop()
    root = full_names.root if isinstance(full_names, GraphNames) else ""
    if layout == "object":
        mine = start == root
    else:
        parts = [_path(key, full_names).split("/") for key in names]
        inside = [path[1:] if path[0] == root else path for path in parts]
        # A functional model keeps its layers here, and has not its name in their paths.
        mine = layout == "keras" and all(path[0] not in _FUNCTIONAL and start not in path for path in inside)
        mine = mine and all(key in full_names for key in names)
    return start + "/" if mine else ""


def written_key(name: str, layout: str) -> str:
    """The key that is written for a name without a template: an object path gets TensorFlow's suffix."""
    return name + TF_SUFFIX if layout == "object" else name


def _unique(names: Mapping[str, str], checkpoint: Checkpoint) -> None:
    owners: dict[str, str] = {}
    for key, name in names.items():
        other = owners.setdefault(name, key)
        if other != key:
            raise MapError(
                f"two variables are called '{name}' ('{short_key(other)}' and '{short_key(key)}')",
                path=checkpoint.source.path,
                hint="a subclassed Keras model has no unique paths: torch-to-keras-object and its reverse speak of objects",
            )
