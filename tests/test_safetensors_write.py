"""Writing safetensors: byte for byte what the official library writes, and what it loads again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as save_numpy
from sinks import write_plainly

from wtool.adapter import SaveRequest, probe
from wtool.bytesource import MemoryBytes
from wtool.dtypes import BY_SAFETENSORS, dtype
from wtool.errors import KeyClashError, LimitError, UnsupportedError, WtoolError
from wtool.formats.safetensors import ADAPTER, read_header
from wtool.formats.safetensors_header import render
from wtool.tensor import LazyTensor, TensorSpec

NUMPY = ["f64", "f32", "f16", "i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8", "bool", "c64"]
keys = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(["a", "b", "a.b", "a\"b\\", "\x00\x1f\x7f", "é", "\U0001f600", "\uffff"]),
).filter(lambda key: key != "__metadata__")  # fmt: skip
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def lazy(key: str, array: Any) -> LazyTensor:
    name = dtype(str(array.dtype))
    return LazyTensor.contiguous(key, name, array.shape, MemoryBytes(array.tobytes()), 0)


def written(tensors: dict[str, LazyTensor], path: Path, **options: Any) -> bytes:
    specs = tuple(tensor.spec for tensor in tensors.values())
    [file] = write_plainly(ADAPTER.create(SaveRequest(str(path), specs, **options)), tensors, path)
    return Path(file).read_bytes()


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(keys, st.tuples(st.sampled_from(NUMPY), shapes), max_size=6), st.booleans())
def test_the_bytes_are_the_librarys(tmp_path_factory: pytest.TempPathFactory, table: dict[str, Any], tagged: bool) -> None:
    arrays = {}
    for number, (key, (name, shape)) in enumerate(table.items()):
        arrays[key] = np.asarray(np.arange(number, number + math.prod(shape)).reshape(shape).astype(dtype(name).numpy()))
    metadata = {"format": "np"} if tagged else {}
    path = tmp_path_factory.mktemp("w") / "x.safetensors"
    found = written({key: lazy(key, array) for key, array in arrays.items()}, path, metadata=metadata)
    assert found == save_numpy(arrays, metadata or None)


def test_the_bytes_are_torchs_for_every_dtype(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    rows = [row for row in BY_SAFETENSORS.values() if row.torch]
    state = {}
    for row in rows:
        for shape in [(), (3,), (0, 2), (2, 5)]:
            raw = torch.arange(math.prod(shape) * row.itemsize, dtype=torch.uint8) % 2
            key = f"{len(state) % 7}.{row.name}.{len(shape)}"
            state[key] = raw.view(getattr(torch, row.torch)).reshape(shape) if raw.numel() else raw.new_empty(shape).to(
                getattr(torch, row.torch)
            )  # fmt: skip
    path = tmp_path / "torch.safetensors"
    save_file(state, path, metadata={"format": "pt"})
    checkpoint = ADAPTER.open(probe(path))
    assert set(checkpoint.tensors) == set(state)
    shuffled = dict(sorted(checkpoint.tensors.items(), key=lambda item: hash(item[0])))
    assert written(shuffled, tmp_path / "ours.safetensors", metadata=checkpoint.metadata) == path.read_bytes()


def test_packed_dtypes_are_as_the_library_writes_them(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save

    if not hasattr(torch, "float4_e2m1fn_x2"):
        pytest.skip("this torch has no f4")
    stored = torch.arange(6, dtype=torch.uint8).view(torch.float4_e2m1fn_x2).reshape(2, 3)
    ours = LazyTensor.contiguous("w", dtype("f4"), (2, 6), MemoryBytes(bytes(range(6))), 0)
    path = tmp_path / "x.safetensors"
    assert written({"w": ours}, path) == save({"w": stored})
    [found] = ADAPTER.judge(str(path))
    assert (found.key, found.dtype, found.array.tobytes()) == ("w", "f4", bytes(range(6)))


def test_several_entries_of_metadata_stand_in_order(tmp_path: Path) -> None:
    # The library walks a hash map: the same content, another order each time.
    tensors = {"w": lazy("w", np.ones(2, np.float32))}
    metadata = {"z": "é\n", "a": '"', "format": "pt"}
    found = written(tensors, tmp_path / "x.safetensors", metadata=metadata)
    oracle = save_numpy({"w": np.ones(2, np.float32)}, metadata)
    assert len(found) == len(oracle)
    length = int.from_bytes(found[:8], "little")
    assert json.loads(found[8 : 8 + length]) == json.loads(oracle[8 : 8 + length])
    assert list(json.loads(found[8 : 8 + length])["__metadata__"]) == ["a", "format", "z"]


def tied_model(torch: Any) -> Any:
    class Model(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(5, 4)
            self.body = torch.nn.Linear(4, 4)
            self.a_head = torch.nn.Linear(4, 5, bias=False)
            self.a_head.weight = self.embed.weight
            self.third = torch.nn.Linear(4, 5, bias=False)
            self.third.weight = self.embed.weight

    return Model()


def test_tied_tensors_are_kept_as_save_model_keeps_them(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, load_model, save_model

    model = tied_model(torch)
    save_model(model, str(tmp_path / "theirs.safetensors"))
    arrays = {key: value.numpy() for key, value in model.state_dict().items()}
    tensors = {key: lazy(key, array) for key, array in arrays.items()}
    tied = {"a_head.weight": "embed.weight", "third.weight": "embed.weight"}
    path = tmp_path / "ours.safetensors"
    ours = written(tensors, path, tied=tied)
    theirs = (tmp_path / "theirs.safetensors").read_bytes()
    length = int.from_bytes(ours[:8], "little")
    assert int.from_bytes(theirs[:8], "little") == length
    assert json.loads(ours[8 : 8 + length]) == json.loads(theirs[8 : 8 + length])
    assert ours[8 + length :] == theirs[8 + length :]

    assert set(load_file(path)) == {"a_head.weight", "body.weight", "body.bias"}
    fresh = tied_model(torch)
    load_model(fresh, str(path))
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key

    checkpoint = ADAPTER.open(probe(path))
    assert set(checkpoint.tensors) == set(arrays)
    assert [set(group) for group in checkpoint.tied()] == [{"a_head.weight", "embed.weight", "third.weight"}]
    assert not checkpoint.metadata
    judged = {found.key: found.array for found in ADAPTER.judge(str(path))}
    assert judged.keys() == arrays.keys()
    assert all(np.array_equal(judged[key], arrays[key]) for key in arrays)
    again = written(dict(checkpoint.tensors), tmp_path / "again.safetensors", tied={"third.weight": "embed.weight",
                    "a_head.weight": "embed.weight"})  # fmt: skip
    assert again == ours


def test_aliases_that_are_no_specs_tie_to_the_tensor_they_name(tmp_path: Path) -> None:
    tensors = {"z": lazy("z", np.ones(2, np.float32))}
    found = written(tensors, tmp_path / "x.safetensors", tied={"a": "z"})
    assert b'"__metadata__":{"a":"z"}' in found


def request(specs: list[TensorSpec], **options: Any) -> SaveRequest:
    return SaveRequest("x.safetensors", tuple(specs), **options)


W = TensorSpec("w", dtype("f32"), (2,))


@pytest.mark.parametrize(
    ("asked", "kind", "text"),
    [
        (request([TensorSpec("__metadata__", dtype("f32"), (2,))]), UnsupportedError, "__metadata__"),
        (request([TensorSpec("w", dtype("c128"), (2,))]), UnsupportedError, "no dtype c128"),
        (request([TensorSpec("w", dtype("f4"), (3,))]), UnsupportedError, "whole bytes"),
        (request([TensorSpec("\ud800", dtype("f32"), (2,))]), UnsupportedError, "UTF-8"),
        (request([W], metadata={"x": "\udc00"}), UnsupportedError, "UTF-8"),
        (request([W], metadata={"v": "mine"}, tied={"v": "w"}), KeyClashError, "'v'"),
        (request([W], tied={"format": "w"}), KeyClashError, "'format'"),
        (request([W], metadata={"x": "y" * 100_000_000}), LimitError, "allows 100000000"),
    ],
)
def test_what_the_format_cannot_say_is_an_error(asked: SaveRequest, kind: type[WtoolError], text: str) -> None:
    with pytest.raises(kind) as caught:
        ADAPTER.create(asked)
    assert text in caught.value.message
    assert caught.value.path == "x.safetensors"


def test_every_dtype_that_it_declares_can_be_written_and_no_other() -> None:
    for name in ADAPTER.capabilities.dtypes:
        header, _ = render([TensorSpec("w", dtype(name), (4,))])
        row = dtype(name)
        assert [key for key, _ in deserialize(header + bytes(row.nbytes(4)))] == ["w"]
    with pytest.raises(SafetensorError):
        deserialize(b"\x02" + bytes(7) + b"{}x")


def test_the_judge_reads_every_dtype_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wtool.formats.safetensors._has_torch", lambda: False)
    tensors = {
        row.name: LazyTensor.contiguous(row.name, row, (2, 2), MemoryBytes(bytes(range(1, 1 + row.nbytes(4)))), 0)
        for row in BY_SAFETENSORS.values()
        if row.name != "bool"
    }
    path = tmp_path / "x.safetensors"
    written(tensors, path)
    judged = {found.key: found for found in ADAPTER.judge(str(path))}
    assert judged.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert judged[key].dtype == key
        assert judged[key].array.dtype == tensor.dtype.numpy()
        assert judged[key].array.tobytes() == tensor.array().tobytes()


def test_offsets_are_those_of_the_file() -> None:
    header, places = render([W, TensorSpec("a", dtype("f64"), (1,))])
    assert [(spec.key, at - len(header)) for spec, at in places] == [("a", 0), ("w", 8)]
    assert len(header) % 8 == 0
    again = read_header(MemoryBytes(header + bytes(16))).tensors
    assert {key: tensor.span.offset for key, tensor in again.items()} == {spec.key: at for spec, at in places}  # type: ignore[union-attr]
