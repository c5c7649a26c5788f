"""Weights become codes and scales. Says from headers which tensors are quantized, and why the others are not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from wtool.checkpoint import Checkpoint
from wtool.dtypes import dtype
from wtool.errors import KeyClashError, UsageError
from wtool.keys import matcher
from wtool.layout import CASTS, Layout, Scheme, Seen
from wtool.ops.leave import Surroundings, left
from wtool.ops.spared import no_weights
from wtool.tensor import LazyTensor

_ANY_WAY = ("plain", "gguf")  # layouts that say nothing of what rows are


@dataclass(frozen=True, slots=True)
class Fate:
    """With which scheme a tensor is quantized, or why it is not."""

    key: str
    scheme: Scheme | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """What was asked for: a scheme for all, other ones for keys that match (the first glob counts), and what stays.

    `skip` adds to what is skipped by default; with `only`, the tensors that match, whatever they are. `experts`: how many a
    layer has, as far as somebody says so.
    """

    scheme: Scheme
    schemes: tuple[tuple[str, Scheme | None], ...] = ()
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    experts: tuple[int, ...] = ()


def fates(checkpoint: Mapping[str, LazyTensor], rules: Rules, layout: Layout) -> list[Fate]:
    """What is quantized: floating weights of two axes, and stacked ones of three, that are none of what is better left alone.

    Tensors that a runtime fuses (q, k and v; gate and up; the experts of a layer) are all of one scheme or none is
    quantized. UsageError for a glob that no key matches.
    """
    _check(checkpoint, rules)
    around = Surroundings.of(checkpoint, rules.experts)
    found = {key: _fate(key, tensor, rules, layout, around) for key, tensor in checkpoint.items()}
    _tie(checkpoint, found)
    _fuse(found)
    return list(found.values())


def allowed(checkpoint: Mapping[str, LazyTensor], rules: Sequence[Rules], layout: Layout) -> dict[str, list[Scheme]]:
    """Key -> the schemes of several rules that a tensor may be quantized with; none where it is left alone."""
    for one in rules:
        _check(checkpoint, one)
    found: dict[str, list[Scheme]] = {key: [] for key in checkpoint}
    for one in rules:
        around = Surroundings.of(checkpoint, one.experts)
        fate_of = {key: _fate(key, tensor, one, layout, around) for key, tensor in checkpoint.items()}
        _tie(checkpoint, fate_of)
        for key, fate in fate_of.items():
            if fate.scheme is not None and fate.scheme not in found[key]:
                found[key].append(fate.scheme)
    return found


def _check(checkpoint: Mapping[str, LazyTensor], rules: Rules) -> None:
    for glob in (*rules.only, *rules.skip, *(glob for glob, _ in rules.schemes)):
        if not any(map(matcher((glob,)), checkpoint)):
            raise UsageError(f"no key matches '{glob}'", hint="`wtool inspect --flat` lists the keys")


def _fate(key: str, tensor: LazyTensor, rules: Rules, layout: Layout, around: Surroundings) -> Fate:
    named = next((one for one in rules.schemes if matcher((one[0],))(key)), None)
    asked = named is not None or (bool(rules.only) and matcher(rules.only)(key))
    scheme = named[1] if named is not None else rules.scheme
    why = no_weights(tensor)
    if not why and matcher(rules.skip)(key):
        why = "--skip"
    elif not why and rules.only and not asked:
        why = "not of --only"
    elif not why and not asked:
        why = left(key, tensor, around)
    if not why and scheme is None:
        why = "--scheme-for"
    if not why and scheme is not None and scheme.name not in CASTS:
        why = _shapeless(tensor) or layout.refuses(scheme, tensor) or ""
        if not why and key in around.turned and layout.name not in _ANY_WAY:
            why = "of a Conv1D, [in, out]"
    return Fate(key, None if why else scheme, why)


def _shapeless(tensor: LazyTensor) -> str:
    return "of fewer than two axes" if len(tensor.shape) < 2 else ""


def _tie(checkpoint: Mapping[str, LazyTensor], found: dict[str, Fate]) -> None:
    """Tied tensors share their fate: that of the first that is not quantized."""
    groups: dict[object, list[str]] = {}
    for key, tensor in checkpoint.items():
        if tensor.identity is not None:
            groups.setdefault(tensor.identity, []).append(key)
    for group in groups.values():
        left = next((key for key in group if found[key].scheme is None), None)
        for key in group:
            if left is not None and found[key].scheme is not None:
                found[key] = Fate(key, None, f"tied to {left}")
            elif left is None:
                found[key] = replace(found[key], scheme=found[group[0]].scheme)


_FUSED = (
    re.compile(r"(.*\.)(?:q_proj|k_proj|v_proj|query|key|value|wq|wk|wv)(\.weight)"),
    re.compile(r"(.*\.)(?:gate_proj|up_proj|w1|w3)(\.weight)"),
    re.compile(r"(.*\.)(?:q_a_proj|kv_a_proj_with_mqa|wq_a|wkv_a_with_mqa)(\.weight)"),
    re.compile(r"(.*\.)(?:in_proj_qkv|in_proj_z)(\.weight)"),
    re.compile(r"(.*\.)(?:in_proj_b|in_proj_a)(\.weight)"),
)


def fused_sets(keys: Sequence[str], *, experts: bool = True) -> list[list[str]]:
    """Keys that runtimes make one matrix of, and that must therefore be coded alike: q, k, v; gate, up.

    Those of all experts of a layer together; without `experts`, of each by itself: they may differ in their scales.
    """
    groups: dict[tuple[int, str], list[str]] = {}
    for key in keys:
        name = re.sub(r"(experts?\.)\d+\.", r"\1*.", key) if experts else key
        for number, rule in enumerate(_FUSED):
            if match := rule.fullmatch(name):
                groups.setdefault((number, match[1]), []).append(key)
                break
        else:
            if name != key:
                groups.setdefault((-1, name), []).append(key)
    return [group for group in groups.values() if len(group) > 1]


def _fuse(found: dict[str, Fate]) -> None:
    for group in fused_sets(list(found)):
        left = next((key for key in group if found[key].scheme is None), None)
        schemes = {found[key].scheme for key in group}
        if left is not None and len(schemes) > 1:
            for key in group:
                if found[key].scheme is not None:
                    found[key] = Fate(key, None, f"fused with {left}, which is not")
        elif len(schemes) > 1:
            names = " and ".join(sorted({f"{found[key].scheme} ({key})" for key in group})[:2])
            raise UsageError(
                f"what runtimes fuse must be of one scheme: {names}", hint="--scheme-for that matches all of them"
            )


def agreed(found: Sequence[Fate]) -> list[Fate]:
    """The fates after some became others: what is fused with one that stays, stays."""
    fate_of = {fate.key: fate for fate in found}
    _fuse(fate_of)
    return list(fate_of.values())


@dataclass(frozen=True)
class Quantize:
    """Store tensors in a layout: each becomes its parts, in its place. All else is verbatim, or cast to `rest`.

    `schemes` are settled. `seen`: what a first pass saw of those of which the layout `wants` to know. Tied tensors stay tied.
    KeyClashError where a part's key is taken.
    """

    layout: Layout
    schemes: Mapping[str, Scheme]
    seen: Mapping[str, Seen] = field(default_factory=dict, repr=False)
    rest: str | None = None

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        once: dict[object, list[LazyTensor]] = {}
        tensors: dict[str, LazyTensor] = {}
        becomes: dict[str, list[str]] = {}
        for key, tensor in checkpoint.tensors.items():
            new = self.became(tensor)
            if new[0].key != key or len(new) > 1:
                same = once.setdefault(tensor.identity or key, new)  # one encoding, so that it is computed once
                new = [part.renamed(own.key) for part, own in zip(same, new, strict=True)]
            for part in new:
                if part.key in tensors or (part.key != key and part.key in checkpoint.tensors):
                    raise KeyClashError(f"'{part.key}', a part of '{key}', is a tensor already", path=checkpoint.source.path)
                tensors[part.key] = part
            becomes[key] = [part.key for part in new]
        structure = checkpoint.structure if all(keys == [key] for key, keys in becomes.items()) else None
        made = checkpoint.regrouped(tensors, becomes)
        return replace(made, structure=structure, history=(*checkpoint.history, self))

    def became(self, tensor: LazyTensor) -> list[LazyTensor]:
        """The tensors that one of the checkpoint becomes."""
        scheme = self.schemes.get(tensor.key)
        if scheme is None:
            return [self._rest(tensor)]
        if scheme.name in CASTS:
            return [_cast(tensor, scheme.name)]
        return self.layout.parts(tensor, scheme, self.seen.get(tensor.key))

    def _rest(self, tensor: LazyTensor) -> LazyTensor:
        wide = tensor.dtype.floating and tensor.dtype.bits > 16
        return _cast(tensor, self.rest) if self.rest is not None and wide else tensor


def _cast(tensor: LazyTensor, name: str) -> LazyTensor:
    from wtool.kernels.cast import Cast

    row = dtype(name)
    return tensor if tensor.dtype is row else tensor.map(Cast(tensor.dtype, row))
