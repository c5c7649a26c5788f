"""Which format reads and writes what, built in or from another package."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from sinks import write_plainly

from wtool.adapter import Match, Probe, SaveRequest, probe
from wtool.errors import CorruptError, NotFoundError, TruncatedError, UnknownFormatError, UnsupportedError, UsageError
from wtool.formats import registry

PLUGIN = Path(__file__).parent / "example_plugin"


def forget() -> None:
    for cached in (registry._plugin_names, registry._plugin):
        cached.cache_clear()


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example package as if it were installed."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    forget()
    yield
    forget()
    sys.modules.pop("wtool_npy", None)


class Fake:
    """A built-in format that claims everything with one score."""

    def __init__(self, name: str, score: int) -> None:
        self.name, self.score, self.asked = name, score, 0

    def sniff(self, probe: Probe) -> Match | None:
        self.asked += 1
        return Match(self.score, "") if self.score else None


def pretend(monkeypatch: pytest.MonkeyPatch, **scores: int) -> dict[str, Fake]:
    fakes = {name: Fake(name, score) for name, score in scores.items()}
    monkeypatch.setattr(registry, "_BUILTIN", dict.fromkeys(fakes, ""))
    monkeypatch.setattr(registry, "_builtin", fakes.__getitem__)
    return fakes


def test_the_highest_score_wins_and_of_equals_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x")
    pretend(monkeypatch, a=0, b=40, c=70, d=70)
    adapter, match = registry.find(probe(path))
    assert (adapter.name, match.score) == ("c", 70)


def test_nobody_is_asked_after_one_who_is_certain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x")
    fakes = pretend(monkeypatch, a=40, b=100, c=100)
    assert registry.find(probe(path))[0].name == "b"
    assert fakes["c"].asked == 0


def test_the_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_file({"w": np.ones(2, np.float32)}, path)
    adapter, match = registry.find(probe(path))
    assert (adapter.name, match) == ("safetensors", Match(100, "single"))


def test_a_stranger_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, a=0)
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"")
    with pytest.raises(UnknownFormatError) as caught:
        registry.find(probe(path))
    assert "empty" in caught.value.message
    assert caught.value.path == str(path)


def test_what_is_missing_is_told_with_near_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, a=0)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(NotFoundError) as caught:
        registry.find(probe(tmp_path / "modle.safetensors"))
    assert "model.safetensors" in (caught.value.hint or "")
    assert "modle.safetensors.index" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("x.safetensors", "safetensors"),
        ("X.SAFETENSORS", "safetensors"),
        ("x.pth", "torch"),
        ("x.pt", "torch"),
        ("a.b/x.bin", "torch"),
        ("x.gguf", "gguf"),
        ("x.ckpt", "tensorflow"),
        ("x.ckpt.index", "tensorflow"),
        ("folder", "safetensors"),
        ("a.b/folder", "safetensors"),
        ("folder.v1/", "safetensors"),
    ],
)
def test_the_suffix_says_what_is_written(target: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_builtin", lambda name: name)
    assert registry._by_suffix(target) == name


def test_an_existing_folder_is_a_folder_whatever_its_name(tmp_path: Path) -> None:
    assert registry.is_folder_target(tmp_path)
    (tmp_path / "model.pth").mkdir()
    assert registry.is_folder_target(tmp_path / "model.pth")
    assert not registry.is_folder_target(tmp_path / "model.bin")


def test_an_unknown_suffix_or_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        registry.for_target("x.xyz")
    assert "--to safetensors|gguf|torch|tensorflow" in (caught.value.hint or "")
    with pytest.raises(UsageError) as caught:
        registry.for_target("x.safetensors", "onnx")
    assert "safetensors, gguf, torch, tensorflow" in (caught.value.hint or "")


def test_to_is_stronger_than_the_suffix() -> None:
    assert registry.for_target("x.pth", "safetensors").name == "safetensors"
    assert registry.names()[:4] == ("safetensors", "gguf", "torch", "tensorflow")


# ---- formats of other packages


def save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_format_of_another_package_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    pretend(monkeypatch, a=0)
    array = np.asarray(np.arange(24, dtype=np.int16).reshape(2, 3, 4), order=order)  # type: ignore[call-overload]
    seen = probe(save(tmp_path / "x.npy", array))
    adapter, match = registry.find(seen)
    assert (adapter.name, match.score) == ("npy", 100)
    checkpoint = adapter.open(seen)
    assert np.array_equal(checkpoint["array"].array(), array)
    assert (checkpoint["array"].span is None) == (order == "F")


@pytest.mark.usefixtures("plugin")
def test_a_format_of_another_package_writes(tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3)
    seen = probe(save(tmp_path / "x.npy", array))
    adapter = registry.for_target(tmp_path / "y.npy")
    assert adapter.name == registry.by_name("npy").name == "npy"
    assert "npy" in registry.names()
    checkpoint = adapter.open(seen)
    target = tmp_path / "y.npy"
    sink = adapter.create(SaveRequest(str(target), tuple(checkpoint.specs)))
    write_plainly(sink, checkpoint.tensors, target)
    assert target.read_bytes() == (tmp_path / "x.npy").read_bytes()
    [judged] = adapter.judge(str(target))
    assert (judged.dtype, judged.array.tolist()) == ("f64", array.tolist())
    with pytest.raises(UnsupportedError):
        adapter.create(SaveRequest(str(target), ()))


@pytest.mark.usefixtures("plugin")
def test_the_example_refuses_what_is_broken(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", np.arange(6.0))
    content = path.read_bytes()
    adapter = registry.by_name("npy")
    for changed, kind in [
        (content[:-1], TruncatedError),
        (content + b"x", CorruptError),
        (content.replace(b"(6,)", b"(-6,"), CorruptError),
        (content.replace(b"'<f8'", b"'>f8'"), UnsupportedError),
        (content[:9], CorruptError),
    ]:
        path.write_bytes(changed)
        with pytest.raises(kind):
            adapter.open(probe(path))


def test_without_the_package_its_files_are_strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    pretend(monkeypatch, a=0)
    with pytest.raises(UnknownFormatError, match="npy"):
        registry.find(probe(save(tmp_path / "x.npy", np.ones(2))))


def test_a_broken_package_is_named_and_stops_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(PLUGIN, tmp_path / "site", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "site" / "wtool_npy.py").write_text("raise RuntimeError('too old')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "wtool_npy", raising=False)
    forget()
    try:
        with pytest.raises(UnsupportedError, match="too old") as caught:
            registry.by_name("npy")
        assert "wtool-npy" in (caught.value.hint or "")
        pretend(monkeypatch, a=0)
        (tmp_path / "x").write_bytes(b"")
        with pytest.raises(UnknownFormatError) as unknown:
            registry.find(probe(tmp_path / "x"))
        assert "too old" in (unknown.value.hint or "")
    finally:
        forget()


def test_other_packages_are_not_looked_through_when_a_built_in_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> tuple[str, ...]:
        raise AssertionError("the installed packages were looked through")

    monkeypatch.setattr(registry, "_plugin_names", refuse)
    path = tmp_path / "x"
    save_file({"w": np.ones(2, np.float32)}, path)
    assert registry.find(probe(path))[0].name == "safetensors"
    assert registry.for_target("x.safetensors").name == "safetensors"
    assert registry.by_name("safetensors").name == "safetensors"


def test_a_folder_of_two_frameworks_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match="TensorFlow and safetensors"):
        registry.find(probe(tmp_path))
