"""Values into ggml's blocks: the bytes of the `gguf` package where it has an encoder, else the error that decoding leaves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wtool.dtypes import dtype
from wtool.errors import DtypeError, UnsupportedError
from wtool.kernels import ggml_search
from wtool.kernels.ggml import decoder
from wtool.kernels.ggml_encode import encode

Array = NDArray[Any]

LEGACY = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
K = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
ALL = (*LEGACY, "mxfp4", *K)
METHODS = ("rtn", "mse")


def decode(name: str, codes: Array) -> Array:
    elements, nbytes = dtype(name).run
    out = np.empty((len(codes), codes.shape[1] // nbytes * elements), np.float32)
    decoder(dtype(name))(codes.reshape(-1), out.reshape(-1))
    return out


def by_gguf(name: str, values: Array) -> Array:
    gguf = pytest.importorskip("gguf")
    with np.errstate(all="ignore"):
        made: Array = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name.upper()])
    return made


def sqnr(values: Array, decoded: Array) -> float:
    exact = values.astype(np.float64)
    return float(10 * np.log10((exact**2).sum() / ((exact - decoded) ** 2).sum()))


def samples() -> dict[str, Array]:
    state = np.random.RandomState(0)  # its stream is frozen
    shape = (64, 2048)
    drawn = {
        "gauss": state.standard_normal(shape),
        "tails": state.standard_t(4, shape),
        "laplace": state.laplace(size=shape),
        "positive": state.uniform(0.5, 1.5, shape),
    }
    return {name: values.astype(np.float32) for name, values in drawn.items()}


SAMPLES = samples()
NORMAL = SAMPLES["gauss"][:4]


def edges() -> dict[str, Array]:
    state = np.random.RandomState(1)
    one = np.zeros((4, 256), np.float32)
    one[0, 3], one[1, 40], one[2, 255] = 2, -1.5, 1e-3
    halves = np.zeros((255, 32), np.float32)
    half = np.arange(-127, 128, dtype=np.float32) + np.float32(0.5)
    halves[:, 0], halves[:, 1] = 127, half
    halves[:, 2], halves[:, 3] = np.nextafter(half, np.float32(-200)), np.nextafter(half, np.float32(200))
    cases = {
        "zeros": np.zeros((3, 256)),
        "negative zeros": -np.zeros((3, 256)),
        "one value": one,
        "constant": np.full((2, 256), 0.3),
        "negative constant": np.full((2, 256), -0.3),
        "ties of the peak": state.choice([-1, 1], (64, 256)) * state.randint(0, 9, (64, 256)),
        "halves": np.clip(halves, -127, 127),
        "halves of steps": state.randint(-16, 17, (64, 256)) / 2,
        "bf16": (NORMAL.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32),
        "positive": np.abs(NORMAL),
        "negative": -np.abs(NORMAL),
        "negative zero first": np.where(np.arange(256) % 3 == 0, -0.0, np.arange(256))[None],
        "large": NORMAL * 1e4,
        "of all sizes": NORMAL.astype(np.float64) * 10.0 ** state.uniform(-44, 3, NORMAL.shape),
        "blocks of all sizes": NORMAL.astype(np.float64) * np.repeat(10.0 ** state.uniform(-44, 3, (4, 64)), 32, axis=1),
    }
    cases |= {f"1e{e}": NORMAL.astype(np.float64) * 10.0**e for e in (-45, -42, -39, -38, -37, -30, -8, -7, -6, -5, -4)}
    return {name: values.astype(np.float32) for name, values in cases.items()}


EDGES = edges()


@pytest.mark.parametrize("name", LEGACY)
def test_the_bytes_are_those_of_the_gguf_package(name: str) -> None:
    for label, values in {**SAMPLES, **EDGES}.items():
        assert np.array_equal(encode(name, values), by_gguf(name, values)), label


@pytest.mark.parametrize("label", SAMPLES)
def test_mxfp4_has_the_bytes_of_the_gguf_package(label: str) -> None:
    assert np.array_equal(encode("MXFP4", SAMPLES[label]), by_gguf("mxfp4", SAMPLES[label]))


@pytest.mark.parametrize(
    "label", [label for label in EDGES if not label.startswith(("1e-45", "1e-42", "1e-39", "1e-38", "blocks"))]
)
def test_mxfp4_has_the_bytes_of_the_gguf_package_where_that_does_not_wrap(label: str) -> None:
    assert np.array_equal(encode("mxfp4", EDGES[label]), by_gguf("mxfp4", EDGES[label]))


@given(
    st.sampled_from(LEGACY),
    st.lists(
        st.sampled_from([0.0, -0.5, 0.5, 1.0, -1.0, 1.5, 7.5, -7.5, 8.0, 15.5, -16.0, 63.5, -127.0]), min_size=32, max_size=32
    ),
    st.floats(2.0**-60, 2.0**9, width=32),
)
def test_ties_fall_as_in_the_gguf_package(name: str, steps: list[float], scale: float) -> None:
    values = np.array([steps], np.float32) * np.float32(scale)
    assert np.array_equal(encode(name, values), by_gguf(name, values))


# Decoded by gguf or by us, the values are the same (test_ggml.py), so that our decoder judges from here on.

# dB on SAMPLES. K types: the encoders of llama.cpp that llama-cpp-python 0.3.36 has, without an importance matrix; they weight
# errors by size, which costs them some of this measure. q4_0: an exhaustive search, 30 scales of either sign with refits. The
# others: gguf 0.19, which agrees with llama.cpp.
PEERS = {
    "q2_k": (10.53, 9.31, 9.26, 18.84),
    "q3_k": (16.41, 14.74, 15.06, 20.56),
    "q4_k": (22.91, 21.26, 21.42, 32.29),
    "q5_k": (28.82, 27.18, 27.33, 38.39),
    "q6_k": (34.98, 32.82, 33.24, 39.32),
    "q4_0": (21.74, 19.06, 19.73, 26.16),
    "q4_1": (22.11, 20.58, 20.70, 35.49),
    "q5_0": (27.36, 24.73, 25.39, 31.99),
    "q5_1": (28.42, 26.90, 27.02, 41.79),
    "q8_0": (45.41, 42.78, 43.40, 49.99),
    "mxfp4": (18.78, 17.64, 17.97, 19.20),
}


@pytest.mark.parametrize("name", PEERS)
def test_the_search_leaves_no_more_error_than_the_peers(name: str) -> None:
    for values, least in zip(SAMPLES.values(), PEERS[name], strict=True):
        assert sqnr(values, decode(name, encode(name, values, "mse"))) >= least


@pytest.mark.parametrize("name", K)
def test_the_quick_way_of_a_k_type_is_as_good_as_llama_cpp(name: str) -> None:
    for values, least in zip(SAMPLES.values(), PEERS[name], strict=True):
        assert sqnr(values, decode(name, encode(name, values))) > least - 0.05  # q5_k: 0.02 below


@pytest.mark.parametrize("name", ALL)
def test_the_search_is_better_than_the_quick_way(name: str) -> None:
    for label, values in SAMPLES.items():
        quick, searched = (sqnr(values, decode(name, encode(name, values, method))) for method in METHODS)
        assert searched > quick or (name, label) == ("mxfp4", "positive")


@pytest.mark.parametrize(
    ("better", "worse"), [("q4_k", "q4_0"), ("q4_k", "q4_1"), ("q5_k", "q5_0"), ("q5_k", "q5_1"), ("q6_k", "q5_1")]
)
def test_k_types_beat_the_others(better: str, worse: str) -> None:
    """q4_k at 4.5 bits what q4_1 has at 5, q5_k at 5.5 what q5_1 has at 6."""
    for label, values in SAMPLES.items():
        if (better, label) != ("q6_k", "positive"):
            assert sqnr(values, decode(better, encode(better, values, "mse"))) > sqnr(
                values, decode(worse, encode(worse, values))
            )


def test_gguf_decodes_the_k_types_alike() -> None:
    gguf = pytest.importorskip("gguf")
    for name in K:
        for method in METHODS:
            codes = encode(name, NORMAL, method)
            assert np.array_equal(
                gguf.quants.dequantize(codes, gguf.GGMLQuantizationType[name.upper()]), decode(name, codes)
            ), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ALL)
def test_edges(name: str, method: str) -> None:
    """Zeros stay zeros; nothing is worse than zeros, but for minimums of gguf's that are below the precision of f16."""
    for label, values in EDGES.items():
        if name in K and values.shape[1] % 256:
            continue
        given = values.copy()
        decoded = decode(name, encode(name, values, method)).astype(np.float64)
        assert np.array_equal(values.view(np.uint32), given.view(np.uint32))
        assert np.isfinite(decoded).all(), label
        if "zeros" in label:
            assert not decoded.any()
        elif (name, method) not in {("q4_1", "rtn"), ("q5_1", "rtn")}:
            exact = values.astype(np.float64)
            assert ((decoded - exact) ** 2).sum() <= (exact**2).sum(), label


@pytest.mark.parametrize("name", ["q4_0", "q5_0", "q8_0"])
def test_what_was_decoded_is_encoded_to_the_same_bytes(name: str) -> None:
    codes = encode(name, NORMAL)
    assert np.array_equal(encode(name, decode(name, codes)), codes)


@pytest.mark.parametrize(("name", "least"), [("q4_0", 5), ("q4_1", 10), ("q4_k", 10), ("q6_k", 20), ("q3_k", 10)])
def test_scales_near_the_least_f16(name: str, least: float) -> None:
    """Values of 1e-6 have scales that are a few times the least f16, or less than it; they are not lost."""
    values = NORMAL * np.float32(1e-6)
    assert sqnr(values, decode(name, encode(name, values, "mse"))) > least


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ALL)
def test_the_bytes_depend_on_nothing_but_the_values(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.concatenate([SAMPLES["tails"][:6], EDGES["of all sizes"]])
    whole = encode(name, values, method).copy()
    assert np.array_equal(np.concatenate([encode(name, row[None], method).copy() for row in values]), whole)
    blocks = np.concatenate([encode(name, row[None], method).copy() for row in values.reshape(-1, 256)])
    assert np.array_equal(blocks.reshape(whole.shape), whole)
    with ThreadPoolExecutor(2) as pool:
        for made in pool.map(lambda _: encode(name, values, method).copy(), range(4)):
            assert np.array_equal(made, whole)
    monkeypatch.setattr(ggml_search, "_PIECE", 5 * 256)
    assert np.array_equal(encode(name, values, method), whole)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ALL)
def test_scales_beyond_f16_are_an_error(name: str, method: str) -> None:
    for values in (np.full((1, 256), 3e38), np.where(np.arange(256) % 2, 3e38, -3e38)[None], np.full((1, 256), -1e30)):
        single = values.astype(np.float32)
        if name == "mxfp4":  # whose scale has the range of f32
            assert sqnr(single, decode(name, encode(name, single, method))) > 13
        else:
            with pytest.raises(DtypeError, match="f16"):
                encode(name, single, method)


@pytest.mark.parametrize("name", ALL)
def test_shapes(name: str) -> None:
    elements, nbytes = dtype(name).run
    assert encode(name.upper(), np.zeros((0, 256), np.float32)).shape == (0, 256 // elements * nbytes)
    assert encode(name, np.ones((3, 512), np.float32)).shape == (3, 512 // elements * nbytes)
    with pytest.raises(UnsupportedError, match=f"blocks have {elements}"):
        encode(name, np.zeros((2, 272), np.float32))


def test_unknown_types() -> None:
    for name in ("iq4_nl", "q7_k"):
        with pytest.raises(UnsupportedError, match=name.upper()):
            encode(name, np.zeros((1, 256), np.float32))
