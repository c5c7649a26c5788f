"""What adversarial use of maps and comparisons has found."""

from __future__ import annotations

import math

import pytest
from support import checkpoint_on

from wtool.between import map_checkpoint
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint
from wtool.errors import KeyClashError
from wtool.keys import merged


def keyed(shapes: dict[str, tuple[int, ...]]) -> Checkpoint:
    size = 4 * sum(math.prod(shape) for shape in shapes.values())
    return checkpoint_on(MemoryBytes(bytes(size)), {key: ("f32", shape) for key, shape in shapes.items()})


def test_a_merged_key_stays_short() -> None:
    """Every seventh of ten thousand layers made a line of eight thousand characters."""
    assert merged([f"layers.{number}.w" for number in range(0, 9997, 7)]) == "layers.{0,7,14,21,28,35,42,49,56,63,...,9996}.w"
    assert merged([f"a.{number}" for number in range(0, 24, 2)]) == "a.{0,2,4,6,8,10,12,14,16,18,20,22}"


def test_a_kept_key_that_would_be_a_layer_on_the_way_back_is_said() -> None:
    checkpoint = keyed({"fc.weight": (2, 3), "fc.bias": (2,), "block.scale": (4,)})
    [done] = map_checkpoint(checkpoint, ["torch-to-flax"], unmatched="keep")[1]
    [said] = [warning for warning in done.warnings if "kept as it is" in warning]
    assert "'block.scale' becomes 'block.weight'" in said


def test_a_kept_key_that_hides_a_layer_from_the_way_back_is_said() -> None:
    checkpoint = keyed({"fc.weight": (2, 3), "fc.bias": (2,), "fc.mean": (2,)})
    [done] = map_checkpoint(checkpoint, ["torch-to-nnx"], unmatched="keep")[1]
    assert any("no rule takes 'fc.kernel'" in warning for warning in done.warnings), done.warnings


def test_what_is_kept_and_comes_back_is_not_said() -> None:
    checkpoint = keyed({"fc.weight": (2, 3), "fc.bias": (2,), "cls_token": (1, 1, 4)})
    for name in ("torch-to-flax", "torch-to-keras", "torch-to-mlx", "torch-to-nnx"):
        [done] = map_checkpoint(checkpoint, [name], unmatched="keep")[1]
        assert not any("kept" in warning for warning in done.warnings), name


def test_a_dotted_key_that_keras_reads_as_a_path_is_said() -> None:
    checkpoint = keyed({"fc.weight": (2, 3), "fc.bias": (2,), "block.kernel": (3, 4)})
    [done] = map_checkpoint(checkpoint, ["torch-to-keras"], unmatched="keep")[1]
    assert any("'block.kernel' becomes 'block.weight'" in warning for warning in done.warnings), done.warnings


def test_two_keys_that_keras_reads_as_one_are_an_error() -> None:
    """The file was written, and could not be mapped back."""
    checkpoint = keyed({"a.weight": (3, 2), "a.bias": (3,), "a.kernel": (2, 3)})
    with pytest.raises(KeyClashError, match=r"'a/kernel' and 'a\.kernel' would be read as one"):
        map_checkpoint(checkpoint, ["torch-to-keras"], unmatched="keep")
