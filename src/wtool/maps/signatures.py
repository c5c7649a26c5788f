"""What a draft sees of a checkpoint: its modules, the roles and sizes of their leaves, and the words of their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

from wtool.maps.kinds import LAYOUTS, Kind, joined, module_kinds, shipped, substituted, taken_apart
from wtool.tensor import Shape

Signature = tuple[tuple[str, Shape], ...]

_ROLES = {
    "weight": "weight kernel gamma scale embeddings embedding w g alpha _kernel _embeddings output_weights",
    "bias": "bias beta b output_bias",
    "mean": "running_mean moving_mean mean",
    "var": "running_var moving_variance moving_var var",
    "count": "num_batches_tracked",
}
ROLE = {word: role for role, words in _ROLES.items() for word in words.split()}
_COLLECTIONS = ("params.", "batch_stats.")
_LAYERS = 64  # layers of one recurrent module that are looked for

# Different words for one thing. What stands for the same must never be what tells two modules of one model apart; where it
# does, both have the same words and neither is clear.
_SAME = {
    "attention": "attention attn att mha multihead",
    "q": "q wq query",
    "k": "k wk key",
    "v": "v wv value",
    "out": "out o wo output",
    "block": "block blocks layer layers h resblocks",
    "embedding": "embedding embeddings embed embeds emb",
    "token": "token tokens tok word words",
    "position": "position positions positional pos",
    "dense": "dense fc linear lin proj projection",
    "conv": "conv convolution conv1d conv2d conv3d",
    "norm": "norm normalization layernorm batchnorm bn ln",
    "encoder": "encoder enc",
    "decoder": "decoder dec",
    "mlp": "mlp ffn ff feedforward",
    "head": "head classifier predictions logits",
    "shortcut": "shortcut downsample",
}
_WORD = {word: one for one, words in _SAME.items() for word in words.split()}
_PHRASES = (
    (re.compile("layer_?norm(alization)?", re.I), " norm "),
    (re.compile("batch_?norm(alization)?", re.I), " norm "),
    (re.compile("feed_?forward", re.I), " mlp "),
    (re.compile("wte", re.I), " token embedding "),
    (re.compile("wpe", re.I), " position embedding "),
)
_TOKEN = re.compile(r"[cC]onv[123][dD]|[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+|[^\W\d_a-zA-Z]+")
# What Keras calls a layer that was given no name: its number says when it was made, nothing else.
_GENERIC = re.compile(
    r"(depthwise_|separable_)?conv[123]d(_transpose)?|dense|embedding|(batch|layer|group|rms|unit)_normalization|lstm|gru"
    r"|simple_rnn|bidirectional|multi_head_attention|p_re_lu|einsum_dense|sequential|functional|model|variable|layer"
)


@dataclass(frozen=True)
class Part:
    """One module, or a tensor that is none's: `leaves` are its keys by role.

    `odd`: its leaf is of no known name, so that its role is a guess. `layer` is that of a recurrent module's leaves.
    """

    path: str
    leaves: Mapping[str, str]
    shapes: Mapping[str, Shape]
    odd: bool = False
    whole: bool = False  # several modules of a kind in one: a recurrent layer, attention
    layer: int = 0
    signature: Signature = field(default=())

    @property
    def main(self) -> str:
        return next(iter(self.leaves))

    @property
    def named(self) -> Named:
        return read_name(self.path)


@dataclass(frozen=True)
class Named:
    """A path as words and numbers: `pattern` has `#` for every number, `before` what stands before each number."""

    words: tuple[str, ...]
    pattern: tuple[str, ...]
    numbers: tuple[int, ...]
    before: tuple[str, ...]
    generic: tuple[bool, ...]


@lru_cache(1 << 14)
def read_name(path: str) -> Named:
    pattern: list[str] = []
    numbers: list[int] = []
    before: list[str] = []
    generic: list[bool] = []
    for part in re.split("[./]", path):
        auto = _GENERIC.fullmatch(re.sub("_[0-9]+$", "", part)) is not None
        for phrase, plain in _PHRASES:
            part = phrase.sub(plain, part)
        for token in _TOKEN.findall(part):
            if token.isdigit() and len(token) < 19:
                numbers.append(int(token))
                before.append(pattern[-1] if pattern else "")
                generic.append(auto)
                pattern.append("#")
            else:
                pattern.append(_WORD.get(token.lower(), token.lower()))
    words = tuple(word for word in pattern if word != "#")
    return Named(words, tuple(pattern), tuple(numbers), tuple(before), tuple(generic))


def sizes(shape: Shape) -> Shape:
    """The sizes of a shape whatever the order of its axes, axes of one left out."""
    return tuple(sorted(size for size in shape if size != 1))


def parts(shapes: Mapping[str, Shape], layout: str, other: str) -> list[Part]:
    """The modules of names in their order; `other` is the layout of the side that they are to be paired with."""
    place = {name: index for index, name in enumerate(shapes)}
    found = list(_composites(shapes, layout, other))
    taken = {name for part in found for name in part.leaves.values()}
    groups: dict[str, dict[str, str]] = {}
    for name in shapes:
        if name not in taken:
            path, leaf = split_leaf(name, layout)
            groups.setdefault(path if leaf in ROLE else f"\0{name}", {})[leaf] = name
    for path, leaves in groups.items():
        odd = path.startswith("\0")
        roles = [ROLE.get(leaf, "weight") for leaf in leaves]
        if len(set(roles)) < len(roles):
            roles = list(leaves)  # two leaves of one role: their own names must tell
        of = sorted(zip(roles, leaves.values(), strict=True), key=lambda pair: (_ORDER.get(pair[0], 9), pair[0]))
        names = dict(of)
        some = {role: shapes[name] for role, name in names.items()}
        signature = tuple((role, sizes(shape)) for role, shape in sorted(some.items()) if role != "count")
        found.append(Part(path[1:] if odd else path, names, some, odd, signature=signature))
    return sorted(found, key=lambda part: min(place[name] for name in part.leaves.values()))


_ORDER = {role: index for index, role in enumerate(_ROLES)}


def split_leaf(name: str, layout: str) -> tuple[str, str]:
    """The path of a name's module, and its leaf."""
    if layout == "flax":
        name = next((name[len(start) :] for start in _COLLECTIONS if name.startswith(start)), name)
    path, _, leaf = name.rpartition(LAYOUTS[layout])
    return path, leaf


def _composites(shapes: Mapping[str, Shape], layout: str, other: str) -> Iterable[Part]:
    """Recurrent layers and attention: kinds whose leaves are several modules on one of the sides."""
    taken: set[str] = set()
    known = [kind for kind in module_kinds(shipped(), (layout, other)) if _several(kind, (layout, other))]
    ends = {name.rpartition(LAYOUTS[layout])[2] for name in shapes}
    for kind in sorted(known, key=lambda kind: -sum(len(leaf.names.get(layout, ())) for leaf in kind.leaves)):
        for layer in range(_LAYERS if "layer" in kind.vars else 1):
            leaves = [
                (substituted(name, {"layer": layer}), leaf.optional)
                for leaf in kind.leaves
                for name in leaf.names.get(layout, ())
            ]
            first = leaves[0][0]
            if first.rpartition(LAYOUTS[layout])[2] not in ends:
                break
            paths = [path for name in shapes if (path := taken_apart(layout, name, first)) is not None]
            for path in paths:
                keys = {leaf: joined(layout, path, leaf) for leaf, _ in leaves}
                lacking = [leaf for leaf, optional in leaves if keys[leaf] not in shapes and not optional]
                here = {leaf: key for leaf, key in keys.items() if key in shapes}
                if not lacking and not taken & set(here.values()):
                    taken.update(here.values())
                    some = {leaf: shapes[key] for leaf, key in here.items()}
                    yield Part(path, here, some, whole=True, layer=layer, signature=_bulk(some))


def _several(kind: Kind, layouts: Sequence[str]) -> bool:
    nested = any(LAYOUTS[layout] in name for layout in layouts for leaf in kind.leaves for name in leaf.names.get(layout, ()))
    return nested or any(len(leaf.names.get(layout, ())) > 1 for layout in layouts for leaf in kind.leaves)


def _bulk(shapes: Mapping[str, Shape]) -> Signature:
    """How many weights: the one size that does not depend on how a composite is cut. Biases may be two for one."""
    return (("composite", (sum(prod(shape) for leaf, shape in shapes.items() if len(shape) > 1 and "bias" not in leaf),)),)


def guess_layout(names: Sequence[str], shapes: Mapping[str, Shape], suffixed: bool, unique: bool, tag: str) -> str:
    """Which layout a side speaks, by its separators and leaves. `tag`: what the file says of itself (mlx, flax), if anything.

    `suffixed`: keys of TensorFlow's object graph; `unique`: its variables have unique paths.
    """
    if suffixed:
        return "keras" if unique else "object"
    ends = {re.split("[./]", name)[-1] for name in names}
    slashes = sum("/" in name for name in names) * 2 > len(names)
    if any(name.startswith(("params/", "params.", "batch_stats/", "batch_stats.")) for name in names) or tag == "flax":
        return "flax"
    if slashes:
        return "keras"
    if ends & {"kernel", "embedding"} and "weight" not in ends:
        return "flax"
    told = image_votes(shapes)
    return "mlx" if tag == "mlx" or (told[1] and not told[0]) else "torch"


def image_votes(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """How many convolutions of images have channels before the (equal) places, as in torch, and behind them, as in MLX."""
    images = [shape for shape in shapes.values() if len(shape) == 4]
    first = sum(shape[2] == shape[3] != shape[1] for shape in images)
    return first, sum(shape[1] == shape[2] != shape[3] for shape in images)
