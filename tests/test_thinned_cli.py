"""`wtool average --method ties, dare, dare-ties` from files to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thinned import Table, checkpoint, merged

from wtool.api import open_checkpoint, save_checkpoint
from wtool.cli.app import run
from wtool.ops.dare import dare
from wtool.ops.ties import ties

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def given() -> list[Table]:
    rng = np.random.default_rng(0)
    base: Table = {"a.weight": rng.standard_normal((60, 50)).astype("f4"), "b": rng.standard_normal(7).astype("f4")}
    return [base] + [{k: v + rng.standard_normal(v.shape).astype("f4") * 0.01 for k, v in base.items()} for _ in range(3)]


@pytest.fixture
def paths(given: list[Table], tmp_path: Path) -> list[str]:
    """The base and three inputs, in three formats."""
    names = ("base.safetensors", "x.safetensors", "y.pth", "z.ckpt")
    for name, table in zip(names, given, strict=True):
        save_checkpoint(checkpoint(table), tmp_path / name, to="tensorflow" if name == "z.ckpt" else None)
    return [str(tmp_path / name) for name in names]


def answer(capsys: Captured, *argv: object) -> tuple[int, Any, str]:
    capsys.readouterr()
    code = run([*map(str, argv), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


METHODS = [
    ("ties", ["--density", "0.3"], ties([1.0] * 3, 0.3)),
    ("ties", ["--density", "0.3", "--compat", "paper", "--scale", "0.5"], ties([1.0] * 3, 0.3, 0.5, compat="paper")),
    ("ties", ["--density", "0.3", "--compat", "mergekit", "--weights", "1,2,0.5", "--trim-scope", "model"],
     ties([1.0, 2.0, 0.5], 0.3, compat="mergekit", scope="model")),
    ("ties", ["--density", "1", "--vote", "frequency", "--compat", "peft"],
     ties([1.0] * 3, 1.0, compat="peft", vote="frequency")),
    ("dare", ["--density", "0.3", "--seed", "7"], dare([1.0] * 3, 0.3, seed=7)),
    ("dare", ["--density", "0.3", "--compat", "mergekit"], dare([1.0] * 3, 0.3, compat="mergekit")),
    ("dare-ties", ["--density", "0.3"], dare([1.0] * 3, 0.3, elect=True)),
    ("dare-ties", ["--density", "0.3", "--compat", "paper"], dare([1.0] * 3, 0.3, elect=True, compat="paper")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "method"), METHODS)
def test_the_outcome_is_that_of_the_method(
    name: str, options: list[str], method: Any, given: list[Table], paths: list[str], tmp_path: Path, capsys: Captured
) -> None:
    base, *inputs = paths
    out = tmp_path / "out.safetensors"
    code, report, err = answer(capsys, "average", *inputs, "-o", out, "--method", name, "--base", base, *options)
    assert code == 0, err
    expected = merged(method, given[0], given[1:])
    found = open_checkpoint(str(out))
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key].array(), values)
    assert all(row["distance"] > 0 for row in report["inputs"])
    again = tmp_path / "again.safetensors"
    assert run(["average", "--recipe", str(out), "-o", str(again), "-q"]) == 0
    assert again.read_bytes() == out.read_bytes()


def test_a_dry_run_reads_no_values(paths: list[str], tmp_path: Path, capsys: Captured, monkeypatch: Any) -> None:
    from wtool.analysis import thinning

    monkeypatch.setattr(thinning, "prepared", None)
    base, *inputs = paths
    out = tmp_path / "out.safetensors"
    code, report, err = answer(
        capsys, "average", *inputs, "-o", out, "--method", "ties", "--density", "0.3", "--base", base, "--dry-run"
    )
    assert (code, report["dry_run"], out.exists()) == (0, True, False), err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "ties", "--density", "0.3"], "needs --base"),
        (["--method", "ties", "--base", "{base}"], "needs --density"),
        (["--method", "ties", "--base", "{base}", "--density", "1.2"], "density is 1.2"),
        (["--method", "dare", "--base", "{base}", "--density", "0"], "density is 0"),
        (["--method", "ties", "--base", "{base}", "--density", "0.2", "--seed", "1"], "--seed means nothing to ties"),
        (["--method", "dare", "--base", "{base}", "--density", "0.2", "--trim-scope", "model"], "--trim-scope means nothing"),
        (["--method", "dare", "--base", "{base}", "--density", "0.2", "--vote", "mass"], "--vote means nothing to dare"),
        (["--method", "ties", "--base", "{base}", "--density", "0.2", "--vote", "loud"], "no vote 'loud'"),
        (["--method", "ties", "--base", "{base}", "--density", "0.2", "--trim-scope", "row"], "no scope 'row'"),
        (["--method", "ties", "--base", "{base}", "--density", "0.2", "--compat", "me"], "ties has no 'me'"),
        (["--method", "ties", "--base", "{base}", "--density", "0.2", "--weights", "1,2"], "2 weights for 3 inputs"),
        (["--density", "0.2"], "--density means nothing to mean"),
    ],
)
def test_what_is_wrong_is_said(options: list[str], message: str, paths: list[str], tmp_path: Path, capsys: Captured) -> None:
    base, *inputs = paths
    words = [word.format(base=base) for word in options]
    code, _, err = answer(capsys, "average", *inputs, "-o", tmp_path / "out.safetensors", *words)
    assert code == 2
    assert message in json.loads(err)["message"]
    assert not (tmp_path / "out.safetensors").exists()
