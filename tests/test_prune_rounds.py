"""Patterns and groups in rounds: what an earlier mask zeroed stays zero and is not ranked again; limits of groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_prune_cli import Captured, arrays, bad, good, random, write

from wtool.kernels.masks import ByBits
from wtool.kernels.within import Within


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    values = {f"h.{n}.{name}.weight": random(n, 24, 60) * (n + 1) for n in range(3) for name in "qk"}
    return write(tmp_path / "m.safetensors", values)


def kept(path: str) -> dict[str, Any]:
    return {key: value != 0 for key, value in arrays(path).items()}


@pytest.mark.parametrize("earlier", [["--sparsity", 0.6], ["--sparsity", 0.6, "--method", "random"]])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 60), (7, 20)])
def test_patterns_of_what_is_left(model: Path, capsys: Captured, earlier: list[object], n: int, m: int) -> None:
    """Of every M values the N largest of those that are left, if so many are."""
    good(capsys, "prune", model, "a.safetensors", *earlier, "--mask-out", "k.safetensors")
    good(capsys, "prune", "a.safetensors", "expected.safetensors", "--pattern", f"{n}:{m}")
    # what was trained into pruned weights since changes nothing, NaN included
    again = {key: np.where(value == 0, np.float32("nan"), value) for key, value in arrays("a.safetensors").items()}
    write(Path("again.safetensors"), again)
    data = good(
        capsys,
        *("prune", "again.safetensors", "o.safetensors", "--pattern", f"{n}:{m}", "--mask", "k.safetensors"),
        *("--mask-out", "l.safetensors"),
    )
    assert {key: value.tobytes() for key, value in arrays("o.safetensors").items()} == {
        key: value.tobytes() for key, value in arrays("expected.safetensors").items()
    }
    alive = kept("o.safetensors")
    assert all(value.reshape(-1, m).sum(1).max() <= n for value in alive.values())
    assert data["zeros"] == sum(int((~value).sum()) for value in alive.values())
    good(capsys, "apply-mask", model, "l.safetensors", "p.safetensors")
    assert all((value == alive[key]).all() for key, value in kept("p.safetensors").items())


def test_a_pattern_is_completed_as_it_is_masked() -> None:
    """Runs that begin within a group see the rest of it without what is gone."""
    from wtool.bytesource import MemoryBytes
    from wtool.cli.prune_regular import parse
    from wtool.dtypes import dtype
    from wtool.tensor import LazyTensor

    values, bits = random(3, 10, 24), np.random.default_rng(1).random(240) < 0.6
    packed = np.packbits(bits, bitorder="little")
    before = ByBits(LazyTensor.contiguous("w", dtype("u8"), packed.shape, MemoryBytes(packed.tobytes()), 0))
    from wtool.analysis.pruning import Part, Share

    part = Part(LazyTensor.contiguous("w", dtype("f32"), (10, 24), MemoryBytes(values.tobytes()), 0), before=before)
    regular = parse("2:8", None, None, None)
    assert regular is not None
    mask = regular.masks([part], Share(0.0), "m", 1)["w"]
    assert isinstance(mask, Within)
    flat = values.reshape(-1)
    whole = mask.keeps(0, flat)
    left = np.where(bits, np.abs(flat), -1).reshape(-1, 8)
    order = np.argsort(-left, axis=1, kind="stable")[:, :2]
    expected = np.zeros_like(left, bool)
    np.put_along_axis(expected, order, True, axis=1)
    assert (whole == (expected.reshape(-1) & bits)).all()
    for start in range(0, 240, 7):
        assert (mask.keeps(start, flat[start : start + 7]) == whole[start : start + 7]).all()


def groups(value: Any, structure: str) -> Any:
    """One row of values for each group."""
    if structure == "row":
        return value
    if structure == "column":
        return value.T
    return value.reshape(6, 4, 12, 5).transpose(0, 2, 1, 3).reshape(72, 20)


@pytest.mark.parametrize("structure", ["row", "column", "block:4x5"])
@pytest.mark.parametrize("more", [[], ["--of-remaining"]])
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_groups_of_what_is_left(model: Path, capsys: Captured, structure: str, more: list[str], scope: str) -> None:
    """Three rounds: groups that are gone are not ranked again, and norms are of what is left."""
    argv = ["--structure", structure, "--scope", scope]
    good(capsys, "prune", model, "0.safetensors", "--sparsity", 0.3, "--mask-out", "0.mask")
    gone_before = 0
    for number, share in enumerate([0.25, 0.5, 0.5], 1):
        trained = {
            key: value + random(number, *value.shape) * 0.1 for key, value in arrays(f"{number - 1}.safetensors").items()
        }
        write(Path(f"t{number}.safetensors"), trained)
        before = kept(f"{number - 1}.safetensors")
        rounds = ["--mask", f"{number - 1}.mask", "--mask-out", f"{number}.mask", "--sparsity", share, *more]
        good(capsys, "prune", f"t{number}.safetensors", f"{number}.safetensors", *argv, *rounds)
        after = kept(f"{number}.safetensors")
        gone = 0
        pools = [[key] for key in trained] if scope == "tensor" else [list(trained)]
        for pool in pools:
            norms, dead, was = [], [], []
            for key in pool:
                alive = groups(before[key], structure)
                values = np.where(alive, groups(trained[key], structure), 0).astype("f8")
                norms.append((values**2).sum(1))
                was.append(~alive.any(1))
                found = groups(after[key], structure)
                dead.append(~found.any(1))
                assert (found == alive)[~dead[-1]].all()  # a group goes as a whole or stays as it was
            norm, now, already = (np.concatenate(list(one)) for one in (norms, dead, was))
            assert (now | ~already).all()
            total, lost = len(now), int(already.sum())
            assert now.sum() == (lost + round(share * (total - lost)) if more else max(round(share * total), lost))
            if now.sum() > lost and not now.all():
                assert norm[now & ~already].max() <= norm[~now].min()
            gone += int(now.sum())
        assert gone >= gone_before
        gone_before = gone


def test_more_is_gone_than_asked_for(model: Path, capsys: Captured) -> None:
    first = good(
        capsys, "prune", model, "a.safetensors", "--structure", "row", "--sparsity", 0.5, "--mask-out", "k.safetensors"
    )
    argv = ["prune", model, "o.safetensors", "--structure", "row", "--sparsity", 0.25, "--mask", "k.safetensors"]
    assert "already, more than --sparsity 0.25" in bad(capsys, *argv)["message"]
    before = {row["key"]: row["dead_rows"] for row in first["tensors"]}
    data = good(capsys, *argv, "--scope", "tensor")
    assert {row["key"]: row["dead_rows"] for row in data["tensors"]} == {key: max(dead, 6) for key, dead in before.items()}


def test_limits_of_groups(model: Path, capsys: Captured) -> None:
    """h.0 is the smallest by far and would lose all; with a limit the others give more. Exactly as many go in all."""
    argv = ["prune", model, "o.safetensors", "--structure", "row", "--sparsity", 0.5, "--force"]
    free = good(capsys, *argv)
    held = good(capsys, *argv, "--at-most", "h.0.**=0.6", "--at-most", "0.9")
    dead = {row["layer"]: row["dead_rows"] for row in held["layers"]}
    assert {row["layer"]: row["dead_rows"] for row in free["layers"]}["h.0"] > 28
    assert dead["h.0"] == 28 and sum(dead.values()) == 72 == free["dead_rows"]  # floor(0.6 * 48)
    every = good(capsys, *argv, "--at-most", "0.5", "--scope", "global")
    assert {row["layer"]: row["dead_rows"] for row in every["layers"]} == {"h.0": 24, "h.1": 24, "h.2": 24}
    found = bad(capsys, *argv, "--at-most", "0.4")
    assert "72 of 144 groups are to go, and the limits let 57 go" in found["message"] and "0.395" in found["hint"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--pattern", "2:4", "--at-most", "0.4"], "--at-most does not go with --pattern"),
        (["--pattern", "2:4", "--mask", "k", "--of-remaining"], "--of-remaining does not go with --pattern"),
        (["--structure", "row", "--sparsity", "0.4", "--method", "random"], "--method random goes with neither"),
        (["--drop-layers", "0", "--mask", "k"], "--mask does not go with --drop-layers"),
        (["--drop-layers", "0", "--sparsity", "0.5", "--rewind", "k"], "--rewind does not go with --drop-layers"),
    ],
)
def test_what_does_not_go_together(model: Path, capsys: Captured, argv: list[str], words: str) -> None:
    assert words in bad(capsys, "prune", model, "o.safetensors", *argv)["message"]
