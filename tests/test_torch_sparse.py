"""torch's own sparse tensors, read from .pth and made dense: the same values as torch.Tensor.to_dense."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from wtool.api import open_checkpoint, save_checkpoint
from wtool.checkpoint import Checkpoint
from wtool.errors import CorruptError
from wtool.ops.densify import Densify
from wtool.tensor import LazyTensor

torch = pytest.importorskip("torch")
warnings.filterwarnings("ignore", message="Sparse .* tensor support is in beta")
FIXTURE = Path(__file__).parent.parent / "fixtures" / "torch" / "sparse" / "model.pth"


def coo(shape: tuple[int, ...], count: int, axes: int, dtype: object, seed: int = 0) -> object:
    """With places that occur more than once."""
    made = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randint(0, size, (count,), generator=made) for size in shape[:axes]])
    values = torch.randn((count, *shape[axes:]), generator=made) * 100
    return torch.sparse_coo_tensor(indices, values.to(dtype), shape, check_invariants=True)


def cases() -> dict[str, object]:
    made = torch.Generator().manual_seed(1)
    matrix = torch.randn(12, 20, generator=made) * (torch.rand(12, 20, generator=made) < 0.3)
    found = {
        f"coo.{str(dtype).removeprefix('torch.')}": coo((30, 20), 700, 2, dtype)
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.complex64)
    }
    found |= {
        "hybrid": coo((30, 7, 5), 60, 1, torch.float32),
        "cube": coo((6, 7, 5), 300, 3, torch.float32),
        "vector": coo((50,), 70, 1, torch.float32),
        "empty": coo((5, 6), 0, 2, torch.float32),
        "coalesced": coo((30, 20), 700, 2, torch.float32).coalesce(),
        "csr": matrix.to_sparse_csr(),
        "csc": matrix.to_sparse_csc(),
        "bsr": matrix.to_sparse_bsr((3, 4)),
        "bsc": matrix.to_sparse_bsc((4, 5)),
        "unsorted": torch.sparse_csr_tensor([0, 2, 3], [3, 1, 0], [1.0, 2.0, -0.0], (2, 4), check_invariants=False),
    }
    return found


def numbers(tensor: object) -> bytes:
    flat = tensor.contiguous().reshape(-1)  # type: ignore[attr-defined]
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sparse") / "model.pth"
    torch.save({"state_dict": cases(), "epoch": 3}, path)
    return path


@pytest.mark.parametrize("name", list(cases()))
def test_the_same_as_to_dense(saved: Path, name: str) -> None:
    tensor = Densify()(open_checkpoint(saved, section="all"))[f"state_dict.{name}"]
    expected = cases()[name].to_dense()  # type: ignore[attr-defined]
    assert tensor.shape == tuple(expected.shape)
    found = tensor.array()
    zeros = found == 0  # torch adds to zeros, of which a negative one does not come out as it was
    assert np.array_equal(zeros.reshape(-1), (expected == 0).reshape(-1).numpy())
    found = np.where(zeros, np.zeros_like(found), found)
    expected = torch.where(expected == 0, torch.zeros_like(expected), expected)
    assert found.tobytes() == numbers(expected)


def test_extras_and_warnings_go(saved: Path, tmp_path: Path) -> None:
    whole = open_checkpoint(saved, section="all")
    assert [warning.code for warning in whole.warnings] == ["sparse"]
    dense = Densify()(whole)
    assert dense.extras == {"epoch": 3} and not dense.warnings
    assert list(dense.section()) == list(cases())
    save_checkpoint(dense.section(), tmp_path / "dense.pth")
    loaded = torch.load(tmp_path / "dense.pth", weights_only=True)
    assert torch.equal(loaded["csr"], cases()["csr"].to_dense())  # type: ignore[attr-defined]


def test_fixture() -> None:
    dense = Densify()(open_checkpoint(FIXTURE, section="all"))
    loaded = torch.load(FIXTURE, weights_only=True)
    assert sorted(dense) == sorted(loaded)
    for key, tensor in dense.items():
        assert np.array_equal(tensor.array(), loaded[key].to_dense().numpy())


@pytest.mark.parametrize(
    ("key", "place", "value"),
    [
        ("coo.indices", (0, 1), -1),
        ("coo.indices", (1, 0), 1 << 40),
        ("csr.col_indices", 0, 3),
        ("csr.col_indices", 0, -1),
        ("csr.crow_indices", 0, 1),
        ("csr.crow_indices", -1, 9),
        ("csr.crow_indices", 1, 1 << 40),
    ],
)
def test_indices_out_of_range(key: str, place: object, value: int) -> None:
    from wtool.bytesource import MemoryBytes

    whole = open_checkpoint(FIXTURE, section="all")
    array = whole[key].array().copy()
    array[place] = value
    bad = LazyTensor.contiguous(key, whole[key].dtype, whole[key].shape, MemoryBytes(array.tobytes()), 0)
    spoilt = Checkpoint({**whole.tensors, key: bad}, whole.source, extras=whole.extras)
    with pytest.raises(CorruptError):
        Densify()(spoilt)[key.split(".")[0]].array()


def test_a_size_that_does_not_fit() -> None:
    whole = open_checkpoint(FIXTURE, section="all")
    for name in ("coo", "csr"):
        for size in ([1 << 61, 8], [2, 3, 4], []):
            extras = {**whole.extras, name: {**whole.extras[name], "size": size}}
            with pytest.raises(CorruptError):
                Densify()(Checkpoint(whole.tensors, whole.source, extras=extras))
