"""What a draft must ask: two models may have the same shapes, names and order, and not be the same function."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from wtool.maps.align import Aligned, Match
from wtool.maps.fused import triples
from wtool.maps.signatures import Part, image_votes

_JOINED = re.compile("qkv|kqv|in_proj|c_attn|query_key_value|qk_|kv_|_kv|gate_up|w12|glu", re.I)
_ROTARY = {"rope", "rotary", "freqs", "inv"}
_PLACED = {"position", "relative"}
_RECURRENT = re.compile("lstm|gru|rnn|recurrent|weight_hh|weight_ih", re.I)
_TURNED = re.compile("transpose|deconv|upconv|up_conv", re.I)

NOTES = (
    "not weights, so not compared: epsilon of norms, padding, strides, activations, the order in which branches are joined",
    "channels behind a pixel shuffle (depth to space) lie in another order in TensorFlow than in torch, and no shape tells",
)


def questions(aligned: Aligned, left: Sequence[Part], right: Sequence[Part], layouts: tuple[str, str]) -> dict[str, str]:
    """Path of a module of the left side (empty: the whole model) -> what must be answered before its weights are trusted."""
    found: dict[str, str] = {}
    for layout, side in zip(layouts, (left, right), strict=True):
        shapes = {name: part.shapes[role] for part in side for role, name in part.leaves.items()}
        if layout in ("torch", "mlx") and any(len(shape) == 4 for shape in shapes.values()) and not any(image_votes(shapes)):
            found[""] = f"is one side MLX's, with channels last? it was taken for {layout}: no shape tells"
    if not same_names(aligned.matches):
        found |= _attention(aligned.matches, left, right)
    if layouts[0] != layouts[1] or not same_names(aligned.matches):
        found |= _gates(aligned.matches)
    if (layouts[0] == "torch") != (layouts[1] == "torch"):
        found |= _flattened(aligned, layouts[0] == "torch")
    return found


def same_names(matches: Iterable[Match]) -> bool:
    """Whether every module has the same name on both sides, but for one prefix: then it is one implementation."""
    prefixes = set()
    for match in matches:
        one, two = (part.path.replace("/", ".") for part in (match.left, match.right))
        if one.endswith(two):
            prefixes.add(("left", one[: len(one) - len(two)]))
        elif two.endswith(one):
            prefixes.add(("right", two[: len(two) - len(one)]))
        else:
            return False
    return len(prefixes) <= 1


def _attention(matches: Sequence[Match], left: Sequence[Part], right: Sequence[Part]) -> dict[str, str]:
    # A kind of attention as a whole, torch's and Keras' own, has no rotary positions.
    words = {word for side in (left, right) for part in side if not part.whole for word in part.named.words}
    found = {}
    if (triples(left) or triples(right) or "attention" in words) and (words & _ROTARY or not words & _PLACED):
        found[""] = (
            "rotary positions: are their pairs interleaved on one side and halves on the other? "
            "then q and k need rearrange (h d two) i -> (h two d) i"
        )
    for match in matches:
        # A kind of attention as a whole knows the order on both sides.
        if not match.left.whole and any(
            _JOINED.search(name) for part in (match.left, match.right) for name in part.leaves.values()
        ):
            found[match.left.path] = "several matrices in one: is their order (plain, or head by head) the same on both sides?"
    return found


def _gates(matches: Sequence[Match]) -> dict[str, str]:
    return {
        match.left.path: "a recurrent layer: is the order of its gates the same on both sides?"
        for match in matches
        if not match.left.whole
        and any(_RECURRENT.search(name) for p in (match.left, match.right) for name in p.leaves.values())
    }


def _flattened(aligned: Aligned, first: bool) -> dict[str, str]:
    """Layers whose inputs may be an image made flat: torch flattens channels first, all others last."""
    sides = [(match.left if first else match.right, match.left.path) for match in aligned.matches]
    convs = [part for part, _ in sides if _conv(part)]
    if not convs:
        return {}
    channels = {size for part in convs for size in (_out(part), *part.shapes[part.main][:2])}
    outs = [_out(part) for part, _ in sides]
    found = {}
    for at, (part, path) in enumerate(sides):
        entering = _in(part)
        if entering is None:
            if _norm(part) and _out(part) not in channels and _multiple(_out(part), convs) and _out(part) not in outs[:at]:
                found[path] = "is this norm behind Flatten? then its values are in another order: a tensor rule with rearrange"
            continue
        if aligned.complete and at:
            told = outs[at - 1] == entering
        else:
            told = entering in outs and not _multiple(entering, convs)
        if not told:
            found[path] = (
                f'is this behind Flatten? its {entering} inputs are in another order then: flatten = "C H W" on its rule'
            )
    return found


def _multiple(size: int, convs: Iterable[Part]) -> bool:
    return any(_out(part) > 1 and size > _out(part) and size % _out(part) == 0 for part in convs)


def _conv(part: Part) -> bool:
    return "weight" in part.shapes and len(part.shapes["weight"]) >= 3 and not part.odd


def _norm(part: Part) -> bool:
    return len(part.shapes[part.main]) == 1


def _in(part: Part) -> int | None:
    """The inputs of a dense or recurrent layer, on torch's side."""
    shape = part.shapes[part.main]
    if len(shape) != 2 or "embedding" in part.named.words:
        return None
    return shape[1]


def _out(part: Part) -> int:
    shape = part.shapes[part.main]
    if not shape:
        return 0
    if part.whole:  # a recurrent layer's states, of both ways; attention gives what it takes
        states = [some[1] for leaf, some in part.shapes.items() if leaf.startswith("weight_hh")]
        return sum(states) or shape[-1]
    return shape[1] if len(shape) > 2 and _TURNED.search(part.path) else shape[0]
