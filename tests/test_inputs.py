"""Choosing inputs by glob, number, metric."""

from __future__ import annotations

from pathlib import Path

import pytest

from wtool.cli.inputs import Choice, chosen, step
from wtool.errors import NotFoundError, UsageError

STEPS = {
    "epoch=3-step=1200.ckpt": 1200,
    "epoch=07.ckpt": 7,
    "checkpoint-500": 500,
    "checkpoint-500/pytorch_model.bin": 500,
    "checkpoint-500/pytorch_model-00001-of-00002.bin": 500,
    "model_000250.pth": 250,
    "ckpt-12": 12,
    "ckpt-12.index": 12,
    "global_step1000.pt": 1000,
    "iter_20000.pth": 20000,
    "model.pt": None,
    "val_loss=0.25.ckpt": None,
    "epoch=2-val_loss=0.25.ckpt": 2,
    "step_300-loss0.12.pt": 300,
    "3.pt": 3,
    "run7/model.pt": None,
    "resnet50-epoch3.pth": 3,
    "model.v2.pt": 2,
    "steps/last.ckpt": None,
    "epoch_10.tar.gz": 10,
}


@pytest.mark.parametrize(("name", "number"), STEPS.items(), ids=STEPS)
def test_the_number_of_a_name(name: str, number: int | None) -> None:
    assert step(name) == number


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, loss in ((1, 0.9), (2, 0.25), (10, 0.3), (9, 0.5)):
        (tmp_path / f"epoch={number}-val_loss={loss}.ckpt").touch()
    return tmp_path


def names(folder: Path, *sources: str, **choice: object) -> list[str]:
    found = chosen([str(folder / source) for source in sources], Choice(**choice))  # type: ignore[arg-type]
    return [str(Path(one.path).relative_to(folder)).removesuffix(".ckpt") for one in found]


def test_a_glob_is_in_natural_order(folder: Path) -> None:
    found = ["epoch=1-val_loss=0.9", "epoch=2-val_loss=0.25", "epoch=9-val_loss=0.5", "epoch=10-val_loss=0.3"]
    assert names(folder, "*.ckpt") == found
    assert names(folder, "**/*.ckpt") == found
    with pytest.raises(NotFoundError, match="glob"):
        names(folder, "*.pt")
    assert names(folder, "none.pt") == ["none.pt"]  # opening it will tell
    (folder / "[x]*.ckpt").touch()
    assert names(folder, "[x]*.ckpt") == ["[x]*"]  # a path that is there is no glob


def test_the_last(folder: Path) -> None:
    assert names(folder, "*.ckpt", last=2) == ["epoch=9-val_loss=0.5", "epoch=10-val_loss=0.3"]
    assert names(folder, ".", last=1) == ["epoch=10-val_loss=0.3"]
    assert names(folder, "*.ckpt", "epoch=1*", last=4)[0] == "epoch=1-val_loss=0.9"  # met twice, counted once
    with pytest.raises(UsageError, match="--last asks for 5, and only 4 were found"):
        names(folder, "*.ckpt", last=5)
    (folder / "last.ckpt").touch()
    with pytest.raises(UsageError, match="tells no step") as error:
        names(folder, "*.ckpt", last=2)
    assert error.value.path == str(folder / "last.ckpt")


def test_a_link_to_the_last_is_the_last(folder: Path) -> None:
    (folder / "epoch=11.ckpt").symlink_to(folder / "epoch=10-val_loss=0.3.ckpt")
    assert len(names(folder, "*.ckpt", last=4)) == 4
    with pytest.raises(UsageError, match="only 4"):
        names(folder, "*.ckpt", last=5)


def test_names_without_numbers_are_in_natural_order(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.ckpt").touch()
    assert names(tmp_path, "*.ckpt", last=2) == ["b", "c"]
    with pytest.raises(UsageError, match="tells no step"):
        names(tmp_path, "*.ckpt", min_step=2)


def test_the_best(folder: Path) -> None:
    metric = "val_loss=([0-9.]+)"
    best = ["epoch=2-val_loss=0.25", "epoch=10-val_loss=0.3"]
    assert names(folder, "*.ckpt", best=2, metric=metric, lower=True) == best
    assert names(folder, "*.ckpt", best=1, metric=metric, higher=True) == ["epoch=1-val_loss=0.9"]
    assert names(folder, "*.ckpt", best=1, metric=metric, lower=True, min_step=3) == ["epoch=10-val_loss=0.3"]
    found = chosen([str(folder / "*.ckpt")], Choice(best=1, metric=metric, lower=True))
    assert (found[0].step, found[0].metric) == (2, 0.25)
    with pytest.raises(UsageError, match="--best asks for 9, and only 4"):
        names(folder, "*.ckpt", best=9, metric=metric, lower=True)
    (folder / "epoch=11.ckpt").touch()
    with pytest.raises(UsageError, match="nothing that --metric") as error:
        names(folder, "*.ckpt", best=2, metric=metric, lower=True)
    assert error.value.path is not None and error.value.path.endswith("epoch=11.ckpt")


def test_of_equal_ones_the_earlier_is_better(tmp_path: Path) -> None:
    for number in (3, 1, 2):
        (tmp_path / f"step={number}-acc=0.5.ckpt").touch()
    assert names(tmp_path, "*.ckpt", best=2, metric="acc=([0-9.]+)", higher=True) == ["step=1-acc=0.5", "step=2-acc=0.5"]


def test_a_range_of_steps(folder: Path) -> None:
    assert len(names(folder, "*.ckpt", min_step=2, max_step=9)) == 2
    assert len(names(folder, "*.ckpt", max_step=9, last=3)) == 3
    with pytest.raises(UsageError, match="nothing was found"):
        names(folder, "*.ckpt", min_step=90)


def test_what_contradicts_itself() -> None:
    for choice, word in (
        ({"last": 1, "best": 1, "metric": "(x)", "lower": True}, "contradict"),
        ({"best": 1}, "--metric"),
        ({"best": 1, "metric": "(x)"}, "--lower or --higher"),
        ({"best": 1, "metric": "(x)", "lower": True, "higher": True}, "--lower or --higher"),
        ({"metric": "(x)"}, "--best"),
        ({"last": 2, "lower": True}, "--best"),
    ):
        with pytest.raises(UsageError, match=word):
            Choice(**choice)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metric", "word"), [("a", "0 groups"), ("(a)(b)", "2 groups"), ("(", "bad --metric"), ("(e)", "no number")]
)
def test_bad_metrics(folder: Path, metric: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        names(folder, "*.ckpt", best=1, metric=metric, lower=True)


def test_tensorflow_is_one_checkpoint_a_prefix(tmp_path: Path) -> None:
    for number in (5, 10):
        (tmp_path / f"ckpt-{number}.index").touch()
        (tmp_path / f"ckpt-{number}.data-00000-of-00001").touch()
    (tmp_path / "checkpoint").touch()
    assert names(tmp_path, "*") == ["ckpt-5", "ckpt-10"]
    assert names(tmp_path, ".", last=1) == ["ckpt-10"]


def test_folders_of_a_trainer(tmp_path: Path) -> None:
    for number in (500, 1000, 1500):
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}" / "model.safetensors").touch()
    assert names(tmp_path, ".", last=2) == ["checkpoint-1000", "checkpoint-1500"]
    assert names(tmp_path, "checkpoint-*", last=2) == ["checkpoint-1000", "checkpoint-1500"]
    assert names(tmp_path, "checkpoint-500", last=1) == ["checkpoint-500"]  # that one is a checkpoint itself
