"""GGUF: read as the gguf package reads, written byte for byte as it writes, and keys carried through a conversion."""

from __future__ import annotations

import math
import struct
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.gguf_files import U32, U64, gguf, key, tensor, text
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Counting

from wtool.adapter import probe
from wtool.api import open_checkpoint, plan_save, save_checkpoint
from wtool.bytesource import LocalFile, MemoryBytes
from wtool.checkpoint import Checkpoint, Opaque, Source
from wtool.cli.app import run
from wtool.dtypes import BY_GGML, BY_NAME, dtype
from wtool.errors import CorruptError, DtypeError, UnsupportedError, UsageError
from wtool.formats.gguf import ADAPTER
from wtool.formats.gguf_header import MAX_NAME, Header, read_header
from wtool.keys import parse_rename
from wtool.ops.cast import CastTo
from wtool.ops.rename import RenameKeys
from wtool.ops.select import Select
from wtool.tensor import LazyTensor
from wtool.verify import verify

FIXTURES = Path(__file__).parent.parent / "fixtures" / "gguf"
MODEL = FIXTURES / "model" / "model.gguf"


def of(**tensors: tuple[str, tuple[int, ...]]) -> Checkpoint:
    """Tensors of random bytes (small ones, so that no scale is odd): name -> dtype, shape."""
    dice = np.random.default_rng(0)
    found = {}
    for name, (kind, shape) in tensors.items():
        row = dtype(kind)
        data = dice.integers(0, 60, row.nbytes(math.prod(shape)), np.uint8)
        found[name] = LazyTensor.contiguous(name, row, shape, MemoryBytes(data.tobytes()), 0)
    return Checkpoint(found, Source("made", "safetensors", "single", (("made", 1 << 20),)))


def keys_of(path: Path) -> dict[str, bytes]:
    """Every key with the bytes of its type and value."""
    source = LocalFile(path)
    return {entry.name: source.pread(entry.offset, entry.nbytes) for entry in read_header(source).entries}


def header(data: bytes) -> Header:
    return read_header(MemoryBytes(data))


# ---- reading


def test_keys_as_plain_values() -> None:
    checkpoint = open_checkpoint(FIXTURES / "values" / "model.gguf")
    assert checkpoint.metadata == {"text": "größer\nzwei", "text.empty": ""}
    extras = dict(checkpoint.extras)
    assert math.isnan(extras.pop("float.nan"))
    numbers = {
        "uint8": 255, "int8": -128, "uint16": 65535, "int16": -32768, "uint32": 2**32 - 1, "int32": -(2**31),
        "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.1, "float64": 0.1, "bool": True,
    }  # fmt: skip
    for name, value in numbers.items():
        assert extras.pop(f"one.{name}") == value and extras.pop(f"some.{name}") == [value, value]
        many = extras.pop(f"many.{name}")
        assert isinstance(many, Opaque) and many.name.startswith("100 ")
    assert extras.pop("text.odd") == b"\xff\xfe"
    texts = b"".join(text(word.encode()) for word in ("a", "", "ü"))
    assert extras.pop("texts").name == f"3 strings, blake2b {blake2b(texts, digest_size=4).hexdigest()}"
    assert not extras


def test_shapes_are_in_c_order() -> None:
    checkpoint = open_checkpoint(FIXTURES / "shapes" / "model.gguf")
    shapes = {name: tensor.shape for name, tensor in checkpoint.items()}
    assert shapes == {"scalar": (), "one": (1,), "four": (2, 3, 4, 5), "empty": (0, 4), "row": (1, 7)}


def test_version_2() -> None:
    assert open_checkpoint(FIXTURES / "version_2" / "model.gguf").source.variant == "v2"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_part_is_the_whole(number: int) -> None:
    checkpoint = open_checkpoint(FIXTURES / "parts" / f"model-{number:05}-of-00003.gguf")
    assert list(checkpoint) == [f"blk.{at}.weight" for at in range(5)]
    assert checkpoint.source.variant == "split" and len(checkpoint.source.files) == 3
    assert checkpoint.metadata == {"general.architecture": "llama"}


@pytest.mark.parametrize("sizes", [[70_000] * 40, [3] * 90_000, [2_500_000, 0, 1], [(1 << 16) - 8] * 3, [0] * 10, []])
def test_texts_that_cross_what_is_read_at_once(sizes: list[int]) -> None:
    words = b"".join(text(bytes([at % 256]) * size) for at, size in enumerate(sizes))
    data = gguf(tensor(b"w", [4]), keys=[key(b"a", 9, U32.pack(8) + U64.pack(len(sizes)) + words), key(b"b", 4, U32.pack(77))])
    one, two = header(data).entries
    assert (one.value.length, one.value.digest) == (len(sizes), blake2b(words, digest_size=4).hexdigest())
    assert two.value == 77
    assert data[one.offset : one.offset + one.nbytes] == U32.pack(9) + U32.pack(8) + U64.pack(len(sizes)) + words


def test_long_text_is_told_by_its_length() -> None:
    (entry,) = header(gguf(keys=[key(b"a", 8, text(b"x" * (2 << 20)))])).entries
    assert (entry.value.length, entry.nbytes) == (2 << 20, 12 + (2 << 20))


def test_longest_name() -> None:
    (entry,) = header(gguf(keys=[key(b"a" * MAX_NAME, 0, b"1")])).entries
    assert len(entry.name) == MAX_NAME


def test_opening_reads_no_more_than_the_front() -> None:
    data = gguf(*(tensor(b"t%d" % at, [1 << 20], offset=at << 22) for at in range(4)), data=bytes(16 << 20))
    source = Counting(MemoryBytes(data))
    assert len(read_header(source).tensors) == 4
    assert source.total <= 1 << 16


@settings(max_examples=200, deadline=None)
@given(st.floats(width=32), st.integers(0, 2**32 - 1))
def test_single_floats_are_shown_short_and_exact(value: float, bits: int) -> None:
    for data in (struct.pack("<f", value), struct.pack("<I", bits)):
        (entry,) = header(gguf(keys=[key(b"a", 6, data)])).entries
        (meant,) = struct.unpack("<f", data)
        assert (math.isnan(meant) and math.isnan(entry.value)) or struct.pack("<f", entry.value) == data


# ---- writing


def as_the_package_writes(checkpoint: Checkpoint, path: Path, **options: Any) -> bytes:
    package = pytest.importorskip("gguf")
    writer = package.GGUFWriter(path, options.pop("architecture", ""))
    for name, value in options.pop("texts", {}).items():
        writer.add_string(name, value)
    if any(tensor.dtype.block for tensor in checkpoint.values()):
        writer.add_quantization_version(2)
    for name, one in checkpoint.items():
        raw = one.array()
        if one.dtype.itemsize and one.dtype.name != "bf16":
            writer.add_tensor(name, raw)
            continue
        columns = one.dtype.nbytes(one.shape[-1])
        kind = package.GGMLQuantizationType(one.dtype.ggml)
        writer.add_tensor(name, raw.reshape(-1).view("u1").reshape(*one.shape[:-1], columns), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize("name", [row.name for row in BY_GGML.values()])
def test_written_as_the_package_writes(name: str, tmp_path: Path) -> None:
    columns = 2 * BY_NAME[name].run[0]
    checkpoint = of(b=(name, (3, columns)), a=(name, (columns,)), c=("f32", (1,)), d=(name, (2, 1, 2, columns)))
    save_checkpoint(checkpoint, tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == as_the_package_writes(checkpoint, tmp_path / "b.gguf")


def test_metadata_is_written_as_text(tmp_path: Path) -> None:
    checkpoint = of(w=("f32", (2, 3)))
    texts = {"general.name": "a", "general.license": "ü"}
    save_checkpoint(checkpoint, tmp_path / "a.gguf", metadata={"general.architecture": "llama", **texts, "format": "pt"})
    meant = as_the_package_writes(checkpoint, tmp_path / "b.gguf", architecture="llama", texts=texts)
    assert (tmp_path / "a.gguf").read_bytes() == meant


@pytest.mark.parametrize("case", ["model", "dtypes", "values", "shapes", "aligned"])
def test_a_copy_is_the_same_file(case: str, tmp_path: Path) -> None:
    path = FIXTURES / case / "model.gguf"
    report = save_checkpoint(open_checkpoint(path), tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == path.read_bytes()
    assert not report.losses


def test_parts_become_one_file(tmp_path: Path) -> None:
    save_checkpoint(open_checkpoint(FIXTURES / "parts" / "model-00002-of-00003.gguf"), tmp_path / "a.gguf")
    assert list(keys_of(tmp_path / "a.gguf")) == ["general.architecture"]
    assert len(open_checkpoint(tmp_path / "a.gguf")) == 5


def test_keys_stay_byte_for_byte(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(MODEL)
    for step in (RenameKeys((parse_rename("^blk=>block"),)), Select(exclude=("rope*",)), CastTo(dtype("f16"))):
        checkpoint = step(checkpoint)
    report = save_checkpoint(checkpoint, tmp_path / "a.gguf")
    before, after = keys_of(MODEL), keys_of(tmp_path / "a.gguf")
    assert before.pop("general.file_type") != after.pop("general.file_type") == U32.pack(4) + U32.pack(1)
    assert list(before) == list(after) and before == after
    assert report.plan.notes == ("general.file_type is 1 now, for f16; it was 7",)
    assert not report.losses


def test_a_file_type_without_a_number_is_left_out(tmp_path: Path) -> None:
    report = save_checkpoint(CastTo(dtype("f64"))(open_checkpoint(MODEL)), tmp_path / "a.gguf")
    assert "general.file_type" not in keys_of(tmp_path / "a.gguf")
    assert "left out" in report.plan.notes[0]


def test_other_text_and_other_values(tmp_path: Path) -> None:
    save_checkpoint(
        open_checkpoint(MODEL),
        tmp_path / "a.gguf",
        metadata={
            "general.name": "x",
            "llama.context_length": "4096",
            "tokenizer.ggml.add_bos_token": "False",
            "llama.attention.layer_norm_rms_epsilon": "1e-6",
            "new": "y",
        },
    )
    before, after = keys_of(MODEL), keys_of(tmp_path / "a.gguf")
    assert list(after) == [*before, "new"]
    assert after["general.name"] == U32.pack(8) + text(b"x")
    assert after["llama.context_length"] == U32.pack(4) + U32.pack(4096)
    assert after["tokenizer.ggml.add_bos_token"] == U32.pack(7) + b"\0"
    assert after["llama.attention.layer_norm_rms_epsilon"] == U32.pack(6) + struct.pack("<f", 1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("llama.context_length", "many"),
        ("llama.context_length", "-1"),
        ("llama.context_length", "1e3"),
        ("tokenizer.ggml.add_bos_token", "1"),
        ("tokenizer.ggml.tokens", "a"),
    ],
)
def test_values_of_another_type_are_refused(name: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=name):
        save_checkpoint(open_checkpoint(MODEL), tmp_path / "a.gguf", metadata={name: value})


def test_what_lacks_is_said(tmp_path: Path) -> None:
    (note,) = plan_save(of(w=("f32", (2,))), tmp_path / "a.gguf").notes
    assert note == "weights only: no architecture or tokenizer keys, so runtimes such as llama.cpp will not load it"
    (note,) = plan_save(open_checkpoint(FIXTURES / "parts" / "model-00001-of-00003.gguf"), tmp_path / "a.gguf").notes
    assert "no tokenizer keys" in note
    assert plan_save(open_checkpoint(MODEL), tmp_path / "a.gguf").notes == ()


def test_other_formats_keep_the_text(tmp_path: Path) -> None:
    report = save_checkpoint(CastTo(dtype("f32"))(open_checkpoint(MODEL)), tmp_path / "a.safetensors")
    again = open_checkpoint(tmp_path / "a.safetensors")
    assert again.metadata["general.architecture"] == "llama" and again.metadata["general.name"] == "tiny, ünïcode"
    lost = {loss.name for loss in report.losses}
    assert {"llama.context_length", "tokenizer.ggml.tokens"} <= lost and "general.name" not in lost
    save_checkpoint(again, tmp_path / "b.gguf")
    assert keys_of(tmp_path / "b.gguf")["general.architecture"] == U32.pack(8) + text(b"llama")


def test_tied_tensors_are_written_twice(tmp_path: Path) -> None:
    one = of(w=("f32", (2, 3)))["w"]
    checkpoint = Checkpoint({"w": one, "v": one.renamed("v")}, Source("made", "torch", "zip", (("made", 99),)))
    save_checkpoint(checkpoint, tmp_path / "a.gguf")
    again = open_checkpoint(tmp_path / "a.gguf")
    assert not again.tied() and again["w"].array().tobytes() == again["v"].array().tobytes()


@pytest.mark.parametrize(
    ("name", "kind", "shape", "why"),
    [
        ("w" * 64, "f32", (1,), "64 bytes"),
        ("ü" * 32, "f32", (1,), "64 bytes"),
        ("w\0", "f32", (1,), "zero byte"),
        ("w", "f32", (1, 1, 1, 1, 1), "5 axes"),
        ("w", "q4_0", (2, 48), "rows of 48"),
        ("w", "q8_0", (), "rows of 1"),
    ],
)
def test_what_ggml_has_no_room_for(name: str, kind: str, shape: tuple[int, ...], why: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=why):
        save_checkpoint(of(**{name: (kind, shape)}), tmp_path / "a.gguf")
    save_checkpoint(of(**{"w" * 63: ("f32", (1, 1, 1, 1))}), tmp_path / "a.gguf")


@pytest.mark.parametrize("name", ["bool", "u8", "f8_e4m3", "c64"])
def test_dtypes_that_ggml_lacks(name: str, tmp_path: Path) -> None:
    with pytest.raises(DtypeError, match=f"gguf has no dtype {name}"):
        save_checkpoint(of(w=(name, (4,))), tmp_path / "a.gguf")


def test_a_tensor_without_values_is_told_of(tmp_path: Path) -> None:
    notes = plan_save(of(w=("f32", (2, 3)), v=("f32", (0, 3))), tmp_path / "a.gguf").notes
    assert "'v' has no values" in notes[-1]


def test_blocks_stay_out_of_other_formats(tmp_path: Path) -> None:
    for target in ("a.safetensors", "a.pth", "a.ckpt"):
        with pytest.raises(DtypeError, match=r"q8_0 q4_0|q4_0 q8_0") as caught:
            save_checkpoint(open_checkpoint(MODEL), tmp_path / target)
        assert "--dequantize" in (caught.value.hint or "")


def test_the_first_blocks_bring_their_version(tmp_path: Path) -> None:
    plain, blocks = of(w=("f32", (2, 32))), of(w=("q4_0", (2, 32)))
    save_checkpoint(plain, tmp_path / "a.gguf")
    assert not keys_of(tmp_path / "a.gguf")
    save_checkpoint(blocks, tmp_path / "b.gguf")
    assert keys_of(tmp_path / "b.gguf") == {"general.quantization_version": U32.pack(4) + U32.pack(2)}
    (tmp_path / "c.gguf").write_bytes(gguf(tensor(b"w", [32], kind=2)))
    save_checkpoint(open_checkpoint(tmp_path / "c.gguf"), tmp_path / "d.gguf")
    assert not keys_of(tmp_path / "d.gguf"), "blocks that were there without the key stay so"


# ---- the judge, and the command line


def test_the_package_is_the_judge(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    for number, case in enumerate(("model", "dtypes", "values", "shapes", "aligned")):
        plan = plan_save(open_checkpoint(FIXTURES / case / "model.gguf"), tmp_path / f"{number}.gguf")
        save_checkpoint(plan.checkpoint, plan.target)
        verify(plan, "framework")
    for judged in ADAPTER.judge(str(FIXTURES / "dtypes" / "model.gguf")):
        assert judged.dtype == judged.key


def test_what_the_package_cannot_read_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(30))
    with pytest.raises(UnsupportedError, match="gguf package"):
        list(ADAPTER.judge(str(tmp_path / "a.gguf")))


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command that succeeds writes."""
    assert run([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_convert_to_plain_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "q8_0 -> f32" in said(capsys, "convert", MODEL, tmp_path / "a.safetensors", "--dtype", "f32")
    plain = open_checkpoint(tmp_path / "a.safetensors")
    assert {tensor.dtype.name for tensor in plain.values()} == {"f32"}
    said(capsys, "convert", MODEL, tmp_path / "b.safetensors", "--dequantize")
    for name, one in open_checkpoint(tmp_path / "b.safetensors").items():
        assert one.array().tobytes() == plain[name].array().tobytes()
    assert run(["diff", str(MODEL), str(tmp_path / "a.safetensors")]) == 1
    assert "equal" in capsys.readouterr().out


def test_inspect_shows_types_and_logical_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "inspect", MODEL)
    assert "q8_0" in text and "[200, 64]" in text and "8.5 bits each" in text
    assert "200 strings" in text and "general.architecture" in text
    sizes = {tensor.key: tensor.nbytes for tensor in open_checkpoint(MODEL).values()}
    assert sizes["token_embd.weight"] == 200 * 64 // 32 * 34
    assert "NaN" in said(capsys, "inspect", MODEL, "--stats")


def test_sniffing(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(MODEL.read_bytes())
    assert list(open_checkpoint(tmp_path / "x.bin")) == list(open_checkpoint(MODEL))
    with pytest.raises(CorruptError):
        ADAPTER.open(probe(tmp_path))


def test_the_table_of_blocks() -> None:
    page = (Path(__file__).parent.parent / "docs" / "gguf.md").read_text()
    table = page[page.index("<!-- blocks -->") : page.index("<!-- /blocks -->")]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    ours = [row for row in BY_NAME.values() if row.block]
    assert rows == [[f"`{row.name}`", *map(str, (row.ggml, *row.run)), f"{row.bits_each:g}"] for row in ours]


def test_blocks_are_averaged_as_plain_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = of(w=("q8_0", (4, 64))), of(v=("f32", (1,)), w=("q8_0", (4, 64))).section()
    save_checkpoint(one, tmp_path / "a.gguf")
    save_checkpoint(Select(include=("w",))(two), tmp_path / "b.gguf")
    plain = [CastTo(dtype("f32"))(side)["w"].array() for side in (one, two)]
    words = ["average", str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf"), "-o", str(tmp_path / "c.gguf")]
    assert run(words) == 2
    assert "--dtype f32" in capsys.readouterr().err
    assert run([*words, "--dtype", "f32"]) == 0
    found = open_checkpoint(tmp_path / "c.gguf")["w"]
    assert found.dtype.name == "f32" and np.array_equal(found.array(), (plain[0].astype("f8") + plain[1]) / 2)
