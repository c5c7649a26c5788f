"""bitsandbytes' layouts: against its own outcome on a CPU, and against their definitions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_minifloat import digest, noise, raw, squared, wide
from thinned import peer

from wtool.kernels.codebook import BOOKS, FourBit, Int8Rows, Nested, dynamic_map

Array = np.ndarray
DTYPES = ("f32", "bf16", "f16")
SIZES = {"nf4": (32, 64, 4096), "fp4": (64, 128)}

# sha256 over all parts of `cases`, as bitsandbytes 0.50.2 (torch 2.13.0) makes them on a CPU.
GOLDEN = {
    "nf4 32 f32": "983ad480dee0c536e3ec3c74da67b596f67b7a82a279620e9928f46ec0e8346b",
    "nf4 32 bf16": "7642ae7ce1ce17120db7178d84b22701a4a20b2e1ff83895c2f3d5f2f42da2a3",
    "nf4 32 f16": "1343029d5e0a6018d9140a516eaecde8849ed788293b3e2b92d83d63c6d790f8",
    "nf4 64 f32": "b13133f8a6103a74cedb53acf83ef0112963c98242b42b44447a7764fada71f5",
    "nf4 64 bf16": "303d930993ecda8c7e852cdcb1f0a4fda937fd66818b4369f5b65b43ac9e8efc",
    "nf4 64 f16": "fd98aaba720f12f83d49d083081734c2324f992293f524ed6f78e21b6d38074b",
    "nf4 4096 f32": "0288d4842dbc766a34aa07a4790b6e65b3e98d8f4d37272a6f3915f6649074fc",
    "nf4 4096 bf16": "a65c04cb30fbb4e8a51d4639e191fa24071961c2c3b59daf2e3e2d527a5ef0e3",
    "nf4 4096 f16": "61477d17be5ac73bb969dfb719c8150266c21afaaf6a5377ea2fffef4d13634d",
    "fp4 64 f32": "a39d6dfecbee4111b46d9c35e48b4e8e16eb3ff36d52d67b0aea152966c08062",
    "fp4 64 bf16": "58b2cff433ad8bfbb256881d5f4c875d363637f825323fd1fab9220366e7f7a3",
    "fp4 64 f16": "ff4224138bd6d1d67612484663d0413bca5ea4f9de3c9f4ca5ca2eba3cbd8e11",
    "fp4 128 f32": "1e3dc07cd90308d89945f3942b54d619e64cb643d3ff2873374521e6f420957a",
    "fp4 128 bf16": "3809fac70829ddd6f2c4b4925d8b35fdb128215280c56bcfa09becc28a957942",
    "fp4 128 f16": "7782b06c9b5b597d75484a1000d28a5c79de9e7f5f489792e9d1b64d7d85ff18",
    "int8 0 f32": "2b70f7fb96e32dbc7f92501b547a3ef420093d64997d918e59b1d64954bb9b31",
    "int8 0 bf16": "c2e9412ff225f4ea5ba5d129598deebd9e5e665080c8f32cd9cc847a743941c2",
    "int8 0 f16": "353d0e1d9ef5c7efdb6eb15e0e9feccd8c123d3801ee702e9b5e039ffdebd167",
    "nested": "f3d3a9e82500da4deb6c614c784b15db2b0e13c093e3416702b910ee2e5d5e25",
    "map": "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c",
}

ORACLE = """
import torch
from bitsandbytes import functional as F
torch.set_num_threads(1)
of_name = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
for name in given.files:
    kind, size, of, _ = name.split("-")
    w = torch.from_numpy(given[name]).to(of_name[of])
    if kind == "int8":
        codes, scb, _ = F.int8_vectorwise_quant(w)
        out[f"{name}-codes"], out[f"{name}-scb"] = codes.numpy(), scb.numpy()
        out[f"{name}-decoded"] = F.int8_vectorwise_dequant(codes, scb).numpy()
        continue
    for nested in (False, True):
        packed, state = F.quantize_4bit(w, blocksize=int(size), quant_type=kind, compress_statistics=nested)
        found = {"packed": packed.reshape(-1), "absmax": state.absmax, "book": state.code}
        if nested:
            found |= {"offset": state.offset, "seconds": state.state2.absmax, "map": state.state2.code}
        if w.shape[1] % int(size) == 0:  # its AVX512 kernel takes the scales of other blocks where rows share a block
            state.dtype = torch.float32
            found["decoded"] = F.dequantize_4bit(packed, state)
        for part, values in found.items():
            out[f"{name}-{'nested' if nested else 'plain'}-{part}"] = values.numpy()
"""


def cases(kind: str, size: int, of: str) -> dict[str, Array]:
    step = max(size, 64)
    zeros = noise(2, 6, step)
    zeros[2], zeros[3, : step // 2], zeros[4, ::2] = 0, 0, -0.0
    found = {
        "even": noise(1, 40, step * 2),
        "heavy": noise(3, 24, step) ** 5 * 3,
        "zeros": zeros,
        "edges": np.tile(np.linspace(-1, 1, step), (4, 1)),
        "nothing": np.zeros((2, step)),
        "tail": noise(4, 3, step + 7),
        "odd": noise(5, 1, 35),
        "zero": np.zeros((1, step + 6)),
    }
    return {f"{kind}-{size}-{of}-{name}": wide(values, of) for name, values in found.items()}


def encoded(kind: str, size: int, x: Array, offset: float | None) -> dict[str, Array]:
    """The parts, nested with an offset; and what they decode to."""
    if kind == "int8":
        codes, scb = Int8Rows().encode(x)
        return {"codes": codes, "scb": scb, "decoded": Int8Rows().decode(codes, scb)}
    rule = FourBit(kind, size)  # type: ignore[arg-type]
    packed, absmax = rule.encode(x)
    if offset is None:
        return {"packed": packed, "absmax": absmax, "decoded": rule.decode(packed, absmax, x.size).reshape(x.shape)}
    nested = Nested(offset)
    codes, seconds = nested.encode(absmax)
    decoded = rule.decode(packed, nested.decode(codes, seconds), x.size).reshape(x.shape)
    return {"packed": packed, "absmax": codes, "seconds": seconds, "decoded": decoded}


def mean(x: Array, size: int) -> float:
    absmax = FourBit("nf4", size).encode(x)[1]
    return Nested.offset_of(float(absmax.sum(dtype=np.float64)), len(absmax))


ALL = [(kind, size) for kind, sizes in SIZES.items() for size in sizes] + [("int8", 0)]


@pytest.mark.parametrize("of", DTYPES)
@pytest.mark.parametrize(("kind", "size"), ALL)
def test_codes_and_scales_are_bitsandbytes(kind: str, size: int, of: str) -> None:
    parts = [
        part
        for x in cases(kind, size, of).values()
        for name, part in encoded(kind, size, x, None).items()
        if name != "decoded"
    ]
    assert digest(parts) == GOLDEN[f"{kind} {size} {of}"]


def test_nested_absmaxes_are_bitsandbytes() -> None:
    absmax = np.abs(noise(8, 1, 1500).reshape(-1)).astype(np.float32) ** 2
    codes, seconds = Nested(0.25).encode(absmax)
    assert digest([codes, seconds, Nested(0.25).decode(codes, seconds)]) == GOLDEN["nested"]
    assert digest([dynamic_map()]) == GOLDEN["map"]


@pytest.mark.parametrize("of", DTYPES)
def test_bitsandbytes_itself(of: str, tmp_path: Path) -> None:
    inputs = {name: x for kind, size in ALL for name, x in cases(kind, size, of).items()}
    theirs = peer(ORACLE, tmp_path, **inputs)
    for name, x in inputs.items():
        kind, size = name.split("-")[0], int(name.split("-")[1])
        for nested in ("-",) if kind == "int8" else ("-plain-", "-nested-"):
            offset = float(theirs[f"{name}{nested}offset"]) if nested == "-nested-" else None
            if offset is not None:
                assert offset == pytest.approx(mean(x, size), rel=3e-7, abs=1e-37)
                assert np.array_equal(theirs[f"{name}{nested}map"], dynamic_map())
            if nested != "-":
                assert np.array_equal(theirs[f"{name}{nested}book"], BOOKS[kind])
            for part, values in encoded(kind, size, x, offset).items():
                expected = theirs.get(f"{name}{nested}{part}")
                if expected is not None:
                    assert values.dtype == expected.dtype
                    assert np.array_equal(values, expected), (name, nested, part)
                else:
                    assert part == "decoded"
                if part != "decoded":
                    assert np.array_equal(raw(values), raw(expected)), (name, nested, part)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 700), st.sampled_from(["nf4", "fp4"]), st.sampled_from([32, 64, 128]))
def test_four_bits_by_definition(seed: int, count: int, book: str, size: int) -> None:
    """The nearest of the table, for blocks over the flattened tensor, whatever rows it has."""
    x = noise(seed, 1, count).astype(np.float32).reshape(-1)
    rule = FourBit(book, size)  # type: ignore[arg-type]
    packed, absmax = rule.encode(x)
    assert len(packed) == -(-count // 2)
    assert np.array_equal(absmax, [np.abs(x[at : at + size]).max() for at in range(0, count, size)])
    assert np.array_equal(rule.encode(x.reshape(1, -1))[0], packed)
    codes = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)[:count]
    decoded = rule.decode(packed, absmax, count)
    unit = absmax.repeat(size)[:count]
    assert np.array_equal(decoded, BOOKS[book][codes] * unit)
    best = np.abs(x[:, None] - BOOKS[book].astype(np.float64) * unit[:, None]).min(axis=1)
    assert np.all(np.abs(x - decoded) <= best + 1e-6 * unit)


@pytest.mark.parametrize("book", ["nf4", "fp4"])
def test_any_split_into_slabs_gives_the_same_bytes(book: str) -> None:
    x = (noise(9, 256, 640) ** 3).astype(np.float32).reshape(-1)
    for search in (False, True):
        rule = FourBit(book, 64, search)  # type: ignore[arg-type]
        before = x.copy()
        packed, absmax = rule.encode(x)
        assert np.array_equal(x, before)
        offset = Nested.offset_of(float(absmax.sum(dtype=np.float64)), len(absmax))
        codes, seconds = Nested(offset).encode(absmax)

        def slab(first: int, rule: FourBit = rule, offset: float = offset) -> list[Array]:
            found = rule.encode(x[first : first + 32768])
            return [part.copy() for part in (*found, *Nested(offset).encode(found[1]))]

        with ThreadPoolExecutor(3) as pool:
            slabs = list(pool.map(slab, range(0, x.size, 32768)))
        for number, whole in enumerate((packed, absmax, codes, seconds)):
            assert np.array_equal(np.concatenate([found[number] for found in slabs]), whole)


@pytest.mark.parametrize("book", ["nf4", "fp4"])
def test_searching_is_never_worse_and_gains(book: str) -> None:
    x = (noise(10, 1, 65536) * noise(11, 1, 65536) * noise(12, 1, 65536)).astype(np.float32).reshape(-1)
    x[:64] = 0
    errors = []
    for search in (False, True):
        rule = FourBit(book, 64, search)  # type: ignore[arg-type]
        errors.append(np.square(x.astype(np.float64) - rule.decode(*rule.encode(x), x.size)).reshape(-1, 64).sum(axis=1))
    assert (errors[1] <= errors[0] * (1 + 1e-5)).all()
    assert 10 * np.log10(errors[0].sum() / errors[1].sum()) > 0.2


def test_nested_by_definition() -> None:
    """Nearest of the map but for the steps of the look-up; off by at most a step, 2 / 65535, more."""
    absmax = np.abs(noise(13, 1, 5000).reshape(-1)).astype(np.float32)
    nested = Nested(float(np.float32(absmax.mean(dtype=np.float64))))
    codes, seconds = nested.encode(absmax)
    scaled = (absmax - np.float32(nested.offset)).astype(np.float64)
    unit = seconds.repeat(256)[:5000].astype(np.float64)
    best = np.abs(scaled[:, None] - dynamic_map() * unit[:, None]).min(axis=1)
    error = np.abs(absmax.astype(np.float64) - nested.decode(codes, seconds))
    assert np.all(error <= best + unit * 2 / 65535 + 1e-6)
    assert squared(absmax, nested.decode(codes, seconds)) <= float(np.square(best).sum()) * 1.001
    assert np.all(np.diff(dynamic_map()) > 0)
    assert len(dynamic_map()) == 256
    same = np.full(300, 0.5, np.float32)
    codes, seconds = Nested(0.5).encode(same)
    assert np.array_equal(Nested(0.5).decode(codes, seconds), same)
    assert not codes.any()
    empty = np.empty(0, np.float32)
    assert all(part.size == 0 for part in Nested(0.5).encode(empty))
    assert Nested.offset_of(0.0, 0) == 0.0


def test_the_mean_in_f64_is_not_worse_than_one_in_f32() -> None:
    """For one of many tiny absmaxes behind a large one; bitsandbytes' own would depend on its threads."""
    absmax = np.full(100_000, 1e-4, np.float32)
    absmax[0] = 1e4
    exact = (1e4 + 99_999 * float(np.float32(1e-4))) / 100_000
    ours = Nested.offset_of(float(absmax.sum(dtype=np.float64)), len(absmax))
    assert abs(ours - exact) <= abs(float(np.add.accumulate(absmax)[-1] / np.float32(100_000)) - exact)
    assert ours == float(np.float32(exact))


def test_another_table_of_a_file_is_used() -> None:
    packed, absmax = np.array([0x01, 0xF8], np.uint8), np.array([2.0], np.float32)
    table = np.arange(16, dtype=np.float32) - 8
    assert FourBit("nf4").decode(packed, absmax, 4, table).tolist() == [-16, -14, 14, 0]
    assert FourBit("fp4").decode(packed, absmax, 3).tolist() == [0, np.float32(1 / 96), -0.5]
    table = np.arange(256, dtype=np.float32)
    assert Nested(1.0).decode(np.array([3, 255], np.uint8), absmax, table).tolist() == [7, 511]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 9), st.integers(0, 300), st.sampled_from([1e-38, 1e-30, 1.0, 1e36]))
def test_int8_rows_by_definition(seed: int, rows: int, columns: int, size: float) -> None:
    x = (noise(seed, rows, columns) * size).astype(np.float32)
    x[: rows // 3] = 0
    codes, scb = Int8Rows().encode(x)
    assert codes.shape == x.shape
    assert np.array_equal(scb, np.abs(x).max(axis=1, initial=0))
    exact = x.astype(np.float64) * 127 / np.maximum(scb, np.float32(1e-45))[:, None].astype(np.float64)
    assert np.all(np.abs(codes - exact) <= 0.50002)
    assert np.allclose(Int8Rows().decode(codes, scb), codes * scb[:, None].astype(np.float64) / 127, rtol=1e-5, atol=1e-44)
