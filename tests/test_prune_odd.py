"""`wtool prune` on files of odd tensors, held against numpy: shapes, views, ties, dtypes, NaN and Inf."""

from __future__ import annotations

import json
import random as chance
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli_contract import answer
from test_prune_cli import Captured, arrays, bad, good

from wtool.api import open_checkpoint
from wtool.keys import natural
from wtool.ops.prune import layer_of

torch = pytest.importorskip("torch")


def odd() -> dict[str, Any]:
    made = torch.Generator().manual_seed(1)

    def some(*shape: int) -> Any:
        return torch.randn(*shape, generator=made)

    base = some(40, 30)
    found = {
        "h.0.a.weight": some(7, 13),
        "h.0.row.weight": some(1, 17),
        "h.0.col.weight": some(17, 1),
        "h.0.one.weight": some(1, 1),
        "h.0.empty.weight": torch.zeros(0, 5),
        "h.0.none.weight": torch.zeros(5, 0),
        "h.0.bias": some(13),
        "h.1.turned.weight": base.t(),
        "h.1.sliced.weight": base[3:20:2, 5:25:3],
        "h.1.wide.weight": some(1, 6).expand(5, 6),
        "h.1.equal.weight": torch.ones(10, 10),
        "h.2.f16.weight": some(6, 10).half(),
        "h.2.bf16.weight": some(6, 10).bfloat16(),
        "h.2.f64.weight": some(6, 10).double(),
        "h.2.f8.weight": some(6, 10).to(torch.float8_e4m3fn),
        "h.2.i8.weight": torch.ones(6, 10, dtype=torch.int8),
        "h.2.c64.weight": torch.ones(6, 10, dtype=torch.complex64),
        "conv.weight": some(5, 3, 3, 3),
        "conv1.weight": some(6, 4, 3),
        "scalar": torch.tensor(3.0),
    }
    return found | {"h.1.same.weight": found["h.0.a.weight"]}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    values = odd()
    torch.save(values, tmp_path / "odd.pth")
    for value in (values["h.0.a.weight"], values["h.2.bf16.weight"]):
        value[2, 3], value[3, 3], value[4, 4] = float("nan"), float("-inf"), -0.0
    torch.save(values, tmp_path / "nan.pth")
    return tmp_path / "odd.pth"


def masks(path: str) -> dict[str, Any]:
    bits = open_checkpoint(path)
    shapes = json.loads(bits.metadata["wtool.mask"])["shapes"]
    return {
        key: np.unpackbits(bits[key].array(), bitorder="little", count=int(np.prod(shape))).reshape(shape).astype(bool)
        for key, shape in shapes.items()
    }


@pytest.mark.parametrize("seed", range(24))
def test_masks_are_those_of_numpy(model: Path, capsys: Captured, seed: int) -> None:
    """Exact counts, ties from the end, rounds that revive nothing; kept bits as they were, the rest of the file too."""
    pick = chance.Random(seed)
    source, share = pick.choice(["odd.pth", "nan.pth"]), pick.choice([0, 0.1, 1 / 3, 0.5, 0.77, 0.9, 0.99, 1])
    scope, method = pick.choice(["global", "layer", "tensor"]), pick.choice(["magnitude", "magnitude", "random"])
    more: list[object] = ["--on-nan", "keep", "--method", method, "--scope", scope, "-j", pick.choice([1, 3])]
    earlier: dict[str, Any] = {}
    remaining = False
    if pick.random() < 0.5:
        rounds = ["--sparsity", pick.choice([0.1, 0.3]), "--on-nan", "keep", *pick.choice([[], ["--exclude", "h.0.**"]])]
        good(capsys, "prune", source, "earlier.pth", *rounds, "--mask-out", "earlier.mask")
        earlier, remaining = masks("earlier.mask"), share < 0.3 or pick.random() < 0.5
        more += ["--mask", "earlier.mask", *(["--of-remaining"] if remaining else [])]
    target = pick.choice(["o.pth", "o.safetensors"])
    data = good(capsys, "prune", source, target, "--sparsity", share, *more, "--mask-out", "o.mask")
    before, after, found = arrays(source), arrays(target), masks("o.mask")
    given = open_checkpoint(source)
    rows = {row["key"]: row for row in data["tensors"]}
    owner: dict[object, str] = {}
    for key in sorted(before, key=natural):
        if rows[key]["pruned"]:
            owner.setdefault(given[key].identity, key)
    for key, value in before.items():
        if rows[key]["pruned"]:
            unit = f"u{value.dtype.itemsize}"
            kept = found[owner[given[key].identity]]
            assert (np.ascontiguousarray(after[key]).view(unit) == np.where(kept, value.view(unit), 0)).all()
            wide = after[key].astype("f8").reshape(len(value), -1)
            assert rows[key]["dead_rows"] == (wide == 0).all(1).sum()
        else:
            assert after[key].tobytes() == value.tobytes()
    groups: dict[str, list[str]] = {}
    for key in owner.values():
        groups.setdefault({"global": "", "layer": layer_of(key), "tensor": key}[scope], []).append(key)
    for keys in groups.values():
        values = np.concatenate([before[key].astype("f8").reshape(-1) for key in keys])
        kept = np.concatenate([found[key].reshape(-1) for key in keys])
        left = np.concatenate([earlier.get(key, np.ones(before[key].shape, bool)).reshape(-1) for key in keys])
        finite = np.isfinite(values)
        assert kept[left & ~finite].all() and not kept[~left].any()
        count, gone = int((finite | ~left).sum()), int((~left).sum())
        zeros = gone + round(share * (count - gone)) if remaining else max(round(share * count), gone)
        assert int((~kept).sum()) == zeros
        if method == "magnitude":
            ranked = np.flatnonzero(finite & left)
            order = np.lexsort((ranked, -np.abs(values[ranked])))
            assert sorted(ranked[order[: len(ranked) - (zeros - gone)]]) == list(ranked[kept[ranked]])


@pytest.mark.parametrize(
    "way",
    [
        ["--sparsity", 0.5],
        ["--sparsity", 0.5, "--method", "random"],
        ["--structure", "row", "--sparsity", 0.5],
        ["--pattern", "1:13"],
    ],
)
def test_what_is_not_finite_is_named(model: Path, capsys: Captured, way: list[object]) -> None:
    more = ["--include", "h.0.a.weight"]
    error = bad(capsys, "prune", "nan.pth", "o.pth", *way, *more)
    assert "'h.0.a.weight' holds NaN" in error["message"] and "--on-nan keep" in error["hint"] and error["path"] == "nan.pth"
    good(capsys, "prune", "nan.pth", "o.pth", *way, *more, "--on-nan", "keep")
    before, after = (arrays(name)["h.0.a.weight"] for name in ("nan.pth", "o.pth"))
    assert np.isnan(after[2, 3]) and after[3, 3] == -np.inf and (np.isfinite(before) == np.isfinite(after)).all()


@pytest.mark.parametrize("kind", ["row", "column", "filter", "block:4x4"])
def test_groups_are_counted(model: Path, capsys: Captured, kind: str) -> None:
    """Blocks that do not divide are smaller at the edges; the report says how many groups there are, and how many went."""
    more = ["--structure", kind, "--sparsity", 0.4]
    planned = good(capsys, "prune", model, "o.pth", *more, "-n")["groups"]
    data = good(capsys, "prune", model, "o.pth", *more)
    counts = {"row": 115, "column": 142, "filter": 11, "block:4x4": 162}
    assert planned == {"kind": kind, "groups": counts[kind], "zeroed": None}
    assert data["groups"] == {**planned, "zeroed": round(0.4 * counts[kind])}
    code, out, _ = answer(capsys, "prune", model, "o.pth", *more, "--force")
    assert code == 0 and f"{round(0.4 * counts[kind])} of {counts[kind]}, each a {kind}" in out


def test_rows_that_do_not_divide_are_told_at_once(model: Path, capsys: Captured) -> None:
    for more in ([], ["-n"]):
        error = bad(capsys, "prune", model, "o.pth", "--pattern", "2:10", *more)
        assert error["message"] == "'conv1.weight' is 6x4x3: its rows of 12 are no multiple of 10, as those of 7 more"
        assert "--exclude 'conv1.weight' --exclude 'conv.weight' --exclude" in error["hint"]
        assert error["hint"].endswith("as before")
    included = ["--include", "h.2.*.weight", "--include", "h.0.bias", "--include", "scalar"]
    data = good(capsys, "prune", model, "o.pth", "--pattern", "2:10", *included)
    whys = {row["key"]: row["why"] for row in data["tensors"]}
    assert whys["h.0.bias"] == whys["scalar"] == "has no rows" and whys["h.2.i8.weight"] == "i8: no weights"
    assert (
        data["zeros"]
        == 4 * 60 * 8 // 10
        == good(capsys, "prune", model, "p.pth", "--pattern", "2:10", *included, "-n")["zeros"]
    )


@pytest.mark.parametrize("scope", ["global", "layer", "tensor"])
def test_a_dry_run_knows_the_count(model: Path, capsys: Captured, scope: str) -> None:
    more = ["--sparsity", 0.37, "--scope", scope]
    assert good(capsys, "prune", model, "o.pth", *more, "-n")["zeros"] == good(capsys, "prune", model, "o.pth", *more)["zeros"]


def test_scalars_and_vectors_where_they_are_asked_for(model: Path, capsys: Captured) -> None:
    more = ["--include", "scalar", "--include", "h.0.bias", "--include", "h.0.empty.weight"]
    data = good(capsys, "prune", model, "o.pth", "--sparsity", 0.5, *more, "--mask-out", "k")
    assert (data["weights"], data["zeros"], data["rows"], data["dead_rows"]) == (14, 7, 0, 0)
    good(capsys, "prune", model, "p.pth", "--sparsity", 1, "--mask", "k", *more)
    assert not arrays("p.pth")["scalar"].any() and not arrays("p.pth")["h.0.bias"].any()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--sparsity", "nan"], "not NaN"),
        (["--sparsity", "0.5", "--include", "h.0.empty.weight"], "no tensor is to be pruned"),
        (["--sparsity", "0.5", "--rewind", "nan.pth", "--mask-out", "nan.pth"], "--mask-out is nan.pth itself"),
        (["--structure", "filter", "--sparsity", "0.5", "--include", "h.0.a.weight"], "no tensor is to be pruned"),
    ],
)
def test_usage(model: Path, capsys: Captured, argv: list[str], words: str) -> None:
    assert words in bad(capsys, "prune", model, "o.pth", *argv)["message"]
    assert not Path("o.pth").exists()


def test_what_init_lacks(model: Path, capsys: Captured) -> None:
    """The hint that other tensors may be the source's is given where one is missing that is not pruned."""
    values = odd()
    torch.save({key: value for key, value in values.items() if key != "h.0.bias"}, "less.pth")
    torch.save({key: value for key, value in values.items() if key != "h.1.turned.weight"}, "none.pth")
    argv = ["prune", model, "o.pth", "--sparsity", 0.5, "--rewind"]
    error = bad(capsys, *argv, "less.pth")
    assert "'h.0.bias'" in error["message"] and "--rest source" in error["hint"]
    good(capsys, *argv, "less.pth", "--rest", "source")
    for more in ([], ["--rest", "source"]):
        error = bad(capsys, *argv, "none.pth", "--force", *more)
        assert "'h.1.turned.weight'" in error["message"] and error["hint"] is None
