# ruff: noqa: E402
"""diffusers as the judge, in a process of its own: `judge_diffusers.py FOLDER` prints what it makes of the cases there.

FOLDER/cases.json: name -> {kind (unet, ema, vae, text, open, xl), config, original: a safetensors file, made: wtool's folder}.
Answers as one line of JSON: name -> {keys, wrong: keys unlike diffusers' own conversion, loaded: what loading complained of,
diff and scale: of the outputs of the two models}; and for a case of config alone, the shapes of that model.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

# These diffusers do not know the torchao that is installed: they must not find it.
_find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.startswith("torchao") else _find(name, package)

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

OPEN = {"open": "cond_stage_model.model.", "xl": "conditioner.embedders.1.model."}  # prefixes of OpenCLIP's text encoders
TEXTS = ("text", *OPEN)


def shapes(kind: str, config: dict[str, Any]) -> dict[str, list[int]]:
    with torch.device("meta"):
        model = build(kind, config)
    return {key: list(tensor.shape) for key, tensor in model.state_dict().items()}


def build(kind: str, config: dict[str, Any]) -> Any:
    if kind in TEXTS:
        return (CLIPTextModelWithProjection if kind == "xl" else CLIPTextModel)(CLIPTextConfig(**config))
    return AutoencoderKL(**config) if kind == "vae" else UNet2DConditionModel(**config)


def converted(kind: str, config: dict[str, Any], original: dict[str, Any]) -> dict[str, Any]:
    if kind in ("unet", "ema"):
        return dict(convert_ldm_unet_checkpoint(original, {"layers_per_block": 2, **config}, extract_ema=kind == "ema"))
    if kind == "vae":
        return dict(convert_ldm_vae_checkpoint(original, config))
    if kind in OPEN:
        return dict(convert_open_clip_checkpoint(build(kind, config), original, OPEN[kind]))
    found = convert_ldm_clip_checkpoint(original)
    return {key: value for key, value in found.items() if not key.endswith("position_ids")}


def outputs(kind: str, model: Any) -> Any:
    torch.manual_seed(5)
    if kind == "vae":
        return model(torch.randn(1, 3, 16, 16)).sample
    if kind in TEXTS:
        return model(torch.arange(20)[None, -6:])[0]
    context = torch.randn(1, 5, model.config.cross_attention_dim)
    added = {"text_embeds": torch.randn(1, 8), "time_ids": torch.randn(1, 3)}
    given = {"added_cond_kwargs": added} if model.config.addition_embed_type else {}
    return model(torch.randn(1, 4, 16, 16), 7, context, **given).sample


def judged(kind: str, config: dict[str, Any], original: str, made: str) -> dict[str, Any]:
    theirs = converted(kind, config, load_file(original))
    model = build(kind, config)
    model.load_state_dict({key: value.float() for key, value in theirs.items()}, strict=True)
    if kind in TEXTS:
        model.config.save_pretrained(made)
    else:
        model.save_config(made)
    (file,) = Path(made).glob("*.safetensors")
    ours = load_file(file)
    wrong = [
        key
        for key in theirs.keys() | ours.keys()
        if key not in ours
        or key not in theirs
        or ours[key].dtype != theirs[key].dtype
        or not torch.equal(ours[key], theirs[key])
    ]
    again, info = type(model).from_pretrained(made, output_loading_info=True, torch_dtype=torch.float32)
    with torch.no_grad():
        left, right = outputs(kind, model.eval()), outputs(kind, again.eval())
    return {
        "keys": len(ours),
        "wrong": sorted(wrong),
        "loaded": [text for name in ("missing_keys", "unexpected_keys", "mismatched_keys") for text in info[name]],
        "diff": float((left - right).abs().max()),
        "scale": float(left.abs().max()),
    }


def main(folder: str) -> None:
    cases = json.loads((Path(folder) / "cases.json").read_text())
    print(json.dumps({name: judged(**case) if "original" in case else shapes(**case) for name, case in cases.items()}))


if __name__ == "__main__":
    main(sys.argv[1])
