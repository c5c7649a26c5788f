"""Take whole layers or whole experts out, and number those behind them anew. No value is read.

`drop_layers(checkpoint, "20-27,30", prefixes)` makes a DropLayers. `experts_in(checkpoint)` finds the experts; `without(found,
numbers)` and `strongest(found, norms, count)` make a DropExperts, the second from the norms of the rows of `routers(found)`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from wtool import views
from wtool.checkpoint import Checkpoint
from wtool.errors import MismatchError, NoTensorsError, UnsupportedError, UsageError
from wtool.keys import SEPARATORS, natural
from wtool.ops.rename import rekeyed
from wtool.tensor import LazyTensor

_NUMBER = re.compile(r"(?:(?<=[./_])|^)(\d{1,9})(?=[./])")
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_LAYER = 4  # tensors of a layer: lists of fewer are asked about only where there is nothing better
_EXPERTS = re.compile(r"(.*?)(?<![A-Za-z_])experts[./](?:(?:local_experts[./])?(?:expert_)?(\d{1,9})[./])?(?=.)")
_ROUTERS = frozenset({"gate", "router", "wg", "moe_statics"})
_MOST = 1 << 20


def parse_numbers(text: str) -> tuple[int, ...]:
    """`20-27,30`: the numbers, rising, each once. UsageError."""
    found: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < _MOST:
            raise UsageError(f"'{text}' is no list of numbers", hint="write 20-27,30; the first is 0")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


@dataclass(frozen=True, slots=True)
class DropLayers:
    """Drop `numbers` of each list of layers; `lists` are what its keys begin with, up to the number, and its layers."""

    numbers: tuple[int, ...]
    lists: tuple[tuple[str, tuple[int, ...]], ...]

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        gone = frozenset(self.numbers)
        tensors, names = [], {}
        for key, tensor in checkpoint.items():
            prefix, number = _place(key, [prefix for prefix, _ in self.lists])
            if number is None:
                names[key] = key
            elif int(number) in gone:
                continue
            else:
                names[key] = prefix + _renumbered(number, gone) + key[len(prefix) + len(number) :]
            tensors.append(tensor)
        return rekeyed(checkpoint.with_tensors(tensors), names, self)


def drop_layers(checkpoint: Checkpoint, text: str, prefixes: Sequence[str] = ()) -> DropLayers:
    """The operation for `--drop-layers TEXT` and `--layers-of PREFIX`.

    UsageError where it is not clear which list is meant, where there is no such list or layer, and where none would be left;
    UnsupportedError for a layer that holds what the others share, as T5's first does.
    """
    path = checkpoint.source.path
    numbers = parse_numbers(text)
    every = _lists(checkpoint)
    if prefixes:
        found = {}
        for wanted in prefixes:
            same = [prefix for prefix in every if prefix.rstrip("./_") == wanted.rstrip("./_")]
            if not same:
                raise UsageError(f"no list of layers is called '{wanted}'", path=path, hint=_known(layer_lists(checkpoint)))
            found[same[0]] = every[same[0]]
    else:
        found = layer_lists(checkpoint)
        if not found:
            raise UsageError("there is no numbered list of layers", path=path, hint="--layers-of PREFIX names one")
        if len(found) > 1:
            hint = _known(found)
            raise UsageError(f"there are {len(found)} lists of layers: --layers-of says which is meant", path=path, hint=hint)
    for prefix, layers in found.items():
        missing = [number for number in numbers if number not in layers]
        name = prefix.rstrip(SEPARATORS)
        if missing:
            raise UsageError(f"'{name}' has no layer {missing[0]}: it has {_runs(layers)}", path=path)
        if len(numbers) == len(layers):
            raise NoTensorsError(f"no layer of '{name}' would be left", path=path)
        _check_shared(checkpoint, prefix, numbers)
    return DropLayers(numbers, tuple(found.items()))


def _check_shared(keys: Iterable[str], prefix: str, gone: Collection[int]) -> None:
    """Refuse to drop a layer that has all that each of those that stay has, and more."""
    members: dict[int, set[str]] = {}
    for key in keys:
        _, number = _place(key, [prefix])
        if number is not None:
            members.setdefault(int(number), set()).add(key[len(prefix) + len(number) :])
    left = [names for number, names in members.items() if number not in gone]
    for one in gone:
        if all(names < members[one] for names in left):
            more = sorted(members[one] - set().union(*left))[0]
            raise UnsupportedError(
                f"'{prefix}{one}' alone has '{more.lstrip(SEPARATORS)}', which the layers behind may share",
                hint=f"keep layer {one}",
            )


def layer_lists(keys: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """What may be meant by layers: prefix (with its separator) -> numbers. The outermost lists, numbered from 0 on.

    A list whose members hold no tensors of the same names is none; one of small members is none where others are larger.
    """
    found: dict[str, tuple[int, ...]] = {}
    keys = list(keys)
    large = set()
    every = _lists(keys)
    for prefix in sorted(every, key=len):
        numbers = every[prefix]
        if len(numbers) < 2 or numbers != tuple(range(len(numbers))) or any(prefix.startswith(outer) for outer in found):
            continue
        members: dict[str, set[str]] = {}
        for key in keys:
            _, number = _place(key, [prefix])
            if number is not None:
                members.setdefault(number, set()).add(key[len(prefix) + len(number) :])
        if len({frozenset(names) for names in members.values()}) == len(members):
            continue
        found[prefix] = numbers
        if all(len(names) >= _LAYER for names in members.values()):
            large.add(prefix)
    return {prefix: found[prefix] for prefix in sorted(large or found, key=natural)}


def _lists(keys: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Every prefix that a number stands behind, with these numbers, rising."""
    found: dict[str, set[int]] = {}
    for key in keys:
        for match in _NUMBER.finditer(key):
            found.setdefault(key[: match.start()], set()).add(int(match[1]))
    return {prefix: tuple(sorted(numbers)) for prefix, numbers in found.items()}


def _place(key: str, prefixes: Sequence[str]) -> tuple[str, str | None]:
    """The prefix that a key begins with and the number behind it, as it is written."""
    for prefix in prefixes:
        if key.startswith(prefix) and (match := _NUMBER.match(key, len(prefix))):
            return prefix, match[1]
    return "", None


def _renumbered(number: str, gone: Collection[int]) -> str:
    """Less by the dropped numbers below it; leading zeros stay."""
    new = int(number) - sum(one < int(number) for one in gone)
    return str(new).zfill(len(number) if number[0] == "0" else 0)


def _known(lists: Mapping[str, Sequence[int]]) -> str:
    some = [f"{prefix.rstrip(SEPARATORS)} ({_runs(numbers)})" for prefix, numbers in lists.items()]
    return "it has " + ", ".join(some[:6]) + (", ..." if len(some) > 6 else "") if some else "there are no such lists"


def _runs(numbers: Sequence[int]) -> str:
    whole = numbers and numbers[-1] - numbers[0] + 1 == len(numbers)
    return f"{numbers[0]}-{numbers[-1]}" if whole else ",".join(map(str, numbers[:20]))


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of one layer: `base` is what its keys begin with, `router` the key of its matrix, a row for each expert.

    `apart`: key -> its expert, where each has tensors of its own. `rows`: key -> the axis along which a tensor holds a part
    for each: experts stacked into one tensor, and what belongs to the router.
    """

    base: str
    count: int
    router: str
    apart: Mapping[str, int]
    rows: Mapping[str, int]


def experts_in(checkpoint: Mapping[str, LazyTensor]) -> dict[str, Experts]:
    """Base -> its experts. UsageError if there are none, UnsupportedError for some that are not understood."""
    apart: dict[str, dict[str, int]] = {}
    stacked: dict[str, list[str]] = {}
    for key in checkpoint:
        match = _EXPERTS.match(key)
        if match and match[2] is not None:
            apart.setdefault(match[1], {})[key] = int(match[2])
        elif match:
            stacked.setdefault(match[1], []).append(key)
    if not apart and not stacked:
        raise UsageError("there are no experts", hint="keys such as mlp.experts.0.w1.weight or mlp.experts.gate_up_proj")
    beside: dict[str, list[str]] = {base: [] for base in {**apart, **stacked}}
    for key in checkpoint:
        if not _EXPERTS.match(key):
            for cut in [0, *(at + 1 for at, char in enumerate(key) if char in SEPARATORS)]:
                if key[:cut] in beside:
                    beside[key[:cut]].append(key)
    return {
        base: _experts(base, apart.get(base, {}), stacked.get(base, []), beside[base], checkpoint)
        for base in sorted(beside, key=natural)
    }


def _experts(
    base: str,
    apart: Mapping[str, int],
    stacked: Sequence[str],
    beside: Sequence[str],
    checkpoint: Mapping[str, LazyTensor],
) -> Experts:
    name = f"{base}experts"
    sizes = {checkpoint[key].shape[:1] for key in stacked}
    sizes |= {(len(set(apart.values())),)} if apart else set()
    count = min(sizes)[0] if len(sizes) == 1 and min(sizes) else 0
    if not count or set(apart.values()) - set(range(count)):
        raise UnsupportedError(f"the experts of '{name}' are not one behind the other: they cannot be told apart")
    rows = dict.fromkeys(stacked, 0)
    routers = []
    for key in beside:
        parts = re.split(r"[./]", key[len(base) :])
        shape = checkpoint[key].shape
        lone = len(parts) == 1 and len(shape) == 1 and ("expert" in parts[0] or "e_score" in parts[0])
        if parts[0] not in _ROUTERS and not lone:
            continue
        if shape[:1] == (count,):
            rows[key] = 0
            routers += [key] if len(shape) == 2 else []
        elif shape == (1, count):
            rows[key] = 1
    if len(routers) != 1:
        said = f"{len(routers)} matrices" if routers else "no matrix"
        raise UnsupportedError(
            f"beside the {count} experts of '{name}' there is {said} of {count} rows that may route to them"
        )
    return Experts(base, count, routers[0], apart, rows)


def routers(found: Mapping[str, Experts], checkpoint: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Base -> the matrix whose rows call its experts."""
    return {base: checkpoint[one.router] for base, one in found.items()}


@dataclass(frozen=True, slots=True)
class DropExperts:
    """Keep, below each base, these experts, by their old numbers, rising."""

    kept: tuple[tuple[str, tuple[int, ...]], ...]

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        found = experts_in(checkpoint)
        names = {key: key for key in checkpoint}
        tensors: dict[str, LazyTensor] = dict(checkpoint.items())
        for base, kept in self.kept:
            for key, number in found[base].apart.items():
                if number not in kept:
                    del tensors[key], names[key]
                    continue
                match = _EXPERTS.match(key)
                assert match is not None
                gone = [one for one in range(found[base].count) if one not in kept]
                names[key] = key[: match.start(2)] + _renumbered(match[2], gone) + key[match.end(2) :]
            for key, axis in found[base].rows.items():
                tensors[key] = _taken(tensors[key], axis, kept)
        return rekeyed(checkpoint.with_tensors(tensors.values()), names, self)


def without(found: Mapping[str, Experts], numbers: Sequence[int]) -> DropExperts:
    """Drop the same experts of every layer. UsageError for one that is not there; NoTensorsError where none is left."""
    for one in found.values():
        missing = [number for number in numbers if number >= one.count]
        if missing:
            raise UsageError(f"'{one.base}experts' has no expert {missing[0]}: it has 0-{one.count - 1}")
        if len(numbers) == one.count:
            raise NoTensorsError(f"no expert of '{one.base}experts' would be left")
    kept = {base: tuple(n for n in range(one.count) if n not in numbers) for base, one in found.items()}
    return DropExperts(tuple(kept.items()))


def strongest(found: Mapping[str, Experts], norms: Mapping[str, Sequence[float]], count: int) -> DropExperts:
    """Keep of every layer the `count` experts whose norms are the largest; of equal ones the first."""
    kept = []
    for base, one in found.items():
        if not 0 < count <= one.count:
            raise UsageError(f"{count} experts cannot be kept of the {one.count} of '{base}experts'")
        order = sorted(range(one.count), key=lambda number: (-norms[base][number], number))
        kept.append((base, tuple(sorted(order[:count]))))
    return DropExperts(tuple(kept))


def experts_left(found: Mapping[str, Experts], operation: DropExperts) -> tuple[int, int]:
    """How many experts each layer had, and has then. MismatchError where layers differ: no config.json could say it."""
    numbers = {(found[base].count, len(kept)) for base, kept in operation.kept}
    if len(numbers) > 1:
        raise MismatchError("the layers have unlike numbers of experts", hint="drop them in layers that are alike")
    return min(numbers)


def _taken(tensor: LazyTensor, axis: int, kept: Sequence[int]) -> LazyTensor:
    """These entries along an axis."""
    runs: list[list[int]] = []
    for number in kept:
        if runs and runs[-1][1] == number:
            runs[-1][1] += 1
        else:
            runs.append([number, number + 1])
    return views.concat(tensor.key, [views.narrow(tensor, axis, first, last) for first, last in runs], axis)
