"""compressed-tensors' layouts against those who read and write them: its own decoder and llm-compressor."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from test_cli_contract import answer

from wtool.api import open_checkpoint, save_checkpoint
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import dtype
from wtool.layout import Seen, parse_scheme
from wtool.layouts.registry import find, layout
from wtool.tensor import LazyTensor

Captured = pytest.CaptureFixture[str]
SHAPES = {
    "model.embed_tokens.weight": (64, 128),
    "model.layers.0.self_attn.q_proj.weight": (128, 128),
    "model.layers.0.self_attn.k_proj.weight": (64, 128),
    "model.layers.0.self_attn.v_proj.weight": (64, 128),
    "model.layers.0.self_attn.o_proj.weight": (128, 128),
    "model.layers.0.mlp.gate_proj.weight": (192, 128),
    "model.layers.0.mlp.up_proj.weight": (192, 128),
    "model.layers.0.mlp.down_proj.weight": (128, 384),
    "model.layers.0.input_layernorm.weight": (128,),
    "lm_head.weight": (64, 128),
}
SCHEMES = (
    *("int8:channel", "int8:channel:asym", "int8:g32", "int4:g128", "int4:g128:asym", "int4:channel", "int3:g64"),
    *("int3:channel:asym", "int2:g32", "int2:g32:asym", "f8-e4m3:tensor", "f8-e4m3:channel", "f8-e4m3:block"),
    *("nvfp4", "mxfp4"),
)
# compressed-tensors' arguments, and sha256 of what llm-compressor 0.14.0.1 (with compressed-tensors 0.19.0) made of `weights`.
PEER: dict[str, tuple[dict[str, Any], str]] = {
    "int4:g128": (
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128},
        "0ad670d5474edccd7ff30fd399ef6ca6c97eda61520048f42f12c95804e10d0f",
    ),
    "int4:g128:asym": (
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": False},
        "fd712a1ee3e26e95f84aee1a728dbb9dc0146ed7ae32afd9d15f71de14f828ab",
    ),
    "int8:channel": (
        {"num_bits": 8, "type": "int", "strategy": "channel"},
        "dfb4003602fb3c1054eb2b234db3e5c343de795bdee73ae88f332880ac52e5c7",
    ),
    "int8:channel:asym": (
        {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": False},
        "1bfd38ae24e3de6a78f538e7b0fd149101a3a9d412fa849c3189c5b24e56f52a",
    ),
    "int3:g64": (
        {"num_bits": 3, "type": "int", "strategy": "group", "group_size": 64},
        "9872b7df8ce6ad94be5f6a14e90794bdf7ee5a55bdf1131515134e56f42638a1",
    ),
    "int2:g32": (
        {"num_bits": 2, "type": "int", "strategy": "group", "group_size": 32},
        "7c802006054f82aa8ab7713ed268ca7707b610260d9758acf82f1f120be4ff5b",
    ),
    "f8-e4m3:channel": (
        {"num_bits": 8, "type": "float", "strategy": "channel"},
        "a044243c0b6f52263e6059579453822f1f69d41b7c3328113a232ff3b81b7cbd",
    ),
    "f8-e4m3:block": (
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]},
        "ff513fdfdf24c138a75469c71c22a7320c1a8bfafeb12244413928bcc09171e6",
    ),
    "nvfp4": (
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"},
        "ec63a0e7524ec4c5061ee3318363e774ee11d1627d3996f39491c232c167e68b",
    ),
    "mxfp4": (
        {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
        "90e6c56ac4780619f62a67d37175a10b6363d65b09690968497e03a9ed08bde9",
    ),
}
PEER_JOB = """
import json, sys
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import model_free_ptq
for out, args in json.loads(sys.argv[2]).items():
    weights = QuantizationArgs(observer="memoryless_minmax", dynamic=False, **args)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    model_free_ptq(sys.argv[1], out, scheme=scheme, ignore=["lm_head", "re:.*embed.*"], device="cpu", max_workers=1)
"""


def weights() -> dict[str, Any]:
    """bf16, by arithmetic that no version of a library changes: sums of four numbers, a little different in every row."""
    found = {}
    for at, (key, shape) in enumerate(SHAPES.items()):
        count = int(np.prod(shape))
        state = np.arange(4 * count, dtype=np.uint64) + np.uint64(1_000_003 * (at + 1))
        for _ in range(3):
            state = (state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)) ^ (state >> np.uint64(29))
        flat = ((state >> np.uint64(40)).astype("f8") / 2**24 - 0.5).reshape(count, 4).sum(axis=1) * 0.05
        rows = flat.reshape(shape) * (1 + np.arange(shape[0]) % 7).reshape(-1, *[1] * (len(shape) - 1))
        found[key] = rows.astype("f4").astype(ml_dtypes.bfloat16)
    return found


def folder(path: Path) -> Path:
    path.mkdir()
    tensors = {
        key: LazyTensor.contiguous(key, dtype("bf16"), value.shape, MemoryBytes(value.tobytes(), key), 0)
        for key, value in weights().items()
    }
    save_checkpoint(Checkpoint(tensors, Source("made", "safetensors", "single", ())), path / "model.safetensors")
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (path / "config.json").write_text(json.dumps(config))
    return path


def quantized(capsys: Captured, source: Path, target: Path, scheme: str) -> Path:
    code, _, err = answer(capsys, "quantize", source, target, "--scheme", scheme, "--quiet")
    assert code == 0, err
    return target


def stored(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {key: (one.dtype.name, one.shape, one.array().tobytes()) for key, one in open_checkpoint(str(path)).items()}


def digest(tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> str:
    whole = hashlib.sha256()
    for key, (row, shape, data) in sorted(tensors.items()):
        whole.update(f"{key} {row} {list(shape)} {len(data)}\n".encode() + data)
    return whole.hexdigest()


def loaders(path: Path) -> dict[str, Any]:
    """What of a config loaders act on."""
    told = json.loads((path / "config.json").read_text())["quantization_config"]
    (group,) = told["config_groups"].values()
    names = (
        "num_bits",
        "type",
        "symmetric",
        "group_size",
        "strategy",
        "block_structure",
        "dynamic",
        "actorder",
        "scale_dtype",
    )
    return {
        "weights": {name: group["weights"].get(name) for name in names},
        **{name: group[name] for name in ("targets", "input_activations", "output_activations", "format")},
        **{name: told[name] for name in ("quant_method", "quantization_status")},
    }


@pytest.mark.parametrize("scheme", PEER)
def test_bytes_are_those_of_llm_compressor(tmp_path: Path, capsys: Captured, scheme: str) -> None:
    target = quantized(capsys, folder(tmp_path / "in"), tmp_path / "out", f"{scheme}:rtn")
    assert digest(stored(target)) == PEER[scheme][1]


def peer() -> str:
    where = os.environ.get("WTOOL_PEERS")
    if where is None:
        pytest.skip("WTOOL_PEERS names no folder with bin/python that has llmcompressor 0.14")
    python = Path(where) / "bin" / "python"
    done = subprocess.run([python, "-c", "import llmcompressor"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"in WTOOL_PEERS: {done.stderr.splitlines()[-1]}")
    return str(python)


def test_whole_files_and_configs_are_those_of_llm_compressor(tmp_path: Path, capsys: Captured) -> None:
    python, source = peer(), folder(tmp_path / "in")
    names = {scheme: tmp_path / f"peer-{at}" for at, scheme in enumerate(PEER)}
    jobs = json.dumps({str(names[scheme]): args for scheme, (args, _) in PEER.items()})
    done = subprocess.run([python, "-c", PEER_JOB, source, jobs], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for at, (scheme, path) in enumerate(names.items()):
        target = quantized(capsys, source, tmp_path / f"ours-{at}", f"{scheme}:rtn")
        assert stored(target) == stored(path), scheme
        assert digest(stored(path)) == PEER[scheme][1], scheme
        ours, theirs = loaders(target), loaders(path)
        if scheme.startswith("f8"):  # the same tensors: float-quantized is read as naive-quantized is
            assert (ours.pop("format"), theirs.pop("format")) == ("float-quantized", "naive-quantized")
        assert ours == theirs, scheme


@pytest.mark.parametrize("row", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_are_those_that_compressed_tensors_decodes(tmp_path: Path, scheme: str, row: str) -> None:
    """Exactly, after the rounding that it does: to the dtype of the scales, or to bf16 for those of four bits."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    ours = layout("compressed-tensors")
    settled = ours.settle(parse_scheme(scheme))
    values = np.random.default_rng(3).standard_normal((160, 384)).astype("f4") * 0.05
    values[7] = 0
    narrow = values.astype(dtype(row).numpy())
    tensor = LazyTensor.contiguous("a.weight", dtype(row), values.shape, MemoryBytes(narrow.tobytes()), 0)
    parts = ours.parts(tensor, settled, Seen(float(np.abs(narrow.astype("f4")).max())))
    save_checkpoint(
        Checkpoint({part.key: part for part in parts}, Source("made", "safetensors", "single", ())), tmp_path / "o.safetensors"
    )
    from safetensors.torch import load_file

    theirs = {key.removeprefix("a."): one for key, one in load_file(tmp_path / "o.safetensors").items()}
    told = ours.config({"a.weight": settled}, ())["quantization_config"]
    config = QuantizationConfig.model_validate(told)
    (group,) = config.config_groups.values()
    assert group.format == told["config_groups"]["group_0"]["format"]
    decoded = BaseCompressor.get_value_from_registry(group.format).decompress(theirs, group)["weight"]
    there = open_checkpoint(str(tmp_path / "o.safetensors"))
    mine = torch.from_numpy(find(there.tensors, None, there.metadata)["a.weight"].dense().array().copy())
    assert torch.equal(mine.to(decoded.dtype), decoded)
