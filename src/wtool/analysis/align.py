"""Which tensor of A is which of B: by key, and where keys differ by what they hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from re import escape
from shlex import quote
from typing import TYPE_CHECKING

from wtool.checkpoint import Checkpoint
from wtool.keys import SEPARATORS, natural, short_key

if TYPE_CHECKING:
    from wtool.tensor import LazyTensor

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
    ones, twos = _names(a), _names(b)
    shared = [(key, twos[name]) for name, key in ones.items() if name in twos]
    only_a = tuple(key for name, key in ones.items() if name not in twos)
    only_b = tuple(key for name, key in twos.items() if name not in ones)
    return Alignment(tuple(shared), only_a, only_b, _hints(set(ones), set(twos)) if only_a and only_b else ())


def _names(checkpoint: Checkpoint) -> dict[str, str]:
    """Short key -> key, in natural order; a key that is another one's short key, or shares it, stays itself."""
    found: dict[str, str] = {}
    for key in sorted(checkpoint, key=natural):
        name = short_key(key)
        found[name if name == key or name not in checkpoint else key] = key
    return found


def _hints(ones: set[str], twos: set[str]) -> tuple[str, ...]:
    """A prefix that, taken off one side or changed, would make more keys equal."""
    already = len(ones & twos)
    before, behind = _prefixes(ones), _prefixes(twos)
    tries = [(len(_without(ones, prefix) & twos), "A", prefix) for prefix in before]
    tries += [(len(ones & _without(twos, prefix)), "B", prefix) for prefix in behind]
    count, side, prefix = max(tries, key=lambda found: found[0], default=(0, "", ""))  # of equals the first
    if count > already:
        return (f"{count:,} {_are(count)} equal without the '{prefix}' of {side}: --strip-prefix {quote(prefix)}",)
    slashed = len({key.replace("/", ".") for key in ones} & {key.replace("/", ".") for key in twos})
    if slashed > already:
        return (f"{slashed:,} {_are(slashed)} equal but for / and .: --rename '/=>.' renames those of A",)
    swaps = [(len(_swapped(ones, one, two) & twos), one, two) for one in before for two in behind if one != two]
    count, one, two = max(swaps, key=lambda found: found[0], default=(0, "", ""))
    if count > already:
        rename = quote(f"^{escape(one)}=>{two}")
        return (f"{count:,} {_are(count)} equal but for the '{one}' of A and the '{two}' of B: --rename {rename}",)
    return ()


def _are(count: int) -> str:
    return "key is" if count == 1 else "keys are"


def _without(keys: set[str], prefix: str) -> set[str]:
    return {key.removeprefix(prefix) for key in keys}


def _swapped(keys: set[str], one: str, two: str) -> set[str]:
    return {two + key[len(one) :] if key.startswith(one) else key for key in keys}


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
    there: dict[bytes, deque[str]] = {}
    for key, digest in twos.items():
        there.setdefault(digest, deque()).append(key)
    found = []
    for key, digest in ones.items():
        same = there.get(digest)
        if same:
            found.append((key, same.popleft()))
    return found


def candidates(
    a: Mapping[str, LazyTensor], b: Mapping[str, LazyTensor], kind: Callable[[LazyTensor], Hashable]
) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """The tensors of either side of whose kind the other has one too. A kind of None has no like."""
    ones, twos = ({key: kind(tensor) for key, tensor in side.items()} for side in (a, b))
    both = set(ones.values()) & set(twos.values()) - {None}
    return {key: a[key] for key in ones if ones[key] in both}, {key: b[key] for key in twos if twos[key] in both}
