"""Reading torch's files: every value as torch.load gives it, bit for bit; nothing run; every fault one error."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import random
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hostile_torch import VALUES, archive, legacy, old_storage, pickled, storage, string, tensor

from wtool.adapter import probe
from wtool.checkpoint import Checkpoint, Node, Opaque, TensorRef
from wtool.errors import CorruptError, KeyClashError, LimitError, UnsafeError, UnsupportedError, WtoolError
from wtool.formats.torch import ADAPTER

KINDS = ("zip", "legacy")


def opened(path: Path, data: bytes | None = None) -> Checkpoint:
    if data is not None:
        path.write_bytes(data)
    found = probe(path)
    match = ADAPTER.sniff(found)
    assert match is not None and match.score >= 80, match
    return ADAPTER.open(found)


def bits(value: Any) -> bytes:
    import torch

    value = value.detach()
    if value.is_quantized:
        value = value.int_repr()
    value = value.resolve_conj().resolve_neg().contiguous()
    return value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


def spread(thing: Any, prefix: str = "") -> dict[str, Any]:
    """What torch loaded, flattened the way a person would: an independent oracle for keys."""
    import torch

    if isinstance(thing, torch.Tensor):
        return {prefix[:-1] or "tensor": thing}
    if isinstance(thing, torch.nn.Module):
        return spread(dict(thing.state_dict()), prefix)
    found: dict[str, Any] = {}
    items = thing.items() if isinstance(thing, dict) else enumerate(thing) if isinstance(thing, (list, tuple)) else ()
    for key, value in items:
        found.update(spread(value, f"{prefix}{key}."))
    return found


def check(checkpoint: Checkpoint, truth: dict[str, Any]) -> None:
    assert {*truth} <= {*checkpoint}
    for key, value in truth.items():
        lazy = checkpoint[key]
        assert lazy.shape == tuple(value.shape), key
        if not value.is_quantized:
            assert f"torch.{lazy.dtype.torch}" == str(value.dtype), key
        assert lazy.array().tobytes() == bits(value), key


def cases() -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    w, base = torch.randn(4, 6), torch.randn(10)
    net = _Net()
    optimizer = torch.optim.Adam(net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tagged = torch.nn.Parameter(w.clone())
    tagged.tag = 3
    plain = "int8 uint8 int16 int32 int64 uint16 uint32 uint64 bool complex64 complex128 complex32 float64 float16 bfloat16"
    narrow = "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
    return {
        "dtypes": {name: torch.ones(2, 3).to(getattr(torch, name)) for name in (plain + " " + narrow).split()},
        "shapes": {"scalar": torch.tensor(5), "empty": torch.zeros(0, 3), "empty2": torch.zeros(2, 0), "one": w[:1, :1]},
        "tied": {"x": w, "y": w, "z": w.t()},
        "overlap": {"x": base[:6], "y": base[4:]},
        "strided": {
            "t": w.t(),
            "s": w[:, ::2],
            "p": torch.randn(2, 3, 4).permute(2, 0, 1),
            "cl": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
            "sl": w[1:3, 2:5],
        },
        "expanded": {"e": torch.tensor([1.0]).expand(4, 5), "r": torch.randn(3, 1).expand(3, 7), "u": base.unfold(0, 4, 2)},
        "parameters": {"p": torch.nn.Parameter(w), "b": torch.nn.Buffer(base), "tagged": tagged},
        "nested": {"enc": {"blocks": [{"w": w}, {"w": base}], "t": (w, 1)}, "n": 3},
        "special": {"n": torch.tensor([float("nan"), float("inf"), -0.0]).repeat(3)},
        "conjugate": {
            "c": torch.randn(3, dtype=torch.complex64).conj(),
            "n": torch.randn(3, dtype=torch.complex64).conj().imag,
            "t": torch.randn(3, 2, dtype=torch.complex128).conj().t(),
        },
        "module": net,
        "wrapped_module": {"model": net, "ema": _Net(), "optimizer": optimizer.state_dict(), "epoch": 1},
        "lightning": {
            "epoch": 3,
            "pytorch-lightning_version": "2.0",
            "state_dict": net.state_dict(),
            "optimizer_states": [optimizer.state_dict()],
            "hyper_parameters": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/x/y")),
        },
        "bare": w,
        "list": [w, base],
        "integer_keys": {0: w, 1: {2: base}, None: base},
    }


def _net() -> Any:
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(3, 4)
            self.bn = torch.nn.BatchNorm1d(4)
            self.register_buffer("fleeting", torch.ones(2), persistent=False)
            self.attribute = torch.arange(2.0)
            self.seq = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU())
            self.head = self.a

    Net.__qualname__ = Net.__name__ = "_Net"
    return Net


try:
    _Net = _net()
except ImportError:
    _Net = None

CASES = """dtypes shapes tied overlap strided expanded parameters nested special conjugate module wrapped_module
lightning bare list integer_keys""".split()  # noqa: SIM905


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_as_torch_loads_it(name: str, kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    thing = cases()[name]
    path = tmp_path / "file"
    torch.save(thing, path, _use_new_zipfile_serialization=kind == "zip")
    try:
        loaded = torch.load(path, weights_only=False)
    except AttributeError:  # torch cannot read back untyped storages from its own old format
        loaded = thing
    checkpoint = opened(path)
    check(checkpoint, spread(loaded))
    assert all(found.verdict != "dangerous" for found in checkpoint.globals)
    assert sorted(key for section in checkpoint.sections for key in section.keys) == sorted(checkpoint)


@pytest.mark.parametrize("kind", KINDS)
def test_ties_sections_and_extras(kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "file"
    torch.save(cases()["tied"], path, _use_new_zipfile_serialization=kind == "zip")
    assert opened(path).tied() == [["x", "y"]]
    torch.save(cases()["lightning"], path, _use_new_zipfile_serialization=kind == "zip")
    checkpoint = opened(path)
    assert [(part.name, part.kind, part.prefix) for part in checkpoint.sections] == [
        ("state_dict", "model", "state_dict."),
        ("optimizer_states", "optimizer", "optimizer_states."),
    ]
    assert checkpoint.source.framework == "PyTorch Lightning"
    assert checkpoint.extras["epoch"] == 3
    assert checkpoint.extras["hyper_parameters"] == {"lr": 0.1, "path": "/x/y"}
    assert checkpoint.extras["optimizer_states"]["0"]["param_groups"][0]["lr"] == 0.001
    assert checkpoint.tied() == [
        ["state_dict.a.weight", "state_dict.head.weight"],
        ["state_dict.a.bias", "state_dict.head.bias"],
    ]
    torch.save(cases()["wrapped_module"], path, _use_new_zipfile_serialization=kind == "zip")
    checkpoint = opened(path)
    assert {(part.name, part.kind) for part in checkpoint.sections} == {
        ("model", "model"),
        ("ema", "ema"),
        ("optimizer", "optimizer"),
        ("other", "other"),
    }
    assert {key for part in checkpoint.sections if part.name == "other" for key in part.keys} == {
        f"{top}.{name}" for top in ("model", "ema") for name in ("fleeting", "attribute")
    }
    assert [*checkpoint.section()] == [*_Net().state_dict()]


def test_structure(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    sd = torch.nn.Linear(2, 3).state_dict()
    torch.save({"model": sd, "n": [1, (2, "x")], 5: {"a": None}, "w": torch.zeros(2)}, tmp_path / "f")
    structure = opened(tmp_path / "f").structure
    assert isinstance(structure, Node)
    items = dict(structure.items)
    assert items["n"] == [1, (2, "x")] and items["w"] == TensorRef("w")
    assert items[5] == Node((("a", None),))
    model = items["model"]
    assert model.ordered and model.items[0] == ("weight", TensorRef("model.weight"))
    metadata = model.attributes["_metadata"]
    assert metadata.ordered and metadata.items == (("", Node((("version", 1),))),)


def test_module_structure_is_a_state_dict(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 3))), tmp_path / "f")
    checkpoint = opened(tmp_path / "f")
    assert checkpoint.source.variant == "module"
    assert checkpoint.structure == Node(tuple((key, TensorRef(key)) for key in ("0.0.weight", "0.0.bias")), ordered=True)


def test_extras_are_plain(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import numpy as np

    thing = {
        "w": torch.zeros(2),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "counter": collections.Counter("aab"),
        "set": {1},
        "when": datetime.datetime(2020, 1, 2, 3, 4, 5),
        "default": collections.defaultdict(list, {"a": [1]}),
        "scalar": np.float32(1.5),
        "integer": np.int64(-3),
        "flag": np.bool_(True),
        "text": np.str_("hi"),
        "path": pathlib.PurePosixPath("a/b"),
        "unknown": _Thing(),
    }
    torch.save(thing, tmp_path / "f")
    extras = opened(tmp_path / "f").extras
    assert extras == {
        "size": [1, 2],
        "dtype": Opaque("torch.float16"),
        "counter": {"a": 2, "b": 1},
        "set": [1],
        "when": "2020-01-02T03:04:05",
        "default": {"a": [1]},
        "scalar": 1.5,
        "integer": -3,
        "flag": True,
        "text": "hi",
        "path": "a/b",
        "unknown": Opaque(f"{__name__}._Thing"),
    }


class _Thing:
    def __init__(self) -> None:
        self.x = 1


def test_tensors_in_unknown_objects_are_found(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    thing = _Thing()
    thing.weights = {"a": torch.arange(3.0)}
    torch.save({"state_dict": {"w": torch.zeros(1)}, "callback": thing}, tmp_path / "f")
    checkpoint = opened(tmp_path / "f")
    assert [*checkpoint] == ["state_dict.w", "callback.weights.a"]
    assert [(part.name, part.keys) for part in checkpoint.sections][1] == ("other", ("callback.weights.a",))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_numpy_arrays_are_tensors(protocol: int, kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import numpy as np

    arrays = {
        "c": np.arange(6.0).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6, dtype="i4").reshape(2, 3)),
        "big": np.arange(4, dtype=">f4"),
        "bigc": np.array([1 + 2j], dtype=">c16"),
        "b": np.array([True, False]),
        "h": np.array([1.5], "f2"),
        "z": np.zeros((0, 2)),
        "s": np.array(3.0),
    }
    torch.save(
        {**arrays, "o": np.array([None, "x"], object), "text": np.array(["ab"])},
        tmp_path / "f",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=kind == "zip",
    )
    checkpoint = opened(tmp_path / "f")
    assert [*checkpoint] == [*arrays]
    for key, value in arrays.items():
        assert checkpoint[key].array().tobytes() == value.astype(value.dtype.newbyteorder("<")).tobytes(), key
        assert checkpoint[key].shape == value.shape
    assert checkpoint.extras == {"o": Opaque("numpy.ndarray"), "text": Opaque("numpy.ndarray")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_quantized_and_sparse(kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    w = torch.randn(3, 4)
    q = torch.quantize_per_tensor(w, 0.1, 3, torch.quint8)
    c = torch.quantize_per_channel(w, torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1, 2, 3]), 0, torch.qint8)
    coo, csr = w.relu().to_sparse(), w.relu().to_sparse_csr()
    torch.save({"q": q, "c": c, "coo": coo, "csr": csr}, tmp_path / "f", _use_new_zipfile_serialization=kind == "zip")
    checkpoint = opened(tmp_path / "f")
    truth = {
        "q": q,
        "q.scale": torch.tensor(0.1, dtype=torch.float64),
        "q.zero_point": torch.tensor(3),
        "c": c,
        "c.scale": c.q_per_channel_scales(),
        "c.zero_point": c.q_per_channel_zero_points(),
        "coo.indices": coo._indices(),
        "coo.values": coo._values(),
        "csr.crow_indices": csr.crow_indices(),
        "csr.col_indices": csr.col_indices(),
        "csr.values": csr.values(),
    }
    assert [*checkpoint] == [*truth]
    check(checkpoint, truth)
    assert {warning.code for warning in checkpoint.warnings} == {"quantized", "sparse"}
    assert checkpoint.extras["csr"] == {"size": [3, 4], "layout": "torch.sparse_csr"}
    assert checkpoint.extras["c"] == {"axis": 0}
    assert isinstance(checkpoint.structure, Node)
    assert [key for key, _ in checkpoint.structure.items][:3] == ["q", "q.scale", "q.zero_point"]


@pytest.mark.filterwarnings("ignore")
def test_scripted(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Sequential(torch.nn.Linear(2, 2)))
    torch.jit.script(net).save(tmp_path / "s")
    traced = torch.jit.trace(net.eval(), torch.zeros(1, 1, 4, 4))
    traced.save(tmp_path / "t")
    frozen = torch.jit.freeze(torch.jit.script(net.eval()))
    frozen.save(tmp_path / "z")
    for name in "st":
        checkpoint = opened(tmp_path / name)
        assert checkpoint.source.variant == "torchscript"
        check(checkpoint, dict(net.state_dict()))
        assert {*checkpoint} == {*net.state_dict()}
    assert all(key.startswith("constants.") for key in opened(tmp_path / "z"))
    assert len(opened(tmp_path / "z")) >= 4


def rezip(
    path: Path, method: int = zipfile.ZIP_STORED, change: Any = None, drop: tuple[str, ...] = (), root: str = ""
) -> Path:
    target = path.with_suffix(".again")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", method) as new:
        for info in old.infolist():
            folder, _, name = info.filename.partition("/")
            if name not in drop:
                data = old.read(info)
                new.writestr(f"{root or folder + '/'}{name}" if root != "-" else name, change(name, data) if change else data)
    return target


def test_rezipped(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    thing = {"w": torch.arange(300_000.0).reshape(600, 500).t(), "v": torch.randn(5)}
    torch.save(thing, tmp_path / "f.pt")
    for target in (
        rezip(tmp_path / "f.pt", zipfile.ZIP_DEFLATED),
        rezip(tmp_path / "f.pt", root="some other name/"),
        rezip(tmp_path / "f.pt", root="-"),
        rezip(tmp_path / "f.pt", drop=("byteorder", "version", ".format_version", ".data/serialization_id")),
    ):
        check(opened(target), thing)


def test_big_endian(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    w = torch.arange(12.0).reshape(3, 4)
    thing = {
        "f": w,
        "t": w.t(),
        "h": w.half(),
        "i": torch.arange(3),
        "c": torch.tensor([1 + 2j]),
        "b": torch.tensor([True]),
        "d": torch.tensor(1.5, dtype=torch.float64),
        "u": torch.arange(3).to(torch.uint16),
    }
    torch.save(thing, tmp_path / "f.pt")
    widths = {"0": 4, "1": 2, "2": 8, "3": 4, "4": 1, "5": 8, "6": 2}

    def change(name: str, data: bytes) -> bytes:
        if name == "byteorder":
            return b"big"
        if name.startswith("data/"):
            width = widths[name[5:]]
            return b"".join(data[at : at + width][::-1] for at in range(0, len(data), width))
        return data

    checkpoint = opened(rezip(tmp_path / "f.pt", change=change))
    check(checkpoint, thing)
    loaded = torch.load(tmp_path / "f.again")
    check(checkpoint, {key: loaded[key] for key in thing if key != "u"})  # torch forgets to swap untyped storages


def test_crc_that_torch_did_not_compute(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({"w": torch.arange(3.0)}, tmp_path / "f")
    finally:
        torch.serialization.set_crc32_options(before)
    check(opened(tmp_path / "f"), {"w": torch.arange(3.0)})


def test_meta_tensor_has_no_values(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for kind in KINDS:
        torch.save({"w": torch.zeros(2, device="meta")}, tmp_path / kind, _use_new_zipfile_serialization=kind == "zip")
        with pytest.raises(UnsupportedError, match="'w' is a meta tensor"):
            opened(tmp_path / kind)


GOOD = pickled({"w": tensor()})
ROOT = b"archive/"
HOSTILE: dict[str, tuple[bytes, type[WtoolError]]] = {
    "beyond the storage": (archive(pickled({"w": tensor(shape=(5,))})), CorruptError),
    "offset beyond": (archive(pickled({"w": tensor(offset=1)})), CorruptError),
    "stride beyond": (archive(pickled({"w": tensor(strides=(2,))})), CorruptError),
    "negative offset": (archive(pickled({"w": tensor(offset=-1)})), CorruptError),
    "negative size": (archive(pickled({"w": tensor(shape=(-4,))})), CorruptError),
    "negative stride": (archive(pickled({"w": tensor(offset=3, strides=(-1,))})), CorruptError),
    "2^64 elements": (archive(pickled({"w": tensor(shape=(1 << 32, 1 << 32), strides=(1 << 32, 1))})), CorruptError),
    "size of 2^70": (archive(pickled({"w": tensor(shape=(1 << 70,), strides=(0,))})), CorruptError),
    "wrap around": (archive(pickled({"w": tensor(shape=(2,), strides=((1 << 62),))})), CorruptError),
    "sizes and strides": (archive(pickled({"w": tensor(shape=(2, 2))})), CorruptError),
    "rank": (archive(pickled({"w": tensor(shape=(1,) * 65, strides=(1,) * 65)})), CorruptError),
    "storage larger than its entry": (archive(pickled({"w": tensor(stored=storage(count=5))})), CorruptError),
    "storage smaller than its entry": (archive(pickled({"w": tensor(stored=storage(count=3), shape=(3,))})), CorruptError),
    "storage of negative size": (archive(pickled({"w": tensor(stored=storage(count=-1))})), CorruptError),
    "storage of 2^80": (archive(pickled({"w": tensor(stored=storage(count=1 << 80))})), CorruptError),
    "storage missing": (archive(pickled({"w": tensor(stored=storage(key="7"))})), CorruptError),
    "storage outside": (archive(pickled({"w": tensor(stored=storage(key="../../etc/passwd"))})), CorruptError),
    "two dtypes": (
        archive(pickled({"a": tensor(), "b": tensor(stored=storage(kind="torch\nLongStorage", count=2), shape=(2,))})),
        CorruptError,
    ),
    "unknown storage": (archive(pickled({"w": tensor(stored=storage(kind="torch\nEvilStorage"))})), UnsupportedError),
    "keys that clash": (archive(pickled({"a": pickled({"b": tensor()})[2:-1], "a.b": tensor()})), KeyClashError),
    "case twin": (archive(GOOD, extra={"archive/Data.pkl": b"x"}), UnsafeError),
    "two roots": (archive(GOOD, extra={"other/data.pkl": GOOD}), UnsafeError),
    "byte order": (archive(GOOD, extra={"archive/byteorder": b"middle"}), CorruptError),
    "billion laughs of tensors": (
        archive(b"\x80\x02" + tensor() + b"\x85q\x00" + b"h\x00\x86q\x00" * 60 + b"."),
        LimitError,
    ),
    "a tensor 2000 deep": (archive(b"\x80\x02" + tensor() + b"\x85" * 2000 + b"."), LimitError),
    "legacy storage missing": (legacy(pickled({"w": tensor(stored=old_storage("7"))})), CorruptError),
    "legacy count": (legacy(pickled({"w": tensor(stored=old_storage(count=5))})), CorruptError),
    "legacy negative": (legacy(pickled({"w": tensor(stored=old_storage(count=-5))})), CorruptError),
    "legacy view beyond": (
        legacy(pickled({"w": tensor(stored=old_storage()[:-3] + b"(" + string("v") + b"K\x02K\x03ttQ")})),
        CorruptError,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str, tmp_path: Path) -> None:
    data, error = HOSTILE[name]
    with pytest.raises(error) as caught:
        opened(tmp_path / "f", data)
    assert caught.value.path == str(tmp_path / "f")
    assert "\n" not in caught.value.message


def test_read_by_hand(tmp_path: Path) -> None:
    for data in (archive(GOOD), archive(GOOD, deflate=True), legacy(pickled({"w": tensor(stored=old_storage())}))):
        assert opened(tmp_path / "f", data)["w"].array().tolist() == [1, 2, 3, 4]
    view = old_storage()[:-3] + b"(" + string("v") + b"K\x01K\x02ttQ"
    assert opened(tmp_path / "f", legacy(pickled({"w": tensor(stored=view, shape=(2,))})))["w"].array().tolist() == [2, 3]


def test_what_is_large_only_on_paper_is_listed(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path / "f", archive(pickled({"w": tensor(shape=(1 << 50,), strides=(0,))})))
    assert checkpoint["w"].shape == (1 << 50,) and checkpoint["w"].span is None


def test_laughs_deep_and_cyclic_extras_do_not_stop_the_tensors(tmp_path: Path) -> None:
    laughs = b"]q\x00" + b"0](h\x00h\x00h\x00eq\x00" * 60
    deep = b"N" + b"\x85" * 100_000
    cycle = b"]q\x05h\x05a"
    collide = b"}(" + b"".join(b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N" for k in range(60_000)) + b"u"
    key = b"}N" + b"\x85" * 100_000 + b"Ns"
    items = {"laughs": laughs, "deep": deep, "cycle": cycle, "collide": collide, "key": key, "w": tensor()}
    checkpoint = opened(tmp_path / "f", archive(pickled(items)))
    assert [*checkpoint] == ["w"]
    assert isinstance(checkpoint.extras["laughs"], Opaque) and isinstance(checkpoint.extras["deep"], Opaque)
    assert checkpoint.extras["cycle"] == [Opaque("an object that holds itself")]
    assert len(checkpoint.extras["collide"]) == 60_000
    assert [warning.code for warning in checkpoint.warnings] == ["cycle"]


MALICIOUS = {
    "reduce": b"cos\nsystem\n" + string("touch {}") + b"\x85R",
    "inst": b"(" + string("touch {}") + b"ios\nsystem\n",
    "obj": b"(cos\nsystem\n" + string("touch {}") + b"o",
    "obj and pop": b"(cos\nsystem\n" + string("touch {}") + b"o0N",
    "stack global": string("os") + string("system") + b"\x93" + string("touch {}") + b"\x85R",
    "dotted": string("torch") + string("serialization.os.system") + b"\x93" + string("touch {}") + b"\x85R",
    "memo": string("os") + b"q\x63" + string("system") + b"q\x64\x30\x30h\x63h\x64\x93" + string("touch {}") + b"\x85R",
    "eval": b"c__builtin__\neval\n" + string("__import__('os').system('touch {}')") + b"\x85R",
    "build": b"cos\nsystem\n)\x81}" + string("x") + string("touch {}") + b"sb",
    "nested pickle": b"ctorch.storage\n_load_from_bytes\nC\x05\x80\x02N.x\x85R",
    "from type": b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncos\nsystem\n" + string("touch {}") + b"\x85NtR",
}


@pytest.mark.parametrize("name", MALICIOUS)
@pytest.mark.parametrize("kind", KINDS)
def test_malicious_is_read_and_named(name: str, kind: str, tmp_path: Path) -> None:
    evil = MALICIOUS[name]
    stored = tensor() if kind == "zip" else tensor(stored=old_storage())
    data = pickled({"evil": evil, "w": stored})
    checkpoint = opened(tmp_path / "f", archive(data) if kind == "zip" else legacy(data))
    assert checkpoint["w"].array().tolist() == [1, 2, 3, 4]
    assert any(found.verdict == "dangerous" for found in checkpoint.globals)
    assert "dangerous-globals" in {warning.code for warning in checkpoint.warnings}


_AUDIT = """
import sys
from wtool.adapter import probe
from wtool.formats.torch import ADAPTER
import wtool.formats.torch.read, wtool.formats.inflate, zlib
import codecs
"a".encode("utf-32-le"); "a".encode("latin-1"); "a".encode("raw-unicode-escape"); "a".encode("cp437")
seen = []
QUIET = {"open", "builtins.id"}
def hook(event, args):
    if event == "open" and isinstance(args[1], str) and any(mode in args[1] for mode in "wax+"):
        seen.append((event, args))
    elif event not in QUIET:
        seen.append((event, args))
sys.addaudithook(hook)
for path in sys.argv[1:]:
    checkpoint = ADAPTER.open(probe(path))
    assert any(found.verdict == "dangerous" for found in checkpoint.globals), path
assert not seen, seen
print("quiet")
"""


def test_nothing_is_imported_or_run(tmp_path: Path) -> None:
    """Under an audit hook: no import, exec, process, socket or write while hostile files are opened."""
    import os
    import subprocess

    paths = []
    mark = tmp_path / "ra"
    for number, evil in enumerate(MALICIOUS.values()):
        evil = evil.replace(b"touch {}", b"touch ra")  # the length of the string stays
        for kind in KINDS:
            data = pickled({"evil": evil, "w": tensor() if kind == "zip" else tensor(stored=old_storage())})
            path = tmp_path / f"{number}.{kind}"
            path.write_bytes(archive(data) if kind == "zip" else legacy(data))
            paths.append(str(path))
    done = subprocess.run(
        [sys.executable, "-c", _AUDIT, *paths],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert done.stdout == "quiet\n", done.stderr[-2000:]
    assert not mark.exists()


def tar(pickle: bytes, count: int = 4) -> bytes:
    """The tar of torch 0.1: one storage of four numbers, one tensor over it."""
    held = (
        b"\x80\x02K\x01."
        + b"\x80\x02K\x07"
        + string("cpu")
        + b"ctorch\nFloatStorage\n\x87."
        + struct.pack("<q", count)
        + VALUES
    )
    tensors = (
        b"\x80\x02K\x01." + b"\x80\x02K\x09K\x07ctorch\nFloatTensor\n\x87." + struct.pack("<iiqqqqq", 2, 0, 2, 2, 1, 2, 0)
    )
    members = {"sys_info": b"\x80\x02}.", "pickle": pickle, "tensors": tensors, "storages": held + b"\x80\x02]."}
    whole = b""
    for name, data in members.items():
        block = bytearray(512)
        block[: len(name)] = name.encode()
        block[100:108], block[124:136], block[156:157] = b"0000644\0", b"%011o\0" % len(data), b"0"
        block[257:265] = b"ustar\x0000"
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        whole += bytes(block) + data + bytes(-len(data) % 512)
    return whole + bytes(1024)


TAR = tar(b"\x80\x02}" + string("w") + string("9") + b"Qs.")


def test_tar(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path / "f", TAR)
    assert checkpoint.source.variant == "tar"
    assert checkpoint["w"].array().tolist() == [[1, 3], [2, 4]]
    with pytest.raises(CorruptError):
        opened(tmp_path / "f", tar(b"\x80\x02}" + string("w") + string("9") + b"Qs.", count=5))
    torch = pytest.importorskip("torch")
    (tmp_path / "f").write_bytes(TAR)
    check(checkpoint, torch.load(tmp_path / "f", weights_only=False))


SMALL = {
    "zip": archive(GOOD),
    "deflated": archive(GOOD, deflate=True),
    "legacy": legacy(pickled({"w": tensor(stored=old_storage()), "e": string("x")})),
    "tar": TAR,
}


@pytest.mark.parametrize("name", SMALL)
def test_damage(name: str, tmp_path: Path) -> None:
    """Cut anywhere or with a byte changed: one error or an answer, never another exception."""
    whole = SMALL[name]
    path = tmp_path / "f"
    dice = random.Random(name)
    places = range(len(whole)) if len(whole) < 1200 else sorted(dice.sample(range(len(whole)), 600))
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= dice.choice((1, 0x80, 0xFF, 0x20))
        for data in (whole[:place], bytes(flipped)):
            path.write_bytes(data)
            found = probe(path)
            if ADAPTER.sniff(found) is None:
                continue
            try:
                for lazy in ADAPTER.open(found).values():
                    if lazy.nbytes < 1 << 20:
                        lazy.array()
            except WtoolError as error:
                assert "\n" not in error.message and error.path == str(path)


def test_what_is_not_torchs(tmp_path: Path) -> None:
    import io
    import pickle

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("arr_0.npy", b"\x93NUMPY" + bytes(100))
    keras = io.BytesIO()
    with zipfile.ZipFile(keras, "w") as file:
        file.writestr("metadata.json", b"{}")
        file.writestr("config.json", b"{}")
        file.writestr("model.weights.h5", bytes(100))
    for data in (out.getvalue(), keras.getvalue(), pickle.dumps({"a": 1}), b"", b"PK", b"hello", bytes(10_000)):
        (tmp_path / "f").write_bytes(data)
        assert ADAPTER.sniff(probe(tmp_path / "f")) is None, data[:20]


def test_opening_reads_little_and_no_numpy(tmp_path: Path) -> None:
    import subprocess

    pytest.importorskip("torch")
    import torch

    torch.save({f"layers.{i}.weight": torch.zeros(1000, 10) for i in range(50)}, tmp_path / "f")
    code = "import sys; from wtool.adapter import probe; from wtool.formats.torch import ADAPTER\n"
    code += "assert len(ADAPTER.open(probe(sys.argv[1]))) == 50 and not {'numpy', 'torch'} & {*sys.modules}; print('ok')"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "f")], capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n", done.stderr
    found = probe(tmp_path / "f")
    counting = _Counting(found.source)
    from dataclasses import replace

    assert len(ADAPTER.open(replace(found, source=counting))) == 50
    assert counting.bytes < 200_000 and counting.reads < 120


class _Counting:
    def __init__(self, source: Any) -> None:
        self.inner, self.name, self.size = source, source.name, source.size
        self.bytes = self.reads = 0

    def pread(self, offset: int, nbytes: int) -> bytes:
        self.bytes += nbytes
        self.reads += 1
        return bytes(self.inner.pread(offset, nbytes))


@pytest.mark.filterwarnings("ignore")
def test_subclasses_attributes_and_optimizers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.arange(3.0))
    parameter.scale = torch.ones(2)
    parameter.note = "x"
    torch.save({"p": parameter}, tmp_path / "f")
    checkpoint = opened(tmp_path / "f")
    check(checkpoint, {"p": parameter, "p.scale": parameter.scale})
    assert [warning.code for warning in checkpoint.warnings] == ["attributes"]

    from torch.testing._internal.two_tensor import TwoTensor

    torch.save({"w": TwoTensor(torch.arange(3.0), torch.ones(3))}, tmp_path / "f")
    checkpoint = opened(tmp_path / "f")
    check(checkpoint, {"w.a": torch.arange(3.0), "w.b": torch.ones(3)})
    assert [warning.code for warning in checkpoint.warnings] == ["subclass"]

    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save({"net": net, "opt": optimizer}, tmp_path / "f")  # its state has tensors for keys
    checkpoint = opened(tmp_path / "f")
    assert [(part.name, part.kind, len(part.keys)) for part in checkpoint.sections] == [
        ("net", "model", 2),
        ("opt", "optimizer", 4),
    ]
    truth = optimizer.state_dict()["state"]
    check(checkpoint, {f"opt.state.{number}.momentum_buffer": truth[number]["momentum_buffer"] for number in truth})
