"""`wtool prune` on TensorFlow's checkpoints, whose keys end in `/.ATTRIBUTES/VARIABLE_VALUE`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_cli_contract import answer
from test_prune_cli import Captured, arrays, bad, good, random, write

from wtool.api import open_checkpoint
from wtool.keys import TF_SUFFIX

FIXTURE = Path(__file__).parent.parent / "fixtures" / "tensorflow" / "keras_model" / "model.ckpt"
KERNELS = [f"model/_functional/_operations/{n}/_kernel" for n in (1, 2)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_other_formats_get_the_keys_of_people(capsys: Captured) -> None:
    """As from convert. To TensorFlow they stay, and the values are the same."""
    data = good(capsys, "prune", FIXTURE, "o.safetensors", "--sparsity", 0.5, "--mask-out", "k")
    assert [row["key"] for row in data["tensors"] if row["pruned"]] == KERNELS == list(open_checkpoint("k"))
    assert [layer["layer"] for layer in data["layers"]] == [key.removesuffix("/_kernel") for key in KERNELS]
    good(capsys, "prune", FIXTURE, "o.ckpt", "--sparsity", 0.5)
    after = arrays("o.ckpt")
    assert set(after) == set(open_checkpoint(FIXTURE)) and all(key.endswith(TF_SUFFIX) for key in after)
    for key, value in arrays("o.safetensors").items():
        assert value.tobytes() == after[key + TF_SUFFIX].tobytes()


def test_masks_and_initial_values_of_either(capsys: Captured) -> None:
    """A mask and what is rewound to may come from a file with the other kind of keys."""
    assert answer(capsys, "convert", FIXTURE, "m.safetensors")[0] == 0
    good(capsys, "prune", FIXTURE, "a.ckpt", "--sparsity", 0.5, "--mask-out", "long")
    good(capsys, "prune", "m.safetensors", "a.safetensors", "--sparsity", 0.5, "--mask-out", "short")
    assert [key + TF_SUFFIX for key in open_checkpoint("short")] == list(open_checkpoint("long"))
    expected = arrays("a.safetensors")
    for mask in ("long", "short"):
        good(capsys, "apply-mask", "m.safetensors", mask, f"{mask}.safetensors")
        good(capsys, "apply-mask", FIXTURE, mask, f"{mask}.ckpt")
        for key, value in expected.items():
            assert arrays(f"{mask}.safetensors")[key].tobytes() == value.tobytes()
            assert arrays(f"{mask}.ckpt")[key + TF_SUFFIX].tobytes() == value.tobytes()
    good(capsys, "prune", "m.safetensors", "r.safetensors", "--sparsity", 0.5, "--rewind", FIXTURE)
    good(capsys, "prune", FIXTURE, "r.ckpt", "--sparsity", 0.5, "--rewind", "m.safetensors")
    for key, value in expected.items():
        assert arrays("r.safetensors")[key].tobytes() == value.tobytes() == arrays("r.ckpt")[key + TF_SUFFIX].tobytes()


def test_globs_match_what_is_shown(capsys: Captured) -> None:
    one = ["--include", "**/1/_kernel", "--exclude", "**/2/*"]
    data = good(capsys, "prune", FIXTURE, "o.ckpt", "--sparsity", 0.5, *one)
    assert [row["key"] for row in data["tensors"] if row["pruned"]] == [KERNELS[0] + TF_SUFFIX]
    held = good(capsys, "prune", FIXTURE, "p.ckpt", "--sparsity", 0.5, "--at-most", "**/2/_kernel=0.25")
    assert [layer["zeros"] for layer in held["layers"]] == [8, 2]
    code, out, _ = answer(capsys, "prune", FIXTURE, "q.ckpt", "--sparsity", 0.5)
    assert code == 0 and TF_SUFFIX not in out and KERNELS[0] in out


def test_embeddings_and_norms_are_told_by_their_names(capsys: Captured) -> None:
    """And not by the words that stand at the end of every key."""
    names = {
        "model/emb/embeddings": random(0, 9, 8),
        "model/norm/gamma": np.ones((2, 8), "f4"),
        "model/d/kernel": random(1, 8, 8),
    }
    write(Path("m.ckpt"), {key + TF_SUFFIX: value for key, value in names.items()})
    data = good(capsys, "prune", "m.ckpt", "o.ckpt", "--sparsity", 0.5)
    whys = {row["key"].removesuffix(TF_SUFFIX): row["why"] for row in data["tensors"]}
    assert whys == {"model/emb/embeddings": "an embedding", "model/norm/gamma": "a norm", "model/d/kernel": None}
    assert [layer["layer"] for layer in data["layers"]] == ["model/d"]


def test_what_is_missing_is_an_error(capsys: Captured) -> None:
    write(Path("m.safetensors"), {KERNELS[0]: random(0, 3, 4)})
    assert (
        "it has no 'model/_functional"
        in bad(capsys, "prune", FIXTURE, "o.ckpt", "--sparsity", 0.5, "--rewind", "m.safetensors")["message"]
    )
    write(Path("n.safetensors"), {"w.weight": random(0, 3, 4)})
    good(capsys, "prune", FIXTURE, "o.ckpt", "--sparsity", 0.5, "--mask-out", "k")
    assert "which is not there" in bad(capsys, "apply-mask", "n.safetensors", "k", "p.safetensors")["message"]
