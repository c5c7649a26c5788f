"""Several checkpoints become one. Decides tensor by tensor, from headers, what is averaged, copied or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wtool import views
from wtool.checkpoint import Checkpoint, Section, Warning
from wtool.dtypes import DType
from wtool.errors import MismatchError, NoTensorsError, UsageError
from wtool.keys import matcher, natural, short_key
from wtool.tensor import LazyTensor

if TYPE_CHECKING:
    from wtool.ops.linear import Combine

POLICIES = ("mean", "first", "last", "max", "base", "drop", "error")
MISMATCHES = ("error", "intersect", "union", "base")
_COUNTERS = ("**.num_batches_tracked", "**/num_batches_tracked", "num_batches_tracked")
_BATCH_NORM = ("**.running_mean", "**.running_var", "**/moving_mean", "**/moving_variance", "running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class Rule:
    """Keys that match `glob` are treated by `policy`, one of POLICIES; `mean` is whatever the method does."""

    glob: str
    policy: str


def parse_rule(text: str) -> Rule:
    """`GLOB=policy`. UsageError."""
    glob, sign, policy = text.rpartition("=")
    if not sign or not glob or policy not in POLICIES:
        raise UsageError(f"'{text}' is no rule", hint="GLOB=POLICY, the policy one of " + ", ".join(POLICIES))
    matcher([glob])
    return Rule(glob, policy)


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one key, and why. `inputs` are the numbers of the checkpoints that take part; 0 is the first."""

    key: str
    policy: str
    why: str
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Averaged:
    """The outcome, lazily, and the fate of every key that any input had."""

    checkpoint: Checkpoint
    fates: tuple[Fate, ...]
    warnings: tuple[Warning, ...] = field(default=())


def average(
    inputs: Sequence[Checkpoint],
    names: Sequence[str],
    combine: Combine,
    *,
    base: Checkpoint | None = None,
    rules: Sequence[Rule] = (),
    on_mismatch: str = "error",
    dtype: DType | None = None,
) -> Averaged:
    """Combine checkpoints tensor by tensor. Reads headers only.

    `combine` makes the lazy tensor of one key from those of the inputs. The outcome has the keys, dtypes (or `dtype` for
    floating ones) and order of the first input. Integers and bools must be equal in all inputs, which is checked when they
    are read; counters of batches take their largest value. MismatchError where keys or shapes differ and `on_mismatch` is
    error; tied tensors stay tied and are computed once.
    """
    tables = [{short_key(key): tensor for key, tensor in checkpoint.items()} for checkpoint in inputs]
    bases = None if base is None else {short_key(key): tensor for key, tensor in base.items()}
    keys = _keys(tables, names, on_mismatch, bases)
    order = _canonical(inputs)
    made: dict[object, LazyTensor] = {}
    tensors: list[LazyTensor] = []
    fates: list[Fate] = []
    for key, takes in keys.items():
        parts = {number: tables[number][key] for number in takes}
        origin = None if bases is None else bases.get(key)
        policy, why = _policy(key, parts, rules)
        fates.append(Fate(key, policy, why, tuple(takes)))
        if policy == "drop":
            continue
        written = next((k for k in inputs[0] if short_key(k) == key), key) if key in tables[0] else key
        who = (policy, *(part.identity or (number, key) for number, part in parts.items()), origin and origin.identity)
        if who not in made:
            made[who] = _tensor(key, policy, parts, origin, names, combine, order, dtype)
        tensors.append(made[who].renamed(written))
    if not tensors:
        raise NoTensorsError("no tensor is left to average")
    return Averaged(_outcome(inputs[0], tensors), tuple(fates), tuple(_warnings(fates)))


def _outcome(first: Checkpoint, tensors: Sequence[LazyTensor]) -> Checkpoint:
    table = {tensor.key: tensor for tensor in tensors}
    main = first.main_section()
    same = set(table) == set(first.tensors)
    return replace(
        first,
        tensors=table,
        sections=first.sections if same else (Section(main.name, main.kind, tuple(table)),),
        structure=first.structure if same else None,
    )


def _canonical(inputs: Sequence[Checkpoint]) -> list[int]:
    """The order of summing: by path, so that the order of arguments does not touch the last bit."""
    return sorted(range(len(inputs)), key=lambda number: (natural(inputs[number].source.path), number))


def _keys(
    tables: Sequence[Mapping[str, LazyTensor]],
    names: Sequence[str],
    on_mismatch: str,
    bases: Mapping[str, LazyTensor] | None,
) -> dict[str, list[int]]:
    """Key -> the inputs that take part in it. Keys of the first input come first, in its order."""
    every = dict.fromkeys(key for table in tables for key in table)
    found: dict[str, list[int]] = {}
    for key in every:
        having = [number for number, table in enumerate(tables) if key in table]
        shape = tables[having[0]][key].shape
        alike = [number for number in having if tables[number][key].shape == shape]
        if len(alike) == len(tables):
            found[key] = alike
        elif on_mismatch == "error":
            raise _mismatch(key, tables, names, having, alike)
        elif on_mismatch == "union":
            found[key] = alike
        elif on_mismatch == "base" and bases is not None and key in bases:
            found[key] = []
    return found


def _mismatch(
    key: str, tables: Sequence[Mapping[str, LazyTensor]], names: Sequence[str], having: list[int], alike: list[int]
) -> MismatchError:
    hint = "--on-mismatch intersect, union or base; --exclude leaves keys out"
    if len(having) < len(tables):
        lacking = next(number for number in range(len(tables)) if number not in having)
        return MismatchError(f"it has no '{key}', which '{names[having[0]]}' has", path=names[lacking], hint=hint)
    odd = next(number for number in having if number not in alike)
    ours, theirs = list(tables[alike[0]][key].shape), list(tables[odd][key].shape)
    return MismatchError(f"'{key}' is {theirs}, in '{names[alike[0]]}' {ours}", path=names[odd], hint=hint)


def _policy(key: str, parts: Mapping[int, LazyTensor], rules: Sequence[Rule]) -> tuple[str, str]:
    for rule in rules:
        if matcher([rule.glob])(key):
            return rule.policy, f"--rule {rule.glob}={rule.policy}"
    if not parts:
        return "base", "the inputs differ"
    if matcher(_COUNTERS)(key):
        return "max", "a counter"
    kinds = {tensor.dtype.kind for tensor in parts.values()}
    if kinds <= {"int", "uint", "bool"}:
        return "equal", "integers are not averaged"
    return "mean", ""


def _tensor(
    key: str,
    policy: str,
    parts: Mapping[int, LazyTensor],
    origin: LazyTensor | None,
    names: Sequence[str],
    combine: Combine,
    order: Sequence[int],
    dtype: DType | None,
) -> LazyTensor:
    from wtool.kernels.agree import Agree, Largest

    numbers = list(parts)
    if policy == "error":
        raise MismatchError(f"'{key}' is refused by a rule", path=names[numbers[0]] if numbers else None)
    if policy == "base":
        if origin is None:
            raise UsageError(f"'{key}' is to come from the base, and there is none that has it", hint="--base FILE")
        return origin
    if policy in ("first", "last"):
        return parts[numbers[0 if policy == "first" else -1]]
    if policy in ("equal", "max"):
        said = tuple(names[number] for number in numbers)
        kinds = [parts[number] for number in numbers]
        unlike = next((tensor for tensor in kinds if tensor.dtype is not kinds[0].dtype), None)
        if unlike is not None:
            raise MismatchError(
                f"'{key}' is {unlike.dtype} in one input and {kinds[0].dtype} in another", hint=f"--rule '{key}=first'"
            )
        same = all(tensor.identity == kinds[0].identity for tensor in kinds)
        function = Agree(key, said) if policy == "equal" else Largest()
        return kinds[0] if same or not kinds[0].elements else views.computed(key, kinds, function)
    return combine(key, parts, origin, names, order, dtype)


def _warnings(fates: Sequence[Fate]) -> list[Warning]:
    found = []
    norms = matcher(_BATCH_NORM)
    stats = [fate.key for fate in fates if fate.policy == "mean" and len(fate.inputs) > 1 and norms(fate.key)]
    if stats:
        text = (
            f"{len(stats)} statistics of batch norms were averaged ('{stats[0]}'): they are not those of the averaged model; "
            "recompute them with data before use"
        )
        found.append(Warning("batch-norm", text))
    return found
