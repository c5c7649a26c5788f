"""torch's own sparse tensors, written to .pth: what torch loads is what torch would have made of the dense ones."""

from __future__ import annotations

import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wtool.api import open_checkpoint, plan_save
from wtool.cli.app import run
from wtool.errors import UsageError
from wtool.ops.densify import Densify
from wtool.ops.store import Store

torch = pytest.importorskip("torch")
warnings.filterwarnings("ignore", message="Sparse .* tensor support is in beta")
LAYOUTS = ["torch-coo", "torch-csr"]
DTYPES = ["float64", "float32", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool", "complex64"]


def sparse(*shape: int, dtype: Any = None, share: float = 0.97, seed: int = 0) -> Any:
    made = torch.Generator().manual_seed(seed)
    values = torch.randint(1, 100, shape, generator=made)
    values[torch.rand(shape, generator=made) < share] = 0
    return values.to(dtype or torch.float32)


def theirs(layout: str, tensor: Any) -> Any:
    if layout == "torch-coo":
        return tensor.to_sparse()
    made = tensor.to_sparse_csr()  # its columns are a view of a larger storage, which torch.save would write
    return torch.sparse_csr_tensor(made.crow_indices().clone(), made.col_indices().clone(), made.values(), made.shape)


def entries(path: Path) -> dict[str, bytes]:
    """All but the id, which torch makes from hashes of its own."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("serialization_id")}


def convert(source: Path, target: Path, *options: str) -> Any:
    assert run(["convert", str(source), str(target), "-q", "--strict", "--verify", *options]) == 0
    return torch.load(target, weights_only=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_are_those_of_torch_save(tmp_path: Path, layout: str) -> None:
    """In every dtype that torch has functions for; one row, one column; a thousand and one keys that are memoized."""
    dense = {f"m.{name}": sparse(60, 90, dtype=getattr(torch, name), seed=seed) for seed, name in enumerate(DTYPES)}
    dense |= {"row": sparse(1, 20_000), "column": sparse(20_000, 1, share=0.99), "full": torch.ones(30, 30)}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    torch.save(OrderedDict(dense), tmp_path / "m.pth")
    loaded = convert(tmp_path / "m.pth", tmp_path / "a/o.pth", "--store", layout)
    kept = {key for key, tensor in loaded.items() if tensor.layout == torch.strided}
    assert "full" in kept and len(kept) < 7 and "m.float32" not in kept
    made = OrderedDict((key, tensor if key in kept else theirs(layout, tensor)) for key, tensor in dense.items())
    torch.save(made, tmp_path / "b/o.pth")
    assert entries(tmp_path / "a/o.pth") == entries(tmp_path / "b/o.pth")
    for key, tensor in dense.items():
        assert torch.equal(loaded[key].to_dense(), tensor)
    convert(tmp_path / "m.pth", tmp_path / "again.pth", "--store", layout, "-j", "3", "--memory", "1MB")
    assert list(entries(tmp_path / "again.pth").values()) == list(entries(tmp_path / "a/o.pth").values())
    back = Densify()(open_checkpoint(tmp_path / "a/o.pth", section="all"))
    assert {key: tensor.array().tobytes() for key, tensor in back.items()} == {
        key: tensor.array().tobytes() for key, tensor in open_checkpoint(tmp_path / "m.pth").items()
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_framework_itself_verifies(tmp_path: Path, layout: str) -> None:
    torch.save({"a": sparse(80, 90), "b": torch.ones(3)}, tmp_path / "m.pth")
    argv = ["convert", str(tmp_path / "m.pth"), str(tmp_path / "o.pth"), "--store", layout, "--verify", "framework", "-q"]
    assert run(argv) == 0


def test_axes_and_dtypes(tmp_path: Path) -> None:
    """CSR is of matrices; what torch cannot make dense stays so."""
    whole = {"cube": sparse(20, 30, 8), "vector": sparse(4000), "none": torch.zeros(90, 90), "conv": sparse(8, 9, 5, 5, 2)}
    whole |= {
        "odd": sparse(80, 90).to(torch.float8_e4m3fn),
        "short": sparse(80, 90).to(torch.uint16),
        "scalar": torch.tensor(3),
    }
    whole |= {"empty": torch.zeros(0, 900)}
    torch.save(whole, tmp_path / "m.pth")
    coo = convert(tmp_path / "m.pth", tmp_path / "coo.pth", "--store", "torch-coo")
    csr = convert(tmp_path / "m.pth", tmp_path / "csr.pth", "--store", "torch-csr")
    assert [key for key in whole if coo[key].layout == torch.sparse_coo] == ["cube", "vector", "none", "conv"]
    assert [key for key in whole if csr[key].layout == torch.sparse_csr] == ["none"]
    for key, tensor in whole.items():
        if coo[key].layout == torch.strided:
            assert coo[key].dtype == tensor.dtype and torch.equal(coo[key].to(torch.float64), tensor.to(torch.float64))
        else:
            assert coo[key].is_coalesced() and torch.equal(coo[key].to_dense(), tensor)
            assert torch.equal(coo[key].indices(), tensor.to_sparse().indices())
    assert csr["none"].crow_indices().tolist() == [0] * 91 and csr["none"].values().numel() == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_ties_and_what_stands_beside(tmp_path: Path, layout: str) -> None:
    """Transposed views by value; tied tensors share their parts; the nested object and its plain values stay."""
    one, base = sparse(70, 90), sparse(90, 70, seed=1)
    torch.save({"model": {"a": one, "view": base.t(), "tied": one, "list": [sparse(64, 64)]}, "epoch": 3}, tmp_path / "m.pth")
    loaded = convert(tmp_path / "m.pth", tmp_path / "o.pth", "--store", layout, "--section", "all")
    assert loaded["epoch"] == 3 and list(loaded["model"]) == ["a", "view", "tied", "list"]
    assert torch.equal(loaded["model"]["view"].to_dense(), base.t())
    assert torch.equal(loaded["model"]["list"][0].to_dense(), sparse(64, 64)) and loaded["model"]["list"][0].is_sparse != (
        layout == "torch-csr"
    )
    assert loaded["model"]["tied"].values().data_ptr() == loaded["model"]["a"].values().data_ptr()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_computes_with_it(tmp_path: Path, layout: str) -> None:
    """As docs/sparse.md says: assigned, not copied."""
    model = torch.nn.Linear(90, 60, bias=False)
    torch.save({"weight": sparse(60, 90)}, tmp_path / "m.pth")
    loaded = convert(tmp_path / "m.pth", tmp_path / "o.pth", "--store", layout)
    with pytest.raises(RuntimeError):
        model.load_state_dict(loaded)
    model.load_state_dict(loaded, assign=True)
    assert torch.equal(model(torch.ones(2, 90)), torch.ones(2, 90) @ sparse(60, 90).T)


def test_negative_zeros_and_nans_are_values(tmp_path: Path) -> None:
    dense = sparse(70, 90)
    dense[3, 5], dense[4, 6], dense[4, 7] = -0.0, float("nan"), float("-inf")
    torch.save({"a": dense}, tmp_path / "m.pth")
    for layout in LAYOUTS:
        loaded = convert(tmp_path / "m.pth", tmp_path / f"{layout}.pth", "--store", layout)["a"]
        assert loaded.values().numel() == int(np.count_nonzero(dense.numpy().view("u4")))
        back = Densify()(open_checkpoint(tmp_path / f"{layout}.pth"))["a"]
        assert back.array().tobytes() == dense.numpy().tobytes()


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("o.safetensors", [], "which safetensors does not have"),
        ("o.ckpt", [], "which tensorflow does not have"),
        ("o.pth", ["--max-shard", "10kB"], "one file"),
    ],
)
def test_what_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, options: list[str], words: str
) -> None:
    torch.save({"a": sparse(80, 90)}, tmp_path / "m.pth")
    argv = ["convert", str(tmp_path / "m.pth"), str(tmp_path / target), "--store", "torch-csr", *options]
    assert run(argv) == 2 and words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]


def test_the_library_tells_what_is_lost(tmp_path: Path) -> None:
    from wtool.analysis.counts import count

    torch.save({"a": sparse(80, 90), "b": torch.ones(90, 90)}, tmp_path / "m.pth")
    given = open_checkpoint(tmp_path / "m.pth")
    stored = Store("torch-coo", count(given.tensors))(given)
    plan = plan_save(stored, tmp_path / "o.safetensors")
    assert [(loss.kind, loss.name) for loss in plan.losses] == [("sparse", "a")]
    with pytest.raises(UsageError):
        plan_save(stored, tmp_path / "o.pth", max_shard=10_000)


def every() -> dict[str, Any]:
    """All layouts, and values that are at one place."""
    dense = sparse(24, 36, share=0.8)
    twice = torch.sparse_coo_tensor(torch.tensor([[0, 0, 3], [1, 1, 2]]), torch.tensor([1.0, 2.0, 3.0]), (4, 5))
    return {
        "coo": dense.to_sparse(),
        "hybrid": sparse(9, 4, 3).to_sparse(1),
        "twice": twice,
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
        "bsr": dense.to_sparse_bsr((3, 4)),
        "bsc": dense.to_sparse_bsc((4, 3)),
        "none": torch.zeros(3, 4).to_sparse(),
        "plain": dense,
    }


def same(one: Any, two: Any) -> None:
    assert list(one) == list(two)
    for key, tensor in one.items():
        assert (tensor.layout, tensor.dtype, tensor.shape) == (two[key].layout, two[key].dtype, two[key].shape)
        assert torch.equal(tensor.to_dense(), two[key].to_dense())
        if tensor.layout == torch.sparse_coo:
            assert tensor.is_coalesced() == two[key].is_coalesced() and tensor._nnz() == two[key]._nnz()


@pytest.mark.parametrize("new", [True, False])
def test_what_was_sparse_stays_so(tmp_path: Path, new: bool) -> None:
    """From .pth to .pth, nested and in a list, renamed, and a section of it."""
    value = {"model": every(), "list": [sparse(9, 9).to_sparse(), 3], "epoch": 4}
    torch.save(value, tmp_path / "m.pth", _use_new_zipfile_serialization=new)
    loaded = convert(tmp_path / "m.pth", tmp_path / "o.pth", "--section", "all")
    assert list(loaded) == list(value) and loaded["epoch"] == 4 and loaded["list"][1] == 3
    same(loaded["model"], every())
    assert loaded["list"][0].is_sparse and torch.equal(loaded["list"][0].to_dense(), sparse(9, 9))
    torch.save({"module": every()}, tmp_path / "n.pth")
    same(convert(tmp_path / "n.pth", tmp_path / "p.pth", "--section", "all", "--strip-prefix", "module."), every())
    torch.save({"state_dict": every()}, tmp_path / "q.pth")
    same(convert(tmp_path / "q.pth", tmp_path / "r.pth"), every())
    half = convert(tmp_path / "q.pth", tmp_path / "s.pth", "--dtype", "f16")
    same(half, {key: tensor.to(torch.float16) for key, tensor in every().items()})


def test_parts_that_are_left(tmp_path: Path) -> None:
    """What is no longer whole is written as the tensors that are there; so are all of them where the format has none."""
    torch.save(every(), tmp_path / "m.pth")
    loaded = convert(tmp_path / "m.pth", tmp_path / "o.pth", "--exclude", "coo.values", "--exclude", "bs?.**")
    assert loaded["coo.indices"].shape == (2, every()["coo"]._nnz()) and loaded["csr"].layout == torch.sparse_csr
    assert "coo" not in loaded and "coo.values" not in loaded
    argv = ["convert", str(tmp_path / "m.pth"), str(tmp_path / "o.safetensors")]
    assert run([*argv, "--strict", "-q"]) == 2 and run([*argv, "-q"]) == 0
    assert {"coo.indices", "coo.values", "plain"} <= set(open_checkpoint(tmp_path / "o.safetensors"))
