"""Stable Diffusion's original checkpoints and diffusers' models: names and values as diffusers' own conversion has them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from wtool import views
from wtool.api import open_checkpoint, save_checkpoint
from wtool.between import map_checkpoint
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import dtype
from wtool.errors import MapError
from wtool.maps.catalog import load
from wtool.maps.resolve import resolve

Shapes = dict[str, tuple[int, ...]]
JUDGES = Path(sys.prefix) / "judges"

# The originals' construction, as in their openaimodel.py and model.py: width, its factor at each level, the transformers'
# depth at each level (0: none) and in the middle. `added` is the width of XL's vector of sizes and pooled text.
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {"width": 320, "factors": (1, 2, 4, 4), "depths": (1, 1, 1, 0), "middle": 1, "context": 768},
    "sd2": {"width": 320, "factors": (1, 2, 4, 4), "depths": (1, 1, 1, 0), "middle": 1, "context": 1024, "linear": True},
    "sdxl": {
        "width": 320,
        "factors": (1, 2, 4),
        "depths": (0, 2, 10),
        "middle": 10,
        "context": 2048,
        "linear": True,
        "added": 2816,
    },
}
SMALL = {"sd1": {"width": 8}, "sd2": {"width": 8}, "sdxl": {"width": 8, "added": 8 + 3 * 4}}
RECIPES = {"sd1": "sd1-unet-to-diffusers", "sd2": "sd1-unet-to-diffusers", "sdxl": "sdxl-unet-to-diffusers"}
COUNTS = {"sd1": (686, 859_520_964), "sd2": (686, 865_910_724), "sdxl": (1680, 2_567_463_684)}


def affine(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def resnet(name: str, into: int, out: int, time: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from affine(f"{name}.in_layers.0", into)
    yield from affine(f"{name}.in_layers.2", out, into, 3, 3)
    yield from affine(f"{name}.emb_layers.1", out, time)
    yield from affine(f"{name}.out_layers.0", out)
    yield from affine(f"{name}.out_layers.3", out, out, 3, 3)
    if into != out:
        yield from affine(f"{name}.skip_connection", out, into, 1, 1)


def transformer(name: str, wide: int, context: int, depth: int, linear: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    ends = () if linear else (1, 1)
    yield from affine(f"{name}.norm", wide)
    yield from affine(f"{name}.proj_in", wide, wide, *ends)
    for block in (f"{name}.transformer_blocks.{d}" for d in range(depth)):
        for number, source in enumerate((wide, context), 1):
            for part, size in zip("qkv", (wide, source, source), strict=True):
                yield f"{block}.attn{number}.to_{part}.weight", (wide, size)
            yield from affine(f"{block}.attn{number}.to_out.0", wide, wide)
        yield from affine(f"{block}.ff.net.0.proj", 8 * wide, wide)
        yield from affine(f"{block}.ff.net.2", wide, 4 * wide)
        for number in (1, 2, 3):
            yield from affine(f"{block}.norm{number}", wide)
    yield from affine(f"{name}.proj_out", wide, wide, *ends)


def unet(
    width: int,
    factors: tuple[int, ...],
    depths: tuple[int, ...],
    middle: int,
    context: int,
    linear: bool = False,
    added: int = 0,
    layers: int = 2,
) -> Shapes:
    """Keys and shapes of the original UNetModel, in its order."""
    time = 4 * width
    found = dict(affine("time_embed.0", time, width)) | dict(affine("time_embed.2", time, time))
    if added:
        found |= dict(affine("label_emb.0.0", time, added)) | dict(affine("label_emb.0.2", time, time))
    found |= dict(affine("input_blocks.0.0", width, 4, 3, 3))
    wide, widths, n = width, [width], 1
    for level, (factor, depth) in enumerate(zip(factors, depths, strict=True)):
        for _ in range(layers):
            found |= dict(resnet(f"input_blocks.{n}.0", wide, factor * width, time))
            wide = factor * width
            if depth:
                found |= dict(transformer(f"input_blocks.{n}.1", wide, context, depth, linear))
            widths.append(wide)
            n += 1
        if level + 1 < len(factors):
            found |= dict(affine(f"input_blocks.{n}.0.op", wide, wide, 3, 3))
            widths.append(wide)
            n += 1
    found |= dict(resnet("middle_block.0", wide, wide, time))
    found |= dict(transformer("middle_block.1", wide, context, middle, linear))
    found |= dict(resnet("middle_block.2", wide, wide, time))
    n = 0
    for level, (factor, depth) in reversed(list(enumerate(zip(factors, depths, strict=True)))):
        for layer in range(layers + 1):
            found |= dict(resnet(f"output_blocks.{n}.0", wide + widths.pop(), factor * width, time))
            wide = factor * width
            if depth:
                found |= dict(transformer(f"output_blocks.{n}.1", wide, context, depth, linear))
            if level and layer == layers:
                found |= dict(affine(f"output_blocks.{n}.{2 if depth else 1}.conv", wide, wide, 3, 3))
            n += 1
    found |= dict(affine("out.0", width)) | dict(affine("out.2", 4, width, 3, 3))
    return {f"model.diffusion_model.{key}": shape for key, shape in found.items()}


def unet_config(
    width: int,
    factors: tuple[int, ...],
    depths: tuple[int, ...],
    middle: int,
    context: int,
    linear: bool = False,
    added: int = 0,
) -> dict[str, Any]:
    """diffusers' configuration of the same model."""
    found: dict[str, Any] = {
        "block_out_channels": [factor * width for factor in factors],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "transformer_layers_per_block": [max(depth, 1) for depth in depths[:-1]] + [middle],
        "cross_attention_dim": context,
        "use_linear_projection": linear,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    if added:
        found |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": added,
        }
    return found


def vae(width: int, factors: tuple[int, ...] = (1, 2, 4, 4), own: str = "first_stage_model.") -> Shapes:
    """Keys and shapes of the original AutoencoderKL, in its order."""

    def block(name: str, into: int, out: int) -> Shapes:
        made = dict(affine(f"{name}.norm1", into)) | dict(affine(f"{name}.conv1", out, into, 3, 3))
        made |= dict(affine(f"{name}.norm2", out)) | dict(affine(f"{name}.conv2", out, out, 3, 3))
        return made | (dict(affine(f"{name}.nin_shortcut", out, into, 1, 1)) if into != out else {})

    def middle(half: str, wide: int) -> Shapes:
        made = block(f"{half}.mid.block_1", wide, wide) | dict(affine(f"{half}.mid.attn_1.norm", wide))
        for part in ("q", "k", "v", "proj_out"):
            made |= dict(affine(f"{half}.mid.attn_1.{part}", wide, wide, 1, 1))
        return made | block(f"{half}.mid.block_2", wide, wide)

    found = dict(affine("encoder.conv_in", width, 3, 3, 3))
    wide = width
    for level, factor in enumerate(factors):
        for layer in range(2):
            found |= block(f"encoder.down.{level}.block.{layer}", wide, factor * width)
            wide = factor * width
        if level + 1 < len(factors):
            found |= dict(affine(f"encoder.down.{level}.downsample.conv", wide, wide, 3, 3))
    found |= middle("encoder", wide)
    found |= dict(affine("encoder.norm_out", wide)) | dict(affine("encoder.conv_out", 8, wide, 3, 3))
    found |= dict(affine("decoder.conv_in", wide, 4, 3, 3)) | middle("decoder", wide)
    for level, factor in reversed(list(enumerate(factors))):
        for layer in range(3):
            found |= block(f"decoder.up.{level}.block.{layer}", wide, factor * width)
            wide = factor * width
        if level:
            found |= dict(affine(f"decoder.up.{level}.upsample.conv", wide, wide, 3, 3))
    found |= dict(affine("decoder.norm_out", width)) | dict(affine("decoder.conv_out", 3, width, 3, 3))
    found |= dict(affine("quant_conv", 8, 8, 1, 1)) | dict(affine("post_quant_conv", 4, 4, 1, 1))
    return {f"{own}{key}": shape for key, shape in found.items()}


def vae_config(width: int) -> dict[str, Any]:
    return {
        "block_out_channels": [width, 2 * width, 4 * width, 4 * width],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "latent_channels": 4,
    }


TEXT = {
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 7,
    "bos_token_id": 18,
    "eos_token_id": 19,
}


def text(own: str = "cond_stage_model.transformer.text_model.") -> Shapes:
    found: Shapes = {"embeddings.token_embedding.weight": (20, 8), "embeddings.position_embedding.weight": (7, 8)}
    for layer in (f"encoder.layers.{i}" for i in range(2)):
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            found |= dict(affine(f"{layer}.self_attn.{part}", 8, 8))
        found |= dict(affine(f"{layer}.layer_norm1", 8)) | dict(affine(f"{layer}.layer_norm2", 8))
        found |= dict(affine(f"{layer}.mlp.fc1", 16, 8)) | dict(affine(f"{layer}.mlp.fc2", 8, 16))
    found |= dict(affine("final_layer_norm", 8))
    return {f"{own}{key}": shape for key, shape in found.items()}


def openclip(own: str, layers: int) -> Shapes:
    found: Shapes = {"positional_embedding": (7, 8), "text_projection": (8, 6), "logit_scale": ()}
    found |= {"token_embedding.weight": (20, 8)}
    for layer in (f"transformer.resblocks.{i}" for i in range(layers)):
        found |= {f"{layer}.attn.in_proj_weight": (24, 8), f"{layer}.attn.in_proj_bias": (24,)}
        found |= dict(affine(f"{layer}.attn.out_proj", 8, 8))
        found |= dict(affine(f"{layer}.ln_1", 8)) | dict(affine(f"{layer}.ln_2", 8))
        found |= dict(affine(f"{layer}.mlp.c_fc", 16, 8)) | dict(affine(f"{layer}.mlp.c_proj", 8, 16))
    return {f"{own}{key}": shape for key, shape in (found | dict(affine("ln_final", 8))).items()}


def averaged(shapes: Shapes) -> Shapes:
    """What the averages of these weights are called: without dots."""
    return {"model_ema." + key.removeprefix("model.").replace(".", ""): shape for key, shape in shapes.items()}


def others(clip: str | None = "cond_stage_model.transformer") -> dict[str, Any]:
    """What else stands in a whole checkpoint, beside the three models. `clip`: where its CLIP is, if it has one."""
    found = {
        name: np.zeros(5, np.float32)
        for name in (
            "alphas_cumprod",
            "alphas_cumprod_prev",
            "betas",
            "log_one_minus_alphas_cumprod",
            "posterior_log_variance_clipped",
            "posterior_mean_coef1",
            "posterior_mean_coef2",
            "posterior_variance",
            "sqrt_alphas_cumprod",
            "sqrt_one_minus_alphas_cumprod",
            "sqrt_recip_alphas_cumprod",
            "sqrt_recipm1_alphas_cumprod",
            "logvar",
        )
    }
    found |= {"model_ema.decay": np.array(0.5, np.float32), "model_ema.num_updates": np.array(3, np.int32)}
    return found | ({f"{clip}.text_model.embeddings.position_ids": np.arange(7)[None]} if clip else {})


def values(shapes: Shapes, kind: str = "float32") -> dict[str, Any]:
    random = np.random.default_rng(3)
    return {key: np.asarray(random.standard_normal(shape) * 0.2, kind) for key, shape in shapes.items()}


def empty(shapes: Mapping[str, Any]) -> Checkpoint:
    tensors = {key: views.filled(key, dtype("f16"), tuple(shape), 0) for key, shape in shapes.items()}
    return Checkpoint(tensors, Source("x", "torch", "zip", ()))


def there_and_back(recipe: str, shapes: Shapes) -> tuple[dict[str, tuple[int, ...]], Any]:
    """The shapes after the recipe, which must lead back to `shapes`; and what it did."""
    there = resolve(load(recipe), empty(shapes))
    made = {tensor.key: tensor.shape for tensor in there.tensors}
    back = resolve(load(recipe).reverse(), empty(made))
    assert {tensor.key: tensor.shape for tensor in back.tensors} == shapes
    assert not there.unused and not back.unused
    return made, there


def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert (value.dtype, value.shape) == (right[key].dtype, right[key].shape), key
        assert value.tobytes() == right[key].tobytes(), key


@pytest.mark.parametrize("name", UNETS)
def test_every_key_of_the_whole_unet(name: str) -> None:
    shapes = unet(**UNETS[name])
    assert (len(shapes), sum(int(np.prod(shape)) for shape in shapes.values())) == COUNTS[name]
    made, how = there_and_back(RECIPES[name], shapes)
    assert {row.exact for row in how.rows} == {"exact"}
    if name != "sdxl":
        assert there_and_back("sd1-ema-unet-to-diffusers", averaged(shapes))[0] == made
    assert sorted(made.values()) == sorted(shapes.values())


def test_every_key_of_the_whole_vae() -> None:
    shapes = vae(128)
    assert (len(shapes), sum(int(np.prod(shape)) for shape in shapes.values())) == (248, 83_653_863)
    made, _ = there_and_back("sd1-vae-to-diffusers", shapes)
    assert made["decoder.up_blocks.0.resnets.0.conv1.weight"] == (512, 512, 3, 3)
    assert made["decoder.up_blocks.3.resnets.0.conv_shortcut.weight"] == (128, 256, 1, 1)
    assert made["encoder.mid_block.attentions.0.to_out.0.weight"] == (512, 512)


def wrong(shapes: Shapes) -> dict[str, tuple[str, Shapes]]:
    narrow = {**UNETS["sd1"], "width": 8}
    return {
        "XL": ("sd1-unet-to-diffusers", unet(**UNETS["sdxl"])),
        "1.x": ("sdxl-unet-to-diffusers", shapes),
        "one layer": ("sd1-unet-to-diffusers", unet(**narrow, layers=1)),
        "three layers": ("sd1-unet-to-diffusers", unet(**narrow, layers=3)),
        "three levels": ("sd1-unet-to-diffusers", unet(**{**narrow, "factors": (1, 2, 4), "depths": (1, 1, 1)})),
        "self-attention alone": (
            "sd1-unet-to-diffusers",
            shapes | dict(affine("model.diffusion_model.middle_block.1.qkv", 24, 8, 1)),
        ),
        "a VAE of three levels": ("sd1-vae-to-diffusers", vae(8, (1, 2, 4))),
        "a VAE of five levels": ("sd1-vae-to-diffusers", vae(8, (1, 2, 4, 4, 4))),
        "OpenCLIP": ("sd1-text-to-hf", {"cond_stage_model.model.ln_final.weight": (8,)}),
    }


@pytest.mark.parametrize("name", wrong({}))
def test_other_models_are_refused(name: str) -> None:
    recipe, shapes = wrong(unet(**{**UNETS["sd1"], "width": 8}))[name]
    with pytest.raises(MapError) as told:
        resolve(load(recipe), empty(shapes))
    said = {"XL": "sdxl-unet", "1.x": "sd1-unet-to-diffusers is for", "OpenCLIP": "OpenCLIP"}
    assert said.get(name, "") in told.value.message
    if name not in ("self-attention alone", "a VAE of five levels"):  # what is left is whole there
        with pytest.raises(MapError):
            resolve(load(recipe), empty(shapes), unmatched="drop")


def test_other_models_are_refused_on_the_way_back() -> None:
    made, _ = there_and_back("sd1-unet-to-diffusers", unet(**{**UNETS["sd1"], "width": 8}))
    lacking = {key: shape for key, shape in made.items() if ".resnets.1." not in key or "down_blocks" not in key}
    with pytest.raises(MapError, match=r"no key 'down_blocks\.0\.resnets\.1"):
        resolve(load("diffusers-to-sd1-unet"), empty(lacking))
    made, _ = there_and_back("sd1-vae-to-diffusers", vae(8))
    lacking = {key: shape for key, shape in made.items() if "decoder.up_blocks.3" not in key}
    with pytest.raises(MapError, match=r"no key 'decoder\.up_blocks\.3"):
        resolve(load("diffusers-to-sd1-vae"), empty(lacking))


def run(*words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "wtool", "convert", *words, "--json"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_model_out_of_a_whole_checkpoint(tmp_path: Path) -> None:
    weights = unet(**{**UNETS["sd1"], **SMALL["sd1"], "context": 8})
    parts = {
        "unet": (values(weights, "float16"), "sd1-unet-to-diffusers"),
        "ema": (values(averaged(weights), "float32"), "sd1-ema-unet-to-diffusers"),
        "vae": (values(vae(8), "float16"), "sd1-vae-to-diffusers"),
        "text": (values(text(), "float16"), "sd1-text-to-hf"),
    }
    whole = others() | {key: value for part, _ in parts.values() for key, value in part.items()}
    save_file(whole, tmp_path / "v1.safetensors")
    for name, (part, recipe) in parts.items():
        # A DST of diffusers' own file name, as the notes say.
        made = tmp_path / name / "diffusion_pytorch_model.safetensors"
        made.parent.mkdir()
        report = run(str(tmp_path / "v1.safetensors"), str(made), "--map", recipe)
        assert set(report["dropped"]) == set(whole) - set(part)
        assert report["losses"] == []
        mapped = load_file(made)
        assert len(mapped) == len(part)
        run(str(made), str(tmp_path / f"{name}.safetensors"), "--map", recipe, "--reverse")
        same(load_file(tmp_path / f"{name}.safetensors"), part)


def test_models_in_files_of_their_own_and_of_older_times() -> None:
    """Without the prefix of a whole checkpoint; and diffusers' attention as it was called before."""
    made, _ = there_and_back("sd1-vae-to-diffusers", vae(8))
    alone = resolve(load("sd1-vae-to-diffusers"), empty({**vae(8, own=""), "loss.logvar": ()}))
    assert alone.dropped == ("loss.logvar",)
    assert {tensor.key: tensor.shape for tensor in alone.tensors} == made
    older = made
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        older = {key.replace(f".{new}.", f".{old}."): shape for key, shape in older.items()}
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in older
    back = resolve(load("diffusers-to-sd1-vae"), empty(older))
    assert {tensor.key: tensor.shape for tensor in back.tensors} == vae(8)

    for name, full in UNETS.items():
        shapes = unet(**full)
        made, _ = there_and_back(RECIPES[name], shapes)
        bare = {key.removeprefix("model.diffusion_model."): shape for key, shape in shapes.items()}
        alone = resolve(load(RECIPES[name]), empty(bare))
        assert {tensor.key: tensor.shape for tensor in alone.tensors} == made


@pytest.mark.frameworks
def test_the_lightning_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    part = values(unet(**{**UNETS["sd1"], **SMALL["sd1"], "context": 8}), "float16")
    whole = {key: torch.from_numpy(np.array(value)) for key, value in (others() | part | values(vae(8))).items()}
    torch.save({"state_dict": whole, "epoch": 3, "pytorch-lightning_version": "1.4.2"}, tmp_path / "v1.ckpt")
    mapped, (how,) = map_checkpoint(open_checkpoint(tmp_path / "v1.ckpt"), ["sd1-unet-to-diffusers"])
    assert set(how.dropped) == set(whole) - set(part)
    back, _ = map_checkpoint(mapped, ["sd1-unet-to-diffusers"], reverse=True)
    same({key: back[key].array() for key in back}, part)


@pytest.mark.frameworks
@pytest.mark.skipif(not (JUDGES / "diffusers").is_dir(), reason="the judge diffusers is not in .venv/judges")
def test_as_diffusers_converts_them(tmp_path: Path) -> None:
    """Small models of the same blocks by value and output, the whole ones by shape."""
    pytest.importorskip("torch")
    cases: dict[str, dict[str, Any]] = {}
    for name, full in UNETS.items():
        small = {**full, **SMALL[name], "context": 8}
        shapes = unet(**small)
        prepare(tmp_path, cases, name, "unet", unet_config(**small), values(shapes), RECIPES[name])
        cases[f"whole {name}"] = {"kind": "unet", "config": unet_config(**full)}
    half = values(unet(**{**UNETS["sd1"], **SMALL["sd1"], "context": 8}), "float16")
    prepare(tmp_path, cases, "half", "unet", cases["sd1"]["config"], half, RECIPES["sd1"])
    averages = values(averaged(unet(**{**UNETS["sd1"], **SMALL["sd1"], "context": 8})))
    prepare(tmp_path, cases, "ema", "ema", cases["sd1"]["config"], averages, "sd1-ema-unet-to-diffusers", half)
    prepare(tmp_path, cases, "vae", "vae", vae_config(8), values(vae(8)), "sd1-vae-to-diffusers")
    cases["whole vae"] = {"kind": "vae", "config": vae_config(128)}
    prepare(tmp_path, cases, "text", "text", TEXT, values(text()), "sd1-text-to-hf")
    one = values(text("conditioner.embedders.0.transformer.text_model."))
    two = values(openclip("conditioner.embedders.1.model.", 2))
    scale = {key: two.pop(key) for key in list(two) if key.endswith("logit_scale")}
    open_config = {**TEXT, "hidden_act": "gelu"}
    prepare(
        tmp_path, cases, "sdxl text2", "xl", {**open_config, "projection_dim": 6}, two, "sdxl-text2-to-hf", {**scale, **one}
    )
    same(load_file(tmp_path / "text" / "model.safetensors"), mapped_by("sdxl-text-to-hf", {**one, **two, **scale}, tmp_path))
    whole = values(openclip("cond_stage_model.model.", 24))
    last = ("resblocks.23.", "text_projection", "logit_scale")
    part = {key: value for key, value in whole.items() if not any(end in key for end in last)}
    prepare(tmp_path, cases, "sd2 text", "open", {**open_config, "num_hidden_layers": 23}, part, "sd2-text-to-hf", whole)
    (tmp_path / "cases.json").write_text(json.dumps(cases))

    environment = {**os.environ, "PYTHONPATH": str(JUDGES), "TF_CPP_MIN_LOG_LEVEL": "3", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("judge_diffusers.py")), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    counts = {
        "sd1": 686,
        "sd2": 686,
        "half": 686,
        "ema": 686,
        "sdxl": 1680,
        "vae": 248,
        "text": 36,
        "sd2 text": 372,
        "sdxl text2": 37,
    }
    for name, count in counts.items():
        assert (found[name]["keys"], found[name]["wrong"], found[name]["loaded"]) == (count, [], []), name
        assert found[name]["diff"] <= 1e-5 * found[name]["scale"] != 0, name
    for name, full in UNETS.items():
        made, _ = there_and_back(RECIPES[name], unet(**full))
        assert {key: tuple(shape) for key, shape in found[f"whole {name}"].items()} == made
    made, _ = there_and_back("sd1-vae-to-diffusers", vae(128))
    assert {key: tuple(shape) for key, shape in found["whole vae"].items()} == made


def mapped_by(recipe: str, whole: dict[str, Any], folder: Path) -> dict[str, Any]:
    save_file({**others("conditioner.embedders.0.transformer"), **whole}, folder / "whole.safetensors")
    mapped, _ = map_checkpoint(open_checkpoint(folder / "whole.safetensors"), [recipe])
    back, _ = map_checkpoint(mapped, [recipe], reverse=True)
    same({key: np.asarray(back[key].array()) for key in back}, {key: whole[key] for key in back})
    return {key: np.asarray(mapped[key].array()) for key in mapped}


def prepare(
    folder: Path,
    cases: dict[str, dict[str, Any]],
    name: str,
    kind: str,
    config: Any,
    original: dict[str, Any],
    recipe: str,
    more: Mapping[str, Any] | None = None,
) -> None:
    """The original and what wtool makes of it, as files for the judge; wtool's way back must give the original's bits."""
    source, made = folder / f"{name}.safetensors", folder / name
    made.mkdir()
    clip = {"sd2": None, "sdxl": "conditioner.embedders.0.transformer"}.get(
        name.partition(" ")[0], "cond_stage_model.transformer"
    )
    save_file({**others(clip), **original, **(more or {})}, source)
    file = made / ("diffusion_pytorch_model.safetensors" if kind in ("unet", "ema", "vae") else "model.safetensors")
    mapped, _ = map_checkpoint(open_checkpoint(source), [recipe])
    save_checkpoint(mapped, file)
    back, _ = map_checkpoint(open_checkpoint(file), [recipe], reverse=True)
    same({key: np.asarray(back[key].array()) for key in back}, original)
    cases[name] = {"kind": kind, "config": config, "original": str(source), "made": str(made)}
