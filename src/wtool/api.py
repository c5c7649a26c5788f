"""The two doors: open a checkpoint, save a checkpoint. The command line goes through them like everyone else.

checkpoint = open_checkpoint("last.ckpt")              # the model's weights; headers only
save_checkpoint(checkpoint, "model.safetensors")        # streams; whole or absent
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

from wtool.adapter import FormatAdapter, SaveRequest, TensorSink, probe
from wtool.checkpoint import Checkpoint, Opaque
from wtool.errors import (
    DtypeError,
    LimitError,
    LossError,
    NoTensorsError,
    OutputExistsError,
    TiedError,
    UsageError,
    WriteError,
    WtoolError,
)
from wtool.keys import natural
from wtool.plan import WritePlan, plan_write
from wtool.sparse import without_sizes
from wtool.tensor import LazyTensor

if TYPE_CHECKING:
    from wtool.bytesource import ByteSource
    from wtool.workers import Collector
    from wtool.write import Progress, Written

TIED_POLICIES = ("keep-one", "duplicate", "error")
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SLACK = 1 << 30  # bytes that expanded views may add before the size of the source is asked
_BLOW_UP = 64  # and then how many times the source the output may be


@dataclass(frozen=True, slots=True)
class Loss:
    """Something of the source that the output will not hold.

    `kind`: section, extras, metadata, object, tied, sparse, overflow, unmatched or inexact (by a recipe).
    """

    kind: str
    name: str
    count: int
    nbytes: int
    why: str


@dataclass(frozen=True, slots=True)
class SavePlan:
    """Everything that is known before the first byte is written."""

    target: str
    format: str
    checkpoint: Checkpoint
    tensors: Mapping[str, LazyTensor]  # those that are written, aliases left out
    plan: WritePlan
    sink: TensorSink
    paths: tuple[str, ...]
    losses: tuple[Loss, ...]
    tied: tuple[tuple[str, ...], ...]  # groups, the kept key first
    tied_policy: str
    notes: tuple[str, ...] = ()
    force: bool = False
    strict: bool = False

    @property
    def folder(self) -> str | None:
        return self.target if self.plan.layout.folder else None


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What was done. `files` are those of the plan, then those beside. `overflow` and `underflow` count values by key."""

    plan: SavePlan
    files: tuple[tuple[str, int], ...]
    nbytes: int
    seconds: float
    losses: tuple[Loss, ...]
    overflow: Mapping[str, int] = field(default_factory=dict)
    underflow: Mapping[str, int] = field(default_factory=dict)


def open_checkpoint(path: str | PathLike[str], *, section: str | None = None) -> Checkpoint:
    """Open a file, a sharded folder, an index or a TensorFlow prefix; the content decides what it is. Reads headers only.

    `section` None is the model's weights, "all" everything under full keys, else the section of that name.
    Raises a WtoolError that carries the path.
    """
    from wtool.formats import registry

    try:
        seen = probe(path)
        adapter, _ = registry.find(seen)
        return adapter.open(seen).section(section)
    except WtoolError as error:
        raise error.at(path) from None


def plan_save(
    checkpoint: Checkpoint,
    target: str | PathLike[str],
    *,
    to: str | None = None,
    whole: Checkpoint | None = None,
    tied: str | None = None,
    metadata: Mapping[str, str] | None = None,
    max_shard: int | None = None,
    force: bool = False,
    strict: bool = False,
    losses: Sequence[Loss] = (),
) -> SavePlan:
    """Lay out the output and say what would be lost, without writing.

    `to` names the format when the target's suffix does not. `whole` is the checkpoint that `checkpoint` is a part of, so that
    what stays behind can be named. `tied` is a policy of TIED_POLICIES; the default keeps one copy where the format can say
    so, and duplicates where it cannot. `metadata` is added to the checkpoint's own. `max_shard` is in bytes. `losses` are
    those of the operations before.
    """
    from wtool.formats import registry

    path = os.fspath(target)
    adapter = registry.for_target(path, to)
    if not adapter.capabilities.write:
        raise UsageError(f"wtool reads {adapter.name} but does not write it", path=path)
    if not checkpoint:
        raise NoTensorsError(
            "there are no tensors to write", path=checkpoint.source.path, hint="`--section all` takes everything"
        )
    if tied is not None and tied not in TIED_POLICIES:
        raise UsageError(f"unknown policy for tied tensors '{tied}'", hint="one of " + ", ".join(TIED_POLICIES))
    if max_shard is not None and not adapter.capabilities.sharded:
        raise UsageError(f"{adapter.name} output cannot be cut into shards", path=path, hint="write safetensors")
    _check_dtypes(checkpoint, adapter)
    _check_size(checkpoint)
    policy = tied or ("keep-one" if adapter.capabilities.ties else "duplicate")
    keep = frozenset(key for step in checkpoint.history for key in getattr(step, "keeps", ()))
    groups = tuple(tuple(sorted(group, key=lambda key: (key not in keep, natural(key)))) for group in checkpoint.tied())
    if groups and policy == "error":
        raise TiedError(
            f"{len(groups)} {'group' if len(groups) == 1 else 'groups'} of tied tensors, such as {' = '.join(groups[0][:3])}",
            path=checkpoint.source.path,
            hint="--tied keep-one or --tied duplicate",
        )
    losses = [*losses, *_losses(checkpoint, whole or checkpoint, adapter, metadata or {})]
    aliases: dict[str, str] = {}
    if policy == "keep-one":
        aliases = {alias: group[0] for group in groups for alias in group[1:]}
        if not adapter.capabilities.ties:
            losses += [Loss("tied", alias, 1, checkpoint[alias].nbytes, f"is kept as {key}") for alias, key in aliases.items()]
            checkpoint = checkpoint.with_tensors(t for k, t in checkpoint.tensors.items() if k not in aliases)
            aliases = {}
    if strict and losses:
        names = ", ".join(dict.fromkeys(f"{loss.kind} {loss.name}" for loss in losses[:6]))
        more = f" and {len(losses) - 6} more" if len(losses) > 6 else ""
        raise LossError(f"would lose {names}{more}", path=checkpoint.source.path, hint="without --strict this is only said")
    request = SaveRequest(
        target=path,
        specs=tuple(checkpoint.specs),
        tied=aliases,
        metadata=_metadata(checkpoint, adapter, metadata or {}),
        structure=_structure(checkpoint, adapter),
        max_shard=max_shard,
        folder=registry.is_folder_target(path),
        keep=keep,
        sparse=checkpoint.sparse if adapter.capabilities.sparse else (),
    )
    sink = adapter.create(request)
    layout = sink.layout
    base = path if layout.folder else os.path.dirname(path)
    paths = tuple(os.path.join(base, file.name) for file in layout.files)
    _check_target(path, paths, folder=layout.folder, force=force)
    stored = {slot.key: checkpoint[slot.key] for slot in layout.slots}
    plan = plan_write(layout, stored)
    return SavePlan(
        path,
        adapter.name,
        checkpoint,
        stored,
        plan,
        sink,
        paths,
        tuple(losses),
        groups,
        policy,
        (*_notes(path, to, adapter), *getattr(sink, "notes", ())),
        force,
        strict,
    )


def save(
    plan: SavePlan,
    *,
    jobs: int | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
    executor: Any = None,
    beside: Mapping[str, ByteSource] | None = None,
    collectors: Sequence[Collector] | None = None,
) -> SaveReport:
    """Carry a plan out: write beside the target, bring it to the disk, put it in place. Until then the target is untouched.

    `beside`: what else belongs into the folder that is the target, by name: it appears, and is replaced, with the rest.
    `collectors`: all that learns while values are computed; if they are given, processes may share the work (see write.run).
    """
    # Threads, logging and randomness: 10 ms that opening a checkpoint does not need.
    from wtool.stage import Stage
    from wtool.write import run

    began = time.perf_counter()
    more = dict(beside or {})
    assert not more or plan.folder is not None, "only a folder has room for more files"
    paths = [*plan.paths, *(os.path.join(plan.target, name) for name in more)]
    sizes = [*(file.size for file in plan.plan.layout.files), *(source.size for source in more.values())]
    count = jobs or min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 4)
    with Stage(paths, sizes, folder=plan.folder, force=plan.force) as stage:
        for number, source in enumerate(more.values(), len(plan.paths)):
            stage.fill(number, source)
        written = run(
            plan.plan,
            plan.sink,
            stage,
            jobs=count,
            memory=memory,
            progress=progress,
            executor=executor,
            collectors=collectors,
        )
        overflow, underflow = _tallied(written, "overflow"), _tallied(written, "underflow")
        losses = list(plan.losses)
        if overflow:
            losses += [
                Loss("overflow", key, number, 0, f"values too large for {plan.tensors[key].dtype}")
                for key, number in overflow.items()
            ]
            if plan.strict:
                total = sum(overflow.values())
                raise LossError(
                    f"{total} values of {len(overflow)} tensors overflow",
                    path=plan.checkpoint.source.path,
                    hint="bf16 and f32 hold larger values; without --strict this is only said",
                )
        stage.publish()
    files = tuple(zip(paths, sizes, strict=True))
    return SaveReport(plan, files, written.nbytes, time.perf_counter() - began, tuple(losses), overflow, underflow)


def save_checkpoint(
    checkpoint: Checkpoint,
    target: str | PathLike[str],
    *,
    to: str | None = None,
    tied: str | None = None,
    metadata: Mapping[str, str] | None = None,
    max_shard: int | None = None,
    force: bool = False,
    jobs: int | None = None,
) -> SaveReport:
    """`plan_save` and `save` in one call."""
    plan = plan_save(checkpoint, target, to=to, tied=tied, metadata=metadata, max_shard=max_shard, force=force)
    return save(plan, jobs=jobs)


def _check_dtypes(checkpoint: Checkpoint, adapter: FormatAdapter) -> None:
    odd = [spec for spec in checkpoint.specs if spec.dtype.name not in adapter.capabilities.dtypes]
    if odd:
        names = " ".join(dict.fromkeys(spec.dtype.name for spec in odd))
        more = f" and {len(odd) - 1} more tensors" if len(odd) > 1 else ""
        hint = "--dtype casts floating tensors; --exclude leaves tensors out"
        if any(spec.dtype.block for spec in odd):
            hint = "--dequantize makes plain numbers of blocks; --exclude leaves tensors out"
        raise DtypeError(f"{adapter.name} has no dtype {names} ({odd[0].key}{more})", path=checkpoint.source.path, hint=hint)


def _check_size(checkpoint: Checkpoint) -> None:
    """Refuse the bomb: a few bytes expanded (stride 0) into more than any disk."""
    there = sum(size for _, size in checkpoint.source.files)
    if checkpoint.nbytes > _SLACK + _BLOW_UP * there:
        worst = max(checkpoint.tensors.values(), key=lambda tensor: tensor.nbytes)
        raise LimitError(
            f"{checkpoint.nbytes} bytes would be written from a file of {there} ({worst.key} is an expanded view)",
            path=checkpoint.source.path,
            hint="leave it out with --exclude",
        )


def _losses(checkpoint: Checkpoint, whole: Checkpoint, adapter: FormatAdapter, metadata: Mapping[str, str]) -> list[Loss]:
    losses: list[Loss] = []
    here = {section.name for section in checkpoint.sections}
    for section in whole.sections:
        if section.name not in here:
            nbytes = sum(whole[key].nbytes for key in section.keys)
            losses.append(Loss("section", section.name, len(section.keys), nbytes, "was not chosen (--section all takes it)"))
    structure = _structure(checkpoint, adapter)
    kept = adapter.capabilities.extras and structure is not None
    if not adapter.capabilities.sparse:
        why = f"{adapter.name} has no sparse tensors: the parts are written as tensors"
        losses += [Loss("sparse", one.key, len(one.parts), 0, why) for one in checkpoint.sparse]
    for name, value in without_sizes(whole.extras, {one.key for one in whole.sparse}).items():
        if name == OBJECT_GRAPH or (adapter.name == "gguf" and structure is not None):
            continue  # every name of the graph is a key; and GGUF's own are written as they were
        why = f"{adapter.name} holds tensors only" if not adapter.capabilities.extras else "is not part of the state dict"
        if not kept:
            losses.append(Loss("extras", str(name), sum(1 for _ in _leaves(value)), 0, why))
        else:
            losses += [Loss("object", opaque, 1, 0, f"in {name}: no plain value") for opaque in _opaque(value)]
    if not adapter.capabilities.metadata:
        for name in sorted({**checkpoint.metadata, **metadata}):
            if name != "format":
                losses.append(Loss("metadata", name, 1, 0, f"{adapter.name} has no place for it"))
    return losses


def _opaque(value: Any) -> list[str]:
    return list(dict.fromkeys(item.name for item in _leaves(value) if isinstance(item, Opaque)))


def _leaves(value: Any) -> Iterator[Any]:
    """The single values in nested dicts and lists; what stands at several places counts once."""
    stack, seen = [value], set()
    while stack:
        item = stack.pop()
        if not isinstance(item, (Mapping, list, tuple)):
            yield item
        elif id(item) not in seen:
            seen.add(id(item))
            stack.extend(item.values() if isinstance(item, Mapping) else item)


def _metadata(checkpoint: Checkpoint, adapter: FormatAdapter, added: Mapping[str, str]) -> dict[str, str]:
    if not adapter.capabilities.metadata:
        return {}
    # Hugging Face's loaders refuse a safetensors file that does not say what its layout is.
    return {"format": "pt", **checkpoint.metadata, **added}


def _structure(checkpoint: Checkpoint, adapter: FormatAdapter) -> Any:
    """What the format is told of the nesting: the pickled object's own, TensorFlow's object graph as it was, GGUF's keys."""
    if adapter.name == "tensorflow":
        own = checkpoint.extras.get(OBJECT_GRAPH) if checkpoint.source.format == "tensorflow" else None
        return checkpoint.structure if isinstance(checkpoint.structure, bytes) else own
    if adapter.name == "gguf":
        from wtool.formats.gguf_values import KeyValues

        return checkpoint.extras if isinstance(checkpoint.extras, KeyValues) else None
    if isinstance(checkpoint.structure, bytes):
        return None
    return checkpoint.structure if adapter.capabilities.extras else None


def _check_target(path: str, paths: Sequence[str], *, folder: bool, force: bool) -> None:
    parent = path if folder and os.path.isdir(path) else os.path.dirname(path.rstrip(os.sep)) or "."
    if not os.path.isdir(parent):
        raise WriteError("its folder does not exist", path=path, hint=f"mkdir -p {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise WriteError("its folder cannot be written to", path=path)
    for one in {path, *paths} if not folder else {*paths}:
        if os.path.isdir(one):
            raise WriteError("is a folder", path=one)
    if folder and os.path.lexists(path) and not os.path.isdir(path):
        raise OutputExistsError("is a file, not a folder", path=path)
    there = [path] if folder and os.path.isdir(path) and os.listdir(path) else []
    there += [one for one in paths if not folder and os.path.lexists(one)]
    if there and not force:
        raise OutputExistsError("exists already", path=there[0], hint="--force overwrites it")


def _notes(path: str, to: str | None, adapter: FormatAdapter) -> tuple[str, ...]:
    if to is None and adapter.name == "tensorflow" and path.endswith(".ckpt"):
        name = os.path.basename(path)
        return (f"{name} is written as a TensorFlow checkpoint (.index and .data files); --to torch writes PyTorch's",)
    return ()


def _tallied(written: Written, name: str) -> dict[str, int]:
    return {key: tally[name] for key, tally in written.tallies.items() if tally.get(name)}
