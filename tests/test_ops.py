from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Node, Section, Source, TensorRef
from wtool.dtypes import dtype
from wtool.errors import DtypeError, KeyClashError, NoTensorsError, UsageError
from wtool.keys import TF_SUFFIX, Rename
from wtool.ops.cast import CastTo
from wtool.ops.convert import Convert
from wtool.ops.rename import RenameKeys, ShortKeys, StripPrefix
from wtool.ops.select import Select
from wtool.tensor import LazyTensor

SOURCE = Source("m.pth", "torch", "zip", ())


class Unread(MemoryBytes):
    """A source that must not be read."""

    def pread(self, offset: int, nbytes: int) -> bytes:
        raise AssertionError("values were read")


def checkpoint(*keys: str, **dtypes: str) -> Checkpoint:
    """Tensors of two elements, f32 unless their key is given a dtype."""
    rows = dict.fromkeys(keys, "f32") | dtypes
    tensors = {key: LazyTensor.contiguous(key, dtype(name), (2,), Unread(bytes(64)), 0) for key, name in rows.items()}
    return Checkpoint(tensors, SOURCE)


def codes(found: Checkpoint) -> list[str]:
    return [warning.code for warning in found.warnings]


@pytest.mark.parametrize(
    ("include", "exclude", "kept"),
    [
        (["a.*"], [], ["a.w", "a.b"]),
        ([], ["**.b"], ["a.w", "c.d.w"]),
        (["**.w", "a.b"], ["c.**"], ["a.w", "a.b"]),
        (["c.d.*"], [], ["c.d.w", "c.d.b"]),
    ],
)
def test_select(include: list[str], exclude: list[str], kept: list[str]) -> None:
    given = checkpoint("a.w", "c.d.w", "a.b", "c.d.b")
    found = Select(tuple(include), tuple(exclude))(given)
    assert list(found) == [key for key in given if key in kept]
    assert found.history == (Select(tuple(include), tuple(exclude)),)
    assert found["a.w" if "a.w" in kept else kept[0]].span is not None


def test_select_that_finds_nothing() -> None:
    given = checkpoint("a.w", "b")
    with pytest.raises(UsageError, match=r"no key matches --include 'x\.\*'"):
        Select(("a.*", "x.*"))(given)
    with pytest.raises(NoTensorsError):
        Select((), ("**",))(given)
    assert codes(Select((), ("x",))(given)) == ["no-match"]


def test_select_knows_short_keys() -> None:
    assert list(Select(("net/w",))(checkpoint("net/w" + TF_SUFFIX, "net/b"))) == ["net/w" + TF_SUFFIX]


def test_rename_and_its_clashes() -> None:
    given = checkpoint("model.a", "model.b", "c")
    found = RenameKeys((Rename(r"^model\.(\w)", r"enc.\1"), Rename("enc", "e")))(given)
    assert [(key, tensor.key) for key, tensor in found.items()] == [("e.a", "e.a"), ("e.b", "e.b"), ("c", "c")]
    with pytest.raises(KeyClashError, match=r"'model\.a' and 'model\.b' would both become 'x'"):
        RenameKeys((Rename("model.*", "x"),))(given)
    with pytest.raises(KeyClashError):
        RenameKeys((Rename("model.a", "c"),))(given)
    with pytest.raises(UsageError, match="empty key"):
        RenameKeys((Rename("^c$", ""),))(given)
    assert codes(RenameKeys((Rename("zzz", "y"),))(given)) == ["no-match"]
    # Two keys may change places.
    swapped = RenameKeys((Rename("^c$", "t"), Rename(r"^model\.a$", "c"), Rename("^t$", "model.a")))(given)
    assert list(swapped) == ["c", "model.b", "model.a"]


def test_renaming_keeps_sections_and_drops_the_structure() -> None:
    tensors = checkpoint("s.a", "s.b", "o.x").tensors
    structure = Node((("s", Node((("a", TensorRef("s.a")),))),))
    sections = (Section("s", "model", ("s.a", "s.b"), "s."), Section("o", "optimizer", ("o.x",), "o."))
    given = Checkpoint(tensors, SOURCE, sections=sections, structure=structure)
    found = RenameKeys((Rename("a$", "A"),))(given)
    assert found.sections == (Section("s", "model", ("s.A", "s.b"), "s."), sections[1])
    assert found.structure is None
    assert RenameKeys((Rename("zzz", ""),))(given).structure is structure
    assert RenameKeys((Rename("^s", "t"),))(given).sections[0] == Section("s", "model", ("t.a", "t.b"), "")


def test_strip_prefix() -> None:
    given = checkpoint("module.a", "module.b.module.c", "x")
    found = StripPrefix("module.")(given)
    assert list(found) == ["a", "b.module.c", "x"]
    assert codes(found) == ["without-prefix"]
    assert list(StripPrefix("module")(given)) == ["a", "b.module.c", "x"]
    assert list(StripPrefix("mod")(given)) == ["ule.a", "ule.b.module.c", "x"]
    assert codes(StripPrefix("m/")(checkpoint("m/a"))) == []
    for prefix in ("y.", ""):
        with pytest.raises(UsageError, match="no key begins with"):
            StripPrefix(prefix)(given)
    with pytest.raises(KeyClashError):
        StripPrefix("m.")(checkpoint("m.a", "a"))
    with pytest.raises(UsageError, match="empty key"):
        StripPrefix("m.a")(checkpoint("m.a"))


def test_short_keys() -> None:
    found = ShortKeys()(checkpoint("net/w" + TF_SUFFIX, "b"))
    assert list(found) == ["net/w", "b"] and codes(found) == ["short-keys"]
    plain = checkpoint("a")
    assert ShortKeys()(plain) is plain
    with pytest.raises(KeyClashError):
        ShortKeys()(checkpoint("a" + TF_SUFFIX, "a"))


def test_cast_touches_floating_tensors_only() -> None:
    given = checkpoint(f="f32", h="bf16", d="f64", e="f8_e4m3", i="i64", t="bool", c="c64", q="f4", s="f6_e2m3")
    found = CastTo(dtype("bf16"))(given)
    assert {key: tensor.dtype.name for key, tensor in found.items()} == {
        "f": "bf16", "h": "bf16", "d": "bf16", "e": "bf16", "i": "i64", "t": "bool", "c": "c64", "q": "bf16", "s": "f6_e2m3",
    }  # fmt: skip
    assert [key for key, tensor in found.items() if tensor.span is not None] == ["h", "i", "t", "c", "s"]
    assert codes(found) == ["not-cast", "not-cast", "without-scales"]
    assert found.history == (CastTo(dtype("bf16")),)
    for name in ("i8", "c64", "f4"):
        with pytest.raises(DtypeError):
            CastTo(dtype(name))


def test_cast_reads_the_values_through() -> None:
    values = np.array([1, 2.5, 1e6, 1e-9, 0, -0.0], np.float32)
    tensor = LazyTensor.contiguous("w", dtype("f32"), (2, 3), MemoryBytes(values.tobytes()), 0)
    cast = CastTo(dtype("f16"))(Checkpoint({"w": tensor}, SOURCE))["w"]
    tally: dict[str, int] = {}
    assert b"".join(block.tobytes() for block in cast.blocks(8, tally)) == np.float16([1, 2.5, np.inf, 0, 0, -0.0]).tobytes()
    assert tally == {"overflow": 1, "underflow": 1}
    assert cast.array().shape == (2, 3)
    packed = LazyTensor.contiguous("q", dtype("f4"), (2, 2), MemoryBytes(bytes([0x21, 0xF7])), 0)
    decoded = CastTo(dtype("f32"))(Checkpoint({"q": packed}, SOURCE))["q"]
    assert decoded.array().tolist() == [[0.5, 1], [6, -6]]
    odd = LazyTensor.contiguous("q", dtype("f4"), (3,), MemoryBytes(bytes(2)), 0)
    assert codes(CastTo(dtype("f32"))(Checkpoint({"q": odd}, SOURCE))) == ["not-cast"]


def test_ties_survive() -> None:
    tensor = LazyTensor.contiguous("a", dtype("f32"), (2,), Unread(bytes(8)), 0)
    given = Checkpoint({"m.a": tensor.renamed("m.a"), "m.b": tensor.renamed("m.b")}, SOURCE)
    found = Convert(strip_prefix="m.", renames=(Rename("b", "z"),), dtype=dtype("f16"))(given)
    assert found.tied() == [["a", "z"]]


def test_convert_is_its_steps_in_order() -> None:
    given = checkpoint("m.a/k" + TF_SUFFIX, "m.b", "n")
    convert = Convert(("m.*", "m.a/*"), ("m.b",), True, "m.", (Rename("^a", "A"),), dtype("f16"))
    found = convert(given)
    assert [(key, tensor.dtype.name) for key, tensor in found.items()] == [("A/k", "f16")]
    assert [type(step).__name__ for step in found.history] == ["Select", "ShortKeys", "StripPrefix", "RenameKeys", "CastTo"]
    assert pickle.loads(pickle.dumps(convert)) == convert
    assert Convert()(given) is given
    assert replace(convert, dtype=None) != convert


def test_nothing_but_a_cast_needs_numpy() -> None:
    code = "import sys, wtool.ops.convert, wtool.analysis.digest, wtool.analysis.stats; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
