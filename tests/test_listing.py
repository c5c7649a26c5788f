"""The lines that git compares: one a tensor, the same wherever and however the weights are kept, and read once."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import Counting, checkpoint_on, covered_once

from wtool.analysis.digest import tensor_digest
from wtool.analysis.listing import listing
from wtool.api import open_checkpoint, save_checkpoint
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Global, Opaque, TensorRef

FIXTURES = Path(__file__).parent.parent / "fixtures"


def of(name: str, values: bytes, shape: tuple[int, ...]) -> str:
    """The line of one tensor, without key and digest."""
    checkpoint = checkpoint_on(MemoryBytes(values), {"k": (name, shape)})
    (line,) = listing(checkpoint)
    digest = tensor_digest(checkpoint["k"]).hex()[:16]
    head = f"k  {name} [{', '.join(map(str, shape))}]  {digest}"
    assert line.startswith(head)
    return line[len(head) :].strip()


def f32(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


LINES = [
    ("f32", f32(1, 2, 3), (3,), "mean 2 std 0.816497 absmax 3"),
    ("f32", f32(-4, 4), (2, 1), "mean 0 std 4 absmax 4"),
    ("f32", f32(7), (), "mean 7 std 0 absmax 7"),
    ("f32", b"", (0, 3), ""),
    ("f32", f32(1, float("nan"), float("inf"), float("-inf")), (4,), "mean 1 std 0 absmax 1 nan 1 inf 2"),
    ("f32", f32(float("nan")), (1,), "nan 1"),
    ("bf16", b"\x80\x3f\xc0\x7f", (2,), "mean 1 std 0 absmax 1 nan 1"),
    ("f64", struct.pack("<2d", 1e300, -1e300), (2,), "mean 0 std inf absmax 1e+300"),
    ("i64", struct.pack("<2q", 2**62 + 1, 0), (2,), "mean 2.30584e+18 std 2.30584e+18 absmax 4611686018427387905"),
    ("i8", b"\x80\x00", (2,), "mean -64 std 64 absmax 128"),
    ("u8", b"\x02\x04", (2,), "mean 3 std 1 absmax 4"),
    ("bool", b"\x01\x00\x00\x01", (4,), "mean 0.5 std 0.5 absmax 1"),
    ("c64", f32(3, 4), (1,), "mean 5 std 0 absmax 5"),
    ("f4", b"\x21", (2,), ""),
]


@pytest.mark.parametrize(("name", "values", "shape", "said"), LINES, ids=lambda value: str(value)[:20])
def test_a_line(name: str, values: bytes, shape: tuple[int, ...], said: str) -> None:
    assert of(name, values, shape) == said


def test_the_mean_has_no_digits_that_depend_on_the_order_of_sums() -> None:
    values = np.random.default_rng(0).standard_normal(100_000)
    values = np.concatenate((values, -values)).astype("f4")
    assert of("f32", values.tobytes(), (200_000,)).startswith("mean 0 std 1")
    assert of("f32", (values * 1e-30).tobytes(), (200_000,)).startswith("mean 0 std 1.")


def test_each_value_is_read_once_in_any_number_of_jobs() -> None:
    values = np.random.default_rng(0).standard_normal(1_500_000).astype("f4").tobytes()
    tensors = {f"layers.{n}.w": ("f32", (500_000,)) for n in (10, 9, 0)}
    said = []
    for jobs in (1, 3):
        source = Counting(MemoryBytes(values))
        said.append(list(listing(checkpoint_on(source, tensors), jobs)))
        assert covered_once(source.ranges, len(values))
    assert said[0] == said[1]
    assert [line.split("  ")[0] for line in said[0]] == ["layers.0.w", "layers.9.w", "layers.10.w"]


@pytest.mark.parametrize("source", ["safetensors/single/model.safetensors", "safetensors/sharded", "torch/plain/model.pth"])
@pytest.mark.parametrize("target", ["m.safetensors", "m.pth", "m.ckpt", "shards"])
def test_the_tensors_read_the_same_in_every_format(source: str, target: str, tmp_path: Path) -> None:
    opened = open_checkpoint(FIXTURES / source)
    save_checkpoint(opened, tmp_path / target, max_shard=200 if target == "shards" else None, tied="duplicate")

    def tensors(checkpoint: Checkpoint) -> list[str]:
        return [line.split("  = ")[0] for line in listing(checkpoint) if line[0] != "#"]

    assert tensors(open_checkpoint(tmp_path / target)) == tensors(opened)
    assert len(tensors(opened)) == len(opened)


def test_tied_tensors_name_the_first_of_their_keys() -> None:
    lines = [line for line in listing(open_checkpoint(FIXTURES / "torch" / "tied" / "model.pth")) if "weight" in line]
    assert [line.split("  ")[0] for line in lines if "  = again.weight" in line] == ["embed.weight", "head.weight"]


def test_sections_stand_under_their_full_keys() -> None:
    path = next((FIXTURES / "torch" / "lightning").glob("*.ckpt"))
    lines = list(listing(open_checkpoint(path, section="all")))
    assert any(line.startswith("optimizer_states.0.state.0.exp_avg  f32") for line in lines)
    assert any(line.startswith("state_dict.") for line in lines)
    assert "# extras optimizer_states.0.param_groups.0.lr: 0.001" in lines


def made(**changes: object) -> list[str]:
    return list(listing(replace(checkpoint_on(MemoryBytes(b""), {}), **changes)))  # type: ignore[arg-type]


def test_what_stands_beside_the_tensors() -> None:
    extras = {
        "step": 3,
        "lr": {"b": 0.5, "a": [1, 2], "nested": [{"x": None}, {"x": True}]},
        "object": Opaque("a.B"),
        "tensor": TensorRef("w"),
        "note": "two\nlines",
        "none": {},
        "odd": float("nan"),
    }
    assert made(extras=extras, metadata={"b": "\x1b[31m", "a": "1"}) == [
        "# metadata a: 1",
        r"# metadata b: \x1b[31m",
        "# extras lr.b: 0.5",
        "# extras lr.a: [1, 2]",
        "# extras lr.nested.0.x: null",
        "# extras lr.nested.1.x: true",
        "# extras none: {}",
        r"# extras note: two\nlines",
        "# extras object: <a.B>",
        "# extras odd: NaN",
        "# extras step: 3",
    ]


def test_no_change_of_what_is_cut_passes_unseen() -> None:
    for change in ({"metadata": {"a": "x" * 300 + end}} for end in ("1", "2")):
        assert len(made(**change)[0]) < 250
    assert made(metadata={"a": "x" * 300 + "1"}) != made(metadata={"a": "x" * 300 + "2"})
    many = [{str(n): n for n in range(600)} | {"599": last} for last in (1, 2)]
    first, second = (made(extras={"v": values}) for values in many)
    assert len(first) == 501 and first[-1].startswith("# extras: 100 values more, blake2b ")
    assert first[:-1] == second[:-1] and first[-1] != second[-1]


def test_dangers_come_first_and_keys_cannot_break_a_line() -> None:
    lines = made(globals=(Global("os.system", "dangerous"), Global("a.B", "unknown")), metadata={"a": "b"})
    assert lines[0] == "# DANGER: unpickling this file elsewhere would call os.system"
    assert len(lines) == 2
    key = "a\n# DANGER\r\x1b[2J\u202e" + "k" * 100_000
    (line,) = listing(checkpoint_on(MemoryBytes(f32(1)), {key: ("f32", (1,))}))
    assert line.startswith(r"a\n# DANGER\r\x1b[2J\u202ekkk") and line.isprintable()
