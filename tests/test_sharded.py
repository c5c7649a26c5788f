"""Shards: written as huggingface_hub writes them, and read with every fault of a set told apart."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from sinks import write_plainly

from wtool.adapter import SaveRequest, probe
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint
from wtool.dtypes import dtype
from wtool.errors import (
    CorruptError,
    DuplicateTensorError,
    ForeignShardError,
    MisplacedTensorError,
    MissingShardError,
    MissingTensorError,
    TruncatedError,
    UnknownFormatError,
    UnsafeError,
    UnsupportedError,
    UsageError,
    WtoolError,
)
from wtool.formats import registry
from wtool.formats.safetensors import ADAPTER as SAFETENSORS
from wtool.formats.sharded import ADAPTER, candidates
from wtool.formats.shards import WEIGHTS, index_file, split
from wtool.sizes import format_size, parse_size
from wtool.tensor import LazyTensor, TensorSpec

INDEX = "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    return {key: np.arange(4, dtype=np.float32) + number for number, key in enumerate(["b", "a", "d", "c"])}


def lazy(table: dict[str, Any]) -> dict[str, LazyTensor]:
    return {
        key: LazyTensor.contiguous(key, dtype(str(array.dtype)), array.shape, MemoryBytes(array.tobytes()), 0)
        for key, array in table.items()
    }


def save(target: Path, table: dict[str, Any], **options: Any) -> list[str]:
    tensors = lazy(table)
    specs = tuple(tensor.spec for tensor in tensors.values())
    sink = SAFETENSORS.create(SaveRequest(os.fspath(target), specs, **options))
    return [os.path.basename(path) for path in write_plainly(sink, tensors, target)]


def read(path: Path) -> Checkpoint:
    seen = probe(path)
    assert ADAPTER.sniff(seen)
    return ADAPTER.open(seen)


def codes(checkpoint: Checkpoint) -> list[str]:
    return [warning.code for warning in checkpoint.warnings]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards and their index: b, a in the first, d, c in the second."""
    target = tmp_path / "model"
    assert save(target, arrays(), metadata={"format": "pt"}, max_shard=32, folder=True) == [ONE, TWO, INDEX]
    return target


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    table = json.loads((folder / INDEX).read_text())
    change(table)
    (folder / INDEX).write_text(json.dumps(table))


@pytest.mark.parametrize("name", [".", INDEX])
def test_a_folder_and_its_index_are_the_same_checkpoint(folder: Path, name: str) -> None:
    checkpoint = read(folder / name)
    assert list(checkpoint) == ["b", "a", "d", "c"]
    assert all(np.array_equal(checkpoint[key].array(), array) for key, array in arrays().items())
    source = checkpoint.source
    assert (source.format, source.variant, source.framework) == ("safetensors", "sharded", "PyTorch")
    assert [os.path.basename(path) for path, _ in source.files] == [INDEX, ONE, TWO]
    assert all(os.path.getsize(path) == size for path, size in source.files)
    assert checkpoint.metadata == {"format": "pt"}
    assert not checkpoint.warnings
    assert not checkpoint.extras


# ---- writing

TENSORS = st.lists(st.tuples(st.sampled_from(["float32", "int8", "float64"]), st.integers(0, 12)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(TENSORS, st.integers(1, 120), st.booleans())
def test_names_split_and_index_are_huggingface_hubs(
    tmp_path_factory: pytest.TempPathFactory, table: list[tuple[str, int]], most: int, noted: bool
) -> None:
    torch = pytest.importorskip("torch")
    hub = pytest.importorskip("huggingface_hub")
    state = {
        f"layer.{(number * 7) % 10}.{number}": torch.arange(size).to(getattr(torch, name))
        for number, (name, size) in enumerate(table)
    }
    base = tmp_path_factory.mktemp("shards")
    (base / "theirs").mkdir()
    metadata = {"note": "é"} if noted else {}
    hub.save_torch_state_dict(dict(state), base / "theirs", max_shard_size=most, metadata=dict(metadata))
    values = {key: value.numpy() for key, value in state.items()}
    save(base / "ours", values, metadata={"format": "pt", **metadata}, max_shard=most, folder=True)
    theirs = {path.name: path.read_bytes() for path in (base / "theirs").iterdir()}
    ours = {path.name: path.read_bytes() for path in (base / "ours").iterdir()}
    assert ours.keys() == theirs.keys()
    for name in theirs:
        if noted and len(theirs) == 1:  # two entries of metadata: the library leaves their order to chance
            assert len(ours[name]) == len(theirs[name])
        else:
            assert ours[name] == theirs[name], name
    assert {key: tensor.shape for key, tensor in read(base / "ours").tensors.items()} == {
        key: value.shape for key, value in values.items()
    }


def test_ties_across_shards_are_kept_as_huggingface_hub_keeps_them(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    hub = pytest.importorskip("huggingface_hub")
    weight = torch.arange(6.0)
    state = {"embed": weight, "body": torch.ones(6), "a_head": weight}
    (tmp_path / "theirs").mkdir()
    hub.save_torch_state_dict(dict(state), tmp_path / "theirs", max_shard_size=24)
    values = {key: value.numpy() for key, value in state.items()}
    names = save(tmp_path / "ours", values, metadata={"format": "pt"}, tied={"a_head": "embed"}, max_shard=24, folder=True)
    assert sorted(names) == sorted(os.listdir(tmp_path / "theirs"))
    for name in names:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name
    checkpoint = read(tmp_path / "theirs")
    assert sorted(checkpoint) == ["a_head", "body", "embed"]
    assert [sorted(group) for group in checkpoint.tied()] == [["a_head", "embed"]]
    assert checkpoint.metadata == {"format": "pt"}
    assert not checkpoint.warnings
    judged = {found.key: found.array for found in SAFETENSORS.judge(str(tmp_path / "ours"))}
    assert all(np.array_equal(judged[key], values[key]) for key in values)


def test_one_shard_is_a_single_file(tmp_path: Path) -> None:
    assert save(tmp_path / "m", arrays(), folder=True) == ["model.safetensors"]
    assert save(tmp_path / "n", arrays(), folder=True, max_shard=64) == ["model.safetensors"]
    checkpoint = read(tmp_path / "m")
    assert (checkpoint.source.path, checkpoint.source.variant) == (str(tmp_path / "m"), "single")
    assert sorted(checkpoint) == ["a", "b", "c", "d"]


def test_shards_of_a_file_are_named_after_it(tmp_path: Path) -> None:
    target = tmp_path / "net.v2.safetensors"
    names = save(target, arrays(), max_shard=32)
    assert names == [
        "net.v2-00001-of-00002.safetensors",
        "net.v2-00002-of-00002.safetensors",
        "net.v2.safetensors.index.json",
    ]
    assert list(read(tmp_path / names[-1])) == ["b", "a", "d", "c"]
    assert {found.key for found in SAFETENSORS.judge(str(target))} == set("abcd")


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 40))
def test_a_split_loses_nothing_and_keeps_the_bound(sizes: list[int], most: int) -> None:
    specs = [TensorSpec(str(number), dtype("u8"), (size,)) for number, size in enumerate(sizes)]
    shards = split(specs, most, WEIGHTS)
    assert sorted((spec.key for shard in shards.values() for spec in shard), key=int) == [spec.key for spec in specs]
    for shard in shards.values():
        nbytes = [spec.nbytes for spec in shard if spec.nbytes]
        assert sum(nbytes) <= most or len(nbytes) == 1
    index = json.loads(index_file(shards, {}, WEIGHTS)[1])
    assert index["metadata"] == {"total_size": sum(sizes)}


# ---- faults


def move(folder: Path) -> None:
    os.rename(folder / ONE, folder / "x")
    os.rename(folder / TWO, folder / ONE)
    os.rename(folder / "x", folder / TWO)


def shard(folder: Path, name: str, **tensors: int) -> None:
    save_file({key: np.full(4, value, np.float32) for key, value in tensors.items()}, folder / name, {"format": "pt"})


def weight_map(**places: str) -> Callable[[dict[str, Any]], object]:
    return lambda table: table["weight_map"].update(places)


FAULTS: dict[str, tuple[Callable[[Path], object], type[WtoolError], str]] = {
    "a missing shard": (lambda folder: os.remove(folder / TWO), MissingShardError, TWO),
    "shards changed round": (move, ForeignShardError, "another checkpoint"),
    "a foreign shard": (lambda folder: shard(folder, TWO, x=1), ForeignShardError, TWO),
    "a tensor in no shard": (lambda folder: edit(folder, weight_map(z=TWO)), MissingTensorError, "'z'"),
    "a tensor in another shard": (lambda folder: edit(folder, weight_map(a=TWO)), MisplacedTensorError, "'a'"),
    "a tensor in two shards": (lambda folder: shard(folder, TWO, a=1, c=2, d=3), DuplicateTensorError, "'a'"),
    "a path up": (lambda folder: edit(folder, weight_map(a=f"../model/{ONE}")), UnsafeError, "../model"),
    "a path down": (lambda folder: edit(folder, weight_map(a=f"./{ONE}")), UnsafeError, "beside its index"),
    "an absolute path": (lambda folder: edit(folder, weight_map(a=str(folder / ONE))), UnsafeError, "beside its index"),
    "a Windows path": (lambda folder: edit(folder, weight_map(a="..\\x")), UnsafeError, "beside its index"),
    "a drive": (lambda folder: edit(folder, weight_map(a="C:x")), UnsafeError, "beside its index"),
    "the parent": (lambda folder: edit(folder, weight_map(a="..")), UnsafeError, "beside its index"),
    "no name": (lambda folder: edit(folder, weight_map(a="")), UnsafeError, "beside its index"),
    "a zero byte": (lambda folder: edit(folder, weight_map(a="x\0")), UnsafeError, "beside its index"),
    "a cut shard": (lambda folder: os.truncate(folder / TWO, 160), TruncatedError, "missing"),
    "an empty index": (lambda folder: (folder / INDEX).write_text(""), WtoolError, "empty"),
    "an index of no map": (lambda folder: edit(folder, lambda table: table.update(weight_map=[])), CorruptError, "weight_map"),
    "a map of numbers": (lambda folder: edit(folder, lambda table: table.update(weight_map={"a": 1})), CorruptError, "names"),
    "a map of nothing": (lambda folder: edit(folder, lambda table: table.update(weight_map={})), CorruptError, "no tensor"),
    "a cut index": (lambda folder: os.truncate(folder / INDEX, 90), CorruptError, "malformed"),
    "a key twice": (
        lambda folder: (folder / INDEX).write_text(f'{{"weight_map": {{"a": "{ONE}", "a": "{TWO}"}}}}'),
        UnsafeError,
        "twice",
    ),
    "a shard of text": (lambda folder: (folder / ONE).write_text("hello"), UnknownFormatError, "text"),
    "a pointer for a shard": (
        lambda folder: (folder / ONE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 7\n"),
        UnknownFormatError,
        "git lfs pull",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_set_is_one_error_that_says_why(folder: Path, name: str) -> None:
    break_it, kind, text = FAULTS[name]
    break_it(folder)
    with pytest.raises(kind) as caught:
        ADAPTER.open(probe(folder / INDEX))
    if name != "an empty index":
        assert text in caught.value.message
    assert caught.value.path
    assert "\n" not in caught.value.message


def test_every_fault_of_a_set_has_its_own_code() -> None:
    kinds = [MissingShardError, ForeignShardError, MissingTensorError, MisplacedTensorError, DuplicateTensorError, UnsafeError]
    assert len({kind.code for kind in kinds}) == len(kinds)


def test_an_extra_shard_is_a_warning(folder: Path) -> None:
    shard(folder, "model-00003-of-00003.safetensors", x=1)
    shard(folder, "other.safetensors", y=1)
    checkpoint = read(folder / INDEX)
    assert codes(checkpoint) == ["extra-shard"]
    assert "model-00003-of-00003" in checkpoint.warnings[0].message
    assert "x" not in checkpoint.tensors


def test_a_tensor_that_the_index_does_not_name_is_read_with_a_warning(folder: Path) -> None:
    shard(folder, TWO, c=1, d=2, x=3)
    edit(folder, lambda table: table["metadata"].update(total_size=80))
    checkpoint = read(folder)
    assert codes(checkpoint) == ["unindexed-tensor"]
    assert list(checkpoint) == ["b", "a", "d", "c", "x"]


@pytest.mark.parametrize(
    ("total", "found"), [(64, []), (64.0, []), (65, ["stale-total-size"]), ("64", ["stale-total-size"]), (None, [])]
)
def test_a_stale_total_size_is_a_warning(folder: Path, total: object, found: list[str]) -> None:
    edit(folder, lambda table: table["metadata"].update(total_size=total))
    assert [code for code in codes(read(folder)) if code != "metadata-differs"] == found


def test_what_an_index_says_beside_is_kept(folder: Path) -> None:
    edit(folder, lambda table: table["metadata"].update(total_parameters=16, note="x", depth=3))
    checkpoint = read(folder)
    assert checkpoint.metadata == {"format": "pt", "note": "x"}
    assert checkpoint.extras == {"depth": 3}


def test_differing_metadata_of_shards_is_a_warning(folder: Path) -> None:
    save_file({"d": np.ones(4, np.float32), "c": np.ones(4, np.float32)}, folder / TWO, {"format": "tf"})
    checkpoint = read(folder)
    assert codes(checkpoint) == ["metadata-differs"]
    assert checkpoint.metadata == {"format": "pt"}


def test_shards_without_an_index_are_put_together(folder: Path) -> None:
    os.remove(folder / INDEX)
    checkpoint = read(folder)
    assert sorted(checkpoint) == ["a", "b", "c", "d"]
    assert codes(checkpoint) == ["no-index"]
    assert checkpoint.source.variant == "sharded"
    os.remove(folder / ONE)
    with pytest.raises(MissingShardError):
        read(folder)


def test_shards_without_an_index_may_not_share_a_key(folder: Path) -> None:
    os.remove(folder / INDEX)
    shard(folder, TWO, a=1)
    with pytest.raises(DuplicateTensorError):
        read(folder)


def test_links_of_a_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, name in enumerate(sorted(os.listdir(folder))):
        os.rename(folder / name, blobs / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    assert sorted(read(snapshot)) == ["a", "b", "c", "d"]


def test_a_pipe_for_a_shard_does_not_hang(folder: Path) -> None:
    os.remove(folder / TWO)
    os.mkfifo(folder / TWO)
    with pytest.raises(WtoolError, match="pipe"):
        read(folder)


# ---- what a folder holds


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], []),
        (["config.json", "README.md", ".x.safetensors"], []),
        (["model.safetensors", "config.json", "optimizer.pt", "rng_state_0.pth"], [["model.safetensors"]]),
        (["model.safetensors", "pytorch_model.bin"], [["model.safetensors"]]),
        ([INDEX, ONE, TWO, "model.safetensors"], [[INDEX]]),
        (["model.safetensors.index.fp16.json", "model.fp16.safetensors"], [["model.safetensors.index.fp16.json"]]),
        (["diffusion_pytorch_model.safetensors"], [["diffusion_pytorch_model.safetensors"]]),
        (["a.fp16.safetensors", "a.safetensors"], [["a.fp16.safetensors"], ["a.safetensors"]]),
        ([ONE, TWO], [[ONE, TWO]]),
        ([ONE, "model-00001-of-00003.safetensors"], [[ONE], ["model-00001-of-00003.safetensors"]]),
        (["pytorch_model.bin.index.json", "x.bin"], [["pytorch_model.bin.index.json"]]),
        (["pytorch_model.bin", "training_args.bin", "scheduler.pt"], [["pytorch_model.bin"]]),
    ],
)
def test_the_candidates_of_a_folder(names: list[str], found: list[list[str]]) -> None:
    assert [list(group) for group in candidates(tuple(names))] == found


def test_several_candidates_are_listed_not_guessed(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        shard(tmp_path, name, w=1)
    with pytest.raises(UsageError, match=r"2 checkpoints: a\.safetensors, b\.safetensors"):
        read(tmp_path)


def test_other_json_is_no_index(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "bert"}')
    assert ADAPTER.sniff(probe(path)) is None


def test_shards_are_not_written_by_that_name() -> None:
    with pytest.raises(UnsupportedError):
        registry.for_target("x", "sharded")
    with pytest.raises(UnsupportedError):
        ADAPTER.create(SaveRequest("x", ()))


def test_shards_of_torch_files_are_one_checkpoint(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    hub = pytest.importorskip("huggingface_hub")
    state = {"b": torch.ones(4), "a": torch.zeros(4), "c": torch.arange(4.0)}
    hub.save_torch_state_dict(state, tmp_path, safe_serialization=False, max_shard_size=32)
    assert "pytorch_model.bin.index.json" in os.listdir(tmp_path)
    checkpoint = read(tmp_path)
    assert (checkpoint.source.format, checkpoint.source.variant) == ("torch", "sharded")
    assert {key: tensor.array().tolist() for key, tensor in checkpoint.tensors.items()} == {
        key: value.tolist() for key, value in state.items()
    }
    assert not checkpoint.warnings


# ---- sizes


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("5GB", 5 * 10**9),
        ("1.5 gb", 1_500_000_000),
        ("10MiB", 10 << 20),
        ("512", 512),
        ("2K", 2000),
        (" 1TB ", 10**12),
        ("7B", 7),
    ],
)
def test_sizes_are_read(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@given(st.integers(1, 999), st.sampled_from(["KB", "MB", "GB", "TB"]))
def test_sizes_are_huggingface_hubs(number: int, unit: str) -> None:
    base = pytest.importorskip("huggingface_hub.serialization._base")
    assert parse_size(f"{number}{unit}") == base.parse_size_to_int(f"{number}{unit}")


@pytest.mark.parametrize("text", ["", "GB", "0", "-5GB", "5XB", "nan", "inf", "1e999", "5 5", "0.1", "5GBGB"])
def test_what_is_no_size_is_an_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1_440_000_000, "1.44 GB"), (99_960_000, "100 MB"), (999_999, "1.00 MB")],
)
def test_sizes_are_shown(nbytes: int, text: str) -> None:
    assert format_size(nbytes) == text
