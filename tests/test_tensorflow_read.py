"""TensorFlow's checkpoints: bundles made by hand with every fault, then what TensorFlow itself writes."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google_crc32c import value as crc32c
from hypothesis import given
from hypothesis import strategies as st

from wtool.adapter import probe
from wtool.checkpoint import Checkpoint, Opaque
from wtool.errors import WtoolError
from wtool.formats.protobuf import bytes_field, number_field
from wtool.formats.sstable import mask, write_table
from wtool.formats.tensorflow import ADAPTER
from wtool.formats.tensorflow.bundle import Entry, Extent, format_entry, format_header, slice_key
from wtool.formats.tensorflow.graph import KEY
from wtool.formats.tensorflow.strings import decode, encode, plain

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
F32, STRING, QINT8, VARIANT = 1, 7, 11, 21


def load(path: object) -> Checkpoint:
    seen = probe(os.fspath(path))  # type: ignore[arg-type]
    assert ADAPTER.sniff(seen) is not None
    return ADAPTER.open(seen)


def values(checkpoint: Checkpoint) -> dict[str, Any]:
    return {key: tensor.array() for key, tensor in checkpoint.items()}


def bundle(
    prefix: Path,
    entries: Mapping[str | bytes, Entry | bytes],
    *shards: bytes,
    header: bytes | None = None,
) -> Path:
    table = {b"": format_header(max(len(shards), 1)) if header is None else header}
    for key, entry in entries.items():
        table[key.encode() if isinstance(key, str) else key] = entry if isinstance(entry, bytes) else format_entry(entry)
    Path(f"{prefix}.index").write_bytes(write_table(sorted(table.items())))
    for number, data in enumerate(shards):
        Path(f"{prefix}.data-{number:05}-of-{len(shards):05}").write_bytes(data)
    return prefix


def f32(*numbers: float, order: str = "<") -> bytes:
    return struct.pack(f"{order}{len(numbers)}f", *numbers)


def at(offset: int, *shape: int, dtype: int = F32, shard: int = 0, size: int | None = None) -> Entry:
    count = int(np.prod(shape, dtype=object)) if shape else 1
    return Entry(dtype, shape, shard, offset, 4 * count if size is None else size, 0)


def sliced(shape: tuple[int, ...], *parts: tuple[tuple[int, int], ...]) -> bytes:
    """The entry of a partitioned variable; (0, -1) is a whole axis."""
    out = format_entry(Entry(F32, shape, 0, 0, 0, 0))
    for part in parts:
        message = b""
        for start, length in part:
            message += bytes_field(1, number_field(1, start) + (b"" if length < 0 else b"\x10" + bytes((length,))))
        out += bytes_field(7, message)
    return out


def part(name: str, *extents: tuple[int, int]) -> bytes:
    return slice_key(name.encode(), tuple(Extent(*extent) for extent in extents))


# --- without TensorFlow: what is right


def test_values_in_the_order_of_the_data(tmp_path: Path) -> None:
    entries = {"a": at(8, 2), "b": at(0, 2, 1), "empty": at(0, 0, 3), "scalar": at(16)}
    checkpoint = load(bundle(tmp_path / "m.ckpt", entries, f32(1, 2, 3, 4, 5)))
    assert list(checkpoint) == ["empty", "b", "a", "scalar"]
    assert values(checkpoint)["b"].tolist() == [[1], [2]]
    assert values(checkpoint)["a"].tolist() == [3, 4]
    assert values(checkpoint)["scalar"].tolist() == 5
    assert values(checkpoint)["empty"].shape == (0, 3)
    assert checkpoint["a"].span is not None
    assert not checkpoint.warnings
    assert [Path(path).name for path, _ in checkpoint.source.files] == ["m.ckpt.index", "m.ckpt.data-00000-of-00001"]


def test_big_endian(tmp_path: Path) -> None:
    header = number_field(1, 1) + number_field(2, 1)
    entries = {"f": at(0, 2), "i8": at(8, 4, dtype=6, size=4), "c": at(12, 1, dtype=8, size=8)}
    data = f32(1.5, -2, order=">") + b"\1\2\3\4" + f32(3, 4, order=">")
    checkpoint = load(bundle(tmp_path / "m", entries, data, header=header))
    assert values(checkpoint)["f"].tolist() == [1.5, -2]
    assert values(checkpoint)["i8"].tolist() == [1, 2, 3, 4]
    assert values(checkpoint)["c"].tolist() == [3 + 4j]
    assert checkpoint["f"].span is None and checkpoint["i8"].span is not None


def test_partitioned_over_shards(tmp_path: Path) -> None:
    whole = np.arange(12, dtype=np.float32).reshape(4, 3)
    cuts = {((0, 2), (0, 2)): whole[:2, :2], ((0, 2), (2, 1)): whole[:2, 2:], ((2, 2), (0, -1)): whole[2:]}
    entries: dict[str | bytes, Entry | bytes] = {"v": sliced((4, 3), *cuts)}
    shards = []
    for number, (extents, values_) in enumerate(cuts.items()):
        entries[part("v", *extents)] = at(0, *values_.shape, shard=number)
        shards.append(values_.tobytes())
    checkpoint = load(bundle(tmp_path / "m", entries, *shards))
    assert list(checkpoint) == ["v"]
    assert (checkpoint["v"].array() == whole).all()
    assert [warning.code for warning in checkpoint.warnings] == ["partitioned"]


def test_two_keys_of_one_place_are_tied(tmp_path: Path) -> None:
    checkpoint = load(bundle(tmp_path / "m", {"a": at(0, 2), "b": at(0, 2)}, f32(1, 2)))
    assert checkpoint.tied() == [["a", "b"]]


def test_strings_and_strangers_are_extras(tmp_path: Path) -> None:
    graph, crc = encode(b"\xff graph")
    entries = {
        KEY: Entry(STRING, (), 0, 4, len(graph), crc),
        "w": at(0, 1),
        "q": at(4 + len(graph), 3, dtype=QINT8, size=3),
        "v": at(7 + len(graph), dtype=VARIANT, size=5),
        "z": Entry(99, (), 0, 0, 0, 0),
    }
    checkpoint = load(bundle(tmp_path / "m", entries, f32(1) + graph + b"123" + b"12345"))
    assert checkpoint.extras[KEY] == b"\xff graph"
    assert checkpoint.extras["q"] == Opaque("tensorflow.qint8 [3]")
    assert checkpoint.extras["v"] == Opaque("tensorflow.variant []")
    codes = [warning.code for warning in checkpoint.warnings]
    assert codes.count("unsupported-dtype") == 3 and "object-graph" not in codes
    assert any("'q'" in warning.message for warning in checkpoint.warnings)


def test_unused_bytes_and_leftovers_are_told(tmp_path: Path) -> None:
    (tmp_path / "m.data-00000-of-00001.tempstate123").write_bytes(b"")
    checkpoint = load(bundle(tmp_path / "m", {"a": at(4, 1)}, f32(1, 2)))
    assert {warning.code for warning in checkpoint.warnings} == {"unused-bytes", "temporary-files"}


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_string_tensors(strings: list[bytes]) -> None:
    sums = b"".join(struct.pack("<I", len(one)) for one in strings)
    stored = struct.pack("<I", mask(crc32c(sums)))
    data = bytes(len(one) for one in strings) + stored + b"".join(strings)
    crc = mask(crc32c(sums + stored + b"".join(strings)))
    assert decode(data, len(strings), crc) == strings
    assert encode(b"".join(strings))[0].endswith(b"".join(strings))


def test_plain_strings() -> None:
    assert plain([b"a"], ()) == "a"
    assert plain([b"\xff"], ()) == {"base64": "/w=="}
    assert plain([b"a", b"b", b"c", b"d"], (2, 2)) == [["a", "b"], ["c", "d"]]
    assert plain([], (1 << 60, 0)) == []


SECTIONS = {
    "model": ["bert/encoder/kernel", "w", "a/Adam", "layer/step"],
    "ema": ["w/ExponentialMovingAverage"],
    "optimizer": [
        "w/Adam", "w/Adam_1", "w/Momentum", "bert/encoder/kernel/adam_m", "beta1_power", "learning_rate",
        "training/Adam/w/m", "Adam/iter", "optimizer/_variables/2" + SUFFIX, "net/w/.OPTIMIZER_SLOT/opt/m" + SUFFIX,
    ],
    "other": ["global_step", "save_counter" + SUFFIX],
}  # fmt: skip


def test_sections_by_name(tmp_path: Path) -> None:
    keys = [key for some in SECTIONS.values() for key in some]
    checkpoint = load(bundle(tmp_path / "m", {key: at(4 * n, 1) for n, key in enumerate(keys)}, bytes(4 * len(keys))))
    assert {section.name: list(section.keys) for section in checkpoint.sections} == SECTIONS
    assert checkpoint.main_section().name == "model"


# --- without TensorFlow: what a user may name


def test_names_of_one_checkpoint(tmp_path: Path) -> None:
    bundle(tmp_path / "m.ckpt", {"a": at(0, 1)}, f32(1))
    for name in ("m.ckpt", "m.ckpt.index", "m.ckpt.data-00000-of-00001", ""):
        assert list(load(tmp_path / name if name else tmp_path)) == ["a"]
    assert ADAPTER.sniff(probe(tmp_path / "other")) is None


def test_the_state_file_names_the_latest_and_never_leads_away(tmp_path: Path) -> None:
    inside, outside = tmp_path / "run", tmp_path / "elsewhere"
    inside.mkdir()
    outside.mkdir()
    for number in (1, 2):
        bundle(inside / f"m-{number}", {f"a{number}": at(0, 1)}, f32(1))
    bundle(outside / "m-3", {"a3": at(0, 1)}, f32(1))
    with pytest.raises(WtoolError, match="holds 2 TensorFlow checkpoints"):
        load(inside)
    state = inside / "checkpoint"
    for path in ("m-2", str(inside / "m-2"), "/gone/m-2", "C:\\\\run\\\\m-2", str(outside / "m-2"), "m\\055\\x32"):
        state.write_text(f'model_checkpoint_path: "{path}"\nall_model_checkpoint_paths: "m-1"\n')
        assert list(load(inside)) == ["a2"], path
    for path, fault in (
        (str(outside / "m-3"), "is not there"),
        ("../elsewhere/m-3", "is not there"),
        ("..", "names a folder"),
        ("", "names a folder"),
        ("a\\000b", "names a folder"),
    ):
        state.write_text(f'model_checkpoint_path: "{path}"\n')
        with pytest.raises(WtoolError, match=fault):
            load(inside)
    state.write_text("nothing")
    with pytest.raises(WtoolError, match="names no checkpoint"):
        load(inside)


def test_saved_model(tmp_path: Path) -> None:
    variables = tmp_path / "variables"
    variables.mkdir()
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(WtoolError, match="without variables"):
        load(tmp_path)
    bundle(variables / "variables", {"a": at(0, 1)}, f32(1))
    assert load(tmp_path).source.variant == load(variables).source.variant == "saved-model"


def test_a_folder_of_other_index_files_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "faiss.index").write_bytes(b"x")
    assert ADAPTER.sniff(probe(tmp_path)) is None


# --- without TensorFlow: what is wrong

TWO = {part("v", (0, 1)): at(0, 1), part("v", (1, 1)): at(4, 1)}
FAULTS: dict[str, tuple[dict[str | bytes, Entry | bytes], list[bytes], str]] = {
    "shard too short": ({"a": at(0, 3)}, [f32(1, 2)], "ends at byte 8, but 'a' lies at 0 to 12"),
    "offset beyond": ({"a": at(1 << 60, 1)}, [f32(1)], "ends at byte 4"),
    "negative offset": ({"a": format_entry(at(0, 1)) + b"\x20" + b"\xff" * 9 + b"\1"}, [f32(1)], "is negative"),
    "shard that is not": ({"a": at(0, 1, shard=7)}, [f32(1)], "data shard 7 of 1"),
    "overlap": ({"a": at(0, 2), "b": at(4, 2)}, [f32(1, 2, 3)], "'a' and 'b' overlap"),
    "size": ({"a": at(0, 2, size=4)}, [f32(1, 2)], "gives 'a' 4 bytes, but f32 .2. needs 8"),
    "huge shape": ({"a": at(0, 1 << 40, 1 << 40, size=4)}, [f32(1)], "needs"),
    "negative axis": ({"a": b"\x08\1" + bytes_field(2, bytes_field(2, b"\x08" + b"\xff" * 9 + b"\1"))}, [b""], "axis of -1"),
    "unknown rank": ({"a": b"\x08\1" + bytes_field(2, b"\x18\1")}, [b""], "shape is unknown"),
    "two shapes": ({"a": format_entry(at(0, 1)) + bytes_field(2, b"")}, [f32(1)], "two shapes"),
    "rank": ({"a": at(0, *[1] * 33)}, [f32(1)], "33 axes"),
    "no proto": ({"a": b"\x0b\x0c"}, [f32(1)], "bad entry for 'a': field 1 has wire type 3"),
    "no text": ({b"\xff\xfe": at(0, 1)}, [f32(1)], "no UTF-8"),
    "slice lacks": ({"v": sliced((2,), ((0, 1),), ((1, 1),)), part("v", (0, 1)): at(0, 1)}, [f32(1, 2)], "lacks the slice"),
    "slice gap": ({"v": sliced((3,), ((0, 1),), ((1, 1),)), **TWO}, [f32(1, 2)], "leave out or repeat"),
    "slice twice": (
        {"v": sliced((2, 2), ((0, 1), (0, 2)), ((0, 2), (0, 1))),
         part("v", (0, 1), (0, 2)): at(0, 1, 2), part("v", (0, 2), (0, 1)): at(8, 2, 1)},
        [f32(1, 2, 3, 4)], "leave out or repeat",
    ),
    "slice outside": ({"v": sliced((2,), ((1, 2),)), **TWO}, [f32(1, 2)], "outside of its shape"),
    "slice rank": ({"v": sliced((2, 1), ((0, 1),)), **TWO}, [f32(1, 2)], "1 axes, not 2"),
    "slice shape": ({"v": sliced((2,), ((0, 2),)), part("v", (0, 2)): at(0, 1)}, [f32(1, 2)], "another dtype or shape"),
    "string crc": ({"s": Entry(STRING, (), 0, 0, len(encode(b"x")[0]), 1)}, [encode(b"x")[0]], "'s' is damaged: its checksum"),
    "string lengths": ({"s": Entry(STRING, (), 0, 0, 6, 1)}, [b"\x09" + encode(b"x")[0][1:]], "do not add up"),
    "string length crc": ({"s": Entry(STRING, (), 0, 0, 6, 1)}, [b"\1....x"], "checksum over the lengths"),
    "string count": ({"s": Entry(STRING, (1 << 50,), 0, 0, 6, 1)}, [b"\1....x"], "too few for"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_error(name: str, tmp_path: Path) -> None:
    entries, shards, fault = FAULTS[name]
    with pytest.raises(WtoolError, match=fault) as caught:
        load(bundle(tmp_path / "m", entries, *shards))
    assert caught.value.path and caught.value.path.startswith(str(tmp_path / "m."))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        (b"", "0 data shards"),
        (b"\x08" + b"\xff" * 9 + b"\1", "-1 data shards"),
        (number_field(1, 1) + bytes_field(3, number_field(2, 9)), "reader of version 9"),
        (b"\x08", "does not end"),
    ],
)
def test_bad_headers(header: bytes, fault: str, tmp_path: Path) -> None:
    with pytest.raises(WtoolError, match=fault):
        load(bundle(tmp_path / "m", {"a": at(0, 1)}, f32(1), header=header))


def test_two_billion_shards_cost_nothing(tmp_path: Path) -> None:
    header = number_field(1, (1 << 31) - 1)
    with pytest.raises(WtoolError, match="is missing: data shard 1 of 2147483647"):
        load(bundle(tmp_path / "m", {"a": at(0, 1)}, f32(1), header=header))


def test_missing_files(tmp_path: Path) -> None:
    prefix = bundle(tmp_path / "m", {"a": at(0, 1), "b": at(0, 1, shard=1)}, f32(1), f32(2))
    Path(f"{prefix}.data-00001-of-00002").unlink()
    with pytest.raises(WtoolError, match="is missing: data shard 2 of 2") as caught:
        load(prefix)
    assert caught.value.path == f"{prefix}.data-00001-of-00002"
    Path(f"{prefix}.index").unlink()
    with pytest.raises(WtoolError, match=r"index 'm\.index' is not beside it"):
        load(f"{prefix}.data-00000-of-00002")


def test_other_tables(tmp_path: Path) -> None:
    (tmp_path / "x.ldb").write_bytes(write_table([(b"a", b"b")]))
    with pytest.raises(WtoolError, match="no TensorFlow checkpoint"):
        load(tmp_path / "x.ldb")
    prefix = bundle(tmp_path / "m", {"a": at(0, 1)}, f32(1))
    Path(f"{prefix}.index").rename(tmp_path / "renamed")
    with pytest.raises(WtoolError, match=r"does not end in \.index"):
        load(tmp_path / "renamed")


def test_any_damage_is_an_error_or_the_same(tmp_path: Path) -> None:
    graph, crc = encode(bytes_field(1, bytes_field(1, b"\x08\1\x12\1a")) + bytes_field(1, b""))
    entries = {"a": at(0, 2), KEY: Entry(STRING, (), 0, 8, len(graph), crc)}
    prefix = bundle(tmp_path / "m", entries, f32(1, 2) + graph)
    expected = (list(load(prefix)), load(prefix).extras)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        cases = [whole[:size] for size in range(len(whole))]
        cases += [whole[:n] + bytes((whole[n] ^ bit,)) + whole[n + 1 :] for n in range(len(whole)) for bit in (1, 255)]
        for case in cases:
            path.write_bytes(case)
            try:
                found = load(prefix)
                assert (list(found), found.extras) == expected
            except WtoolError as error:
                assert error.path
        path.write_bytes(whole)


# --- what TensorFlow writes


@pytest.fixture(scope="module")
def tf() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return pytest.importorskip("tensorflow")


def agree(tf: Any, prefix: str) -> Checkpoint:
    """All that TensorFlow reads by name is what wtool reads."""
    checkpoint = load(prefix)
    reader = tf.train.load_checkpoint(prefix)
    shapes = reader.get_variable_to_shape_map()
    assert {*checkpoint, *checkpoint.extras} == set(shapes)
    for key, tensor in checkpoint.items():
        theirs = tf.raw_ops.RestoreV2(
            prefix=prefix, tensor_names=[key], shape_and_slices=[""], dtypes=[reader.get_variable_to_dtype_map()[key]]
        )[0].numpy()
        assert list(tensor.shape) == shapes[key]
        assert tensor.array().tobytes() == theirs.tobytes(), key
        assert tensor.dtype.numpy() == theirs.dtype, key
    return checkpoint


def test_every_dtype(tf: Any, tmp_path: Path) -> None:
    from tensorflow.core.framework import types_pb2

    from wtool.dtypes import BY_TF

    numbers = {value: name.removeprefix("DT_").lower() for name, value in types_pb2.DataType.items()}
    spelled = {"float": "float32", "double": "float64", "half": "float16"}
    assert {number: spelled.get(numbers[number], numbers[number]) for number in BY_TF} == {
        number: row.numpy_name for number, row in BY_TF.items()
    }
    raw = (np.arange(32, dtype=np.uint8) % 2).tobytes()
    tensors = [tf.constant(np.frombuffer(raw, row.numpy())) for row in BY_TF.values()]
    names = [row.name for row in BY_TF.values()]
    prefix = str(tmp_path / "m")
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
    assert len(agree(tf, prefix)) == len(names)


def test_a_module_with_strings(tf: Any, tmp_path: Path) -> None:
    module = tf.Module()
    module.z, module.a = tf.Variable(tf.random.normal((40, 3))), tf.Variable(tf.range(300, dtype=tf.int64))
    module.empty, module.scalar = tf.Variable(tf.zeros((0, 4))), tf.Variable(2.5)
    module.text = tf.Variable(tf.constant([["ab", "ü"], ["", "x" * 300]]))
    checkpoint = agree(tf, tf.train.Checkpoint(m=module).write(str(tmp_path / "m")))
    assert checkpoint.extras["m/text" + SUFFIX] == [["ab", "ü"], ["", "x" * 300]]
    assert isinstance(checkpoint.extras[KEY], bytes)
    assert [key.split("/")[1] for key in checkpoint] == ["z", "a", "empty", "scalar"]


def test_a_module_in_shards(tf: Any, tmp_path: Path) -> None:
    module = tf.Module()
    module.z, module.a = tf.Variable(tf.random.normal((40, 3))), tf.Variable(tf.range(300, dtype=tf.int64))
    policy = tf.train.experimental.MaxShardSizePolicy(max_shard_size=700)
    options = tf.train.CheckpointOptions(experimental_sharding_callback=policy)
    checkpoint = agree(tf, tf.train.Checkpoint(m=module).write(str(tmp_path / "m"), options=options))
    assert len(checkpoint.source.files) > 3
    assert "partitioned" in {warning.code for warning in checkpoint.warnings}


def test_v1_graphs_partitioned_with_slots(tf: Any, tmp_path: Path) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        with v1.variable_scope("p", partitioner=v1.fixed_size_partitioner(3, axis=1)):
            table = v1.get_variable("emb", (4, 10))
        w, step = v1.get_variable("w", (2, 2)), v1.train.get_or_create_global_step()
        loss = tf.reduce_sum(tf.convert_to_tensor(table)) + tf.reduce_sum(w**2)
        train = v1.train.AdamOptimizer().minimize(loss, global_step=step)
        with tf.control_dependencies([train]):
            average = tf.train.ExponentialMovingAverage(0.9).apply([w])
        session.run(v1.global_variables_initializer())
        session.run(average)
        two = v1.train.Saver().save(session, str(tmp_path / "two"))
        one = v1.train.Saver(write_version=v1.train.SaverDef.V1).save(session, str(tmp_path / "one"))
        expected = session.run({"w": w, "p/emb": tf.convert_to_tensor(table)})
    checkpoint = agree(tf, two)
    assert len(checkpoint["p/emb"].boxes) == 3
    assert {section.name: set(section.keys) for section in checkpoint.sections} == {
        "model": {"w", "p/emb"},
        "ema": {"w/ExponentialMovingAverage"},
        "optimizer": {"w/Adam", "w/Adam_1", "p/emb/Adam", "p/emb/Adam_1", "beta1_power", "beta2_power"},
        "other": {"global_step"},
    }
    old = agree(tf, one)
    assert old.source.variant == "v1"
    for key, value in expected.items():
        assert (old[key].array() == value).all() and (checkpoint[key].array() == value).all()


def test_v1_without_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorflow", None)
    (tmp_path / "old").write_bytes(write_table([(b"", bytes_field(1, b""))]))
    with pytest.raises(WtoolError, match="V1") as caught:
        load(tmp_path / "old")
    assert caught.value.code == "missing-extra" and "wtool[tensorflow]" in str(caught.value.hint)


def test_slots_of_an_optimizer_with_a_name_of_its_own(tf: Any, tmp_path: Path) -> None:
    module, step = tf.Module(), tf.Variable(1)
    module.w = tf.Variable(tf.ones(3))
    adam = tf.compat.v1.train.AdamOptimizer(0.1)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(module.w**2)
    adam.apply_gradients(zip(tape.gradient(loss, [module.w]), [module.w], strict=True))
    checkpoint = agree(tf, tf.train.Checkpoint(net=module, how=adam, step=step).save(str(tmp_path / "m")))
    sections = {section.name: {key.removesuffix(SUFFIX) for key in section.keys} for section in checkpoint.sections}
    assert sections == {
        "model": {"net/w"},
        "optimizer": {f"net/w/.OPTIMIZER_SLOT/how/{name}" for name in "mv"} | {"how/beta1_power", "how/beta2_power"},
        "other": {"save_counter", "step"},
    }


def test_keras_weights_that_lie_under_the_optimizer(tf: Any, tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("needs Keras on TensorFlow")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization()])
    model.compile("adam", "mse")
    model.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
    checkpoint = agree(tf, tf.train.Checkpoint(model=model).save(str(tmp_path / "m")))
    assert checkpoint.source.framework == "Keras"
    sections = {section.name: section.keys for section in checkpoint.sections}
    weights = sorted(checkpoint[key].array().tobytes() for key in sections["model"])
    assert weights == sorted(weight.tobytes() for weight in model.get_weights())
    assert {len(sections["optimizer"]), len(sections["other"])} == {2 + 2 * len(model.trainable_weights), 1}


def test_slice_keys_are_tensorflows(tf: Any, tmp_path: Path) -> None:
    # Extents whose numbers take one to five bytes; TensorFlow finds each slice by the key that it computes.
    from wtool.bytesource import LocalFile
    from wtool.formats.sstable import read_table

    starts = [0, 1, 63, 64, 8191, 8192, 1 << 20, 1 << 27]
    names = [f"v{start}" for start in starts]
    specs = [f"{1 << 28} 2 {start},1:-" for start in starts]
    prefix = str(tmp_path / "m")
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=specs, tensors=[tf.zeros((1, 2))] * len(starts))
    stored = {key for key, _ in read_table(LocalFile(prefix + ".index")) if key[:1] == b"\0"}
    assert stored == {part(f"v{start}", (start, 1), (0, -1)) for start in starts}
