"""Small floats with scales: against what compressed-tensors, ml_dtypes, mlx and gguf make, and against their definitions."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thinned import peer

from wtool.dtypes import dtype
from wtool.errors import MismatchError
from wtool.kernels.minifloat import Float8, MxFloat4, MxFloat8, NvFloat4, grain

Array = np.ndarray
DTYPES = ("f32", "bf16", "f16")
KINDS = ("tensor", "row", "block", "nvfp4", "mxfp4", "mxfp8")
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
F8 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)

# sha256 over all parts of CASES, as compressed-tensors 0.20.0 (torch 2.13.0) makes them on a CPU; 0.19.0 with llm-compressor
# 0.14.0.1's model-free path makes the same.
GOLDEN = {
    "tensor f32": "761e18a793d520dd3d5738bb00b49bf4ec6dfaedaed9bc08d78b9bdb6c14edb6",
    "tensor bf16": "009c58e4e93788662f2d3a0290da035e19f6057b5192beff411fcf6d9b6427ad",
    "tensor f16": "92c65e3f422c72547e4400e43466ef2635cd50ea558bbb5862d9d49512c8dd68",
    "row f32": "92d71ef9e10bddc0578126652e41de80947b556b81eb7217ab8f91ba8ec55ccc",
    "row bf16": "729c6b96fa14fbb51846ee5d73170c7bffaded3d0b9f3afe97895baabfbfd97c",
    "row f16": "6518de3a4b800aeacf11cb6efd2b220d44334dccb81d00663a1046e3a9542140",
    "block f32": "b1c1adeda3a46a38c61aa3900957c404e487b43004c528b6abbcd272bd104303",
    "block bf16": "d15cc562fe4c7e4a166d762e0054255de1ba9e83acd609485c5716abe51c0df6",
    "block f16": "71b79f0148c79f81eaae40ae0f38064e5aaf51c778813b03e26b18bdacae1fd4",
    "nvfp4 f32": "33e4ff9bd0a5eb5fe33e8b4518014e110e2ae35781774cebf6d55e2ffad5ea0d",
    "nvfp4 bf16": "1a53c42eb1965cb27d7dbc275ac6ae816fb8bc66af737b581997d07c8989c3a2",
    "nvfp4 f16": "5b31ff54ecf5330b3be77aa671cc1094c0054b60cd9c299265be3757306afa7b",
    "mxfp4 f32": "568e26f0718160c3f5dfbb78b4d382de24ad114420edec5bd28f3ede058442ed",
    "mxfp4 bf16": "12b6ebab8ce78c9f39e821e3f176c80e7d37f07f49b56b17fccf59dff7d23403",
    "mxfp4 f16": "b155180fd692f862b275594e4001c9aaf57d000aa25af67353d29f62c9a8436b",
    "mxfp8 f32": "9b32806e73016df14d5589e9734a6b7d968a109e1250b738fad36d3a2e8eda49",
    "mxfp8 bf16": "43d2cb9a7b5a5f18d90d157afcdbde7274952c1bde2f3648c594dceace1903b1",
    "mxfp8 f16": "3132cf8b09c377aa1099db97f999cb1267b8f8941b6c5e0c9912801def5bb00b",
}

# What llm-compressor's memoryless min-max observer and its model-free path do, with compressed-tensors alone.
ORACLE = """
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam, maybe_pad_tensor_for_block_quant
KINDS = {"tensor": ("FP8", "float-quantized"), "row": ("FP8_DYNAMIC", "float-quantized"), "block": ("FP8_BLOCK",
  "float-quantized"), "nvfp4": ("NVFP4A16", "nvfp4-pack-quantized"), "mxfp4": ("MXFP4A16", "mxfp4-pack-quantized"),
  "mxfp8": ("MXFP8A16", "mxfp8-quantized")}
torch.set_num_threads(1)
def flat(w, args):
    if args.strategy == "tensor": return w.reshape(1, 1, -1)
    if args.strategy == "channel": return w[None, :, None]
    if args.strategy == "block":
        w = maybe_pad_tensor_for_block_quant(w, args.block_structure)
        return w.reshape(len(w) // 128, 128, -1, 128).transpose(1, 2).flatten(-2)[None]
    return w.unflatten(-1, (-1, args.group_size))[None]
for name in given.files:
    kind, of, _ = name.split("-")
    of = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[of]
    w, scheme = torch.from_numpy(given[name]).to(of), preset_name_to_scheme(KINDS[kind][0], ["Linear"])
    groups = flat(w, scheme.weights)
    low, high = groups.amin(dim=(0, -1)), groups.amax(dim=(0, -1))
    state = {"weight": w}
    if kind == "nvfp4":
        most = torch.max(high.max(), -low.min()).reshape(1)
        state["weight_global_scale"] = generate_gparam(-most, most)
    state["weight_scale"] = calculate_qparams(low, high, scheme.weights, state.get("weight_global_scale"))[0].to(of)
    coder = BaseCompressor.get_value_from_registry(KINDS[kind][1])
    state = coder.compress(state, scheme)
    for part in ("weight", "weight_packed", "weight_scale", "weight_global_scale"):
        if part in state:
            out[f"{name}-{part}"] = state[part].contiguous().view(torch.uint8).numpy()
    out[f"{name}-decoded"] = coder.decompress(state, scheme)["weight"].float().numpy()
"""


def noise(seed: int, rows: int, columns: int) -> Array:
    """f64 in [-1, 1) from integers alone (splitmix64), the same on any machine."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, rows * columns + 1, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return ((z >> np.uint64(11)).astype(np.float64) / 2**52 - 1).reshape(rows, columns)


def wide(values: Array, of: str) -> Array:
    """f32 of the values in a dtype."""
    return values.astype(dtype(of).numpy()).astype(np.float32)


def cases(kind: str, of: str) -> dict[str, Array]:
    plain = noise(1, 24, 256)
    zeros = noise(2, 8, 256)
    zeros[2], zeros[3, :64], zeros[5, ::2] = 0, 0, -0.0
    zeros[4] *= 2.0**-6
    powers = np.ldexp(1.0, (noise(3, 16, 256) * 8).astype(int))
    found = {
        "even": plain,
        "heavy": plain**5 * 3,
        "small": plain**3 * 0.0625,
        "zeros": zeros,
        "ramp": np.linspace(-6, 6, 1024).reshape(4, 256),
        "powers": noise(4, 16, 256) * powers,
        "nothing": np.zeros((2, 64)),
    }
    if kind in ("tensor", "row", "block"):
        found |= {"edges": noise(5, 150, 300), "odd": noise(6, 3, 7), "one": noise(7, 1, 1)}
    return {f"{kind}-{of}-{name}": wide(values, of) for name, values in found.items()}


def encoded(kind: str, of: str, x: Array) -> tuple[dict[str, Array], Array]:
    """The parts by compressed-tensors' names, and what they decode to, rounded as it rounds."""
    row = dtype(of)
    if kind == "nvfp4":
        nv = NvFloat4(row)
        whole = nv.global_of(float(np.abs(x).max()))
        packed, scales = nv.encode(x, whole)
        named = {"weight_packed": packed, "weight_scale": scales, "weight_global_scale": whole}
        return named, wide(nv.decode(packed, scales, whole), "bf16")
    if kind == "mxfp4":
        packed, scales = MxFloat4(row).encode(x)
        return {"weight_packed": packed, "weight_scale": scales}, MxFloat4(row).decode(packed, scales)
    if kind == "mxfp8":
        codes, scales = MxFloat8(dtype("f8_e4m3"), row).encode(x)
        return {"weight": codes, "weight_scale": scales}, MxFloat8().decode(codes, scales)
    rule = Float8(dtype("f8_e4m3"), row, kind)  # type: ignore[arg-type]
    codes, scales = rule.encode(x, rule.scale_of(np.abs(x).max()) if kind == "tensor" else None)
    return {"weight": codes, "weight_scale": scales}, wide(rule.decode(codes, scales), of)


def raw(values: Array) -> Array:
    return np.ascontiguousarray(values).view(np.uint8)


def digest(parts: list[Array]) -> str:
    return hashlib.sha256(b"".join(raw(part).tobytes() for part in parts)).hexdigest()


@pytest.mark.parametrize("of", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_scales_are_compressed_tensors(kind: str, of: str) -> None:
    made = [encoded(kind, of, x) for x in cases(kind, of).values()]
    assert digest([part for named, _ in made for part in named.values()]) == GOLDEN[f"{kind} {of}"]


@pytest.mark.parametrize("of", DTYPES)
def test_compressed_tensors_itself(of: str, tmp_path: Path) -> None:
    inputs = {name: x for kind in KINDS for name, x in cases(kind, of).items()}
    theirs = peer(ORACLE, tmp_path, **inputs)
    for name, x in inputs.items():
        named, decoded = encoded(name.split("-")[0], of, x)
        for part, values in named.items():
            expected = theirs[f"{name}-{part}"]
            assert np.array_equal(raw(values).reshape(-1), expected.reshape(-1)), (name, part)
        assert np.array_equal(decoded, theirs[f"{name}-decoded"]), name
    for kind in KINDS:
        order = [part for name in cases(kind, of) for part in encoded(kind, of, inputs[name])[0]]
        names = [name for name in cases(kind, of) for _ in encoded(kind, of, inputs[name])[0]]
        assert digest([theirs[f"{a}-{b}"] for a, b in zip(names, order, strict=True)]) == GOLDEN[f"{kind} {of}"]


def nearest_e2m1(values: Array) -> Array:
    """By distance; of two as near the one with the even code."""
    gap = np.abs(np.abs(values)[..., None].astype(np.float64) - E2M1)
    code = np.where(gap == gap.min(axis=-1, keepdims=True), np.arange(8) % 2 + 1, 9).argmin(axis=-1)
    return np.copysign(E2M1[code], values)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 6), st.sampled_from([2.0**-30, 0.02, 1.0, 3e4]))
def test_four_bits_by_definition(seed: int, rows: int, groups: int, size: float) -> None:
    x = (noise(seed, rows, groups * 32) * size).astype(np.float32)
    packed, exponents = MxFloat4(dtype("f32")).encode(x)
    power = np.ldexp(np.float32(1), exponents.astype(int) - 127).repeat(32, axis=1)
    assert np.array_equal(MxFloat4(dtype("f32")).decode(packed, exponents), nearest_e2m1(x / power) * power)
    nv = NvFloat4(dtype("f32"))
    whole = nv.global_of(float(np.abs(x).max()))
    packed, scales = nv.encode(x, whole)
    meant = (np.abs(x).reshape(rows, -1, 16).max(axis=2) / np.float32(6)) * whole
    expected = meant.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(scales.astype(np.float32), np.where(expected == 0, np.float32(0.125), expected))
    unit = (scales.astype(np.float32) / whole).repeat(16, axis=1)
    assert np.array_equal(nv.decode(packed, scales, whole), nearest_e2m1(x / unit) * unit)


@pytest.mark.parametrize("kind", ["f8_e4m3", "f8_e5m2"])
@pytest.mark.parametrize("of", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (130, 257), (2, 70_000), (128, 128)])
def test_eight_bits_by_definition(kind: str, of: str, shape: tuple[int, int]) -> None:
    x = wide(noise(11, *shape) ** 3, of)
    most, row = np.float32(448 if kind == "f8_e4m3" else 57344), dtype(of).numpy()
    for each in ("tensor", "row", "block"):
        rule = Float8(dtype(kind), dtype(of), each)  # type: ignore[arg-type]
        before = x.copy()
        codes, scales = rule.encode(x, rule.scale_of(np.abs(x).max()) if each == "tensor" else None)
        assert np.array_equal(x, before)
        spread = np.empty(shape, np.float32)
        for i, j in np.ndindex(*(-(-shape[0] // 128), -(-shape[1] // 128))):
            block = slice(i * 128, i * 128 + 128), slice(j * 128, j * 128 + 128)
            spread[block] = np.abs(x[block]).max()
        if each != "block":
            spread[:] = np.abs(x).max(axis=None if each == "tensor" else 1, keepdims=True)
        scale = (spread / most).astype(row)
        quotient = (x / scale.astype(np.float32)).astype(row).astype(np.float32)
        assert np.array_equal(raw(codes), raw(np.clip(quotient, -most, most).astype(dtype(kind).numpy())))
        assert np.array_equal(rule.decode(codes, scales), codes.astype(np.float32) * scale.astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_any_split_into_slabs_gives_the_same_bytes(kind: str) -> None:
    """Also from many threads at once."""
    x = wide(noise(12, 384, 320) ** 3, "bf16")
    together, _ = encoded(kind, "bf16", x)
    largest = float(np.abs(x).max())

    def slab(first: int) -> list[Array]:
        some = x[first : first + 128]
        if kind == "tensor":
            rule = Float8(dtype("f8_e4m3"), dtype("bf16"), "tensor")
            return [raw(part).copy() for part in rule.encode(some, rule.scale_of(largest))[:1]]
        if kind == "nvfp4":
            rule4 = NvFloat4(dtype("bf16"))
            return [raw(part).copy() for part in rule4.encode(some, rule4.global_of(largest))]
        return [raw(part).copy() for part in encoded(kind, "bf16", some)[0].values()]

    with ThreadPoolExecutor(3) as pool:
        slabs = list(pool.map(slab, [0, 128, 256] * 4))
    for number, (_, whole) in enumerate(zip(slabs[0], together.values(), strict=False)):
        for first in range(0, 12, 3):
            assert np.array_equal(np.concatenate([part[number] for part in slabs[first : first + 3]]), raw(whole))


def test_nothing_and_zeros() -> None:
    for of in DTYPES:
        for kind in KINDS:
            for shape in ((0, 64), (3, 0), (2, 64)):
                named, decoded = encoded(kind, of, np.zeros(shape, np.float32)) if shape[0] * shape[1] else ({}, np.zeros(0))
                assert not decoded.any()
                assert all(part.size for part in named.values())
    for shape in ((0, 64), (3, 0)):
        x = np.zeros(shape, np.float32)
        assert MxFloat4(dtype("f32")).encode(x)[0].shape == (shape[0], shape[1] // 2)
        assert NvFloat4(dtype("f32")).encode(x, np.ones(1, np.float32))[1].shape == (shape[0], shape[1] // 16)
        assert Float8(dtype("f8_e4m3"), dtype("f32"), "block").encode(x)[0].shape == shape
        assert Float8(dtype("f8_e4m3"), dtype("f32"), "row").encode(x)[1].shape == (shape[0], 1)


def squared(x: Array, y: Array) -> float:
    return float(np.square(x.astype(np.float64) - y).sum())


def test_the_f16_that_compressed_tensors_loses_are_kept() -> None:
    """Its power of two for them underflows in f16, and its global scale overflows; ours is what f32 weights get."""
    x = wide(noise(13, 4, 64) * 2.0**-16, "f16")
    half, single = MxFloat4(dtype("f16")), MxFloat4(dtype("f32"))
    assert all(np.array_equal(a, b) for a, b in zip(half.encode(x), single.encode(x), strict=True))
    theirs = np.zeros_like(x)  # power 1: every code is 0
    assert squared(x, half.decode(*half.encode(x))) < squared(x, theirs) / 50
    x = wide(noise(14, 4, 64) * 0.004, "f16")
    nv = NvFloat4(dtype("f16"))
    whole = nv.global_of(float(np.abs(x).max()))
    assert np.array_equal(whole, NvFloat4(dtype("f32")).global_of(float(np.abs(x).max())))
    ones = np.ones(1, np.float32)
    assert squared(x, nv.decode(*nv.encode(x, whole), whole)) < squared(x, nv.decode(*nv.encode(x, ones), ones)) / 5


def test_the_largest_never_gets_a_scale_that_is_no_number() -> None:
    for of, largest in (("f32", 3.4e38), ("bf16", 3.3e38), ("f16", 65504.0)):
        x = wide(np.full((1, 32), largest), of)
        for rule in (MxFloat4(dtype(of)), MxFloat8(dtype("f8_e4m3"), dtype(of))):
            codes, scales = rule.encode(x)
            assert scales.max() < 255
            assert np.isfinite(wide(rule.decode(codes, scales), of)).all()


def test_decoding_every_code() -> None:
    packed = np.arange(256, dtype=np.uint8).reshape(8, 32)
    values = np.concatenate([E2M1, -E2M1])
    pairs = np.stack([values[packed & 15], values[packed >> 4]], axis=-1).reshape(8, 64)
    exponents = np.array([[0, 127]] * 4 + [[254, 130]] * 4, np.uint8)
    power = np.ldexp(np.float64(1), exponents.astype(int) - 127).repeat(32, axis=1)
    with np.errstate(over="ignore"):
        assert np.array_equal(MxFloat4(dtype("f32")).decode(packed, exponents), (pairs * power).astype(np.float32))
    scales = np.arange(32, dtype=np.uint8).reshape(8, 4) * 4
    whole = np.array([37.5], np.float32)
    expected = pairs * (F8[scales] / whole).repeat(16, axis=1)
    assert np.array_equal(NvFloat4(dtype("bf16")).decode(packed, scales, whole), expected)
    expected = pairs * (F8[scales] * whole).repeat(16, axis=1)
    assert np.array_equal(NvFloat4(dtype("bf16")).decode(packed, scales, whole, reciprocal=True), expected)
    codes = np.arange(256, dtype=np.uint8).reshape(8, 32)
    got = MxFloat8().decode(codes, np.full((8, 1), 120, np.uint8))
    assert np.array_equal(got, F8[codes] / 128, equal_nan=True)
    assert np.isnan(MxFloat8().decode(codes[:1], np.array([[255]], np.uint8))).all()


def test_f8_scales_as_they_are_found() -> None:
    """DeepSeek's weight_scale_inv (f32, by block), and a number or a number for each row in other checkpoints, f32 or bf16."""
    codes = raw(noise(15, 200, 300).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)).view(ml_dtypes.float8_e4m3fn)
    for shape in ((), (1,), (1, 1), (200,), (200, 1), (2, 3)):
        scales = np.abs(noise(16, 1, int(np.prod(shape)))).reshape(shape).astype(np.float32)
        for given_as in (scales, scales.astype(ml_dtypes.bfloat16)):
            kind = grain(codes.shape, shape)
            got = Float8(dtype("f8_e4m3"), dtype("bf16"), kind).decode(codes, given_as)
            full = given_as.astype(np.float32)
            if kind == "block":
                full = full.repeat(128, axis=0)[:200].repeat(128, axis=1)[:, :300]
            elif kind == "row":
                full = full.reshape(200, 1)
            assert np.array_equal(got, codes.astype(np.float32) * full)
    assert grain((1, 500), (1, 4)) == "block"
    assert grain((1, 100), (1, 1)) == "tensor"
    for shape in ((2, 2), (300,), (1, 300), (3, 2), (2, 3, 1), (0,)):
        with pytest.raises(MismatchError):
            grain((200, 300), shape)


def test_searching_is_never_worse_and_gains() -> None:
    """In dB of signal to noise, for values spread as a product of three even ones is."""
    x = (noise(17, 64, 1024) * noise(18, 64, 1024) * noise(19, 64, 1024)).astype(np.float32)
    x[0, :64] = 0
    for plain, search, size, least in (
        (NvFloat4(dtype("f32")), NvFloat4(dtype("f32"), True), 16, 0.4),
        (MxFloat4(dtype("f32")), MxFloat4(dtype("f32"), True), 32, 0.02),
    ):
        more = (plain.global_of(float(np.abs(x).max())),) if isinstance(plain, NvFloat4) else ()
        errors = []
        for rule in (plain, search):
            y = rule.decode(*rule.encode(x, *more), *more)
            errors.append(np.square(x.astype(np.float64) - y).reshape(-1, size).sum(axis=1))
        assert (errors[1] <= errors[0] * (1 + 1e-5)).all()
        assert 10 * np.log10(errors[0].sum() / errors[1].sum()) > least


def test_mlx_reads_the_same(tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    if not hasattr(mx, "quantize") or not hasattr(mx, "from_fp8"):
        pytest.skip("this mlx has no small floats")
    x = (noise(20, 16, 128) ** 3).astype(np.float32)
    given_x, f32 = mx.array(x), dtype("f32")
    packed, scales = MxFloat4(f32).encode(x)
    back = mx.dequantize(mx.array(packed.view(np.uint32)), mx.array(scales), mode="mxfp4", dtype=mx.float32)
    assert np.array_equal(np.array(back), MxFloat4(f32).decode(packed, scales))
    one = np.ones(1, np.float32)
    packed, scales = NvFloat4(f32).encode(x, one)
    back = mx.dequantize(mx.array(packed.view(np.uint32)), mx.array(raw(scales)), mode="nvfp4", dtype=mx.float32)
    assert np.array_equal(np.array(back), NvFloat4(f32).decode(packed, scales, one))
    codes, scales = (np.array(part) for part in mx.quantize(given_x, mode="mxfp8"))
    back = np.array(mx.dequantize(mx.array(codes), mx.array(scales), mode="mxfp8", dtype=mx.float32))
    assert np.array_equal(back, MxFloat8().decode(codes.view(np.uint8), scales))


def test_gguf_reads_the_same_codes() -> None:
    """Its blocks hold the same codes and scales in another order: first those of the first half of a group in the low bits."""
    quants = pytest.importorskip("gguf.quants")
    kinds = pytest.importorskip("gguf").GGMLQuantizationType
    x = (noise(21, 8, 128) ** 3).astype(np.float32)
    packed, scales = MxFloat4(dtype("f32")).encode(x)
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1, 2, 16)
    blocks = np.concatenate([scales.reshape(-1, 1), codes[:, 0] | codes[:, 1] << 4], axis=1).reshape(8, -1)
    assert np.array_equal(quants.dequantize(blocks, kinds.MXFP4), MxFloat4(dtype("f32")).decode(packed, scales))
    one = np.ones(1, np.float32)
    packed, scales = NvFloat4(dtype("f32")).encode(x, one)
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1, 4, 2, 8)
    halves = (codes[:, :, 0] | codes[:, :, 1] << 4).reshape(-1, 32)
    blocks = np.concatenate([raw(scales).reshape(-1, 4), halves], axis=1).reshape(8, -1)
    assert np.array_equal(quants.dequantize(blocks, kinds.NVFP4), NvFloat4(dtype("f32")).decode(packed, scales, one))
