"""`wtool prune --store`: pruned and stored sparse by one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli_contract import answer
from test_prune_cli import Captured, arrays, bad, good, random, write

from wtool.api import open_checkpoint


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    values = {f"h.{n}.{name}.weight": random(n, 60, 90) * (n + 1) for n in range(3) for name in "qk"}
    values |= {"conv.weight": random(5, 16, 8, 3, 3), "h.0.ln.weight": np.ones(30, "f4"), "wte.weight": random(9, 50, 30)}
    return write(tmp_path / "m.safetensors", values)


WAYS: list[list[object]] = [
    ["--sparsity", 0.95],
    ["--sparsity", 0.9, "--method", "random", "--scope", "layer"],
    ["--structure", "row", "--sparsity", 0.9, "--scope", "layer"],
    ["--pattern", "1:18"],
    ["--sparsity", 0.9, "--rewind", "init.safetensors"],
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", ["auto", "bitmask", "csr"])
def test_one_command_for_two(model: Path, capsys: Captured, way: list[object], layout: str) -> None:
    """The same bytes as prune and then convert, and but for metadata the same back."""
    write(Path("init.safetensors"), {key: value[::-1].copy() * 2 for key, value in arrays(model).items()})
    dense = good(capsys, "prune", model, "dense.pth", *way)
    expected = good(capsys, "prune", model, "small.pth", *way, "--store", layout, "-n")
    assert not Path("small.pth").exists()
    data = good(capsys, "prune", model, "small.pth", *way, "--store", layout)
    assert answer(capsys, "convert", "dense.pth", "small2.pth", "--store", layout)[0] == 0
    assert [tensor.array().tobytes() for tensor in open_checkpoint("small.pth").values()] == [
        tensor.array().tobytes() for tensor in open_checkpoint("small2.pth").values()
    ]
    assert answer(capsys, "convert", "small.pth", "back.pth", "--densify")[0] == 0
    assert {key: value.tobytes() for key, value in arrays("back.pth").items()} == {
        key: value.tobytes() for key, value in arrays("dense.pth").items()
    }
    for name in ("zeros", "energy", "layers", "tensors", "modules", "dead", "dead_rows", "dead_filters", "nonzero_bytes"):
        assert data[name] == dense[name] == expected[name], name
    assert data["stored"] == expected["stored"] and data["bytes"] == expected["bytes"] < dense["bytes"]
    assert data["bytes"] == Path("small.pth").stat().st_size and data["asked"]["store"] == layout
    assert data["bytes_before"] == model.stat().st_size
    assert data["stored"]["dense_bytes"] == sum(value.nbytes for value in arrays(model).values()) > data["stored"]["bytes"]
    assert dense["stored"] is None and set(data["stored"]["tensors"]) <= {"bitmask", "csr"}


def test_the_report_and_the_metadata(model: Path, capsys: Captured) -> None:
    argv = ["prune", model, "o.safetensors", "--sparsity", 0.95, "--store", "auto", "--mask-out", "k.safetensors"]
    code, out, err = answer(capsys, *argv)
    assert code == 0 and "stored " in out and "the source has" in out and "bitmask" in out
    assert "no runtime reads that" in err
    metadata = open_checkpoint("o.safetensors").metadata
    assert json.loads(metadata["wtool.prune"])["store"] == "auto"
    assert sum(json.loads(metadata["wtool.sparse"]).values()) > 0
    # the mask has the tensors' keys, and fits what was dense before
    good(capsys, "apply-mask", model, "k.safetensors", "p.safetensors", "--store", "auto")
    assert {key: value.tobytes() for key, value in arrays("p.safetensors").items()} == {
        key: value.tobytes() for key, value in arrays("o.safetensors").items()
    }


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_bytes_depend_on_nothing_but_the_question(model: Path, capsys: Captured, jobs: int) -> None:
    more = ["--sparsity", 0.95, "--store", "auto"]
    good(capsys, "prune", model, "one.safetensors", *more, "-j", 1)
    good(capsys, "prune", model, "two.safetensors", *more, "-j", jobs, "--memory", "1MB")
    assert Path("one.safetensors").read_bytes() == Path("two.safetensors").read_bytes()


def test_nothing_sparse_enough(model: Path, capsys: Captured) -> None:
    """The tallies count once, though nothing was gained by counting."""
    dense = good(capsys, "prune", model, "a.safetensors", "--sparsity", 0.01)
    data = good(capsys, "prune", model, "b.safetensors", "--sparsity", 0.01, "--store", "csr")
    assert data["stored"]["tensors"] == {} and (data["zeros"], data["energy"]) == (dense["zeros"], dense["energy"])
    assert {key: value.tobytes() for key, value in arrays("a.safetensors").items()} == {
        key: value.tobytes() for key, value in arrays("b.safetensors").items()
    }
    assert good(capsys, "prune", model, "c.safetensors", "--sparsity", 0.9, "--store", "dense")["stored"] is None


def test_torchs_own(model: Path, capsys: Captured) -> None:
    torch = pytest.importorskip("torch")
    good(capsys, "prune", model, "dense.pth", "--sparsity", 0.95)
    data = good(capsys, "prune", model, "o.pth", "--sparsity", 0.95, "--store", "torch-csr")
    assert data["stored"]["tensors"]["torch-csr"] > 0
    dense, loaded = (torch.load(name, weights_only=True) for name in ("dense.pth", "o.pth"))
    assert sum(tensor.layout == torch.sparse_csr for tensor in loaded.values()) == data["stored"]["tensors"]["torch-csr"]
    assert all(torch.equal(tensor.to_dense(), dense[key]) for key, tensor in loaded.items())


@pytest.mark.parametrize(
    ("target", "layout", "words"),
    [
        ("o.safetensors", "zip", "there is no layout 'zip'"),
        ("o.safetensors", "torch-coo", "which safetensors does not have"),
    ],
)
def test_usage(model: Path, capsys: Captured, target: str, layout: str, words: str) -> None:
    assert words in bad(capsys, "prune", model, target, "--sparsity", 0.9, "--store", layout)["message"]
    assert sorted(path.name for path in Path().iterdir()) == ["m.safetensors"]


def dead(value: Any) -> int:
    return int((value.reshape(len(value), -1) == 0).all(1).sum())


@pytest.mark.parametrize("way", [["--sparsity", 0.97], ["--structure", "row", "--sparsity", 0.4], ["--pattern", "1:9"]])
@pytest.mark.parametrize("more", [[], ["--store", "bitmask"]])
def test_dead_rows_and_filters(tmp_path: Path, capsys: Captured, way: list[object], more: list[object]) -> None:
    """Rows that were zero before are dead too, though a pattern keeps some of their zeros; of any length."""
    values = {
        "a.b.weight": random(0, 40, 18),
        "a.c.weight": random(1, 3, 90_000),
        "a.d.weight": random(2, 5_000, 9),
        "conv.weight": random(3, 30, 2, 3, 3),
        "v.weight": random(4, 33),
    }
    values["a.b.weight"][7], values["conv.weight"][3], values["a.c.weight"][1] = 0, -0.0, 0
    write(tmp_path / "m.safetensors", values)
    data = good(capsys, "prune", tmp_path / "m.safetensors", tmp_path / "o.pth", *way)
    found = arrays(tmp_path / "o.pth")
    rows = {row["key"]: row["dead_rows"] for row in data["tensors"]}
    assert rows == {key: None if value.ndim < 2 else dead(value) for key, value in found.items()}
    assert rows["a.b.weight"] >= 1 and rows["conv.weight"] >= 1 and rows["a.c.weight"] >= 1
    assert (data["rows"], data["filters"]) == (5043, 30)
    assert data["dead_rows"] == sum(dead(found[f"a.{name}.weight"]) for name in "bcd")
    assert data["dead_filters"] == rows["conv.weight"]
    (module,) = data["modules"]
    assert module["module"] == "a" and module["dead_rows"] == data["dead_rows"]
    assert module["zeros"] == sum(row["zeros"] for row in data["tensors"] if row["key"].startswith("a."))
    code, out, _ = answer(capsys, "prune", tmp_path / "m.safetensors", tmp_path / "p.pth", *way, "--verbose")
    assert code == 0 and f"{data['dead_rows']:,} of 5,043 rows, {data['dead_filters']} of 30 filters" in out
    assert "module" in out


@pytest.mark.parametrize("layout", ["bitmask", "csr"])
@pytest.mark.parametrize("way", [["--sparsity", 0.97], ["--structure", "column", "--sparsity", 0.5], ["--pattern", "1:9"]])
def test_what_is_stored_sparse_is_pruned_as_dense(model: Path, capsys: Captured, layout: str, way: list[object]) -> None:
    """The source, and what is rewound to."""
    for name, more in (("dense.safetensors", []), ("small.safetensors", ["--store", layout])):
        good(capsys, "prune", model, name, "--sparsity", 0.9, "--mask-out", f"k-{name}", *more)
    bytes_of = []
    for name in ("dense.safetensors", "small.safetensors"):
        more = ["--mask", f"k-{name}", "--rewind", name, "--store", layout]
        good(capsys, "prune", name, f"o-{name}", *way, *more)
        code, _, err = answer(capsys, "apply-mask", name, "k-dense.safetensors", f"a-{name}")
        assert code == 0 and ("made dense first" in err) == name.startswith("small")
        bytes_of.append([Path(f"{one}-{name}").read_bytes() for one in "oak"])
    assert bytes_of[0] == bytes_of[1]


def test_torchs_sparse_tensors_are_pruned_as_dense(model: Path, capsys: Captured) -> None:
    torch = pytest.importorskip("torch")
    good(capsys, "prune", model, "dense.pth", "--sparsity", 0.95)
    good(capsys, "prune", model, "o.pth", "--sparsity", 0.95, "--store", "torch-coo")
    for name in ("dense.pth", "o.pth"):
        good(capsys, "prune", name, f"again-{name}", "--sparsity", 0.98)
    one, two = (torch.load(f"again-{name}", weights_only=True) for name in ("dense.pth", "o.pth"))
    assert list(one) == list(two) and all(torch.equal(tensor, two[key]) for key, tensor in one.items())
