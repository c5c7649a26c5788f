"""Integer codes with scales: against a plain version, llm-compressor's own outcome, and what a search must gain."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wtool.dtypes import dtype
from wtool.errors import DtypeError
from wtool.kernels import affine, clip, groups, packing
from wtool.kernels.affine import Affine

DTYPES = ("f32", "bf16", "f16")


def to(values: np.ndarray, name: str) -> np.ndarray:
    """f32 values rounded to the dtype."""
    with np.errstate(all="ignore"):
        return values.astype(dtype(name).numpy()).astype(np.float32)


def plain(x: np.ndarray, bits: int, group: int | None, symmetric: bool, name: str) -> tuple[np.ndarray, ...]:
    """compressed-tensors' calculate_qparams and quantize, step by step, each rounded to the dtype."""
    lowest, highest = -(1 << bits - 1), (1 << bits - 1) - 1
    steps = np.float32(highest - lowest)
    table = x.reshape(len(x), -1, group or x.shape[1])
    least, greatest = np.minimum(table.min(axis=2), 0), np.maximum(table.max(axis=2), 0)
    with np.errstate(all="ignore"):
        if symmetric:
            scale, zero = to(np.maximum(-least, greatest) / (steps / 2), name), np.zeros_like(least)
        else:
            scale = to(to(greatest - least, name) / steps, name)
            zero = to(np.float32(lowest) - to(least / scale, name), name)
            zero = np.rint(np.nan_to_num(np.clip(zero, lowest, highest), nan=0))
        scale[scale == 0] = {"f32": 2.0**-23, "bf16": 2.0**-7, "f16": 2.0**-10}[name]
        quotient = to(table / scale[:, :, None], name)
        if not symmetric:
            quotient = to(quotient + zero[:, :, None], name)
    codes = np.rint(np.clip(quotient, lowest, highest)).astype(np.int8)
    return codes.reshape(x.shape), scale, zero.astype(np.int8)


def weights(rows: int = 32, columns: int = 256) -> np.ndarray:
    """The same numbers everywhere: no generator, few operations."""
    at = np.arange(rows * columns, dtype=np.uint64)
    spread = ((at * np.uint64(2654435761) + np.uint64(12345)) % np.uint64(1 << 32)).astype(np.float64) / 2.0**32 - 0.5
    table = (spread * spread * spread * 8).reshape(rows, columns) * 2.0 ** (np.arange(rows)[:, None] % 5 - 8)
    table[3] = 0
    table[4, :128] = 0
    table[5] = np.abs(table[5]) + 1
    table[6] = -1
    table[7] = np.arange(columns) / 16 - 8
    return table.astype(np.float32)


# blake2b of weight_packed, weight_scale and weight_zero_point as model_free_ptq of llmcompressor 0.14.0.1 (compressed-tensors
# 0.19.0, torch 2.13.0) writes them for `weights()` in the dtype: bits, group (0: the row, -1: one scale for all), symmetric.
GOLDEN = {
    ("f32", 4, 128, True): "3fd202dcc53e2f03",
    ("f32", 8, 0, True): "08037af127042f50",
    ("f32", 4, 128, False): "4d6784e900ad796f",
    ("f32", 8, 0, False): "cf8276eabc108d30",
    ("f32", 3, 32, True): "7facd89588f9198a",
    ("f32", 2, 64, False): "8a8c0f768b157a3b",
    ("f32", 8, -1, True): "8108902bd98a93ac",
    ("bf16", 4, 128, True): "8856a0975101a1a9",
    ("bf16", 8, 0, True): "676fa778f323bfe2",
    ("bf16", 4, 128, False): "0f6e0421d1f92972",
    ("bf16", 8, 0, False): "3e19ce21e7544926",
    ("bf16", 3, 32, True): "8f0f9f4ea2fec293",
    ("bf16", 2, 64, False): "5c9b400c8dd4c68d",
    ("bf16", 8, -1, True): "1cf132508762f97f",
    ("f16", 4, 128, True): "0efd91bf3992aacc",
    ("f16", 8, 0, True): "017f58f16febc8f5",
    ("f16", 4, 128, False): "20f33f1c9495090b",
    ("f16", 8, 0, False): "29be4a88f2416508",
    ("f16", 3, 32, True): "17a4e6630cb33daf",
    ("f16", 2, 64, False): "550e5790b4cadf78",
    ("f16", 8, -1, True): "15382faf47a8b461",
}


def stored(x: np.ndarray, name: str, bits: int, group: int, symmetric: bool) -> list[np.ndarray]:
    """The arrays of a pack-quantized weight."""
    codec = Affine(bits, group if group > 0 else None, symmetric, dtype(name))
    if group < 0:
        one, _ = codec.scales_of(x.min(keepdims=True)[0], x.max(keepdims=True)[0])
        codes, scales, _ = codec.encode(x, one[0])
        assert (scales == one).all() and len(scales) == len(x)
        return [packing.pack(codes, bits), one]
    codes, scales, zeros = codec.encode(x)
    packed = [packing.pack(codes, bits), scales]
    return packed if zeros is None else [*packed, packing.pack(zeros, bits, axis=0)]


@pytest.mark.parametrize(("name", "bits", "group", "symmetric"), GOLDEN)
def test_as_llm_compressor_wrote_it(name: str, bits: int, group: int, symmetric: bool) -> None:
    digest = blake2b(digest_size=8)
    for array in stored(to(weights(), name), name, bits, group, symmetric):
        digest.update(array.tobytes())
    assert digest.hexdigest() == GOLDEN[name, bits, group, symmetric]


PEER = """
import sys, torch, numpy as np, json
from safetensors.torch import save_file, load_file
from llmcompressor import model_free_ptq
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
folder, bits, group, symmetric = sys.argv[1], *map(int, sys.argv[2:])
raw = np.load(folder + "/in.npz")
save_file({k + ".weight": torch.from_numpy(v).to(getattr(torch, k)) for k, v in raw.items()},
          folder + "/src/model.safetensors", metadata={"format": "pt"})
json.dump({"model_type": "llama"}, open(folder + "/src/config.json", "w"))
args = QuantizationArgs(num_bits=bits, type="int", strategy="group" if group else "channel", group_size=group or None,
                        symmetric=bool(symmetric), observer="memoryless_minmax")
model_free_ptq(folder + "/src", folder + "/out", scheme=QuantizationScheme(targets=["Linear"], weights=args), device="cpu",
               max_workers=1)
np.savez(folder + "/out.npz", **{k: v.contiguous().view(torch.uint8).numpy()
                                 for k, v in load_file(folder + "/out/model.safetensors").items()})
"""


@pytest.mark.skipif("WTOOL_PEERS" not in os.environ, reason="WTOOL_PEERS names no folder with llmcompressor 0.14")
@pytest.mark.parametrize(("bits", "group", "symmetric"), [(4, 128, True), (8, 0, True), (4, 128, False)])
def test_as_llm_compressor_writes_it(tmp_path: Path, bits: int, group: int, symmetric: bool) -> None:
    python = Path(os.environ["WTOOL_PEERS"]) / "bin" / "python"
    if subprocess.run([python, "-c", "import llmcompressor"], capture_output=True).returncode:
        pytest.skip("llmcompressor is not among the peers")
    rng = np.random.default_rng(5)
    names = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
    tensors = {name: to(rng.standard_t(3, (96, 384)) * 0.02, name) for name in names}
    (tmp_path / "src").mkdir()
    np.savez(tmp_path / "in.npz", **{names[name]: x for name, x in tensors.items()})
    subprocess.run([python, "-c", PEER, tmp_path, str(bits), str(group), str(int(symmetric))], check=True, capture_output=True)
    theirs = np.load(tmp_path / "out.npz")
    for name, x in tensors.items():
        parts = zip(("packed", "scale", "zero_point"), stored(x, name, bits, group, symmetric), strict=False)
        for part, ours in parts:
            assert theirs[f"{names[name]}.weight_{part}"].tobytes() == ours.tobytes(), (name, part)


def odd_table(rng: np.random.Generator, rows: int, columns: int, name: str) -> np.ndarray:
    """Rows of many kinds: plain, far apart, tiny, whole numbers with ties, of one sign, zeros."""
    x = rng.standard_normal((rows, columns)) * 0.02
    x[0::7] *= np.exp2(rng.integers(-20, 5, (len(x[0::7]), columns)))
    x[1::7] = np.round(x[1::7] * 400) / 8
    x[2::7] = np.abs(x[2::7])
    x[3::7] *= 1e-6
    x[4::7, : columns // 2] = 0
    return to(x.astype(np.float32), name)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("group", "shape"), [(32, (40, 96)), (128, (300, 256)), (None, (29, 100)), (None, (9, 1)), (64, (1, 64))]
)
def test_equal_to_the_plain_steps(name: str, bits: int, symmetric: bool, group: int | None, shape: tuple[int, int]) -> None:
    x = odd_table(np.random.default_rng(bits), *shape, name)
    before = x.copy()
    codes, scales, zeros = Affine(bits, group, symmetric, dtype(name)).encode(x)
    expected = plain(x, bits, group, symmetric, name)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(scales.astype(np.float32), expected[1])
    np.testing.assert_array_equal(codes, expected[0])
    assert scales.dtype == dtype(name).numpy() and codes.dtype == np.int8
    if symmetric:
        assert zeros is None
    else:
        np.testing.assert_array_equal(zeros, expected[2])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("search", [True, False])
def test_rows_wider_than_a_piece(symmetric: bool, search: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x = odd_table(np.random.default_rng(3), 5, 70_003, "bf16")
    codec = Affine(4, None, symmetric, dtype("bf16"), search)
    codes, scales, zeros = codec.encode(x)
    if not search:
        np.testing.assert_array_equal(codes, plain(x, 4, None, symmetric, "bf16")[0])
    back = codec.decode(codes, scales, zeros)
    assert np.square(back - x).sum() < np.square(x).sum() / 4
    for row in range(5):
        alone = codec.encode(x[row : row + 1])
        np.testing.assert_array_equal(alone[0], codes[row : row + 1])
        np.testing.assert_array_equal(alone[1], scales[row : row + 1])


@pytest.mark.parametrize(("name", "fraction"), [("bf16", 8), ("f16", 11)])
def test_quotients_are_rounded_as_the_dtype_rounds_them(name: str, fraction: int) -> None:
    """Every pair of fractions: none lies half way between two, so adding half and cutting is rounding."""
    fractions = np.arange(1 << fraction - 1, 1 << fraction, dtype=np.float32)
    for divisors in np.array_split(fractions, 8):
        quotient = fractions[:, None] / divisors * np.float32(8)
        expected = to(quotient, name)
        affine._shorten(quotient, 24 - fraction)
        np.testing.assert_array_equal(quotient, expected)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_decoding_is_the_runtimes_once_rounded(name: str, symmetric: bool, bits: int) -> None:
    x = odd_table(np.random.default_rng(9), 21, 256, name)
    codec = Affine(bits, 64, symmetric, dtype(name))
    codes, scales, zeros = codec.encode(x)
    points = np.zeros_like(scales) if zeros is None else zeros.astype(scales.dtype)
    differences = codes.reshape(21, 4, 64).astype(scales.dtype) - points[:, :, None]
    expected = (differences * scales[:, :, None]).reshape(21, 256)
    np.testing.assert_array_equal(to(codec.decode(codes, scales, zeros), name), expected.astype(np.float32))


def test_decoding_with_one_scale_for_all() -> None:
    codes = np.arange(-8, 8, dtype=np.int8).reshape(2, 8)
    codec = Affine(4, None, False, dtype("f32"))
    back = codec.decode(codes, np.full((1, 1), 0.5, np.float32), np.full((1, 1), 3, np.int8))
    np.testing.assert_array_equal(back, (codes - np.float32(3)) * np.float32(0.5))


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (0, 0)])
def test_nothing_to_encode(search: bool, symmetric: bool, shape: tuple[int, int]) -> None:
    codec = Affine(4, 64, symmetric, dtype("f32"), search)
    codes, scales, zeros = codec.encode(np.zeros(shape, np.float32))
    assert codes.shape == shape and scales.shape == (shape[0], 0)
    assert codec.decode(codes, scales, zeros).shape == shape


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zeros_stay_zeros(name: str, symmetric: bool, search: bool, bits: int) -> None:
    x = np.zeros((4, 128), np.float32)
    x[1, 5] = 2
    x[2, 64:] = -1
    x[3] = -0.0
    codec = Affine(bits, 32, symmetric, dtype(name), search)
    back = codec.decode(*codec.encode(x))
    np.testing.assert_array_equal(back[x == 0], 0)
    assert abs(back[1, 5] - 2) <= (1.01 if bits == 2 else 0.6)


def test_a_scale_beyond_the_dtype() -> None:
    x = np.array([[60000, -60000] * 16], np.float32)
    with pytest.raises(DtypeError, match="beyond f16"):
        Affine(4, 32, False, dtype("f16")).encode(x)
    with pytest.raises(DtypeError, match="beyond f16"):
        Affine(4, 32, True, dtype("f16")).encode(np.full((1, 32), 1e7, np.float32))


def loss(x: np.ndarray, codec: Affine) -> float:
    """SQNR in dB."""
    wide = x.astype(np.float64)
    return float(10 * np.log10(np.square(wide).sum() / np.square(codec.decode(*codec.encode(x)) - wide).sum()))


KINDS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "t": lambda rng, shape: rng.standard_t(4, shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "outliers": lambda rng, shape: rng.standard_normal(shape) * np.where(np.arange(shape[1]) % 64 == 5, 20, 1),
    "shifted": lambda rng, shape: rng.standard_normal(shape) + 2,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, 128, None])
def test_a_search_gains(kind: str, symmetric: bool, group: int | None) -> None:
    x = to((KINDS[kind](np.random.default_rng(1), (48, 1024)) * 0.02).astype(np.float32), "bf16")
    for bits in (2, 3, 4, 8):
        first, second = (loss(x, Affine(bits, group, symmetric, dtype("bf16"), search)) for search in (False, True))
        assert second > first - 1e-3, (bits, first, second)


@pytest.mark.parametrize(
    ("bits", "symmetric", "least", "gain"), [(4, True, 19.75, 0.7), (3, True, 14.0, 1.5), (4, False, 20.3, 0.4)]
)
def test_what_a_search_is_worth(bits: int, symmetric: bool, least: float, gain: float) -> None:
    x = np.random.default_rng(0).standard_normal((128, 2048)).astype(np.float32)
    found = loss(x, Affine(bits, 128, symmetric, dtype("f16"), True))
    assert found > least
    assert found > loss(x, Affine(bits, 128, symmetric, dtype("f16"))) + gain


def test_a_search_gives_back_what_was_quantized_before() -> None:
    """Codes from -8 to 7 with scales: the least squares find the scales again."""
    rng = np.random.default_rng(2)
    codes = rng.integers(-8, 8, (16, 512)).astype(np.float32)
    scales = to(rng.uniform(0.01, 0.02, (16, 4)).astype(np.float32), "bf16")
    x = (codes.reshape(16, 4, 128) * scales[:, :, None]).reshape(16, 512)
    codec = Affine(4, 128, True, dtype("bf16"), True)
    found = codec.encode(x)
    np.testing.assert_array_equal(found[0], codes)
    np.testing.assert_array_equal(found[1].astype(np.float32), scales)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_sums_are_exact(bits: int, symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """So any order of adding, in einsum or a BLAS, makes the same choice."""
    x = np.random.default_rng(8).standard_t(3, (32, 1024)).astype(np.float32)
    for group in (128, None):
        codec = Affine(bits, group, symmetric, dtype("f32"), True)
        first = codec.encode(x)[1].copy()
        with monkeypatch.context() as patch:
            patch.setattr(clip, "_LONG", 1 << 30)
            np.testing.assert_array_equal(codec.encode(x)[1], first)
        backwards = codec.encode(np.ascontiguousarray(x.reshape(32, -1, group or 1024)[:, :, ::-1]).reshape(32, 1024))[1]
        np.testing.assert_array_equal(backwards, first)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_do_not_depend_on_their_neighbours(bits: int, symmetric: bool) -> None:
    x = odd_table(np.random.default_rng(4), 130, 1024, "bf16")
    codec = Affine(bits, 128, symmetric, dtype("bf16"), bits < 8)
    whole = [part.copy() for part in codec.encode(x) if part is not None]
    with ThreadPoolExecutor(2) as threads:
        slabs = list(
            threads.map(lambda row: [p.copy() for p in codec.encode(x[row : row + 26]) if p is not None], range(0, 130, 26))
        )
    for at, part in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([slab[at] for slab in slabs]), part)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 200), st.sampled_from([1, 2, 16, 128]))
def test_tiles_partition(groups_: int, width: int, limit: int, run: int) -> None:
    seen = np.zeros((groups_, width), int)
    limit = max(limit // run, 1) * run
    for rows, columns in groups.tiles(groups_, width, limit, run):
        piece = seen[rows, columns]
        assert piece.flags.c_contiguous
        assert len(piece) * (-(-piece.shape[1] // run) * run) <= limit
        piece += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("shape", [(7, 33), (1, 1), (3, 70_000), (0, 5)])
def test_ends_and_magnitudes(shape: tuple[int, int]) -> None:
    x = odd_table(np.random.default_rng(6), *shape, "f32") if shape[0] else np.zeros(shape, np.float32)
    least, greatest = groups.ends(x)
    np.testing.assert_array_equal(least, x.min(axis=1, initial=0))
    np.testing.assert_array_equal(greatest, x.max(axis=1, initial=0))
    np.testing.assert_array_equal(groups.magnitudes(x), np.abs(x).max(axis=1, initial=0))
