"""`wtool diff` as people and scripts meet it: the answer, the exit code, the options, what goes wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from wtool.api import save_checkpoint
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Source
from wtool.cli.app import run
from wtool.dtypes import dtype
from wtool.tensor import LazyTensor

FIXTURES = Path(__file__).parent.parent / "fixtures"
LIGHTNING = FIXTURES / "torch" / "lightning" / "epoch=3-step=120.ckpt"
Captured = pytest.CaptureFixture[str]
Arrays = Mapping[str, Any]


def save(path: Path, arrays: Arrays, *, to: str | None = None, extras: Mapping[str, Any] | None = None, **more: Any) -> Path:
    """A checkpoint of these arrays in the format that the name says."""
    tensors = {}
    for key, array in arrays.items():
        array = np.asarray(array)
        source = MemoryBytes(array.tobytes())
        tensors[key] = LazyTensor.contiguous(key, dtype(array.dtype.name), array.shape, source, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(Checkpoint(tensors, Source("m", "torch", "zip", (("m", 1 << 30),)), **more), path, to=to)
    return path


def arrays(layers: int = 3, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    found = {"embed.weight": random.standard_normal((7, 4)).astype("f4")}
    for layer in range(layers):
        found[f"layers.{layer}.up.weight"] = random.standard_normal((6, 4)).astype("f4")
        found[f"layers.{layer}.up.bias"] = random.standard_normal(6).astype("f4")
    return found | {"norm.weight": random.standard_normal(4).astype("f4"), "steps": np.array([3, 4], "i8")}


BASE = arrays()


def moved(*keys: str, by: float = 0.01) -> dict[str, Any]:
    return {key: array + np.float32(by) if key in keys else array for key, array in BASE.items()}


def answer(capsys: Captured, *argv: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run([str(arg) for arg in argv])
    out, err = capsys.readouterr()
    return code, out, err


def diff(capsys: Captured, *argv: object) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON, which must be the only thing on stdout."""
    code, out, err = answer(capsys, "diff", *argv, "--json")
    assert code in (0, 1), err

    def refuse(text: str) -> Any:
        raise AssertionError(f"{text} is no JSON")

    return code, json.loads(out, parse_constant=refuse)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(tmp_path / "base.safetensors", BASE)


# The same weights, however they are kept

TARGETS: list[tuple[str, list[str]]] = [
    ("b.safetensors", []),
    ("b.pth", []),
    ("b.ckpt", []),
    ("shards", ["--to", "safetensors", "--max-shard", "120B"]),
    ("shards", ["--to", "torch", "--max-shard", "120B"]),
]


@pytest.mark.parametrize(("name", "options"), TARGETS, ids=["-".join((name, *more)) for name, more in TARGETS])
def test_the_same_weights_are_the_same_in_every_format(
    name: str, options: list[str], base: Path, tmp_path: Path, capsys: Captured
) -> None:
    other = tmp_path / name
    assert run(["convert", str(base), str(other), *options]) == 0
    for pair in ((base, other), (other, base), (other, other)):
        code, found = diff(capsys, *pair)
        assert (code, found["verdict"], found["same"], found["values"]) == (0, "same", len(BASE), [])
    code, out, _ = answer(capsys, "diff", base, other)
    assert (code, out.splitlines()[0][:6]) == (0, "same: ")


FIXTURE_PAIRS = [
    ("torch/plain", "safetensors/single"),
    ("torch/plain", "torch/plain/model.pth"),
    ("torch/half", "torch/half/model.pth"),
    ("tensorflow/multi_shard", "tensorflow/multi_shard/model.ckpt.index"),
    ("tensorflow/multi_shard/model.ckpt", "tensorflow/multi_shard/model.ckpt.data-00001-of-00003"),
    ("safetensors/sharded", "safetensors/sharded/model.safetensors.index.json"),
]


@pytest.mark.parametrize(("a", "b"), FIXTURE_PAIRS)
def test_what_the_frameworks_wrote_is_the_same(a: str, b: str, capsys: Captured) -> None:
    code, found = diff(capsys, FIXTURES / a, FIXTURES / b)
    assert (code, found["verdict"]) == (0, "same"), found


# What differs, and how it is told


def cast(name: str) -> dict[str, Any]:
    kinds = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f64": np.float64}
    return {key: array.astype(kinds[name]) if array.dtype == np.float32 else array for key, array in BASE.items()}


FLOATS = len(BASE) - 1
WAYS: dict[str, tuple[dict[str, Any], dict[str, int], dict[str, Any]]] = {
    # arrays of B: what counts, fields of the JSON
    "values": (moved("norm.weight"), {"values": 1}, {"same": len(BASE) - 1}),
    "an integer": (BASE | {"steps": np.array([3, 5], "i8")}, {"values": 1}, {}),
    "only in A": ({key: BASE[key] for key in BASE if key != "steps"}, {"structure": 1}, {"only_in_a": ["steps"]}),
    "only in B": (BASE | {"head": np.ones(3, "f4")}, {"structure": 1}, {"only_in_b": ["head"]}),
    "shape": (
        BASE | {"norm.weight": np.ones(5, "f4")},
        {"structure": 1},
        {"shape": [{"key": "norm.weight", "a": [4], "b": [5]}]},
    ),
    "renamed": (
        {key.replace("embed", "wte"): array for key, array in BASE.items()},
        {"structure": 1},
        {"renamed": [{"from": "embed.weight", "to": "wte.weight", "axes": None}], "only_in_a": [], "only_in_b": []},
    ),
    "transposed": (
        BASE | {"embed.weight": BASE["embed.weight"].T.copy()},
        {"structure": 1},
        {"transposed": [{"key": "embed.weight", "axes": [1, 0]}], "shape": [], "values": []},
    ),
    "renamed and transposed": (
        {key: array for key, array in BASE.items() if key != "embed.weight"} | {"wte": BASE["embed.weight"].T.copy()},
        {"structure": 1},
        {"renamed": [{"from": "embed.weight", "to": "wte", "axes": [1, 0]}]},
    ),
    "narrower": (cast("bf16"), {"dtype": FLOATS}, {"same": 1}),
    "half": (cast("f16"), {"dtype": FLOATS}, {"same": 1}),
    "wider": (cast("f64"), {"dtype": FLOATS}, {"same": len(BASE), "values": []}),
    "floats for integers": (
        BASE | {"steps": np.array([3, 4], "f4")},
        {"dtype": 1},
        {"dtype": [{"key": "steps", "a": "i64", "b": "f32"}], "values": []},
    ),
    "other floats for integers": (BASE | {"steps": np.array([3, 4.5], "f4")}, {"dtype": 1, "values": 1}, {}),
    "order": (dict(reversed(BASE.items())), {}, {"same": len(BASE)}),
}


@pytest.mark.parametrize("name", WAYS)
def test_each_way_to_differ_has_its_place(name: str, base: Path, tmp_path: Path, capsys: Captured) -> None:
    other, counted, fields = WAYS[name]
    code, found = diff(capsys, base, save(tmp_path / "b.safetensors", other))
    assert {kind: count for kind, count in found["counted"].items() if count} == counted
    assert (code, found["verdict"]) == ((1, "differs") if counted else (0, "same"))
    assert {field: found[field] for field in fields} == fields


def test_the_json_keeps_its_fields(base: Path, tmp_path: Path, capsys: Captured) -> None:
    code, found = diff(capsys, base, save(tmp_path / "b.safetensors", moved("norm.weight", by=0.5)))
    assert code == 1
    assert list(found)[:2] == ["schema", "a"]
    fields = {"verdict", "only_in_a", "only_in_b", "renamed", "shape", "dtype", "values", "same", "totals", "counted"}
    assert fields < found.keys()
    [row] = found["values"]
    assert row == {
        "key": "norm.weight",
        "max_abs": pytest.approx(0.5),
        "mean_abs": pytest.approx(0.5),
        "rel_l2": pytest.approx(1 / np.linalg.norm(BASE["norm.weight"]), rel=1e-6),
        "cosine": row["cosine"],
        "differing": 4,
        "elements": 4,
        "nonfinite": 0,
        "cast": False,
    }
    assert found["totals"]["a"] == {
        "tensors": len(BASE),
        "elements": sum(array.size for array in BASE.values()),
        "bytes": sum(array.nbytes for array in BASE.values()),
    }


def test_the_documented_fields_are_those_that_are_there(base: Path, capsys: Captured) -> None:
    _, found = diff(capsys, base, base)
    text = (FIXTURES.parent / "docs" / "json.md").read_text().partition("## diff")[2].partition("\n## ")[0]
    documented = {
        name.strip("` ") for line in text.splitlines() if line.startswith("| `") for name in line.split("|")[1].split(",")
    }
    assert documented == found.keys()


def test_nan_is_equal_to_nan_and_said_otherwise(base: Path, tmp_path: Path, capsys: Captured) -> None:
    nan = np.array([1, np.nan, np.inf, 4], "f4")
    one = save(tmp_path / "nan.safetensors", BASE | {"norm.weight": nan})
    code, found = diff(capsys, one, save(tmp_path / "same.pth", BASE | {"norm.weight": nan}))
    assert (code, found["verdict"]) == (0, "same")
    code, found = diff(capsys, base, one)
    assert code == 1
    assert [(row["key"], row["nonfinite"]) for row in found["values"]] == [("norm.weight", 2)]
    _, out, _ = answer(capsys, "diff", base, one)
    assert "warning: 2 values are NaN or infinite" in out
    assert "NaN/Inf" in out


def test_what_is_no_tensor_is_noted_and_never_counts(tmp_path: Path, capsys: Captured) -> None:
    one = save(tmp_path / "a.safetensors", BASE, metadata={"step": "1", "only": "here"})
    two = save(tmp_path / "b.safetensors", BASE, metadata={"step": "2"})
    code, found = diff(capsys, one, two)
    assert (code, found["metadata"]) == (0, [{"key": "step", "a": "1", "b": "2"}])
    assert "not counted: metadata: step 1 -> 2" in answer(capsys, "diff", one, two)[1]


def test_extras_are_noted(tmp_path: Path, capsys: Captured) -> None:
    changed = tmp_path / "b.ckpt"
    torch = pytest.importorskip("torch")
    data = {"state_dict": {"a": torch.ones(3)}, "epoch": 3, "global_step": 120, "lr": float("nan")}
    torch.save(data, tmp_path / "a.ckpt")
    torch.save(data | {"epoch": 4}, changed)
    code, found = diff(capsys, tmp_path / "a.ckpt", changed)
    assert (code, found["extras"]) == (0, [{"key": "epoch", "a": 3, "b": 4}])
    assert "epoch 3 -> 4" in answer(capsys, "diff", tmp_path / "a.ckpt", changed)[1]


def test_tied_on_one_side_only_is_noted(tmp_path: Path, capsys: Captured) -> None:
    torch = pytest.importorskip("torch")
    weight = torch.ones(3, 2)
    torch.save({"embed": weight, "head": weight}, tmp_path / "tied.pth")
    torch.save({"embed": weight, "head": weight.clone()}, tmp_path / "apart.pth")
    torch.save({"embed": weight}, tmp_path / "one.pth")
    code, found = diff(capsys, tmp_path / "tied.pth", tmp_path / "apart.pth")
    assert (code, found["tied"]) == (0, [{"in": "a", "keys": ["embed", "head"]}])
    # What was left out because it is tied is missing, unless that is ignored.
    code, out, _ = answer(capsys, "diff", tmp_path / "tied.pth", tmp_path / "one.pth")
    assert code == 1 and "1 only in A, tied to one that both have" in out
    assert diff(capsys, tmp_path / "tied.pth", tmp_path / "one.pth", "--ignore", "tied")[0] == 0
    assert diff(capsys, tmp_path / "apart.pth", tmp_path / "one.pth", "--ignore", "tied")[0] == 1


# Options

OPTIONS: list[tuple[dict[str, Any], list[str], int]] = [
    # B, options, exit code
    (cast("bf16"), [], 1),
    (cast("bf16"), ["--ignore", "dtype"], 0),
    (cast("bf16"), ["--fail-on", "structure"], 0),
    (cast("bf16"), ["--fail-on", "structure,values"], 1),
    (cast("bf16"), ["--fail-on", "structure", "--fail-on", "values"], 1),
    (cast("bf16"), ["--fail-on", "dtype"], 1),
    (cast("bf16"), ["--structure"], 1),
    (cast("bf16"), ["--structure", "--ignore", "dtype"], 0),
    (cast("bf16") | {"norm.weight": cast("bf16")["norm.weight"] * 2}, ["--ignore", "dtype"], 1),
    (cast("bf16"), ["--ignore", "dtype", "--rtol", "0.01"], 0),
    (cast("f64"), ["--ignore", "dtype"], 0),
    (cast("f64"), ["--fail-on", "values"], 0),
    (moved("norm.weight"), [], 1),
    (moved("norm.weight"), ["--exit-zero"], 0),
    (moved("norm.weight"), ["--structure"], 0),
    (moved("norm.weight"), ["--atol", "0.02"], 0),
    (moved("norm.weight"), ["--atol", "0.001"], 1),
    (moved("norm.weight"), ["--rtol", "1000"], 0),
    (moved("norm.weight"), ["--fail-on", "structure,dtype"], 0),
    (moved("norm.weight"), ["--exclude", "norm.*"], 0),
    (moved("norm.weight"), ["--include", "layers.**"], 0),
    (moved("norm.weight"), ["--include", "**.weight"], 1),
    (WAYS["renamed"][0], ["--ignore", "renamed"], 0),
    (WAYS["renamed"][0], ["--rename", "^embed=>wte"], 0),
    (WAYS["renamed"][0], ["--rename", "embed=>x", "--rename", "x=>wte"], 0),
    (WAYS["renamed"][0], ["--ignore", "transposed"], 1),
    (WAYS["transposed"][0], ["--ignore", "transposed"], 0),
    (WAYS["renamed and transposed"][0], ["--ignore", "renamed,transposed"], 0),
    (WAYS["order"][0], ["--ignore", "order"], 0),
    (WAYS["only in B"][0], ["--exclude", "head"], 0),
    (WAYS["only in B"][0], ["--include", "head"], 1),
    (WAYS["only in B"][0], ["--include", "head", "--exit-zero"], 0),
    ({f"module.{key}": array for key, array in BASE.items()}, ["--strip-prefix", "module."], 0),
    ({f"module.{key}": array for key, array in BASE.items()}, ["--strip-prefix", "module"], 0),
    ({f"_orig_mod.{key}": array for key, array in BASE.items()}, ["--rename", "^=>_orig_mod."], 0),
    ({f"module.{key}": array for key, array in BASE.items()}, ["--strip-prefix", "module.", "--include", "layers.**"], 0),
]


@pytest.mark.parametrize(("arrays", "options", "expected"), OPTIONS, ids=[" ".join(o) or "none" for _, o, _ in OPTIONS])
def test_what_options_make_of_it(
    arrays: dict[str, Any], options: list[str], expected: int, base: Path, tmp_path: Path, capsys: Captured
) -> None:
    other = save(tmp_path / "b.safetensors", arrays)
    code, found = diff(capsys, base, other, *options)
    assert code == expected
    if "--exit-zero" not in options:
        assert found["verdict"] == ("differs" if code else "same")
    for kind in ("text", "markdown", "html"):
        code, out, _ = answer(capsys, "diff", base, other, *options, "--format", kind)
        assert code == expected
        assert f"{found['verdict']}: " in out


@pytest.mark.parametrize("reverse", [False, True])
def test_a_cast_is_one_of_dtype_both_ways(reverse: bool, base: Path, tmp_path: Path, capsys: Captured) -> None:
    pair = [base, save(tmp_path / "b.safetensors", cast("bf16"))]
    code, found = diff(capsys, *(reversed(pair) if reverse else pair))
    assert code == 1
    assert {row["cast"] for row in found["values"]} == {True}
    assert found["counted"] == {"structure": 0, "dtype": FLOATS, "values": 0}
    code, found = diff(capsys, *pair, "--ignore", "dtype")
    assert (code, found["same"]) == (0, len(BASE))


def test_strip_prefix_takes_the_side_that_has_it(base: Path, tmp_path: Path, capsys: Captured) -> None:
    other = save(tmp_path / "ddp.pth", {f"module.{key}": array for key, array in BASE.items()})
    for pair in ((base, other), (other, base), (other, other)):
        assert diff(capsys, *pair, "--strip-prefix", "module.")[0] == 0


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "anything."])
def test_a_prefix_that_would_help_is_said(prefix: str, base: Path, tmp_path: Path, capsys: Captured) -> None:
    # Values differ, so that no digest finds the pairs.
    other = save(tmp_path / "b.safetensors", {prefix + key: array + array.dtype.type(1) for key, array in BASE.items()})
    code, found = diff(capsys, base, other)
    assert code == 1
    assert f"--strip-prefix {prefix}" in found["hints"][0]
    assert f"--strip-prefix {prefix}" in answer(capsys, "diff", base, other)[1]
    code, found = diff(capsys, base, other, "--strip-prefix", prefix)
    assert (found["only_in_a"], found["only_in_b"], found["hints"]) == ([], [], [])


def test_a_file_of_renames(base: Path, tmp_path: Path, capsys: Captured) -> None:
    other = save(tmp_path / "b.pth", {key.replace("layers.", "h.").replace("up.", "fc."): a for key, a in BASE.items()})
    names = tmp_path / "names.txt"
    names.write_text("# from ours to theirs\n\n^layers\\.=>h.\nup\\.=>fc.\n")
    assert diff(capsys, base, other)[1]["counted"]["structure"] == 6
    assert diff(capsys, base, other, "--map", names)[0] == 0
    # The file first, then what stands on the command line.
    assert diff(capsys, base, other, "--map", names, "--rename", "^h\\.=>g.", "--rename", "^g\\.=>h.")[0] == 0


def dense() -> dict[str, Any]:
    random = np.random.default_rng(1)
    return {"fc.weight": random.standard_normal((3, 5)).astype("f4"), "fc.bias": random.standard_normal(3).astype("f4")}


@pytest.mark.parametrize("options", [[], ["--exclude", "fc.bias"], ["--include", "fc**"]])
def test_a_recipe_makes_what_another_framework_has_the_same(options: list[str], tmp_path: Path, capsys: Captured) -> None:
    one, other = save(tmp_path / "a.pth", dense()), tmp_path / "keras.ckpt"
    assert run(["convert", str(one), str(other), "--map", "torch-to-keras", "--to", "tensorflow"]) == 0
    code, found = diff(capsys, one, other)
    assert code == 1 and found["renamed"]
    keras = [option.replace("fc.bias", "fc/bias") for option in options]
    assert diff(capsys, one, other, "--map", "torch-to-keras", *keras)[0] == 0
    assert diff(capsys, other, one, "--map", "torch-to-keras", "--reverse", *options)[0] == 0
    assert diff(capsys, other, one, "--map", "keras-to-torch", *options)[0] == 0


def test_sections(tmp_path: Path, capsys: Captured) -> None:
    torch = pytest.importorskip("torch")
    model, ema = {"a.weight": torch.ones(3, 2)}, {"a.weight": torch.full((3, 2), 0.5)}
    whole, flat, average = tmp_path / "whole.ckpt", tmp_path / "flat.pth", tmp_path / "average.pth"
    torch.save({"state_dict": model, "ema": ema}, whole)
    torch.save(model, flat)
    torch.save(ema, average)
    cases: list[tuple[list[object], int]] = [
        ([whole, flat], 0),
        ([flat, whole], 0),
        ([whole, average], 1),
        ([whole, average, "--section", "ema"], 0),
        ([average, whole, "--section", "ema"], 0),
        ([whole, whole, "--section", "ema", "--section-b", "state_dict"], 1),
        ([whole, whole, "--section", "ema"], 0),
        ([flat, whole, "--section-b", "ema"], 1),
        ([average, whole, "--section-b", "ema"], 0),
        ([whole, whole, "--section", "all"], 0),
    ]
    for argv, expected in cases:
        assert diff(capsys, *argv)[0] == expected, argv


def test_a_checkpoint_of_a_trainer_and_its_weights(tmp_path: Path, capsys: Captured) -> None:
    weights = tmp_path / "weights.safetensors"
    assert run(["convert", str(LIGHTNING), str(weights), "--strip-prefix", "model."]) == 0
    code, found = diff(capsys, LIGHTNING, weights)
    assert code == 1 and "--strip-prefix model." in found["hints"][0]
    assert diff(capsys, LIGHTNING, weights, "--strip-prefix", "model.")[0] == 0


def test_the_rows_of_people_are_bounded_and_those_of_scripts_are_not(tmp_path: Path, capsys: Captured) -> None:
    names = {f"{chr(97 + n // 26)}{chr(97 + n % 26)}.weight": np.full((2, n + 2), n + 1, "f4") for n in range(60)}
    one = save(tmp_path / "a.safetensors", names)
    two = save(tmp_path / "b.safetensors", {key: array + np.float32(n) for n, (key, array) in enumerate(names.items())})
    rows = {(): 20, ("--top", "3"): 3, ("--verbose",): 59}
    for options, expected in rows.items():
        _, out, _ = answer(capsys, "diff", one, two, *options)
        assert sum(".weight" in line for line in out.splitlines()) == expected
    assert "the 20 rows that moved most, of 59" in answer(capsys, "diff", one, two)[1]
    report = tmp_path / "r.md"
    _, found = diff(capsys, one, two, "--top", "3", "--report", report)
    assert len(found["values"]) == 59
    assert report.read_text().count(".weight") == 3
    none = save(tmp_path / "none.safetensors", {"x": np.ones(1, "f4")})
    _, out, _ = answer(capsys, "diff", one, none)
    assert "Only in A, 60 tensors (the first 20 of 60 rows)" in out


@pytest.mark.parametrize("suffix", ["json", "md", "html", "txt"])
def test_reports(suffix: str, base: Path, tmp_path: Path, capsys: Captured) -> None:
    other = save(tmp_path / "b.safetensors", moved("norm.weight"))
    report = tmp_path / f"r.{suffix}"
    code, out, _ = answer(capsys, "diff", base, other, "--report", report, "--quiet")
    assert (code, out) == (1, "")
    assert "norm.weight" in report.read_text()
    if suffix == "json":
        assert json.loads(report.read_text())["verdict"] == "differs"


def test_quiet_answers_with_the_exit_code_and_scripts_still_get_theirs(base: Path, tmp_path: Path, capsys: Captured) -> None:
    other = save(tmp_path / "b.safetensors", moved("norm.weight"))
    assert answer(capsys, "diff", base, other, "-q") == (1, "", "")
    assert answer(capsys, "diff", base, base, "-q")[:2] == (0, "")
    assert json.loads(answer(capsys, "diff", base, other, "-q", "--json")[1])["verdict"] == "differs"


def test_jobs_change_nothing(base: Path, tmp_path: Path, capsys: Captured) -> None:
    other = save(tmp_path / "b.safetensors", cast("bf16") | {"norm.weight": BASE["norm.weight"] * 2})
    answers = [answer(capsys, "diff", base, other, "--format", "html", "-j", jobs)[1] for jobs in (1, 3)]
    assert answers[0] == answers[1]


# What cannot be answered

BAD: list[tuple[list[str], str, str]] = [
    # arguments, code, a word of the message
    (["{a}"], "usage", "B"),
    (["{a}", "{a}", "{a}"], "usage", "argument"),
    (["{dir}/none.pth", "{a}"], "not-found", "(this is A)"),
    (["{a}", "{dir}/none.pth"], "not-found", "(this is B)"),
    (["-", "{a}"], "usage", "stdin"),
    (["{a}", "{dir}/empty"], "unknown-format", "(this is B)"),
    (["{a}", "{dir}"], "usage", "(this is B)"),
    (["{a}", "{dir}/short.safetensors"], "truncated", "(this is B)"),
    (["{a}", "{dir}/text.txt"], "unknown-format", "(this is B)"),
    (["{a}", "{dir}/pipe"], "unreadable", "(this is B)"),
    (["{a}", "{dir}/none.pth", "--exit-zero"], "not-found", "(this is B)"),
    (["{a}", "{b}", "--fail-on", "color"], "usage", "color"),
    (["{a}", "{b}", "--fail-on", ""], "usage", "--fail-on"),
    (["{a}", "{b}", "--fail-on", "dtype,"], "usage", "--fail-on"),
    (["{a}", "{b}", "--ignore", "values"], "usage", "values"),
    (["{a}", "{b}", "--rename", "no arrow"], "usage", "no arrow"),
    (["{a}", "{b}", "--rename", "(=>x"], "usage", "position"),
    (["{a}", "{b}", "--rename", ".*weight=>w"], "key-collision", "'w'"),
    (["{a}", "{b}", "--strip-prefix", "nosuch."], "usage", "nosuch."),
    (["{a}", "{b}", "--strip-prefix", ""], "usage", "begins"),
    (["{a}", "{b}", "--map", "nosuch"], "not-found", "nosuch"),
    (["{a}", "{b}", "--map", "{dir}/bad-names.txt"], "usage", "line 2"),
    (["{dir}/other.safetensors", "{b}", "--map", "torch-to-keras"], "map", "no rule"),
    (["{a}", "{b}", "--reverse"], "usage", "--reverse"),
    (["{a}", "{b}", "--set", "heads=2"], "usage", "--set"),
    (["{a}", "{b}", "--set", "heads"], "usage", "heads"),
    (["{a}", "{b}", "--include", "nosuch"], "usage", "nosuch"),
    (["{a}", "{b}", "--include", "[a"], "usage", "closed"),
    (["{a}", "{b}", "--exclude", "**"], "no-tensors", "left"),
    (["{a}", "{b}", "--section", "nosuch"], "usage", "nosuch"),
    (["{a}", "{b}", "--section-b", "nosuch"], "usage", "nosuch"),
    (["{a}", "{b}", "--top", "0"], "usage", "--top"),
    (["{a}", "{b}", "--rtol", "-1"], "usage", "--rtol"),
    (["{a}", "{b}", "--rtol", "nan"], "usage", "--rtol"),
    (["{a}", "{b}", "--atol", "inf"], "usage", "--atol"),
    (["{a}", "{b}", "--structure", "--rtol", "1"], "usage", "--rtol"),
    (["{a}", "{b}", "--structure", "--fail-on", "values"], "usage", "--fail-on"),
    (["{a}", "{b}", "--structure", "--ignore", "renamed"], "usage", "renamed"),
    (["{a}", "{b}", "--report", "{dir}/r.pth"], "usage", ".json"),
    (["{a}", "{b}", "--format", "xml"], "usage", "xml"),
    (["{a}", "{dir}/other.safetensors", "--fail-on", "values"], "mismatch", "no key in common"),
]


@pytest.mark.parametrize(("argv", "kind", "word"), BAD, ids=[" ".join(argv) for argv, _, _ in BAD])
def test_what_cannot_be_answered_is_exit_2(
    argv: list[str], kind: str, word: str, base: Path, tmp_path: Path, capsys: Captured
) -> None:
    save(tmp_path / "b.pth", moved("norm.weight"))
    save(tmp_path / "other.safetensors", {"something": np.ones(3, "f4")})
    (tmp_path / "short.safetensors").write_bytes(base.read_bytes()[:-5])
    (tmp_path / "text.txt").write_text("hello\n" * 100)
    (tmp_path / "bad-names.txt").write_text("a=>b\nc -> d\n")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    places = {"{a}": str(base), "{b}": str(tmp_path / "b.pth"), "{dir}": str(tmp_path)}
    for name, place in places.items():
        argv = [arg.replace(name, place) for arg in argv]
    code, out, err = answer(capsys, "diff", *argv)
    assert (code, out) == (2, "")
    assert word in err
    assert "wtool: error: " in err
    code, out, err = answer(capsys, "diff", *argv, *([] if "--format" in argv else ["--json"]))
    assert (code, out) == (2, "")
    if "--format" not in argv:
        error = json.loads(err.splitlines()[-1])
        assert (error["schema"], error["code"]) == ("wtool.error/1", kind)
        assert word in error["message"] or word in str(error["hint"])


def test_what_a_recipe_leaves_alone_is_said(tmp_path: Path, capsys: Captured) -> None:
    one = save(tmp_path / "a.pth", dense() | {"scale": np.ones((2, 2, 2), "f4")})
    _, _, err = answer(capsys, "diff", one, one, "--map", "torch-to-keras")
    assert "wtool: 'torch-to-keras': keys of A that are met by no rule and compared as they are: scale\n" in err


def test_a_recipe_that_does_not_fit(tmp_path: Path, capsys: Captured) -> None:
    one = save(tmp_path / "a.pth", {"fc.weight": np.ones((2, 3, 4, 5, 6, 7), "f4"), "fc.bias": np.ones(2, "f4")})
    code, out, err = answer(capsys, "diff", one, one, "--map", "torch-to-keras", "--json")
    assert (code, out) == (2, ""), out
    assert json.loads(err.splitlines()[-1])["code"] == "map"


def test_an_exclude_that_matches_nothing_is_said(base: Path, capsys: Captured) -> None:
    code, _, err = answer(capsys, "diff", base, base, "--exclude", "nosuch")
    assert code == 0
    assert "no key of A or B matches --exclude 'nosuch'" in err


def test_keys_and_sections_complete(base: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def completed(line: str) -> list[str]:
        words = line.split(" ")
        monkeypatch.setenv("_WTOOL_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        return answer(capsys)[1].split()

    assert "layers.0.up.bias" in completed(f"wtool diff {base} {base} --include lay")
    assert completed(f"wtool diff {base} {base} --section mo") == ["model"]
    assert completed(f"wtool diff {base} {base} --ignore dt") == ["dtype"]
    assert "torch-to-keras" in completed(f"wtool diff {base} {base} --map torch")
    assert completed("wtool diff --include lay") == []
