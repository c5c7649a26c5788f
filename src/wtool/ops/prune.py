"""Values become zero. Says from headers which tensors are pruned, and applies the masks that a first pass has found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from wtool import views
from wtool.checkpoint import Checkpoint
from wtool.errors import CorruptError, MismatchError, UsageError
from wtool.kernels.masks import ByBits, Mask, Pruned, Tell
from wtool.keys import SEPARATORS, matcher, natural, short_key
from wtool.ops.spared import no_weights, spared
from wtool.tensor import LazyTensor

if TYPE_CHECKING:
    from wtool.boxes import Array

RESTS = ("init", "source")
LAYOUT = "wtool.mask"  # the name of a mask file's metadata
_STEP = 1 << 16  # values that are packed at a time


@dataclass(frozen=True, slots=True)
class Fate:
    """Whether a tensor is pruned, and why not."""

    key: str
    pruned: bool
    why: str = ""


def fates(checkpoint: Mapping[str, LazyTensor], include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[Fate]:
    """What is pruned: floating tensors of two or more axes that are no norm, bias or embedding, nor tied to one.

    With `include`, the floating tensors that match it, and no others. UsageError for a glob of either that no key matches;
    TensorFlow's long keys may be matched in full or as people see them.
    """
    for glob in (*include, *exclude):
        if not any(map(matching((glob,)), checkpoint)):
            raise UsageError(f"no key matches '{glob}'", hint="`wtool inspect --flat` lists the keys")
    wanted, unwanted = matching(include), matching(exclude)
    whys: dict[str, str] = {}
    for key, tensor in checkpoint.items():
        why = no_weights(tensor)
        if not why and unwanted(key):
            why = "--exclude"
        elif not why and include and not wanted(key):
            why = "not of --include"
        elif not why and not include:
            why = spared(key, tensor)
        whys[key] = why
    if not include:  # an output layer that is tied to an embedding is one
        groups: dict[object, list[str]] = {}
        for key, tensor in checkpoint.items():
            groups.setdefault(tensor.identity or key, []).append(key)
        for group in groups.values():
            first = next((key for key in group if whys[key]), None)
            if first is not None:
                whys.update({key: f"tied to {first}" for key in group if not whys[key]})
    return [Fate(key, not why, why) for key, why in whys.items()]


def matching(globs: Sequence[str]) -> Callable[[str], bool]:
    """Whether a key matches one of the globs, as it is or as people see it."""
    one = matcher(globs)
    return lambda key: one(key) or one(short_key(key))


_NUMBERED = re.compile(r"\d+|.*[-_]\d+")


def layer_of(key: str) -> str:
    """The layer that a tensor belongs to: its key up to the first part that is a number or ends in _N; else its module."""
    key = short_key(key)
    found = list(re.finditer(f"[^{re.escape(SEPARATORS)}]+", key))
    for part in found[:-1]:
        if _NUMBERED.fullmatch(part[0]):
            return key[: part.end()]
    return key[: found[-2].end()] if len(found) > 1 else key


@dataclass(frozen=True)
class Prune:
    """Zeroes what the masks do not keep; all else is verbatim. A tied tensor needs one mask, and stays tied.

    With `init` the values that are kept are those of the same keys there, and with `rest` "init" all other tensors too.
    `tell` makes what learns of the values of one key. MismatchError where `init` lacks a key, or has it otherwise.
    """

    masks: Mapping[str, Mask]
    init: Checkpoint | None = field(default=None, repr=False)
    rest: str = "init"
    tell: Callable[[str], Tell] | None = field(default=None, compare=False, repr=False)

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        unknown = next((key for key in self.masks if key not in checkpoint), None)
        if unknown is not None:
            raise MismatchError(f"there is a mask for '{unknown}', and no such tensor", path=checkpoint.source.path)
        masked = {checkpoint[key].identity or key: key for key in sorted(self.masks, key=natural, reverse=True)}
        made: dict[object, LazyTensor] = {}
        tensors = []
        for key, tensor in checkpoint.items():
            own = masked.get(tensor.identity or key)
            if own is None:
                hint = "--rest source keeps what is not pruned"
                tensors.append(tensor if self.init is None or self.rest == "source" else self._initial(tensor, hint))
                continue
            parts = [tensor] if self.init is None else [tensor, self._initial(tensor)]
            who = tuple(part.identity for part in parts)
            if who not in made:
                function = Pruned(self.masks[own], None if self.tell is None else self.tell(own))
                made[who] = views.computed(key, parts, function)
            tensors.append(made[who].renamed(key))
        return checkpoint.with_tensors(tensors, operation=replace(self, tell=None))

    def _initial(self, tensor: LazyTensor, hint: str | None = None) -> LazyTensor:
        assert self.init is not None
        path, key = self.init.source.path, tensor.key
        if key not in self.init:
            raise MismatchError(f"it has no '{key}'", path=path, hint=hint)
        found = self.init[key]
        if (found.dtype, found.shape) != (tensor.dtype, tensor.shape):
            said = f"{found.dtype} {list(found.shape)}, not {tensor.dtype} {list(tensor.shape)}"
            raise MismatchError(f"'{key}' is {said}", path=path, hint="convert it with --dtype first")
        return found


@dataclass(frozen=True)
class Bits:
    """A ByteSource of a mask's bits for a tensor: one for each value in C order, the lowest bit of a byte first."""

    tensor: LazyTensor
    mask: Mask

    @property
    def name(self) -> str:
        return f"the mask of {self.tensor.key}"

    @property
    def size(self) -> int:
        return -(-self.tensor.elements // 8)

    @property
    def direct(self) -> bool:
        return self.tensor.span is not None

    def pread(self, offset: int, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        for done in range(0, len(buffer), _STEP // 8):
            count = min(_STEP // 8, len(buffer) - done)
            first = (offset + done) * 8
            values = self.tensor.flat(first, min(first + count * 8, self.tensor.elements))
            buffer[done : done + count] = np.packbits(self.mask.keeps(first, values), bitorder="little").data

    def stream(self, nbytes: int, stripe: int) -> Iterator[Array]:
        start, left = 0, np.empty(0, np.bool_)
        for values in self.tensor.blocks(nbytes, stripe=stripe):
            kept = np.concatenate([left, self.mask.keeps(start, values)])
            start += len(values)
            whole = len(kept) if start == self.tensor.elements else len(kept) // 8 * 8
            left = kept[whole:]
            if whole:
                yield np.packbits(kept[:whole], bitorder="little")


def mask_checkpoint(checkpoint: Checkpoint, masks: Mapping[str, Mask]) -> Checkpoint:
    """The masks as a checkpoint: under the key of each tensor its packed bits, the shapes as JSON in the metadata.

    The tensors are those that were pruned, as they were before.
    """
    from json import dumps

    from wtool.dtypes import dtype

    tensors = {}
    for key, mask in masks.items():
        source = Bits(checkpoint[key], mask)
        tensors[key] = LazyTensor.contiguous(key, dtype("u8"), (source.size,), source, 0)
    shapes = {key: list(checkpoint[key].shape) for key in masks}
    text = dumps({"version": 1, "shapes": shapes}, separators=(",", ":"))
    return Checkpoint(tensors, checkpoint.source, metadata={LAYOUT: text})


def read_masks(bits: Checkpoint, checkpoint: Mapping[str, LazyTensor]) -> dict[str, Mask]:
    """The masks of a checkpoint that `mask_checkpoint` made, for these tensors. CorruptError, MismatchError.

    Of TensorFlow's keys either may be without what it appends to all of them.
    """
    from json import loads

    path = bits.source.path
    if LAYOUT not in bits.metadata:
        raise CorruptError("it holds no masks", path=path, hint="`wtool prune --mask-out` writes them")
    try:
        told = loads(bits.metadata[LAYOUT])
        version = told["version"]
        shapes = {key: tuple(map(int, shape)) for key, shape in told["shapes"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CorruptError(f"its metadata '{LAYOUT}' is malformed", path=path) from None
    if version != 1 or set(shapes) != set(bits):
        raise CorruptError("its masks are not those that its metadata tells of", path=path)
    masks: dict[str, Mask] = {}
    names = {short_key(key): key for key in checkpoint} if any(key not in checkpoint for key in bits) else {}
    for key, tensor in bits.items():
        there = key if key in checkpoint else names.get(short_key(key))
        if there is None:
            raise MismatchError(f"it masks '{key}', which is not there", path=path)
        shape = checkpoint[there].shape
        if shapes[key] != shape:
            raise MismatchError(f"its mask of '{key}' is for {list(shapes[key])}, not {list(shape)}", path=path)
        if (tensor.dtype.name, tensor.shape) != ("u8", (-(-checkpoint[there].elements // 8),)):
            raise CorruptError(f"its mask of '{key}' has not one bit for each value", path=path)
        masks[there] = ByBits(tensor)
    return masks
