"""Which tensor of A is which of B: by key, and where keys differ by what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wtool.checkpoint import Checkpoint
from wtool.keys import SEPARATORS, natural, short_key

if TYPE_CHECKING:
    from wtool.tensor import LazyTensor, Shape

# What wrappers put before every key: DataParallel, torch.compile, Lightning, and the like.
PREFIXES = ("module.", "_orig_mod.", "model.", "state_dict.", "net.", "ema.", "base_model.model.")


@dataclass(frozen=True)
class Alignment:
    """`pairs` of keys (of A, of B), those of equal keys first; the others stand alone. `hints` say what might align more."""

    pairs: tuple[tuple[str, str], ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    hints: tuple[str, ...] = field(default=())


def align(a: Checkpoint, b: Checkpoint) -> Alignment:
    """Pairs of equal keys, TensorFlow's suffix left aside, in natural order."""
    ones = {short_key(key): key for key in sorted(a, key=natural)}
    twos = {short_key(key): key for key in sorted(b, key=natural)}
    shared = [(key, twos[name]) for name, key in ones.items() if name in twos]
    only_a = tuple(key for name, key in ones.items() if name not in twos)
    only_b = tuple(key for name, key in twos.items() if name not in ones)
    return Alignment(tuple(shared), only_a, only_b, _hints(set(ones), set(twos)))


def _hints(ones: set[str], twos: set[str]) -> tuple[str, ...]:
    """A prefix that, taken off one side, would make more keys equal."""
    already = len(ones & twos)
    best: tuple[int, str, str] = (already, "", "")
    for side, mine, other in (("A", ones, twos), ("B", twos, ones)):
        for prefix in _prefixes(mine):
            stripped = {key.removeprefix(prefix) for key in mine}
            best = max(best, (len(stripped & other), side, prefix), key=lambda found: found[0])
    if best[0] <= already:
        slashed = len({key.replace("/", ".") for key in ones} & {key.replace("/", ".") for key in twos})
        if slashed > already:
            return (f"{slashed} keys are equal but for / and .: --rename '/=>.' renames those of A",)
        return ()
    count, side, prefix = best
    return (f"{count} keys are equal without the '{prefix}' of {side}: --strip-prefix {prefix}",)


def _prefixes(keys: Iterable[str]) -> list[str]:
    """The usual ones that are here, doubled ones too, and the first part that all keys share."""
    found: dict[str, None] = {}
    known = list(keys)
    for prefix in PREFIXES:
        some = [key for key in known if key.startswith(prefix)]
        if some:
            found[prefix] = None
            found |= {prefix + more: None for more in PREFIXES if any(key.startswith(prefix + more) for key in some)}
    first = {_first(key) for key in known}
    if len(first) == 1 and (only := first.pop()):
        found[only] = None
    return list(found)


def _first(key: str) -> str:
    """The first part with its separator; empty for a key of one part."""
    places = [key.find(separator) for separator in SEPARATORS if separator in key]
    return key[: min(places) + 1] if places else ""


def renames(ones: Mapping[str, bytes], twos: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """Pairs of one digest among keys that stand alone on either side. Several alike pair in the order they come."""
    there: dict[bytes, list[str]] = {}
    for key, digest in twos.items():
        there.setdefault(digest, []).append(key)
    found = []
    for key, digest in ones.items():
        same = there.get(digest)
        if same:
            found.append((key, same.pop(0)))
    return found


def candidates(a: Mapping[str, LazyTensor], b: Mapping[str, LazyTensor]) -> tuple[list[str], list[str]]:
    """Keys on either side for which the other has a tensor of the same dtype and shape; no empty ones."""

    def kind(tensor: LazyTensor) -> tuple[str, Shape]:
        return tensor.dtype.name, tensor.shape

    ones = {kind(tensor) for tensor in a.values() if tensor.elements}
    twos = {kind(tensor) for tensor in b.values() if tensor.elements}
    both = ones & twos
    return ([key for key, t in a.items() if kind(t) in both], [key for key, t in b.items() if kind(t) in both])
