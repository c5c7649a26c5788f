"""`wtool prune` and `wtool apply-mask` as people and scripts use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from test_cli_contract import answer

from wtool.api import open_checkpoint, save_checkpoint
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import dtype
from wtool.tensor import LazyTensor

Captured = pytest.CaptureFixture[str]


def write(path: Path, values: dict[str, Any]) -> Path:
    tensors = {}
    for key, value in values.items():
        array = np.asarray(value)
        row = dtype("bf16" if array.dtype == ml_dtypes.bfloat16 else array.dtype.name)
        tensors[key] = LazyTensor.contiguous(key, row, array.shape, MemoryBytes(array.tobytes()), 0)
    save_checkpoint(Checkpoint(tensors, Source(str(path), "torch", "zip", ())), path)
    return path


def random(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    values = {f"h.{n}.{name}.weight": random(n, 20, 30) * (n + 1) for n in range(4) for name in "qk"}
    values |= {"h.0.ln.weight": np.ones(30, "f4"), "wte.weight": random(9, 50, 30), "ids": np.array(3, "i8")}
    return write(tmp_path / "m.safetensors", values)


def good(capsys: Captured, *argv: object, code: int = 0) -> dict[str, Any]:
    got, out, err = answer(capsys, *argv, "--json")
    assert got == code, err
    found: dict[str, Any] = json.loads(out)
    return found


def bad(capsys: Captured, *argv: object) -> dict[str, Any]:
    code, out, err = answer(capsys, *argv, "--json")
    assert (code, out) == (2, "")
    found: dict[str, Any] = json.loads(err)
    return found


def arrays(path: str | Path) -> dict[str, Any]:
    return {key: tensor.array() for key, tensor in open_checkpoint(path).items()}


@pytest.mark.parametrize("target", ["o.safetensors", "o.pth", "o.ckpt", "o/"])
def test_prune_writes_what_the_report_says(model: Path, capsys: Captured, target: str) -> None:
    before, data = arrays(model), good(capsys, "prune", model, target, "--sparsity", 0.9)
    assert data["schema"] == "wtool.prune/1" and next(iter(data)) == "schema"
    assert (data["weights"], data["zeros"], data["sparsity"], data["failed"]) == (4800, 4320, 0.9, [])
    after = {key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE"): value for key, value in arrays(target.rstrip("/")).items()}
    assert set(after) == set(before)
    rows = {row["key"]: row for row in data["tensors"]}
    for key, value in before.items():
        zeros = np.count_nonzero(after[key] == 0)
        if rows[key]["pruned"]:
            assert zeros == rows[key]["zeros"] and (after[key][after[key] != 0] == value[after[key] != 0]).all()
        else:
            assert (after[key] == value).all() and rows[key]["why"]
    assert rows["wte.weight"]["why"] == "an embedding" and rows["ids"]["why"] == "i64: no weights"
    pruned = [key for key, row in rows.items() if row["pruned"]]
    kept = sum(float((after[key].astype("f8") ** 2).sum()) for key in pruned)
    assert data["energy"] == pytest.approx(
        kept / sum(float((before[key].astype("f8") ** 2).sum()) for key in pruned), rel=1e-5
    )
    assert [row["layer"] for row in data["layers"]] == ["h.0", "h.1", "h.2", "h.3"]
    assert sum(row["zeros"] for row in data["layers"]) == 4320


@pytest.mark.parametrize("scope", ["global", "layer", "tensor"])
@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_the_bytes_depend_on_nothing_but_the_question(model: Path, capsys: Captured, scope: str, method: str) -> None:
    more = ["--sparsity", 0.7, "--scope", scope, "--method", method]
    good(capsys, "prune", model, "a.safetensors", *more, "--jobs", 1)
    good(capsys, "prune", model, "b.safetensors", *more, "--jobs", 3, "--memory", "1MB")
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    good(capsys, "convert", model, "m.pth")
    good(capsys, "prune", "m.pth", "c.safetensors", *more)
    after, again = arrays("a.safetensors"), arrays("c.safetensors")
    assert all((after[key] == again[key]).all() for key in after)


def test_a_dry_run_writes_nothing(model: Path, capsys: Captured) -> None:
    data = good(capsys, "prune", model, "o.safetensors", "--sparsity", 0.5, "-n", "--mask-out", "k.safetensors")
    assert (data["dry_run"], data["zeros"], data["energy"]) == (True, 2400, None)
    assert sorted(path.name for path in Path().iterdir()) == ["m.safetensors"]


def test_rounds_of_a_lottery_ticket(model: Path, capsys: Captured) -> None:
    write(Path("init.safetensors"), {key: value * 0 + 7 for key, value in arrays(model).items()})
    gone, mask = 0, []
    for number in range(3):
        data = good(
            *(capsys, "prune", model, f"r{number}.safetensors", "--sparsity", 0.2, "--mask-out", f"k{number}.safetensors"),
            *("--rewind", "init.safetensors", *mask),
        )
        gone += round(0.2 * (4800 - gone))
        assert data["zeros"] == gone
        mask = ["--mask", f"k{number}.safetensors", "--of-remaining"]
        after = arrays(f"r{number}.safetensors")
        assert sum(np.count_nonzero(after[key] == 0) for key in after if key.startswith("h.") and "ln" not in key) == gone
        assert (after["wte.weight"] == 7).all() and (after["h.3.q.weight"] != 0).any()
    assert Path("k2.safetensors").stat().st_size < 4800 // 8 + 3000
    good(capsys, "apply-mask", model, "k2.safetensors", "t.safetensors")
    trained, ticket = arrays("t.safetensors"), arrays("r2.safetensors")
    assert all(((trained[key] == 0) == (ticket[key] == 0)).all() for key in trained if key.startswith("h."))
    kept = good(capsys, "prune", model, "s.safetensors", "--sparsity", 0.2, "--rewind", "init.safetensors", "--rest", "source")
    assert kept["zeros"] == 960 and (arrays("s.safetensors")["wte.weight"] == arrays(model)["wte.weight"]).all()
    over = bad(capsys, "prune", model, "x.safetensors", "--sparsity", 0.2, "--mask", "k2.safetensors")
    assert "--of-remaining" in over["hint"] and not Path("x.safetensors").exists()


def test_masks_of_tied_tensors_go_with_one_of_them(model: Path, capsys: Captured) -> None:
    value = random(1, 8, 8)
    one = LazyTensor.contiguous("a.weight", dtype("f32"), (8, 8), MemoryBytes(value.tobytes()), 0)
    tied = Checkpoint({"a.weight": one, "b.weight": one.renamed("b.weight")}, Source("t", "torch", "zip", ()))
    save_checkpoint(tied, "t.pth")
    data = good(capsys, "prune", "t.pth", "o.pth", "--sparsity", 0.5, "--mask-out", "k.safetensors")
    assert (data["weights"], data["zeros"], data["tied"]) == (64, 32, [["a.weight", "b.weight"]])
    again = good(capsys, "apply-mask", "t.pth", "k.safetensors", "p.pth")
    assert (again["weights"], again["zeros"]) == (64, 32) and list(arrays("k.safetensors")) == ["a.weight"]
    assert all(row["pruned"] and row["zeros"] == 32 for row in again["tensors"])


def test_limits(model: Path, capsys: Captured) -> None:
    data = good(capsys, "prune", model, "o.safetensors", "--sparsity", 0.6, "--at-most", "h.0.**=0.3", "--at-most", "0.7")
    layers = {row["layer"]: row["sparsity"] for row in data["layers"]}
    assert layers["h.0"] == 0.3 and max(layers.values()) <= 0.7 and data["zeros"] == 2880
    assert "limits let" in bad(capsys, "prune", model, "p.safetensors", "--sparsity", 0.8, "--at-most", "0.7")["message"]


@pytest.mark.parametrize(
    ("check", "code"),
    [
        ("sparsity<0.9", 0),
        ("sparsity<90.1%", 1),
        ("energy>99%", 0),
        ("energy < 1", 1),
        ("any.sparsity>0.9", 1),
        ("any.energy>0.99", 0),
    ],
)
def test_fail_if(model: Path, capsys: Captured, check: str, code: int) -> None:
    data = good(capsys, "prune", model, "o.safetensors", "--sparsity", 0.9, "--fail-if", check, code=code)
    assert data["failed"] == [check] * code and Path("o.safetensors").exists()


def test_nan(model: Path, capsys: Captured) -> None:
    values = random(1, 10, 10)
    values[0, 0] = np.nan
    write(Path("nan.pth"), {"a.weight": values})
    found = bad(capsys, "prune", "nan.pth", "o.pth", "--sparsity", 0.5)
    assert found["code"] == "not-finite" and "'a.weight'" in found["message"] and "--on-nan keep" in found["hint"]
    assert not Path("o.pth").exists()
    data = good(capsys, "prune", "nan.pth", "o.pth", "--sparsity", 0.5, "--on-nan", "keep")
    assert data["zeros"] == round(0.5 * 99) and 0 < data["energy"] < 1
    assert np.isnan(arrays("o.pth")["a.weight"][0, 0])


def test_onto_itself(model: Path, capsys: Captured) -> None:
    good(capsys, "prune", model, "o.safetensors", "--sparsity", 0.5)
    good(capsys, "prune", model, model, "--sparsity", 0.5, "--force", "--mask-out", "k.safetensors")
    assert Path("o.safetensors").read_bytes() == model.read_bytes()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--sparsity", "1.5"], "1.5"),
        (["--sparsity", "0.5", "--scope", "model"], "no scope 'model'"),
        (["--sparsity", "0.5", "--method", "l2"], "no method 'l2'"),
        (["--sparsity", "0.5", "--seed", "1"], "--seed is for"),
        (["--sparsity", "0.5", "--of-remaining"], "needs --mask"),
        (["--sparsity", "0.5", "--rest", "source"], "needs --rewind"),
        (["--sparsity", "0.5", "--at-most", "h.0=x"], "no limit"),
        (["--sparsity", "0.5", "--at-most", "wte.**=0.5"], "no tensor that is pruned"),
        (["--sparsity", "0.5", "--include", "nothing"], "no key matches"),
        (["--sparsity", "0.5", "--exclude", "**"], "no tensor is to be pruned"),
        (["--sparsity", "0.5", "--fail-if", "size<3"], "no comparison"),
        (["--sparsity", "0.5", "--fail-if", "energy<3", "-n"], "not with --dry-run"),
        (["--sparsity", "0.5", "--mask", "m.safetensors"], "holds no masks"),
        (["--sparsity", "0.5", "--mask-out", "o.safetensors"], "itself"),
        ([], "how many"),
        (["--sparsity", "0.5", "--pattern", "2:4"], "goes with no --sparsity"),
        (["--pattern", "2:4", "--structure", "row"], "goes with no --structure"),
        (["--pattern", "2:4", "--scope", "tensor"], "has no --scope"),
        (["--pattern", "4:4"], "no pattern"),
        (["--pattern", "2:4", "--method", "random"], "goes with neither"),
        (["--pattern", "2:4"], "no multiple of 4"),
        (["--pattern", "2:4", "-n"], "no multiple of 4"),
        (["--structure", "row"], "needs --sparsity"),
        (["--structure", "filter", "--sparsity", "0.5"], "no tensor is to be pruned"),
        (["--structure", "head", "--sparsity", "0.5"], "unknown structure"),
        (["--sparsity", "0.5", "--norm", "l1"], "--norm is for"),
    ],
)
def test_usage(model: Path, capsys: Captured, argv: list[str], words: str) -> None:
    assert words in bad(capsys, "prune", model, "o.safetensors", *argv)["message"]
    assert sorted(path.name for path in Path().iterdir()) == ["m.safetensors"]


def test_patterns(model: Path, capsys: Captured) -> None:
    data = good(capsys, "prune", model, "o.safetensors", "--pattern", "2:3", "--mask-out", "k.safetensors")
    assert (data["zeros"], data["asked"]) == (1600, {"method": "magnitude", "pattern": "2:3"})
    before, after = arrays(model), arrays("o.safetensors")
    for row in data["tensors"]:
        if row["pruned"]:
            threes = np.abs(before[row["key"]]).reshape(-1, 3)
            expected = np.where(threes == threes.min(1, keepdims=True), 0, before[row["key"]].reshape(-1, 3))
            assert (after[row["key"]].reshape(-1, 3) == expected).all()
    good(capsys, "apply-mask", model, "k.safetensors", "p.safetensors")
    assert all((after[key] == value).all() for key, value in arrays("p.safetensors").items())


@pytest.mark.parametrize(("scope", "rows"), [("tensor", [10] * 8), ("layer", [20] * 4), ("global", [80])])
def test_structures(model: Path, capsys: Captured, scope: str, rows: list[int]) -> None:
    more = ["--structure", "row", "--sparsity", 0.5, "--scope", scope]
    data = good(capsys, "prune", model, "o.safetensors", *more)
    dead = {key: (value == 0).all(1) for key, value in arrays("o.safetensors").items() if value.ndim == 2}
    counts = [int(dead[row["key"]].sum()) for row in data["tensors"] if row["pruned"]]
    assert [sum(counts[at : at + 8 // len(rows)]) for at in range(0, 8, 8 // len(rows))] == rows
    assert data["zeros"] == 2400 and data["asked"]["structure"] == "row" and data["asked"]["norm"] == "l2"
    blocks = good(capsys, "prune", model, "b.safetensors", "--structure", "block:5x3", "--norm", "l1", "--sparsity", 0.25)
    assert blocks["zeros"] == 1200


def test_text(model: Path, capsys: Captured) -> None:
    code, out, _ = answer(capsys, "prune", model, "o.safetensors", "--sparsity", 0.9, "--report", "r.json")
    assert "2 tensors are zero throughout, such as h.0.k.weight" in out
    assert code == 0 and "4,320 of 4,800 weights, 0.9" in out and "an embedding" in out
    assert json.loads(Path("r.json").read_text())["zeros"] == 4320
    metadata = json.loads(open_checkpoint("o.safetensors").metadata["wtool.prune"])
    assert metadata == {"method": "magnitude", "sparsity": 0.9, "scope": "global"}
