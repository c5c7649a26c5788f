"""There and back between all families: every dtype, any shape, any key that both can hold, bit for bit."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wtool.analysis.digest import digest
from wtool.api import open_checkpoint, save_checkpoint
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import BY_NAME
from wtool.formats import registry
from wtool.tensor import LazyTensor, c_strides

TARGETS = {"safetensors": "x.safetensors", "torch": "x.pth", "tensorflow": "x.ckpt", "gguf": "x.gguf"}
PAIRS = [(first, second) for first in TARGETS for second in TARGETS]
POOL = 1 << 14  # bytes that the tensors are views of

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
parts = st.text(st.characters(categories=("Ll", "Lu", "Nd"), max_codepoint=0x2FF), min_size=1, max_size=6)
keys = st.lists(parts, min_size=1, max_size=4).map(".".join)


def writable(*formats: str) -> list[str]:
    """Dtypes that all of these can hold and that have whole bytes (packed ones are tested with their own format)."""
    sets = [registry.by_name(name).capabilities.dtypes for name in formats]
    return sorted(name for name in frozenset.intersection(*sets) if BY_NAME[name].itemsize)


@st.composite
def checkpoints(draw: st.DrawFn, dtypes: list[str]) -> Checkpoint:
    """A few tensors of any dtype and shape: contiguous, views of one storage, and tied ones."""
    pool = MemoryBytes(random.Random(draw(st.integers(0, 1 << 30))).randbytes(POOL))
    tensors: list[LazyTensor] = []
    for key in draw(st.lists(keys, min_size=1, max_size=6, unique=True)):
        if any(other.key.startswith(f"{key}.") or key.startswith(f"{other.key}.") for other in tensors):
            continue  # a leaf that is also a branch has its own test in TensorFlow's
        if tensors and draw(st.integers(0, 4)) == 0:
            tensors.append(draw(st.sampled_from(tensors)).renamed(key))
            continue
        dtype = BY_NAME[draw(st.sampled_from(dtypes))]
        shape = draw(shapes)
        source = MemoryBytes(bytes(number % 2 for number in range(POOL))) if dtype.kind == "bool" else pool
        offset = draw(st.integers(0, 40)) * 16
        strides = c_strides(shape)
        if draw(st.booleans()):
            shape, strides = shape[::-1], strides[::-1]
        elif shape and draw(st.integers(0, 3)) == 0:
            strides = (0, *strides[1:])
        tensors.append(LazyTensor.strided(key, dtype, shape, source, offset, strides))
    if not tensors:
        tensors.append(LazyTensor.contiguous("w", BY_NAME[dtypes[0]], (2,), MemoryBytes(bytes(64)), 0))
    return Checkpoint({tensor.key: tensor for tensor in tensors}, Source("made", "memory", "made", (("made", 1 << 20),)))


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.parametrize(("first", "second"), PAIRS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_there_and_back(first: str, second: str, data: st.DataObject) -> None:
    checkpoint = data.draw(checkpoints(writable(first, second)))
    meant = digest(checkpoint)
    with folder() as one, folder() as two, folder() as three:
        save_checkpoint(checkpoint, one / TARGETS[first])
        there = open_checkpoint(one / TARGETS[first], section="all")
        assert digest(there).tensors == {key: meant.tensors[key] for key in there}
        assert digest(there).whole == meant.whole
        save_checkpoint(there, two / TARGETS[second])
        over = open_checkpoint(two / TARGETS[second], section="all")
        assert digest(over).whole == meant.whole
        save_checkpoint(over, three / TARGETS[first])
        back = open_checkpoint(three / TARGETS[first], section="all")
        assert digest(back).whole == meant.whole
        if {first, second} == {"safetensors", "torch"} or first == second == "torch":
            kept = {frozenset(group) for group in checkpoint.tied()}
            assert {frozenset(group) for group in back.tied()} == kept


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_the_same_input_gives_the_same_bytes(name: str, data: st.DataObject) -> None:
    checkpoint = data.draw(checkpoints(writable(name)))
    with folder() as one, folder() as two:
        first = save_checkpoint(checkpoint, one / TARGETS[name], jobs=1)
        second = save_checkpoint(checkpoint, two / TARGETS[name], jobs=3)
        for left, right in zip(first.files, second.files, strict=True):
            assert Path(left[0]).read_bytes() == Path(right[0]).read_bytes()
