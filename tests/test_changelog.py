"""wtool changelog: what happened between versions, in words that hold, and in the JSON of docs/json.md."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Counting, checkpoint_on

from wtool.analysis.changelog import changelog
from wtool.analysis.diff import diff
from wtool.api import save_checkpoint
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint
from wtool.cli.app import run
from wtool.render import render

NAMES = {"f": "f", "i": "i", "u": "u", "b": "bool"}
FIELDS = ["from", "to", "added", "removed", "renamed", "transposed", "reshaped", "cast", "frozen", "changed", "modules"]
Arrays = Mapping[str, Any]


def made(arrays: Arrays) -> Checkpoint:
    values = {key: np.asarray(value) for key, value in arrays.items()}
    specs = {key: (f"{v.dtype.kind}{v.dtype.itemsize * 8}", v.shape) for key, v in values.items()}
    return checkpoint_on(MemoryBytes(b"".join(value.tobytes() for value in values.values())), specs)


def step(one: Arrays, two: Arrays) -> dict[str, Any]:
    (report,) = changelog([diff(made(one), made(two))])
    render([report], "html")
    return dict(report.data)


def modules(one: Arrays, two: Arrays) -> dict[str, tuple[int, int, str]]:
    return {m["module"]: (m["tensors"], m["frozen"], m["verdict"]) for m in step(one, two)["modules"]}


def model(layers: int = 4, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    found: dict[str, Any] = {"embed.weight": random.standard_normal((8, 4)).astype("f4")}
    for n in range(layers):
        found[f"layers.{n}.attn.weight"] = random.standard_normal((4, 4)).astype("f4")
        found[f"layers.{n}.norm.bias"] = random.standard_normal(4).astype("f4")
    return found


def scaled(arrays: Arrays, by: float, *keys: str) -> dict[str, Any]:
    return {key: (value * np.float32(1 + by) if key.startswith(keys) else value) for key, value in arrays.items()}


@pytest.mark.parametrize(
    ("by", "verdict"),
    [
        (0, "unchanged"),
        (1e-6, "barely moved"),
        (9e-4, "barely moved"),
        (0.01, "fine-tuned"),
        (0.4, "retrained"),
        (2, "new values"),
    ],
)
def test_the_verdict_says_how_far_it_moved(by: float, verdict: str) -> None:
    before = model()
    found = modules(before, scaled(before, by, "layers.2", "layers.3"))
    if by:
        assert found == {
            "embed": (1, 1, "unchanged"),
            "layers.{0-1}": (4, 4, "unchanged"),
            "layers.{2-3}": (4, 0, verdict),
        }
    else:
        assert found == {"embed": (1, 1, "unchanged"), "layers.{0-3}": (8, 8, "unchanged")}


def test_what_was_added_removed_renamed_cast_and_reshaped() -> None:
    before = model()
    after = dict(before)
    after["lora.0.a"] = np.ones((4, 2), "f4")
    del after["layers.3.norm.bias"]
    after["tokens.weight"] = after.pop("embed.weight")
    after["layers.0.attn.weight"] = before["layers.0.attn.weight"].T.copy()
    after["layers.1.attn.weight"] = np.zeros((2, 2), "f4")
    after["layers.2.attn.weight"] = before["layers.2.attn.weight"].astype("f2")
    found = step(before, after)
    assert list(found)[: len(FIELDS)] == FIELDS
    assert found["added"] == ["lora.0.a"] and found["removed"] == ["layers.3.norm.bias"]
    assert found["renamed"] == [{"from": "embed.weight", "to": "tokens.weight"}]
    assert found["transposed"] == ["layers.0.attn.weight"]
    assert found["reshaped"] == [{"key": "layers.1.attn.weight", "from": [4, 4], "to": [2, 2]}]
    assert found["cast"] == [{"from": "f32", "to": "f16", "tensors": 1}]
    assert (found["changed"], found["frozen"]) == (0, 5)
    assert found["elements"]["from"] == 8 * 4 + 4 * 20


def test_a_cast_with_new_values_is_both() -> None:
    before = model()
    found = step(before, scaled(before, 0.2, "embed") | {"layers.0.norm.bias": before["layers.0.norm.bias"].astype("f2")})
    assert (found["changed"], found["frozen"]) == (1, 8)
    after = scaled(before, 0.2, "embed")
    after["embed.weight"] = after["embed.weight"].astype("f2")
    found = step(before, after)
    assert (found["changed"], found["frozen"], found["cast"][0]["tensors"]) == (1, 8, 1)


def test_equal_versions() -> None:
    (report,) = changelog([diff(made(model()), made(model()))])
    assert (report.data["changed"], report.data["frozen"], report.exit_code) == (0, 9, 0)
    assert "Nothing changed." in render([report], "markdown")
    assert "How far" not in render([report], "markdown")


def test_counters_do_not_drown_the_weights() -> None:
    before = {"bn.weight": np.ones(4, "f4"), "bn.num_batches_tracked": np.int64(10)}
    after = before | {"bn.num_batches_tracked": np.int64(100_000)}
    assert modules(before, after) == {"bn": (2, 1, "counters")}
    assert modules(before, after | {"bn.weight": np.ones(4, "f4") * np.float32(1.01)}) == {"bn": (2, 0, "fine-tuned")}
    assert step(before, after)["modules"][0]["max_abs"] == 99_990
    assert modules({"w": np.arange(4, dtype="i1")}, {"w": np.arange(4, dtype="i1")[::-1].copy()}) == {
        "w": (1, 0, "new values")
    }


ODD = [
    ([1, 2], [1, np.nan], "barely moved"),
    ([1, np.inf], [1, 2], "barely moved"),
    ([0, 0], [1, 2], "new values"),
    ([0.0, 0], [-0.0, 0], "barely moved"),
    ([1e300, 1], [-1e300, 1], "new values"),
]


@pytest.mark.parametrize(("one", "two", "verdict"), ODD)
def test_odd_values_are_never_unchanged(one: list[float], two: list[float], verdict: str) -> None:
    before, after = ({"w": np.array(values, "f8")} for values in (one, two))
    (report,) = changelog([diff(made(before), made(after))])
    (found,) = report.data["modules"]
    assert (found["verdict"], report.data["changed"]) == (verdict, 1)
    json.loads(render([report], "json"), parse_constant=pytest.fail)
    text = render([report], "markdown")
    assert "Nothing changed" not in text
    assert ("NaN or infinite, in w" in text) == (not np.isfinite([*one, *two]).all())


def test_a_group_claims_no_more_than_there_is() -> None:
    before = {f"conv{a}_{b}.weight": np.ones(2, "f4") for a in (1, 2) for b in (1, 2)}
    after = before | {"conv1_2.weight": np.full(2, 9, "f4"), "conv2_1.weight": np.full(2, 9, "f4")}
    assert modules(before, after) == {
        "conv1_1": (1, 1, "unchanged"),
        "conv1_2": (1, 0, "new values"),
        "conv2_1": (1, 0, "new values"),
        "conv2_2": (1, 1, "unchanged"),
    }
    experts = {f"h.{a}.experts.{b}.w": np.full(2, a + b, "f4") for a in range(3) for b in range(2)}
    (report,) = changelog([diff(made(before), made(before | experts))])
    assert "<code>h.{0-2}.experts.{0-1}.w</code> | f32 | &#91;2&#93; | 6 |" in render([report], "markdown")


@pytest.mark.parametrize(
    ("key", "module"),
    [
        ("a.b.weight", "a.b"),
        ("a.0.b.c", "a.0"),
        ("w", "w"),
        ("0.weight", "0"),
        ("m/layer-0/kernel", "m/layer-0"),
        ("h/3/a/b", "h/3"),
    ],
)
def test_modules_are_named_as_the_keys_are(key: str, module: str) -> None:
    assert list(modules({key: np.ones(2, "f4")}, {key: np.ones(2, "f4")})) == [module]


def test_thousands_of_tensors() -> None:
    before = {f"layers.{n}.w": np.full(2, n, "f4") for n in range(3000)}
    after = {key: value + np.float32(n % 2) for n, (key, value) in enumerate(before.items())}
    after |= {f"{'abcdefgh'[n % 8] * (n // 8 + 1)}.b": np.full(2, 5000 + n, "f4") for n in range(400)}
    (report,) = changelog([diff(made(before), made(after))])
    text = render([report], "markdown")
    assert len(report.data["added"]) == 400 and "and 350 rows more" in text
    assert len(text.splitlines()) < 150


def test_values_are_read_about_once_for_each_neighbour() -> None:
    elements = 2_000_000
    specs = {"a": ("f32", (elements,)), "b": ("f32", (elements,))}
    sources = [Counting(MemoryBytes(np.full(2 * elements, n, "f4").tobytes())) for n in range(3)]
    versions = [checkpoint_on(source, specs) for source in sources]
    changelog([diff(versions[0], versions[1]), diff(versions[1], versions[2])])
    size = 8 * elements
    slack = size // 2  # a difference is met in the first block, which is read again for the values
    assert [source.total <= reads * size + slack for source, reads in zip(sources, (1, 2, 1), strict=True)] == [True] * 3


# The command


@pytest.fixture
def versions(tmp_path: Path) -> list[str]:
    """Three versions in three formats, the last one saved from a parallel wrapper and in another folder."""
    one = model()
    two = scaled(one, 0.01, "layers.2", "layers.3") | {"head.weight": np.ones((4, 2), "f4")}
    three = {f"module.{key}": value.astype("f2") for key, value in two.items()}
    paths = []
    for arrays, name in ((one, "v1.safetensors"), (two, "v2.pth"), (three, "last/v3.ckpt")):
        save_checkpoint(made(arrays), tmp_path / name) if "/" not in name else None
        if "/" in name:
            (tmp_path / "last").mkdir()
            save_checkpoint(made(arrays), tmp_path / name)
        paths.append(str(tmp_path / name))
    return paths


def answer(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(["changelog", *argv])
    return code, *capsys.readouterr()


def test_markdown_newest_first(versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = answer(capsys, *versions, "--strip-prefix", "module.")
    assert (code, err) == (0, "")
    assert re.findall("^## .*", out, re.M) == ["## last/v3.ckpt (from v2.pth)", "## v2.pth (from v1.safetensors)"]
    assert "| cast | f32 -&gt; f16, 10 tensors |" in out
    assert "| <code>layers.{2-3}</code> | 4 | 4 | 0.01 | " in out and "| fine-tuned |" in out
    assert "### Added" in out and "| <code>head.weight</code> | f32 | &#91;4, 2&#93; | 1 |" in out


def test_a_prefix_is_told_on_stderr(versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = answer(capsys, *versions)
    assert code == 0 and "--strip-prefix module." in err and "--strip-prefix" not in out
    assert answer(capsys, *versions, "-q")[2] == ""
    code, _, err = answer(capsys, *versions, "--strip-prefix", "nosuch.")
    assert code == 2 and "nosuch." in err


def test_json(versions: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = answer(capsys, *versions, "--json", "--strip-prefix", "module.", "--report", str(tmp_path / "c.html"))
    found = json.loads(out)
    assert code == 0 and found["schema"] == "wtool.changelog/1"
    assert [(change["from"], change["to"]) for change in found["changes"]] == [
        (versions[1], versions[2]),
        (versions[0], versions[1]),
    ]
    assert "<html" in (tmp_path / "c.html").read_text()
    found = json.loads(answer(capsys, *versions[:2], "--json")[1])
    assert found["schema"] == "wtool.changelog/1" and found["added"] == ["head.weight"]
    for kind in ("text", "html", "markdown"):
        assert answer(capsys, *versions, "--format", kind)[0] == 0


def test_selections(versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(answer(capsys, *versions[:2], "--json", "--include", "layers.**", "--exclude", "**.bias")[1])
    assert (found["changed"], found["frozen"], found["added"]) == (2, 2, [])


def test_the_same_file_twice(versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer(capsys, versions[0], versions[0])
    assert code == 0 and "Nothing changed." in out


@pytest.mark.parametrize(
    "argv", [["{0}"], [], ["{0}", "nosuch.pth"], ["{0}", "{1}", "--format", "xml"], ["{0}", "{1}", "--report", "x.pth"]]
)
def test_what_it_cannot_do(argv: list[str], versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = answer(capsys, *(word.format(*versions) for word in argv))
    assert (code, out) == (2, "")
    assert err.startswith("wtool: error: ") and len(err.splitlines()) <= 2
