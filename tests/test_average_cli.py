"""`wtool average` as people and scripts use it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli_contract import answer

from wtool.api import open_checkpoint, save_checkpoint
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import dtype
from wtool.tensor import LazyTensor

Captured = pytest.CaptureFixture[str]
FIXTURES = Path(__file__).parent.parent / "fixtures"


def write(path: Path, **values: Any) -> Path:
    """A checkpoint of arrays; the suffix says the format."""
    tensors = {}
    for key, value in values.items():
        array = np.asarray(value)
        row = dtype(array.dtype.name)
        tensors[key] = LazyTensor.contiguous(key, row, array.shape, MemoryBytes(array.tobytes()), 0)
    path.parent.mkdir(exist_ok=True)
    save_checkpoint(
        Checkpoint(tensors, Source(str(path), "torch", "zip", ())), path, to="torch" if path.suffix == ".ckpt" else None
    )
    return path


def f32(*values: float) -> Any:
    return np.array(values, "f4")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three checkpoints in three formats."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("step1.safetensors", "step2.pth", "step3.ckpt")):
        value = float(number)
        write(tmp_path / name, w=f32(value, 2 * value), n=np.array(5, "i8"), head=f32(value))
    return tmp_path


def good(capsys: Captured, *argv: object) -> dict[str, Any]:
    code, out, err = answer(capsys, "average", *argv, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def bad(capsys: Captured, *argv: object) -> dict[str, Any]:
    before = sorted(os.listdir())
    code, out, err = answer(capsys, "average", *argv, "--json")
    assert (code, out) == (2, ""), err
    assert sorted(os.listdir()) == before
    found: dict[str, Any] = json.loads(err.splitlines()[-1])
    return found


def values(path: str | Path, key: str = "w") -> list[float]:
    found: list[float] = open_checkpoint(path)[key].array().tolist()
    return found


def test_formats_together(folder: Path, capsys: Captured) -> None:
    data = good(capsys, "step*", "-o", "out.safetensors")
    assert next(iter(data)) == "schema" and data["schema"] == "wtool.average/1"
    assert [row["path"] for row in data["inputs"]] == ["step1.safetensors", "step2.pth", "step3.ckpt"]
    assert [row["step"] for row in data["inputs"]] == [1, 2, 3]
    assert values("out.safetensors") == [1.0, 2.0] and values("out.safetensors", "n") == 5
    assert data["policies"] == {"equal": 1, "mean": 2} or data["policies"] == {"mean": 2, "equal": 1}
    assert data["inputs"][1]["distance"] == 0.0 and data["inputs"][0]["distance"] == data["inputs"][2]["distance"] > 0
    assert not data["dry_run"] and data["read"] == 3 * 20
    for out in ("out.pth", "shards/", "tf"):
        good(capsys, "step1.safetensors", "step2.pth", "-o", out, *(("--to", "tensorflow") if out == "tf" else ()))
        assert values(out.rstrip("/")) == [0.5, 1.0]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--weights", "1,1,2"], [1.25, 2.5]),
        (["--method", "swa"], [1.0, 2.0]),
        (["--method", "ema", "--decay", "0.5"], [0.25 + 1.0, 0.5 + 2.0]),
        (["--method", "task", "--base", "step2.pth"], [1.0, 2.0]),
        (["--method", "task", "--base", "step1.safetensors", "--scale", "0.5"], [1.5, 3.0]),
        (["--last", "2"], [1.5, 3.0]),
        (["--max-step", "2"], [0.5, 1.0]),
        (["--method", "lerp", "--t", "0.25", "--last", "2"], [1.25, 2.5]),
        (["--method", "slerp", "--t", "0.25", "--last", "2"], [1.25, 2.5]),
        (["--method", "model-stock", "--base", "step1.safetensors", "--last", "2"], [1.5, 3.0]),
        (["--best", "2", "--metric", "step([0-9.]+)", "--lower"], [0.5, 1.0]),
        (["--rule", "w=last"], [2.0, 4.0]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_methods(folder: Path, capsys: Captured, options: list[str], wanted: list[float]) -> None:
    plan = good(capsys, "step*", "-o", "out.safetensors", *options, "-n")
    assert plan["dry_run"] and not Path("out.safetensors").exists()
    data = good(capsys, "step*", "-o", "out.safetensors", *options)
    assert values("out.safetensors") == wanted
    for name in ("inputs", "policies", "bytes", "read", "recipe", "files"):
        ours = [{**row, "distance": None, "outlier": False} for row in data[name]] if name == "inputs" else data[name]
        assert plan[name] == ours
    again = good(capsys, "--recipe", "out.safetensors", "-o", "again.safetensors")
    assert Path("again.safetensors").read_bytes() == Path("out.safetensors").read_bytes()
    assert again["recipe"] == data["recipe"]


MISUSE: list[tuple[list[str], str, str]] = [
    (["a.pth", "b.pth"], "not-found", "a.pth"),
    (["no*.pth"], "not-found", "glob"),
    ([], "usage", "no inputs"),
    (["step1.safetensors"], "usage", "only input"),
    (["step*", "--last", "1"], "usage", "only input"),
    (["step*", "--last", "4"], "usage", "only 3 were found"),
    (["step*", "--method", "nosuch"], "usage", "nosuch"),
    (["step*", "--method", "geometric"], "usage", "both signs"),
    (["step*", "--weights", "1,2"], "usage", "2 weights for 3"),
    (["step*", "--weights", "1,x,2"], "usage", "1,x,2"),
    (["step*", "--weights", "1,nan,2"], "usage", "finite"),
    (["step*", "--weights", "1,-2,1"], "usage", "zero"),
    (["step*", "--method", "weighted"], "usage", "--weights"),
    (["step*", "--weights", "1,1,1", "--method", "mean"], "usage", "means nothing to mean"),
    (["step*", "--t", "0.5"], "usage", "--t means nothing"),
    (["step*", "--scale", "2"], "usage", "--scale means nothing"),
    (["step*", "--compat", "paper"], "usage", "--compat means nothing"),
    (["step*", "--method", "ema"], "usage", "--decay"),
    (["step*", "--method", "ema", "--decay", "1"], "usage", "decay"),
    (["step*", "--method", "ema", "--decay", "nan"], "usage", "finite"),
    (["step*", "--method", "lerp", "--t", "0.5"], "usage", "two inputs"),
    (["step*", "--method", "slerp", "--last", "2"], "usage", "--t"),
    (["step*", "--method", "slerp", "--last", "2", "--t", "1", "--compat", "peft"], "usage", "peft"),
    (["step*", "--method", "task"], "usage", "--base"),
    (["step*", "--method", "model-stock"], "usage", "--base"),
    (["step*", "--on-mismatch", "nosuch"], "usage", "nosuch"),
    (["step*", "--on-mismatch", "base"], "usage", "--base"),
    (["step*", "--rule", "w"], "usage", "no rule"),
    (["step*", "--rule", "x=mean", "--strict"], "usage", "matches no key"),
    (["step*", "--rule", "n=base"], "usage", "base"),
    (["step*", "--dtype", "f33"], "usage", "f33"),
    (["step*", "--section", "ema"], "usage", "ema"),
    (["step*", "--include", "nosuch"], "usage", "nosuch"),
    (["step*", "--keep-extras", "--exclude", "w"], "usage", "--keep-extras"),
    (["step*", "--recipe", "step1.safetensors"], "usage", "recipe"),
    (["step*", "--recipe", "step2.pth"], "usage", "recipe"),
    (["step*", "--recipe", "nosuch"], "usage", "recipe"),
    (["step*", "--recipe", "x", "--weights", "1,1,1"], "usage", "beside"),
    (["step*", "--best", "1"], "usage", "--metric"),
    (["step*", "--memory", "-1"], "usage", "-1"),
]


@pytest.mark.parametrize(("argv", "code", "word"), MISUSE, ids=[" ".join(argv) or "nothing" for argv, _, _ in MISUSE])
def test_misuse(folder: Path, capsys: Captured, argv: list[str], code: str, word: str) -> None:
    error = bad(capsys, *argv, "-o", "out.safetensors")
    assert error["code"] == code and word in json.dumps(error)


def test_what_differs(folder: Path, capsys: Captured) -> None:
    write(folder / "x.pth", w=f32(1, 2), n=np.array(6, "i8"), head=f32(1, 2), more=f32(1))
    error = bad(capsys, "step1.safetensors", "x.pth", "-o", "out.pth")
    assert error["code"] == "mismatch" and "'head' is [2]" in error["message"] and error["path"] == "x.pth"
    error = bad(capsys, "step1.safetensors", "x.pth", "-o", "out.pth", "--on-mismatch", "intersect")
    assert error["code"] == "mismatch" and "integers of 'n'" in error["message"] and "--rule" in error["hint"]
    data = good(capsys, "step1.safetensors", "x.pth", "-o", "out.pth", "--on-mismatch", "intersect", "--rule", "n=last")
    assert {row["key"]: row["policy"] for row in data["tensors"]} == {"w": "mean", "n": "last", "head": "left", "more": "left"}
    assert sorted(open_checkpoint("out.pth")) == ["n", "w"]
    assert values("out.pth", "n") == 6
    write(folder / "nan.pth", w=f32(1, np.nan), n=np.array(5, "i8"), head=f32(1))
    error = bad(capsys, "step1.safetensors", "nan.pth", "-o", "out2.pth")
    assert (error["code"], error["path"]) == ("not-finite", "nan.pth") and "'w' holds NaN" in error["message"]


def test_an_output_that_is_an_input(folder: Path, capsys: Captured) -> None:
    assert bad(capsys, "step1.safetensors", "step2.pth", "-o", "step2.pth")["code"] == "output-exists"
    good(capsys, "step1.safetensors", "step2.pth", "-o", "step1.safetensors", "--force")
    assert values("step1.safetensors") == [0.5, 1.0]
    good(capsys, "step2.pth", "step2.pth", "-o", "twice.pth")
    assert values("twice.pth") == [1.0, 2.0]


def test_a_recipe_knows_its_inputs(folder: Path, capsys: Captured) -> None:
    data = good(
        capsys, "step1.safetensors", "step2.pth", "-o", "out.pth", "--weights", "1,3", "--report", "r.json", "--digest"
    )
    assert data["recipe"]["weights"] == [1, 3] and len(data["recipe"]["inputs"][0]["digest"]) == 64
    assert good(capsys, "--recipe", "r.json", "-o", "again.pth")["recipe"]["inputs"] == [
        {name: row[name] for name in ("path", "fingerprint")} for row in data["recipe"]["inputs"]
    ]
    assert values("again.pth") == values("out.pth") == [0.75, 1.5]
    good(capsys, "step2.pth", "step3.ckpt", "--recipe", "r.json", "-o", "other.pth")
    assert values("other.pth") == [1.75, 3.5]
    error = bad(capsys, "step*", "--recipe", "r.json", "-o", "three.pth")
    assert "for 2 inputs, not 3" in error["message"]
    shutil.copy("step3.ckpt", "step2.pth")
    error = bad(capsys, "--recipe", "r.json", "-o", "changed.pth")
    assert (error["code"], error["path"]) == ("mismatch", "step2.pth")
    Path("r.json").write_text('{"recipe": {"inputs": 3}}')
    assert "malformed" in bad(capsys, "--recipe", "r.json", "-o", "changed.pth")["message"]
    Path("r.json").write_text('{"recipe": {"inputs": [], "spin": 3}}')
    assert "spin" in bad(capsys, "--recipe", "r.json", "-o", "changed.pth")["message"]


def test_the_recipe_of_an_average_of_averages_is_its_own(folder: Path, capsys: Captured) -> None:
    good(capsys, "step1.safetensors", "step2.pth", "-o", "one.safetensors")
    good(capsys, "one.safetensors", "step3.ckpt", "-o", "two.safetensors")
    kept = json.loads(open_checkpoint("two.safetensors").metadata["wtool.average"])
    assert [part["path"] for part in kept["inputs"]] == ["one.safetensors", "step3.ckpt"]
    good(capsys, "one.safetensors", "step3.ckpt", "-o", "three.pth", "--strict")  # no metadata is lost that would be told


def test_fingerprints_do_not_depend_on_the_format(folder: Path, capsys: Captured) -> None:
    assert answer(capsys, "convert", "step2.pth", "same.safetensors")[0] == 0
    data = good(capsys, "step2.pth", "same.safetensors", "step1.safetensors", "-o", "out.pth", "-n")
    one, two, three = (row["fingerprint"] for row in data["inputs"])
    assert one == two != three


def test_what_people_see(folder: Path, capsys: Captured) -> None:
    code, out, err = answer(
        capsys, "average", "step*", "-o", "out.safetensors", "-n", "--rule", "head=drop", "--rule", "z=drop"
    )
    assert code == 0 and "wtool: warning: --rule z=drop matches no key" in err
    for word in ("step1.safetensors", "would write", "would read", "memory", "drop", "--rule head=drop", "equal"):
        assert word in out
    code, out, err = answer(capsys, "average", "step*", "-o", "out.safetensors")
    assert code == 0 and "distance" in out and "wrote" in out and not err
    code, out, err = answer(capsys, "average", "step*", "-o", "out2.safetensors", "-q")
    assert (code, out, err) == (0, "", "")
    for kind in ("markdown", "html"):
        code, out, err = answer(capsys, "average", "step*", "-o", "out3.safetensors", "-n", "--format", kind)
        assert code == 0 and "step2.pth" in out


def test_an_outlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        write(tmp_path / f"{number}.pth", w=f32(1 + 0.01 * number + (number == 5) * 3, 1))
    data = good(capsys, "*.pth", "-o", "out.safetensors")
    assert [row["outlier"] for row in data["inputs"]] == [False] * 5 + [True]
    assert "5.pth lies far from the others" in answer(capsys, "average", "?.pth", "-o", "out2.pth")[1]


def test_threads_and_memory_do_not_touch_a_bit(folder: Path, capsys: Captured) -> None:
    rng = np.random.default_rng(0)
    for name in "abc":
        tensors = {f"k{n}": rng.standard_normal((300, 700)).astype("f4") for n in range(5)}
        write(folder / f"{name}.safetensors", **tensors)
    for method in (
        [],
        ["--method", "slerp", "--t", "0.3", "--last", "2"],
        ["--method", "model-stock", "--base", "a.safetensors"],
    ):
        seen = set()
        for options in (["-j", "1"], ["-j", "4"], ["-j", "3", "--memory", "1MB"]):
            data = good(capsys, "[abc].safetensors", "-o", "out.pth", "--force", *method, *options)
            seen.add((Path("out.pth").read_bytes(), str([row["distance"] for row in data["inputs"]])))
        assert len(seen) == 1


def test_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        state = {"l.weight": torch.full((2, 3), float(number)), "l.count": torch.tensor(4)}
        state["tied"] = state["l.weight"]
        optimizer = {"state": {0: {"exp_avg": torch.full((2, 3), number / 10)}}, "param_groups": [{"lr": number}]}
        torch.save(
            {"state_dict": state, "epoch": number, "optimizer_states": [optimizer], "ema": {"l.weight": torch.zeros(1)}},
            f"{number}.ckpt",
        )
    code, _, err = answer(capsys, "average", "1.ckpt", "2.ckpt", "-o", "weights.pth")
    assert code == 0 and "left out:" in err and "optimizer_states" in err and "--keep-extras" in err
    assert set(torch.load("weights.pth")) == {"l.weight", "l.count", "tied"}
    assert bad(capsys, "1.ckpt", "2.ckpt", "-o", "strict.pth", "--strict")["code"] == "loss"
    data = good(capsys, "1.ckpt", "2.ckpt", "-o", "all.ckpt", "--to", "torch", "--keep-extras", "--strict")
    assert data["losses"] == [] and data["tied"]
    found = torch.load("all.ckpt")
    assert found["epoch"] == 2 and found["optimizer_states"][0]["param_groups"] == [{"lr": 2}]
    assert found["optimizer_states"][0]["state"][0]["exp_avg"][0, 0] == torch.tensor(0.2)
    assert found["state_dict"]["l.weight"].tolist() == [[1.5] * 3] * 2
    assert found["state_dict"]["tied"].data_ptr() == found["state_dict"]["l.weight"].data_ptr()
    good(capsys, "1.ckpt", "2.ckpt", "-o", "ema.pth", "--section", "ema")
    assert set(torch.load("ema.pth")) == {"l.weight"}


def test_a_dangerous_pickle_is_called_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, ("touch pwned",)

    torch.save({"state_dict": {"w": torch.ones(2)}, "x": Evil()}, "evil.pth")
    torch.save({"state_dict": {"w": torch.zeros(2)}}, "fine.pth")
    code, _, err = answer(capsys, "average", "evil.pth", "fine.pth", "-o", "out.pth")
    assert code == 0 and "system" in err and "evil.pth" in err and not Path("pwned").exists()
    assert values("out.pth") == [0.5, 0.5]
