"""What wtool writes as a TensorFlow checkpoint, against what TensorFlow writes, and as TensorFlow and Keras load it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google_crc32c import value as crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wtool.adapter import SaveRequest, probe
from wtool.bytesource import LocalFile, MemoryBytes
from wtool.checkpoint import Checkpoint
from wtool.dtypes import BY_TF, DType, dtype
from wtool.errors import DtypeError, UnsupportedError, VerifyError
from wtool.formats.sstable import read_table, write_table
from wtool.formats.tensorflow import ADAPTER
from wtool.formats.tensorflow.bundle import format_entry, parse_entry
from wtool.formats.tensorflow.graph import KEY, aliases, build_graph, parse_graph, prune_graph
from wtool.tensor import LazyTensor, TensorSpec

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
DATA, INDEX = ".data-00000-of-00001", ".index"


def lazy(key: str, array: Any, of: DType | None = None) -> LazyTensor:
    found = dtype(array.dtype.name) if of is None else of
    return LazyTensor.contiguous(key, found, array.shape, MemoryBytes(array.tobytes()), 0)


def save(tensors: Mapping[str, LazyTensor], target: Path, **options: Any) -> str:
    """Write as the plan says, values after all that is fixed, checksums last."""
    request = SaveRequest(str(target), tuple(tensor.spec for tensor in tensors.values()), **options)
    sink = ADAPTER.create(request)
    layout = sink.layout
    assert layout.checksum == "crc32c" and layout.files[-1].name.endswith(INDEX)
    folder = target if layout.folder else target.parent
    folder.mkdir(exist_ok=True, parents=True)
    contents = [bytearray(file.size) for file in layout.files]
    sums = {}
    for slot in layout.slots:
        raw = tensors[slot.key].array().tobytes()
        sums[slot.key] = crc32c(raw)
        contents[slot.file][slot.offset : slot.offset + slot.nbytes] = raw
    for patch in (*layout.patches, *sink.finish(sums)):
        contents[patch.file][patch.offset : patch.offset + len(patch.data)] = patch.data
    for file, content in zip(layout.files, contents, strict=True):
        assert len(content) == file.size, file.name
        (folder / file.name).write_bytes(content)
    return str(target)


def of(arrays: Mapping[str, Any]) -> dict[str, LazyTensor]:
    return {key: lazy(key, array) for key, array in arrays.items()}


def load(path: str) -> Checkpoint:
    return ADAPTER.open(probe(path))


@pytest.fixture(scope="module")
def tf() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return pytest.importorskip("tensorflow")


def same_files(one: str, two: str) -> bool:
    return all(Path(one + end).read_bytes() == Path(two + end).read_bytes() for end in (DATA, INDEX))


# --- without TensorFlow

NAMES = st.text("abAB01._/-é\t ", min_size=1, max_size=12)
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
SPECS = st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(sorted(BY_TF))), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(SPECS)
def test_what_is_written_is_read(tmp_path: Path, specs: dict[str, tuple[tuple[int, ...], int]]) -> None:
    tensors = {}
    for key, (shape, number) in specs.items():
        row = BY_TF[number]
        raw = bytes(n % 2 for n in range(row.nbytes(int(np.prod(shape)))))
        tensors[key] = LazyTensor.contiguous(key, row, shape, MemoryBytes(raw), 0)
    checkpoint = load(save(tensors, tmp_path / "m.ckpt"))
    assert set(checkpoint) == set(tensors)
    for key, tensor in tensors.items():
        assert checkpoint[key].spec == tensor.spec
        assert checkpoint[key].array().tobytes() == tensor.array().tobytes()
    assert not {warning.code for warning in checkpoint.warnings} - {"no-tensors"}


def test_the_order_is_kept(tmp_path: Path) -> None:
    keys = ["z.10", "z.9", "a", "m/b", "m/a"]
    assert list(load(save(of({key: np.ones(2) for key in keys}), tmp_path / "m"))) == keys


def test_where_it_goes(tmp_path: Path) -> None:
    tensors = of({"a": np.ones(2)})
    save(tensors, tmp_path / "m.ckpt.index")
    assert sorted(os.listdir(tmp_path)) == ["m.ckpt" + DATA, "m.ckpt" + INDEX]
    save(tensors, tmp_path / "run", folder=True)
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoint", "model.ckpt" + DATA, "model.ckpt" + INDEX]
    assert list(load(str(tmp_path / "run"))) == ["a"]


@pytest.mark.parametrize("key", ["", "\0a", KEY, "\ud800"])
def test_keys_that_mean_something_else(key: str) -> None:
    with pytest.raises(UnsupportedError):
        ADAPTER.create(SaveRequest("x.ckpt", (TensorSpec(key, dtype("f32"), (1,)),)))


def test_a_dtype_that_tensorflow_lacks() -> None:
    assert "f4" not in ADAPTER.capabilities.dtypes
    with pytest.raises(DtypeError, match="no dtype f4 for 'a'"):
        ADAPTER.create(SaveRequest("x.ckpt", (TensorSpec("a", dtype("f4"), (2,)),)))


def test_which_plain_keys_are_objects_too() -> None:
    keys = ["a.b.c", "a/b/d", "x", "x.y", "p.q", "p/q", "s..t", ".u", "o/k", "o/k" + SUFFIX]
    assert set(aliases(keys)) == {"a.b.c", "a/b/d", "x.y"}
    assert aliases(keys)["a.b.c"] == "a/b/c" + SUFFIX


def test_a_pruned_graph_names_only_what_is_there() -> None:
    keys = ["n/w" + SUFFIX, "n/v" + SUFFIX, "n/w/.OPTIMIZER_SLOT/opt/m" + SUFFIX, "n/v/.OPTIMIZER_SLOT/opt/m" + SUFFIX]
    graph = build_graph(keys, {})
    assert len(parse_graph(graph).slots) == 2
    pruned = parse_graph(prune_graph(graph, set(keys[:3])))
    assert [attribute.key for attribute in pruned.attributes] == keys[:3]
    assert len(pruned.slots) == 1


# --- as TensorFlow


def test_byte_for_byte_the_index_of_tensorflow(tf: Any, tmp_path: Path) -> None:
    # 20,000 keys fill several blocks of the table; lengths and offsets of all widths occur.
    arrays = {f"model/l_{n}/{'x' * (n % 37)}/kernel": np.full((n % 3, n % 5), n, np.float32) for n in range(20_000)}
    arrays["wide"] = np.ones((3, 70_000), np.float64)
    ours = save(of(arrays), tmp_path / "ours")
    graph = load(ours).extras[KEY]
    theirs = {**arrays, **{alias: arrays[key] for key, alias in aliases(list(arrays)).items()}}
    assert len(theirs) > len(arrays)
    # TensorFlow cannot be made to write two keys of one place, so the tables are compared entry by entry, then re-made.
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "theirs"), tensor_names=[*arrays, KEY], shape_and_slices=[""] * (len(arrays) + 1),
        tensors=[*map(tf.constant, arrays.values()), tf.constant(graph)],
    )  # fmt: skip
    assert Path(ours + DATA).read_bytes() == (tmp_path / ("theirs" + DATA)).read_bytes()
    plain = [pair for pair in read_table(LocalFile(ours + INDEX)) if not pair[0].endswith(SUFFIX.encode())]
    index = (tmp_path / ("theirs" + INDEX)).read_bytes()
    assert len(index) > 3 * 256 * 1024
    assert write_table(plain) == index
    assert all(format_entry(parse_entry(value, {})) == value for key, value in plain if key)


def test_a_checkpoint_of_objects_comes_out_as_it_went_in(tf: Any, tmp_path: Path) -> None:
    module = tf.Module()
    module.layers = [tf.Variable(tf.random.normal((3, 4))), tf.Variable(tf.range(5))]
    module.empty, module.half = tf.Variable(tf.zeros((0, 2))), tf.Variable(tf.zeros(3, tf.bfloat16))
    theirs = tf.train.Checkpoint(m=module).save(str(tmp_path / "theirs"))
    source = load(theirs)
    assert same_files(theirs, save(dict(source), tmp_path / "ours", structure=source.extras[KEY]))


def test_every_dtype_and_the_judge(tf: Any, tmp_path: Path) -> None:
    raw = (np.arange(32, dtype=np.uint8) % 2).tobytes()
    tensors = {
        row.name: LazyTensor.contiguous(row.name, row, (32 // row.itemsize,), MemoryBytes(raw), 0) for row in BY_TF.values()
    }
    tensors["nothing"] = lazy("nothing", np.zeros((0, 3), np.float32))
    tensors["scalar"] = lazy("scalar", np.array(2.5))
    path = save(tensors, tmp_path / "m")
    judged = {found.key: found for found in ADAPTER.judge(path)}
    assert set(judged) == set(tensors)
    for key, tensor in tensors.items():
        assert judged[key].dtype == tensor.dtype.name
        assert judged[key].array.shape == tensor.shape
        assert judged[key].array.tobytes() == tensor.array().tobytes()


def test_a_folder_is_known_to_tensorflow(tf: Any, tmp_path: Path) -> None:
    save(of({"a": np.ones(2)}), tmp_path / "run", folder=True)
    assert tf.train.latest_checkpoint(str(tmp_path / "run")) == str(tmp_path / "run" / "model.ckpt")
    assert [found.key for found in ADAPTER.judge(str(tmp_path / "run"))] == ["a"]


def test_a_wrong_checksum_is_seen_by_tensorflow(tf: Any, tmp_path: Path) -> None:
    path = save(of({"a": np.ones(2)}), tmp_path / "m")
    data = Path(path + DATA)
    data.write_bytes(b"\1" + data.read_bytes()[1:])
    with pytest.raises(VerifyError, match="Checksum does not match"):
        list(ADAPTER.judge(path))


# --- as its loaders


class Tree:
    """Nested tf.Modules with a zero variable for each key."""

    def __init__(self, tf: Any, arrays: Mapping[str, Any]) -> None:
        self.root = tf.Module()
        self.variables = {}
        for key, array in arrays.items():
            *parents, leaf = key.replace(".", "/").split("/")
            at = self.root
            for name in parents:
                if not hasattr(at, name):
                    setattr(at, name, tf.Module())
                at = getattr(at, name)
            self.variables[key] = tf.Variable(tf.zeros_like(array))
            setattr(at, leaf, self.variables[key])

    def checkpoint(self, tf: Any) -> Any:
        return tf.train.Checkpoint(**{name: child for name, child in vars(self.root).items() if not name.startswith("_")})


ARRAYS = {
    "encoder.layer.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "encoder.layer.1.weight": np.ones((2, 3), np.float32),
    "bert/pooler/bias": np.arange(4, dtype=np.int64),
    "head": np.array(3.5),
}


@pytest.mark.parametrize("end", ["", SUFFIX], ids=["plain", "object"])
@pytest.mark.parametrize("how", ["restore", "read"])
def test_objects_are_restored(tf: Any, tmp_path: Path, end: str, how: str) -> None:
    keys = {key: (key.replace(".", "/") if end else key) + end for key in ARRAYS}
    path = save(of({keys[key]: array for key, array in ARRAYS.items()}), tmp_path / "m")
    tree = Tree(tf, ARRAYS)
    status = getattr(tree.checkpoint(tf), how)(path)
    status.assert_existing_objects_matched()
    status.assert_consumed()
    for key, array in ARRAYS.items():
        assert (tree.variables[key].numpy() == array).all()


def test_names_are_restored(tf: Any, tmp_path: Path) -> None:
    path = save(of(ARRAYS), tmp_path / "m")
    reader = tf.train.load_checkpoint(path)
    assert all((reader.get_tensor(key) == array).all() for key, array in ARRAYS.items())
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        variables = {key: v1.get_variable(f"v{n}", initializer=0 * a) for n, (key, a) in enumerate(ARRAYS.items())}
        v1.train.Saver(variables).restore(session, path)
        assert all((session.run(variables[key]) == array).all() for key, array in ARRAYS.items())


@pytest.mark.parametrize("keep", [True, False], ids=["graph kept", "graph made anew"])
def test_slots_of_an_optimizer_are_restored(tf: Any, tmp_path: Path, keep: bool) -> None:
    def train(steps: int) -> tuple[Any, Any, Any]:
        module = tf.Module()
        module.w = tf.Variable([1.0, 2.0])
        adam = tf.compat.v1.train.AdamOptimizer(0.1)
        for _ in range(steps):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(module.w**2)
            adam.apply_gradients(zip(tape.gradient(loss, [module.w]), [module.w], strict=True))
        return module, adam, tf.train.Checkpoint(net=module, opt=adam)

    module, adam, saver = train(3)
    source = load(saver.save(str(tmp_path / "theirs")))
    path = save(dict(source), tmp_path / "ours", **({"structure": source.extras[KEY]} if keep else {}))
    other, their, loader = train(1)
    status = loader.restore(path)
    status.assert_consumed()
    assert (other.w.numpy() == module.w.numpy()).all()
    for name in "mv":
        assert (their.get_slot(other.w, name).numpy() == adam.get_slot(module.w, name).numpy()).all()


def test_keras_with_its_optimizer(tf: Any, tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("needs Keras on TensorFlow")

    def make(epochs: int) -> Any:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization()])
        model.compile("adam", "mse")
        if epochs:
            model.fit(np.ones((8, 4)), np.ones((8, 3)), epochs=epochs, verbose=0)
        return model

    trained = make(3)
    theirs = tf.train.Checkpoint(model=trained).save(str(tmp_path / "theirs"))
    source = load(theirs)
    path = save(dict(source), tmp_path / "ours", structure=source.extras[KEY])
    assert same_files(theirs, path)
    whole = make(1)
    tf.train.Checkpoint(model=whole).restore(path).assert_existing_objects_matched()
    for ours, expected in zip(whole.optimizer.variables, trained.optimizer.variables, strict=True):
        assert (ours.numpy() == expected.numpy()).all()

    # The weights alone, with what the graph says of them.
    weights = {key: source[key] for key in source.main_section().keys}
    path = save(weights, tmp_path / "weights", structure=source.extras[KEY])
    assert set(load(path)) == set(weights)
    bare = make(0)
    tf.train.Checkpoint(model=bare).read(path).expect_partial()
    for ours, expected in zip(bare.get_weights(), trained.get_weights(), strict=True):
        assert (ours == expected).all()


def test_a_graph_of_other_keys_is_not_kept(tf: Any, tmp_path: Path) -> None:
    module = tf.Module()
    module.w = tf.Variable([1.0, 2.0])
    source = load(tf.train.Checkpoint(old=module).write(str(tmp_path / "theirs")))
    (tensor,) = source.values()
    renamed = tensor.renamed("new/w" + SUFFIX)
    path = save({renamed.key: renamed}, tmp_path / "ours", structure=source.extras[KEY])
    fresh = tf.Module()
    fresh.w = tf.Variable([0.0, 0.0])
    tf.train.Checkpoint(new=fresh).read(path).assert_existing_objects_matched()
    assert fresh.w.numpy().tolist() == [1.0, 2.0]
