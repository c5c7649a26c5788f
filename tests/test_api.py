"""The two doors: what is refused before the first byte, and what is said of a save."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support import checkpoint_of, checkpoint_on, values_of

from wtool.api import open_checkpoint, plan_save, save, save_checkpoint
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Opaque, Section
from wtool.dtypes import dtype
from wtool.errors import (
    DtypeError,
    LimitError,
    LossError,
    NoTensorsError,
    NotFoundError,
    OutputExistsError,
    TiedError,
    UsageError,
    WriteError,
    WtoolError,
)
from wtool.tensor import LazyTensor


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(folder: Path, target: object, error: type[WtoolError], words: str | None, **options: object) -> WtoolError:
    """The error of a save that changes nothing; it exits with 2 and names the target."""
    before = everything(folder)
    with pytest.raises(error, match=words) as caught:
        save_checkpoint(checkpoint_of(1), target, **options)
    assert everything(folder) == before
    assert caught.value.exit_code == 2 and caught.value.path
    return caught.value


def test_a_missing_folder(tmp_path: Path) -> None:
    for force in (False, True):
        error = refused(tmp_path, tmp_path / "no" / "m.safetensors", WriteError, "folder does not exist", force=force)
        assert error.hint == f"mkdir -p {tmp_path / 'no'}"
    refused(tmp_path, tmp_path / "no" / "out", WriteError, "folder does not exist", max_shard=5000)
    refused(tmp_path, f"{tmp_path}/no/out/", WriteError, "folder does not exist", max_shard=5000)
    (tmp_path / "file").touch()
    refused(tmp_path, tmp_path / "file" / "m.safetensors", WriteError, "folder does not exist")


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shut").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "shut")
    refused(tmp_path, tmp_path / "shut" / "m.safetensors", WriteError, "cannot be written to")
    refused(tmp_path, tmp_path / "shut" / "m.ckpt", WriteError, "cannot be written to")
    refused(tmp_path, tmp_path / "shut" / "out", WriteError, "cannot be written to")
    refused(tmp_path, tmp_path / "shut", WriteError, "cannot be written to")


def test_a_folder_in_one_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume mounted at the root of a container: what counts is the folder itself."""
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    save_checkpoint(checkpoint_of(1), tmp_path / "out", max_shard=5000)
    assert values_of(open_checkpoint(tmp_path / "out")) == values_of(checkpoint_of(1))


@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt", "m.pth"])
def test_the_target_is_a_folder(tmp_path: Path, name: str) -> None:
    for one in {"m.ckpt": ["m.ckpt.index", "m.ckpt.data-00000-of-00001"]}.get(name, [name]):
        (tmp_path / one).mkdir()
        (tmp_path / one / "inside").touch()
        for force in (False, True):
            if name != "m.ckpt":  # a folder of shards may have any name; what is in it stays
                refused(tmp_path, tmp_path / name, OutputExistsError, "exists already")
                break
            refused(tmp_path, tmp_path / name, WriteError, "is a folder", force=force)
        (tmp_path / one / "inside").unlink()
        (tmp_path / one).rmdir()


@pytest.mark.parametrize(
    ("target", "there", "options"),
    [
        ("m.safetensors", "m.safetensors", {}),
        ("m.pth", "m.pth", {}),
        ("m.ckpt", "m.ckpt.index", {}),
        ("m.ckpt", "m.ckpt.data-00000-of-00001", {}),
        ("m.safetensors", "m.safetensors.index.json", {"max_shard": 5000}),
        ("m.safetensors", "m-00002-of-00003.safetensors", {"max_shard": 5000}),
        ("out", "out/config.json", {"max_shard": 5000}),
        ("out", "out", {"max_shard": 5000}),
    ],
)
def test_an_output_that_exists(tmp_path: Path, target: str, there: str, options: dict[str, int]) -> None:
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("precious")
    error = refused(tmp_path, tmp_path / target, OutputExistsError, None, **options)
    assert (tmp_path / there).read_text() == "precious"
    assert error.code == "output-exists"
    with pytest.raises(OutputExistsError):
        plan_save(checkpoint_of(1), tmp_path / target, **options)  # a dry run says so too
    if there != "out":
        save_checkpoint(checkpoint_of(1), tmp_path / target, force=True, **options)
        assert "config.json" in there or (tmp_path / there).read_bytes() != b"precious"


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    for target in ("m.safetensors", "m.ckpt", "m.pth", "out"):
        plan = plan_save(checkpoint_of(1), tmp_path / target, max_shard=5000 if target == "out" else None)
        assert everything(tmp_path) == []
        report = save_checkpoint(checkpoint_of(1), tmp_path / target, max_shard=5000 if target == "out" else None)
        assert [(path, os.path.getsize(path)) for path, _ in report.files] == list(report.files)
        assert plan.paths == tuple(path for path, _ in report.files)
        for path in report.files:
            os.unlink(path[0])
        if target == "out":
            (tmp_path / "out").rmdir()


def test_nothing_to_save(tmp_path: Path) -> None:
    empty = checkpoint_on(MemoryBytes(b""), {})
    with pytest.raises(NoTensorsError):
        save_checkpoint(empty, tmp_path / "m.safetensors")
    assert everything(tmp_path) == []


def test_a_dtype_the_format_lacks(tmp_path: Path) -> None:
    given = checkpoint_on(MemoryBytes(bytes(100)), {"a": ("c128", (2,)), "b": ("f32", (2,))})
    with pytest.raises(DtypeError, match=r"safetensors has no dtype c128 \(a\)") as caught:
        save_checkpoint(given, tmp_path / "m.safetensors")
    assert caught.value.hint and everything(tmp_path) == []


def test_the_bomb(tmp_path: Path) -> None:
    huge = LazyTensor.strided("bomb", dtype("f32"), (1 << 25, 1 << 25), MemoryBytes(bytes(4)), 0, (0, 0))
    given = replace(checkpoint_of(1), tensors={"bomb": huge}, sections=())
    with pytest.raises(LimitError, match="bomb is an expanded view"):
        save_checkpoint(given, tmp_path / "m.safetensors")
    assert everything(tmp_path) == []


def tied() -> Checkpoint:
    source = MemoryBytes(bytes(range(200)))
    return replace(
        checkpoint_on(source, {}),
        tensors={
            key: LazyTensor.contiguous(key, dtype("f32"), (10,), source, at)
            for key, at in (("head.w", 0), ("other", 40), ("embed.w", 0))
        },
        sections=(),
    )


def test_ties(tmp_path: Path) -> None:
    target = tmp_path / "m.safetensors"
    with pytest.raises(TiedError, match=r"1 group of tied tensors, such as embed\.w = head\.w"):
        save_checkpoint(tied(), target, tied="error")
    report = save_checkpoint(tied(), target, tied="duplicate")
    assert set(open_checkpoint(target)) == {"head.w", "other", "embed.w"} and report.losses == ()
    twice = sum(slot.nbytes for slot in report.plan.plan.layout.slots)
    report = save_checkpoint(tied(), target, tied="keep-one", force=True)
    assert sum(slot.nbytes for slot in report.plan.plan.layout.slots) == twice - 40
    for key in ("other", "embed.w"):
        assert open_checkpoint(target)[key].array().tobytes() == tied()[key].array().tobytes()
    assert report.plan.tied == (("embed.w", "head.w"),)


def test_losses_are_named_and_strict_refuses_them(tmp_path: Path) -> None:
    given = checkpoint_of(1, count=4)
    whole = replace(
        given,
        sections=(Section("model", "model", ("k0", "k1")), Section("optimizer", "optimizer", ("k2", "k3"))),
        extras={"epoch": 3, "args": Opaque("argparse.Namespace")},
    )
    plan = plan_save(whole.section("model"), tmp_path / "m.safetensors", whole=whole)
    assert {(loss.kind, loss.name, loss.nbytes) for loss in plan.losses} == {
        ("section", "optimizer", 8000),
        ("extras", "epoch", 0),
        ("extras", "args", 0),
    }
    with pytest.raises(LossError, match="would lose section optimizer, extras epoch"):
        plan_save(whole.section("model"), tmp_path / "m.safetensors", whole=whole, strict=True)
    assert everything(tmp_path) == []


def test_an_overflow_is_counted_and_strict_refuses_it(tmp_path: Path) -> None:
    import numpy as np

    from wtool.api import save
    from wtool.ops.cast import CastTo

    values = np.array([1.0, 1e30, -1e30, 5.0], "f4").tobytes()
    cast = CastTo(dtype("f16"))(checkpoint_on(MemoryBytes(values), {"a": ("f32", (4,))}))
    with pytest.raises(LossError, match="2 values of 1 tensors overflow"):
        save(plan_save(cast, tmp_path / "m.safetensors", strict=True))
    assert everything(tmp_path) == []
    report = save_checkpoint(cast, tmp_path / "m.safetensors")
    assert report.overflow == {"a": 2}
    assert [(loss.kind, loss.name, loss.count) for loss in report.losses] == [("overflow", "a", 2)]


def test_metadata(tmp_path: Path) -> None:
    given = replace(checkpoint_of(1), metadata={"by": "me", "step": "3"})
    save_checkpoint(given, tmp_path / "m.safetensors", metadata={"step": "4"})
    assert open_checkpoint(tmp_path / "m.safetensors").metadata == {"format": "pt", "by": "me", "step": "4"}


def test_a_tensorflow_target_says_so(tmp_path: Path) -> None:
    assert "TensorFlow" in plan_save(checkpoint_of(1), tmp_path / "m.ckpt").notes[0]
    assert plan_save(checkpoint_of(1), tmp_path / "m.ckpt", to="tensorflow").notes == ()


def test_unknown_targets(tmp_path: Path) -> None:
    refused(tmp_path, tmp_path / "m.onnx", WtoolError, None)
    with pytest.raises(UsageError, match="no-such-format"):
        save_checkpoint(checkpoint_of(1), tmp_path / "m.safetensors", to="no-such-format")
    assert everything(tmp_path) == []


def test_no_such_source(tmp_path: Path) -> None:
    for name in ("m.pth", "folder/m.ckpt"):
        with pytest.raises(NotFoundError) as caught:
            open_checkpoint(tmp_path / name)
        assert caught.value.path == str(tmp_path / name) and caught.value.exit_code == 2


def test_opening_imports_no_numpy_and_no_writer(tmp_path: Path) -> None:
    for target in ("m.safetensors", "m.ckpt", "m.pth"):
        save_checkpoint(checkpoint_of(1), tmp_path / target)
        script = (
            "import sys; from wtool.api import open_checkpoint; assert len(open_checkpoint(sys.argv[1])) == 3;"
            "print({'numpy', 'torch', 'tensorflow', 'concurrent.futures', 'wtool.write'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path / target)], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("set()\n", "")


def test_files_beside_the_tensors(tmp_path: Path) -> None:
    """They appear with a new folder, and replace their namesakes in one that is there."""
    target = tmp_path / "out"
    plan = plan_save(checkpoint_of(1), target)
    large = MemoryBytes(bytes(range(256)) * 10_000)
    report = save(plan, beside={"config.json": MemoryBytes(b"{}"), "tokenizer.json": large, "empty": MemoryBytes(b"")})
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "empty", "model.safetensors", "tokenizer.json"]
    assert (target / "tokenizer.json").read_bytes() == large.pread(0, large.size)
    assert [size for _, size in report.files] == [(target / "model.safetensors").stat().st_size, 2, large.size, 0]
    (target / "mine.txt").write_text("stays")
    save(plan_save(checkpoint_of(2), target, force=True), beside={"config.json": MemoryBytes(b"[]")})
    assert (target / "config.json").read_bytes() == b"[]" and (target / "mine.txt").read_text() == "stays"
    assert len(list(target.iterdir())) == 5
