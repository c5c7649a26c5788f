"""Which tensors are quantized and why the others are not, on the keys of real families; stacks of experts taken apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wtool.bytesource import MemoryBytes
from wtool.dtypes import dtype
from wtool.errors import UsageError
from wtool.layout import parse_scheme
from wtool.layouts import experts
from wtool.layouts.registry import layout
from wtool.ops.quantize import Rules, fates, fused_sets
from wtool.tensor import LazyTensor

H = 256
CT, PLAIN = layout("compressed-tensors"), layout("plain")


def tensor(key: str, *shape: int) -> LazyTensor:
    size = 4 * int(np.prod(shape))
    return LazyTensor.contiguous(key, dtype("f32"), shape, MemoryBytes(bytes(size), key), 0)


def why(shapes: dict[str, tuple[int, ...]], by: Any = CT, scheme: str = "int8", **more: Any) -> dict[str, str]:
    """Key -> its scheme, or in brackets why it stays."""
    tensors = {key: tensor(key, *shape) for key, shape in shapes.items()}
    rules = Rules(by.settle(parse_scheme(scheme)), **more)
    return {one.key: str(one.scheme) if one.scheme else f"({one.why})" for one in fates(tensors, rules, by)}


Q, NORM, EMB, HEAD, ROUTER = "int8:channel", "(a norm)", "(an embedding)", "(an output layer)", "(a router)"
TOWER, STATE, CONV, TURNED = "(of a vision or audio tower)", "(steers a state)", "(a convolution)", "(of a Conv1D, [in, out])"
MTP, KEY, FEW = "(guesses further tokens (MTP))", "(its key does not end in .weight)", "(fewer than 4,096 weights)"
FAMILIES: dict[str, dict[str, tuple[tuple[int, ...], str]]] = {
    "llama": {
        "model.embed_tokens.weight": ((512, H), EMB),
        "model.layers.0.self_attn.q_proj.weight": ((H, H), Q),
        "model.layers.0.self_attn.k_proj.weight": ((64, H), Q),
        "model.layers.0.mlp.gate_proj.weight": ((512, H), Q),
        "model.layers.0.mlp.down_proj.weight": ((H, 512), Q),
        "model.layers.0.input_layernorm.weight": ((H,), NORM),
        "model.layers.0.self_attn.rotary_emb.inv_freq": ((32,), "(of fewer than two axes)"),
        "model.norm.weight": ((H,), NORM),
        "lm_head.weight": ((512, H), HEAD),
    },
    "qwen3-moe": {
        "model.layers.0.mlp.gate.weight": ((24, H), ROUTER),
        **{f"model.layers.0.mlp.experts.{n}.gate_proj.weight": ((128, H), Q) for n in range(24)},
        "model.layers.0.mlp.shared_expert_gate.weight": ((1, H), ROUTER),
        "model.layers.0.mlp.shared_expert.up_proj.weight": ((128, H), Q),
        "model.layers.0.self_attn.q_norm.weight": ((64,), NORM),
    },
    "mixtral": {
        "model.layers.0.block_sparse_moe.gate.weight": ((8, H), ROUTER),
        **{f"model.layers.0.block_sparse_moe.experts.{n}.w2.weight": ((128, H), Q) for n in range(8)},
    },
    "deepseek-v3": {
        "model.layers.3.mlp.gate.weight": ((16, H), ROUTER),
        "model.layers.3.mlp.gate.e_score_correction_bias": ((16,), "(a bias)"),
        "model.layers.3.self_attn.q_a_proj.weight": ((64, H), Q),
        "model.layers.3.self_attn.kv_a_proj_with_mqa.weight": ((48, H), Q),
        **{f"model.layers.3.mlp.experts.{n}.up_proj.weight": ((64, H), Q) for n in range(16)},
        "model.layers.61.eh_proj.weight": ((H, 2 * H), MTP),
        "model.layers.61.self_attn.o_proj.weight": ((H, H), MTP),
        "model.layers.61.shared_head.head.weight": ((512, H), MTP),
        "model.layers.6.self_attn.o_proj.weight": ((H, H), Q),
    },
    "gpt-2": {
        "transformer.wte.weight": ((512, H), EMB),
        "transformer.wpe.weight": ((128, H), EMB),
        "transformer.h.0.attn.c_attn.weight": ((H, 3 * H), TURNED),
        "transformer.h.0.attn.c_proj.weight": ((H, H), TURNED),
        "transformer.h.0.mlp.c_fc.weight": ((H, 4 * H), TURNED),
        "transformer.h.0.mlp.c_proj.weight": ((4 * H, H), TURNED),
        "transformer.h.0.ln_1.weight": ((H,), NORM),
    },
    "starcoder (the same names, Linear)": {
        "transformer.h.0.attn.c_attn.weight": ((H + 64, H), Q),
        "transformer.h.0.attn.c_proj.weight": ((H, H), Q),
        "transformer.h.0.mlp.c_fc.weight": ((4 * H, H), Q),
        "transformer.h.0.mlp.c_proj.weight": ((H, 4 * H), Q),
    },
    "gpt-neox": {
        "gpt_neox.embed_in.weight": ((512, H), EMB),
        "gpt_neox.layers.0.attention.query_key_value.weight": ((3 * H, H), Q),
        "gpt_neox.layers.0.mlp.dense_h_to_4h.weight": ((4 * H, H), Q),
        "embed_out.weight": ((512, H), HEAD),
    },
    "bert": {
        "bert.embeddings.position_embeddings.weight": ((128, H), EMB),
        "bert.encoder.layer.0.attention.self.query.weight": ((H, H), Q),
        "bert.encoder.layer.0.attention.output.LayerNorm.weight": ((H,), NORM),
        "bert.encoder.layer.0.attention.output.dense.weight": ((H, H), Q),
        "bert.pooler.dense.weight": ((H, H), Q),
        "cls.predictions.decoder.weight": ((512, H), HEAD),
        "classifier.weight": ((32, H), HEAD),
    },
    "roberta": {"classifier.dense.weight": ((H, H), HEAD), "classifier.out_proj.weight": ((32, H), HEAD)},
    "rwkv": {
        "rwkv.blocks.0.attention.gate.weight": ((H, H), Q),
        "rwkv.blocks.0.attention.time_decay": ((16, 512), STATE),
        "rwkv.blocks.0.attention.receptance.weight": ((H, H), Q),
        "head.weight": ((512, H), HEAD),
    },
    "mamba": {
        "backbone.layers.0.mixer.A_log": ((512, 16), STATE),
        "backbone.layers.0.mixer.D": ((512,), "(of fewer than two axes)"),
        "backbone.layers.0.mixer.conv1d.weight": ((512, 1, 4), CONV),
        "backbone.layers.0.mixer.in_proj.weight": ((1024, H), Q),
        "backbone.layers.0.mixer.x_proj.weight": ((48, 512), STATE),
        "backbone.layers.0.mixer.dt_proj.weight": ((512, 32), STATE),
        "backbone.layers.0.mixer.out_proj.weight": ((H, 512), Q),
    },
    "granite-moe": {
        "model.layers.0.block_sparse_moe.router.layer.weight": ((32, H), ROUTER),
        "model.layers.0.block_sparse_moe.input_linear.weight": ((4, 512, H), "(of 3 axes)"),
    },
    "llava": {
        "language_model.model.layers.0.self_attn.q_proj.weight": ((H, H), Q),
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight": ((H, H), TOWER),
        "multi_modal_projector.linear_1.weight": ((H, H), TOWER),
        "language_model.lm_head.weight": ((512, H), HEAD),
    },
    "clip, where towers are all there is": {
        "vision_model.encoder.layers.0.self_attn.q_proj.weight": ((H, H), Q),
        "vision_model.embeddings.patch_embedding.weight": ((H, 3, 14, 14), EMB),
        "text_model.encoder.layers.0.mlp.fc1.weight": ((512, H), Q),
        "text_projection.weight": ((H, H), Q),
    },
    "vit": {
        "blocks.0.attn.qkv.weight": ((3 * H, H), Q),
        "patch_embed.proj.weight": ((H, 768), CONV),
        "pos_embed": ((1, 197, H), EMB),
        "head.weight": ((1000, H), HEAD),
        "head_dim_proj.weight": ((H, H), Q),
        "heads.to_q.weight": ((H, H), Q),
        "small.weight": ((8, 16), FEW),
    },
    "whisper": {
        "model.encoder.conv1.weight": ((H, 80, 3), CONV),
        "model.decoder.layers.0.encoder_attn.k_proj.weight": ((H, H), Q),
        "proj_out.weight": ((512, H), HEAD),
    },
    "flux (proj_out inside is a Linear)": {"single_transformer_blocks.0.proj_out.weight": ((H, 512), Q)},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    told = FAMILIES[family]
    assert why({key: shape for key, (shape, _) in told.items()}) == {key: fate for key, (_, fate) in told.items()}


def test_a_config_says_how_many_experts() -> None:
    keys = {"a.mlp.gate.weight": (32, H), "b.mlp.gate.weight": (40, H)}
    assert why(keys, experts=(32,)) == {"a.mlp.gate.weight": ROUTER, "b.mlp.gate.weight": Q}


def test_a_turned_matrix_stays_even_if_it_is_asked_for() -> None:
    keys = {"h.0.attn.c_attn.weight": (H, 3 * H)}
    assert why(keys, only=("**",)) == {"h.0.attn.c_attn.weight": TURNED}
    assert why(keys, PLAIN) == {"h.0.attn.c_attn.weight": Q}


def test_only_skip_and_schemes() -> None:
    keys = {"a.q_proj.weight": (H, H), "b.o_proj.weight": (H, H), "lm_head.weight": (512, H), "norm.weight": (H,)}
    assert why(keys, only=("lm_head.**",)) == {
        "a.q_proj.weight": "(not of --only)",
        "b.o_proj.weight": "(not of --only)",
        "lm_head.weight": Q,
        "norm.weight": "(not of --only)",
    }
    found = why(keys, skip=("b.**",), schemes=(("lm_head.**", CT.settle(parse_scheme("int4"))), ("a.**", None)))
    assert found == {
        "a.q_proj.weight": "(--scheme-for)",
        "b.o_proj.weight": "(--skip)",
        "lm_head.weight": "int4:g128",
        "norm.weight": NORM,
    }
    with pytest.raises(UsageError, match="no key matches 'x'"):
        why(keys, skip=("x",))


def test_what_is_fused_is_alike() -> None:
    q, k, v = (f"l.0.{name}_proj.weight" for name in "qkv")
    keys = {q: (H, H), k: (64, H), v: (64, H)}
    assert why(keys, skip=(k,))[q] == f"(fused with {k}, which is not)"
    with pytest.raises(UsageError, match="must be of one scheme"):
        why(keys, schemes=((q, CT.settle(parse_scheme("int4"))),))
    names = [f"m.experts.{n}.{name}.weight" for n in (0, 1) for name in ("gate_proj", "up_proj", "down_proj")]
    assert sorted(map(len, fused_sets(names))) == [2, 4]
    assert fused_sets(names, experts=False) == [names[:2], names[3:5]]
    assert len(fused_sets(["a.self_attn.q_a_proj.weight", "a.self_attn.kv_a_proj_with_mqa.weight"])) == 1
    assert not fused_sets(["a.query.weight", "b.key.weight"])


def stacks(shape: tuple[int, ...], down: tuple[int, ...], *more: str) -> dict[str, LazyTensor]:
    keys = {"m.experts.gate_up_proj": shape, "m.experts.down_proj": down, **dict.fromkeys(more, (3, 2))}
    data = {key: np.arange(int(np.prod(size)), dtype="f4").reshape(size) for key, size in keys.items()}
    return {
        key: LazyTensor.contiguous(key, dtype("f32"), values.shape, MemoryBytes(values.tobytes(), key), 0)
        for key, values in data.items()
    }


@pytest.mark.parametrize("turned", [False, True])
def test_stacks_become_matrices(turned: bool) -> None:
    e, i, h = 3, 4, 8  # with h = 2i the shape of one alone would leave doubt
    tensors = stacks((e, h, 2 * i), (e, i, h)) if turned else stacks((e, 2 * i, h), (e, h, i))
    found = experts.split(tensors)
    both, down = (tensors[f"m.experts.{name}"].array() for name in ("gate_up_proj", "down_proj"))
    if turned:
        both, down = both.transpose(0, 2, 1), down.transpose(0, 2, 1)
    parts = {one.key: one.array() for one in found["m.experts.gate_up_proj"] + found["m.experts.down_proj"]}
    assert len(parts) == 9
    for n in range(e):
        np.testing.assert_array_equal(parts[f"m.experts.{n}.gate_proj.weight"], both[n, :i])
        np.testing.assert_array_equal(parts[f"m.experts.{n}.up_proj.weight"], both[n, i:])
        np.testing.assert_array_equal(parts[f"m.experts.{n}.down_proj.weight"], down[n])


def test_stacks_that_leave_doubt_stay() -> None:
    assert not experts.split(stacks((3, 8, 16), (3, 8, 8), "m.experts.gate_up_proj_bias"))  # gpt-oss
    assert not experts.split(stacks((3, 16, 8), (3, 8, 4)))  # of sizes that do not belong together
    assert not experts.split(stacks((3, 16, 8), (2, 8, 8)))
    assert not experts.split({"m.experts.down_proj": tensor("m.experts.down_proj", 3, 8, 8)})
    assert not experts.split({key: tensor(key, 3, 8, 8) for key in ("m.experts.up_proj", "m.experts.down_proj")})
