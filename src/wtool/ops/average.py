"""Several checkpoints become one. Decides tensor by tensor, from headers, what is averaged, copied or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wtool import views
from wtool.checkpoint import Checkpoint, Section, Warning
from wtool.dtypes import DType, dtype
from wtool.errors import DtypeError, KeyClashError, MismatchError, NoTensorsError, UnsupportedError, UsageError
from wtool.keys import matcher, natural
from wtool.ops.policy import POLICIES as POLICIES
from wtool.ops.policy import Rule as Rule
from wtool.ops.policy import Rules
from wtool.ops.policy import parse_rule as parse_rule
from wtool.ops.wrappers import aligned, prefix_between, taken_off
from wtool.tensor import LazyTensor

if TYPE_CHECKING:
    from wtool.ops.linear import Combine

MISMATCHES = ("error", "intersect", "union", "base")
_COUNTERS = ("**.num_batches_tracked", "**/num_batches_tracked", "num_batches_tracked")
_BATCH_NORM = (
    *("**.running_mean", "**.running_var", "running_mean", "running_var"),
    *("**/moving_mean", "**/moving_variance", "**.moving_mean", "**.moving_variance"),
)
_is_counter, _is_statistic = matcher(_COUNTERS), matcher(_BATCH_NORM)
_LEFT = "left"  # the policy of a key that the outcome has not, though some input has


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one key, and why. `inputs` are the numbers of the checkpoints that take part; 0 is the first.

    `policy` is one of POLICIES, `equal` (integers that must be the same) or `left` (not in the outcome).
    """

    key: str
    policy: str
    why: str
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Averaged:
    """The outcome, lazily, and the fate of every key that any input had.

    `own` is for each input: key of the outcome -> its own key; the base, if there is one, comes last.
    """

    checkpoint: Checkpoint
    fates: tuple[Fate, ...]
    warnings: tuple[Warning, ...] = field(default=())
    own: tuple[Mapping[str, str], ...] = field(default=())


def average(
    inputs: Sequence[Checkpoint],
    names: Sequence[str],
    combine: Combine,
    *,
    base: Checkpoint | None = None,
    rules: Sequence[Rule] = (),
    on_mismatch: str = "error",
    dtype: DType | None = None,
    strict: bool = False,
) -> Averaged:
    """Combine checkpoints tensor by tensor. Reads headers only.

    `combine` makes the lazy tensor of one key from those of the inputs. The outcome has the keys, dtypes (or `dtype` for
    floating ones) and order of the first input. The first of `rules` that matches a key decides; one that matches none is a
    warning (UsageError if `strict`). Integers and bools must be equal in all inputs, which is checked when they are read;
    counters of batches take their largest value. MismatchError where keys or shapes differ and `on_mismatch` is error; tied
    tensors stay tied and are computed once.
    """
    if on_mismatch == "base" and base is None:
        raise UsageError("--on-mismatch base needs --base")
    groups = [*inputs, base] if base is not None else list(inputs)
    own = aligned([tuple(one) for one in groups], [*names, "the base"][: len(groups)])
    tables = [{key: one[mine] for key, mine in table.items()} for one, table in zip(groups, own, strict=True)]
    bases = tables.pop() if base is not None else None
    warnings = [
        Warning("prefix", f"{name}: its keys are read without '{front}'")
        for name, table in zip(names, own, strict=False)
        if (front := taken_off(table)) is not None
    ]
    work = _Work(tables, names, combine, bases, Rules(rules), on_mismatch, dtype, _canonical(inputs))
    tensors = [tensor.renamed(own[0].get(tensor.key, tensor.key)) for tensor in work.tensors()]
    warnings += work.rules.unused(strict)
    if not tensors:
        raise NoTensorsError("no tensor is left to average", hint="`wtool diff` shows what the inputs share")
    return Averaged(_outcome(inputs[0], tensors), tuple(work.fates), (*warnings, *_warnings(work.fates)), tuple(own))


@dataclass
class _Work:
    """One run over all keys; fates are noted on the way."""

    tables: Sequence[Mapping[str, LazyTensor]]
    names: Sequence[str]
    combine: Combine
    bases: Mapping[str, LazyTensor] | None
    rules: Rules
    on_mismatch: str
    dtype: DType | None
    order: Sequence[int]
    fates: list[Fate] = field(default_factory=list)

    def tensors(self) -> list[LazyTensor]:
        made: dict[object, LazyTensor] = {}
        found: list[LazyTensor] = []
        for key in dict.fromkeys(key for table in self.tables for key in table):
            parts = {number: table[key] for number, table in enumerate(self.tables) if key in table}
            origin = None if self.bases is None else self.bases.get(key)
            policy, why, parts = self._policy(key, parts, origin)
            if policy == "mean" and not why and hasattr(self.combine, "why"):
                why = self.combine.why(key)
            self.fates.append(Fate(key, policy, why, tuple(parts)))
            if policy in ("drop", _LEFT):
                continue
            who = (policy, *(part.identity or (number, key) for number, part in parts.items()), origin and origin.identity)
            if who not in made:
                made[who] = self._made(key, policy, parts, origin)
            found.append(made[who].renamed(key))
        return found

    def _policy(
        self, key: str, parts: dict[int, LazyTensor], origin: LazyTensor | None
    ) -> tuple[str, str, dict[int, LazyTensor]]:
        """What to do with a key, why, and with which of the inputs that have it."""
        rule = self.rules.find(key)
        if rule is not None and rule.policy in ("first", "last", "base", "drop", "error"):
            taken = [] if rule.policy in ("base", "drop") else [list(parts)[0 if rule.policy == "first" else -1]]
            return rule.policy, f"--rule {rule}", {number: parts[number] for number in taken}
        differ = self._difference(key, parts)
        if differ:
            if self.on_mismatch == "base" and origin is not None:
                return "base", differ, {}
            if self.on_mismatch != "union" or len({part.shape for part in parts.values()}) > 1:
                return _LEFT, differ, {}
        why = differ and f"{differ}: of those that have it"
        if rule is not None:
            return rule.policy, f"--rule {rule}", parts
        if _is_counter(key):
            return "max", why or "a counter", parts
        kinds = {"int" if tensor.dtype.kind in ("int", "uint", "bool") else tensor.dtype.kind for tensor in parts.values()}
        if kinds == {"int"}:
            return "equal", why or "integers are not averaged", parts
        if any(tensor.dtype.name == "f8_e8m0" for tensor in parts.values()):
            return "equal", why or "powers of two that scale other tensors", parts
        return "mean", why, parts

    def _difference(self, key: str, parts: Mapping[int, LazyTensor]) -> str:
        """How the inputs differ about a key, in words; "" if they do not. MismatchError if they must not."""
        first = min(parts)
        lacking = [number for number in range(len(self.tables)) if number not in parts]
        odd = [number for number, tensor in parts.items() if tensor.shape != parts[first].shape]
        if not lacking and not odd:
            return ""
        if self.on_mismatch == "error" or (odd and self.on_mismatch == "union"):
            raise self._mismatch(key, parts, lacking, odd)
        if lacking:
            return f"not in {', '.join(self.names[number] for number in lacking)}"
        return f"{list(parts[odd[0]].shape)} in {self.names[odd[0]]}, {list(parts[first].shape)} in {self.names[first]}"

    def _mismatch(
        self, key: str, parts: Mapping[int, LazyTensor], lacking: Sequence[int], odd: Sequence[int]
    ) -> MismatchError:
        first = min(parts)
        if odd:
            ours, theirs = list(parts[first].shape), list(parts[odd[0]].shape)
            hint = f"--rule '{key}=first', last or drop; --on-mismatch intersect or base"
            return MismatchError(f"'{key}' is {theirs}, in '{self.names[first]}' {ours}", path=self.names[odd[0]], hint=hint)
        hint = "--on-mismatch intersect, union or base; --exclude leaves keys out"
        prefixes = prefix_between(self.tables[lacking[0]], self.tables[first])
        if prefixes is not None:
            odd_one, prefix = (lacking[0], prefixes[0]) if prefixes[0] else (first, prefixes[1])
            hint = f"wtool convert {self.names[odd_one]} NEW --strip-prefix {prefix}   makes their keys the same"
        return MismatchError(f"it has no '{key}', which '{self.names[first]}' has", path=self.names[lacking[0]], hint=hint)

    def _made(self, key: str, policy: str, parts: Mapping[int, LazyTensor], origin: LazyTensor | None) -> LazyTensor:
        numbers = list(parts)
        if policy == "error":
            raise MismatchError(f"'{key}' is refused by a rule", path=self.names[numbers[0]])
        if policy == "base":
            if origin is None:
                raise UsageError(f"'{key}' is to come from the base, and there is none that has it", hint="--base FILE")
            return self._cast(origin)
        if self.dtype is not None and policy not in ("first", "last"):
            parts = {number: _plain(tensor) for number, tensor in parts.items()}
        tensors = list(parts.values())
        if policy in ("first", "last"):
            return self._cast(tensors[0])
        packed = next((tensor for tensor in tensors if not tensor.dtype.itemsize), None)
        if packed is not None and any(tensor.identity != packed.identity for tensor in tensors):
            hint = "--dtype f32 (or bf16, f16) decodes blocks" if packed.dtype.block else f"--rule '{key}=first', last or drop"
            raise UnsupportedError(f"'{key}' is {packed.dtype}, packed: it cannot be averaged", hint=hint)
        self._check(key, policy, parts)
        if policy in ("equal", "max"):
            from wtool.kernels.agree import Agree, Largest

            same = all(tensor.identity == tensors[0].identity for tensor in tensors)
            said = tuple(self.names[number] for number in numbers)
            function = Agree(key, said) if policy == "equal" else Largest()
            return self._cast(tensors[0] if same or not tensors[0].elements else views.computed(key, tensors, function))
        return self.combine(key, parts, origin, self.names, self.order, self.dtype)

    def _check(self, key: str, policy: str, parts: Mapping[int, LazyTensor]) -> None:
        """Dtypes that can be put together. MismatchError, DtypeError."""
        numbers = list(parts)
        first = parts[numbers[0]].dtype
        for number, tensor in parts.items():
            row = tensor.dtype
            if row is not first and (policy in ("equal", "max") or _kind(row) != _kind(first)):
                raise MismatchError(
                    f"'{key}' is {row}, in '{self.names[numbers[0]]}' {first}",
                    path=self.names[number],
                    hint=f"--rule '{key}=first', last or drop",
                )
        if (policy == "mean" and first.kind == "bool") or (policy == "max" and first.kind == "complex"):
            raise DtypeError(f"'{key}' is {first}: it has no {policy}", hint=f"--rule '{key}=first', last or drop")

    def _cast(self, tensor: LazyTensor) -> LazyTensor:
        if self.dtype is None or not tensor.dtype.floating or tensor.dtype is self.dtype:
            return tensor
        if not (tensor.dtype.itemsize or tensor.dtype.block):
            return tensor
        from wtool.kernels.cast import Cast

        return tensor.map(Cast(tensor.dtype, self.dtype))


def _plain(tensor: LazyTensor) -> LazyTensor:
    """ggml's blocks as f32; anything else as it is."""
    from wtool.kernels.cast import Cast

    return tensor.map(Cast(tensor.dtype, dtype("f32"))) if tensor.dtype.block else tensor


def _kind(row: DType) -> str:
    return "int" if row.kind == "uint" else row.kind


def _outcome(first: Checkpoint, tensors: Sequence[LazyTensor]) -> Checkpoint:
    table = {tensor.key: tensor for tensor in tensors}
    if len(table) != len(tensors):
        twice = next(tensor.key for tensor in tensors if table[tensor.key] is not tensor)
        raise KeyClashError(f"two keys of the inputs would become '{twice}'")
    main = first.main_section()
    same = set(table) == set(first.tensors)
    return replace(
        first,
        tensors=table,
        sections=first.sections if same else (Section(main.name, main.kind, tuple(table)),),
        structure=first.structure if same else None,
    )


def kept_in(whole: Checkpoint, section: str | None, found: Averaged, number: int) -> Checkpoint:
    """Input `number`, all of it, with the tensors of its section replaced by those of an average.

    MismatchError if the average has not exactly the section's keys.
    """
    part = next((one for one in whole.sections if one.name == section), None) if section else whole.main_section()
    assert part is not None and section != "all"
    own, front = found.own[number], len(part.prefix)
    written = {key: mine for mine, key in found.own[0].items()}
    fresh = {}
    for tensor in found.checkpoint.values():
        common = written.get(tensor.key, tensor.key)
        if common in own:
            fresh[part.prefix + own[common]] = tensor
    if set(fresh) != set(part.keys) or len(fresh) != len(found.checkpoint):
        odd = next(iter(set(part.keys) ^ set(fresh)), next(iter(found.checkpoint)))
        raise MismatchError(
            f"'{odd[front:]}' is not in both it and the average", path=whole.source.path, hint="no --keep-extras"
        )
    return whole.with_tensors(fresh[key].renamed(key) if key in fresh else tensor for key, tensor in whole.items())


def _canonical(inputs: Sequence[Checkpoint]) -> list[int]:
    """The order of summing: by path, so that the order of arguments does not touch the last bit."""
    return sorted(range(len(inputs)), key=lambda number: (natural(inputs[number].source.path), number))


def _warnings(fates: Sequence[Fate]) -> list[Warning]:
    stats = [fate.key for fate in fates if fate.policy == "mean" and len(fate.inputs) > 1 and _is_statistic(fate.key)]
    if not stats:
        return []
    many = "1 statistic of batch norms is" if len(stats) == 1 else f"{len(stats)} statistics of batch norms are"
    text = f"{many} averaged ('{stats[0]}'): not those of the averaged model; recompute them with data before use"
    return [Warning("batch-norm", text)]
