"""Meta's LLaMA and timm's ViT in transformers, and back: names, rotary order, fused q, k, v; and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import checkpoint_on

from wtool.api import open_checkpoint
from wtool.cli.app import run
from wtool.errors import MapError
from wtool.maps.catalog import load
from wtool.maps.resolve import Resolved, resolve

Shapes = dict[str, tuple[int, ...]]
JUDGES = Path(sys.prefix) / "judges"
LLAMA, VIT = "llama-meta-to-hf", "vit-timm-to-hf"

# Layers, width, heads, kv heads, width of the feed-forward, vocabulary, and whether the file has an output.weight of its own.
LLAMAS: dict[str, dict[str, Any]] = {
    "7b": {"layers": 32, "dim": 4096, "heads": 32, "kv": 32, "ffn": 11008, "vocab": 32000},
    "70b": {"layers": 80, "dim": 8192, "heads": 64, "kv": 8, "ffn": 28672, "vocab": 128256},
    "3.2-1b": {"layers": 16, "dim": 2048, "heads": 32, "kv": 8, "ffn": 8192, "vocab": 128256, "tied": True},
}
SMALL_LLAMA = {"layers": 2, "dim": 64, "heads": 4, "kv": 2, "ffn": 112, "vocab": 96}
VITS = {
    "tiny": {"layers": 12, "dim": 192, "ffn": 768, "patch": 16, "tokens": 197, "classes": 1000},
    "base": {"layers": 12, "dim": 768, "ffn": 3072, "patch": 16, "tokens": 197, "classes": 1000},
    "large": {"layers": 24, "dim": 1024, "ffn": 4096, "patch": 16, "tokens": 577, "classes": 1000},
    "huge": {"layers": 32, "dim": 1280, "ffn": 5120, "patch": 14, "tokens": 257, "classes": 1000},
}
SMALL_VIT = {"layers": 2, "dim": 48, "ffn": 80, "patch": 4, "tokens": 17, "classes": 7}


def llama(layers: int, dim: int, heads: int, kv: int, ffn: int, vocab: int, tied: bool = False) -> Shapes:
    """Keys and shapes of Meta's file."""
    head = dim // heads
    found: Shapes = {"tok_embeddings.weight": (vocab, dim)}
    for layer in (f"layers.{number}" for number in range(layers)):
        found |= {
            f"{layer}.attention.wq.weight": (dim, dim),
            f"{layer}.attention.wk.weight": (kv * head, dim),
            f"{layer}.attention.wv.weight": (kv * head, dim),
            f"{layer}.attention.wo.weight": (dim, dim),
            f"{layer}.feed_forward.w1.weight": (ffn, dim),
            f"{layer}.feed_forward.w2.weight": (dim, ffn),
            f"{layer}.feed_forward.w3.weight": (ffn, dim),
            f"{layer}.attention_norm.weight": (dim,),
            f"{layer}.ffn_norm.weight": (dim,),
        }
    found["norm.weight"] = (dim,)
    if not tied:
        found["output.weight"] = (vocab, dim)
    return found


def vit(layers: int, dim: int, ffn: int, patch: int, tokens: int, classes: int, bias: bool = True) -> Shapes:
    """Keys and shapes of timm's VisionTransformer; without classes there is no head."""

    def affine(name: str, *shape: int) -> Shapes:
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    found: Shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, tokens, dim)}
    found |= affine("patch_embed.proj", dim, 3, patch, patch)
    for block in (f"blocks.{number}" for number in range(layers)):
        found |= affine(f"{block}.norm1", dim)
        found |= affine(f"{block}.attn.qkv", 3 * dim, dim) if bias else {f"{block}.attn.qkv.weight": (3 * dim, dim)}
        found |= affine(f"{block}.attn.proj", dim, dim)
        found |= affine(f"{block}.norm2", dim)
        found |= affine(f"{block}.mlp.fc1", ffn, dim) | affine(f"{block}.mlp.fc2", dim, ffn)
    found |= affine("norm", dim)
    return found | affine("head", classes, dim) if classes else found


class Nowhere:
    """A file of which nothing may be read."""

    name = "nowhere.pth"
    size = 1 << 50

    def pread(self, offset: int, nbytes: int) -> bytes:
        raise AssertionError("read")

    def readinto(self, offset: int, buffer: memoryview) -> None:
        raise AssertionError("read")


def mapped(name: str, shapes: Shapes, *, reverse: bool = False, unmatched: str | None = None, **given: int) -> Resolved:
    recipe = load(name).reverse() if reverse else load(name)
    checkpoint = checkpoint_on(Nowhere(), {key: ("bf16", shape) for key, shape in shapes.items()})
    return resolve(recipe, checkpoint, given=given, unmatched=unmatched)


def made(resolved: Resolved) -> Shapes:
    return {tensor.key: tensor.shape for tensor in resolved.tensors}


def refused(name: str, shapes: Shapes, **given: Any) -> MapError:
    with pytest.raises(MapError) as caught:
        mapped(name, shapes, **given)
    return caught.value


@pytest.mark.parametrize("size", LLAMAS)
def test_every_key_of_a_whole_llama(size: str) -> None:
    shapes = llama(**LLAMAS[size])
    heads = {"heads": LLAMAS[size]["heads"], "kv_heads": LLAMAS[size]["kv"]}
    there = mapped(LLAMA, shapes | {"rope.freqs": (LLAMAS[size]["dim"] // heads["heads"] // 2,)}, **heads)
    assert there.dropped == ("rope.freqs",) and not (there.unused or there.filled or there.lost or there.warnings)
    assert {row.exact for row in there.rows} == {"exact"}
    source = checkpoint_on(Nowhere(), {key: ("bf16", shape) for key, shape in shapes.items()})
    there = resolve(load(LLAMA), source, given=heads)
    onto = {tensor.key: tensor for tensor in there.tensors}
    for row in there.rows:
        turned = row.sources[0].endswith((".wq.weight", ".wk.weight"))
        assert [step.text.split()[0] for step in row.steps] == (["rearrange"] if turned else [])
        span = onto[row.targets[0]].span
        assert span is None if turned else span == source[row.sources[0]].span
    back = mapped(LLAMA, made(there), reverse=True, **heads)
    tied = {"output.weight": shapes["tok_embeddings.weight"]} if LLAMAS[size].get("tied") else {}
    assert made(back) == shapes | tied
    assert back.filled == tuple(tied)


@pytest.mark.parametrize("size", VITS)
def test_every_key_of_a_whole_vit(size: str) -> None:
    shapes = vit(**VITS[size])
    there = mapped(VIT, shapes)
    assert not (there.dropped or there.unused or there.filled or there.warnings)
    assert {row.exact for row in there.rows} == {"exact"}
    assert all(tensor.span is not None for tensor in there.tensors)  # a third of qkv lies in one piece
    assert len(there.tensors) == len(shapes) + 4 * VITS[size]["layers"]
    back = mapped("hf-to-vit-timm", made(there))
    assert made(back) == shapes and not back.unused


def test_variants_of_vit() -> None:
    bare = vit(**{**SMALL_VIT, "classes": 0})
    features = made(mapped(VIT, bare))
    assert "classifier.weight" not in features and made(mapped(VIT, features, reverse=True)) == bare
    model = {key.removeprefix("vit."): shape for key, shape in features.items()}  # what ViTModel itself saves
    assert made(mapped(VIT, model, reverse=True)) == bare
    unbiased = vit(**SMALL_VIT, bias=False)
    assert made(mapped(VIT, made(mapped(VIT, unbiased)), reverse=True)) == unbiased
    whole = vit(**SMALL_VIT)
    for key, why in {
        "dist_token": "distilled DeiT",
        "head_dist.weight": "distilled DeiT",
        "pre_logits.fc.weight": "between norm and head",
        "reg_token": "register tokens",
        "blocks.1.ls1.gamma": "layer scale",
        "blocks.0.attn.q_norm.weight": "norms of queries",
        "fc_norm.weight": "behind the pooling",
    }.items():
        error = refused(VIT, whole | {key: (1, 1, 48)})
        assert f"'{key}'" in error.message and why in error.message
    pooled = made(mapped(VIT, whole)) | {"vit.pooler.dense.weight": (48, 48)}
    assert "--exclude '**pooler.**'" in refused(VIT, pooled, reverse=True).message
    flat = refused(VIT, whole | {"pos_embed": (1, 17, 40)})
    assert "'cls_token' is [1, 1, 48], not [1, 1, dim]: dim is 40 in 'pos_embed'" in flat.message
    shape = refused(VIT, whole | {"blocks.0.attn.qkv.weight": (48, 48)})
    assert "is [48, 48], not [3*dim, dim]" in shape.message


def test_heads_must_be_said_and_fit() -> None:
    shapes = llama(**{**LLAMAS["70b"], "layers": 2})
    right = {"heads": 64, "kv_heads": 8}
    theirs = made(mapped(LLAMA, shapes, **right))
    for name, there in ((LLAMA, shapes), ("hf-to-llama-meta", theirs)):
        asked = refused(name, there)
        assert "the variable 'heads' is not set" in asked.message and "n_heads in params.json" in asked.message
        assert "num_attention_heads in config.json" in asked.message and asked.hint == "--set heads=N"
        forgotten = refused(name, there, heads=64)
        assert "is [1024, 8192], not [64*2*half, dim]: half is 64 in" in forgotten.message
        assert forgotten.hint is not None and "--set heads=N --set kv_heads=N" in forgotten.hint
        assert "8192 is no multiple of 96" in refused(name, there, heads=48, kv_heads=8).message
        assert "half is 128 in" in refused(name, there, heads=32, kv_heads=8).message
    # What divides and agrees with itself is found out where the file has the frequencies.
    for frequencies in ("rope.freqs", "layers.0.attention.inner_attention.rope.freqs"):
        halved = refused(LLAMA, shapes | {frequencies: (64,)}, heads=32, kv_heads=4)
        assert f"half is 64 in '{frequencies}'" in halved.message
    old = theirs | {"model.layers.0.self_attn.rotary_emb.inv_freq": (64,)}
    assert mapped("hf-to-llama-meta", old, **right).dropped == ("model.layers.0.self_attn.rotary_emb.inv_freq",)
    assert "inv_freq" in refused("hf-to-llama-meta", old, heads=32, kv_heads=4).message


@pytest.mark.parametrize("of", ["vocabulary", "embedding"])
def test_a_part_of_a_model_is_refused(of: str) -> None:
    """consolidated.03.pth of eight: LLaMA 3 cut the embedding along the vocabulary, LLaMA 1 and 2 along its width."""
    shapes = llama(**{**LLAMAS["70b"], "layers": 2})
    part = {}
    for key, shape in shapes.items():
        rows = key.endswith(("wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight", "output.weight"))
        columns = key.endswith(("wo.weight", "w2.weight"))
        if key == "tok_embeddings.weight":
            rows, columns = of == "vocabulary", of == "embedding"
        part[key] = (shape[0] // 8, *shape[1:]) if rows else (shape[0], shape[1] // 8) if columns else shape
    for given in ({"heads": 64, "kv_heads": 8}, {"heads": 8, "kv_heads": 1}):
        error = refused(LLAMA, part, **given)
        assert "dim is 8192 in 'norm.weight'" in error.message
        assert error.hint is not None and "one of several model-parallel files" in error.hint


def test_keys_of_the_other_side() -> None:
    for name, shapes, turned in (
        (LLAMA, llama(**SMALL_LLAMA), "hf-to-llama-meta"),
        (VIT, vit(**SMALL_VIT), "hf-to-vit-timm"),
    ):
        given = {"heads": 4, "kv_heads": 2} if name == LLAMA else {}
        theirs = made(mapped(name, shapes, **given))
        assert refused(name, theirs).hint == f"its keys are those of the other side, 'hf': --map {turned}, or --reverse"
        assert f"--map {name}, or --reverse" in str(refused(turned, shapes).hint)
        assert "leave --reverse out" in str(refused(name, shapes, reverse=True).hint)
        assert "leave --reverse out" in str(refused(turned, theirs, reverse=True).hint)
    odd = llama(**SMALL_LLAMA) | {"layers.0.attention.wq.bias": (64,)}
    error = refused(LLAMA, odd, heads=4, kv_heads=2)
    assert "'layers.0.attention.wq.bias'" in error.message and "--unmatched" in str(error.hint)


def random(shapes: Shapes) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}


def test_values_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against transformers' own formula for the rotary order; with a part of the keys, another dtype, and shards."""
    from safetensors.numpy import load_file, save_file

    state, images = random(llama(**SMALL_LLAMA)), random(vit(**SMALL_VIT))
    source, other = str(tmp_path / "meta.safetensors"), str(tmp_path / "timm.safetensors")
    save_file(state, source)
    save_file(images, other)
    whole = tmp_path / "whole.safetensors"
    assert run(["convert", source, str(whole), "--map", LLAMA, *SET]) == 0
    found = load_file(whole)
    for short, name, heads in (("wq", "q_proj", 4), ("wk", "k_proj", 2)):
        for layer in range(2):
            weight = state[f"layers.{layer}.attention.{short}.weight"]
            turned = weight.reshape(heads, -1, 2, 64).transpose(0, 2, 1, 3).reshape(weight.shape)
            assert np.array_equal(found[f"model.layers.{layer}.self_attn.{name}.weight"], turned)
    assert np.array_equal(found["model.layers.1.mlp.down_proj.weight"], state["layers.1.feed_forward.w2.weight"])
    assert "`heads` and `kv_heads` decide" in capsys.readouterr().err

    part = tmp_path / "part"
    options = ["--include", "layers.*.attention.**", "--exclude", "**.wo.*", "--dtype", "f16", "--max-shard", "20kB", "--json"]
    assert run(["convert", source, str(part), "--map", LLAMA, *SET, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["map"]) == 6 and {row["exact"] for row in report["map"]} == {"exact"}
    halves = values(part)
    assert len(list(part.glob("*.safetensors"))) > 1 and len(halves) == 6
    for key, half in halves.items():
        assert np.array_equal(half, found[key].astype(np.float16))

    fused = tmp_path / "vit.safetensors"
    assert run(["convert", other, str(fused), "--map", VIT, "-q"]) == 0
    found = load_file(fused)
    for at, name in enumerate(("query", "key", "value")):
        for leaf in ("weight", "bias"):
            third = images[f"blocks.1.attn.qkv.{leaf}"][48 * at : 48 * (at + 1)]
            assert np.array_equal(found[f"vit.encoder.layer.1.attention.attention.{name}.{leaf}"], third)
    for converted, recipe, before, given in ((whole, LLAMA, source, SET), (fused, VIT, other, [])):
        back = tmp_path / f"back-{converted.name}"
        assert run(["convert", str(converted), str(back), "--map", recipe, "--reverse", *given, "-q"]) == 0
        same_bits(load_file(back), load_file(before))

    capsys.readouterr()
    for given, said in (([], "--set heads=N"), (["--set", "heads=3", "--set", "kv_heads=1"], "64 is no multiple of 6")):
        assert run(["convert", source, str(tmp_path / "no.safetensors"), "--map", LLAMA, *given]) == 2
        assert said in capsys.readouterr().err
    assert run(["convert", str(whole), str(tmp_path / "no.safetensors"), "--map", LLAMA, *SET]) == 2
    assert "hint: its keys are those of the other side, 'hf': --map hf-to-llama-meta" in capsys.readouterr().err
    assert not (tmp_path / "no.safetensors").exists()


def test_a_head_that_is_tied(tmp_path: Path) -> None:
    """Meta's loader leaves what is missing at random: a model without lm_head gives an output.weight all the same."""
    shapes = llama(**SMALL_LLAMA, tied=True)
    theirs = made(mapped(LLAMA, shapes, heads=4, kv_heads=2))
    assert "lm_head.weight" not in theirs
    back = mapped(LLAMA, theirs, reverse=True, heads=4, kv_heads=2)
    tensors = {tensor.key: tensor for tensor in back.tensors}
    assert back.filled == ("output.weight",)
    assert tensors["output.weight"].identity == tensors["tok_embeddings.weight"].identity
    for lacking in ("model.embed_tokens.weight", "model.norm.weight"):  # of one of several shards nothing is concluded
        shard = {key: shape for key, shape in theirs.items() if key != lacking}
        assert mapped(LLAMA, shard, reverse=True, heads=4, kv_heads=2).filled == ()
    untied = made(mapped(LLAMA, llama(**SMALL_LLAMA), heads=4, kv_heads=2))
    assert mapped(LLAMA, untied, reverse=True, heads=4, kv_heads=2).filled == ()


SET = ["--set", "heads=4", "--set", "kv_heads=2"]
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 112,
        "max_position_embeddings": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": 96,
    },
    "vit": {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": 48,
        "image_size": 16,
        "intermediate_size": 80,
        "layer_norm_eps": 1e-6,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "patch_size": 4,
        "id2label": {str(number): str(number) for number in range(7)},
    },
}

# Loads or makes models with transformers, whichever version is first on the path, and says what it loaded and computed.
PLAYER = """
import json, os, sys
import numpy as np, torch, transformers

torch.set_num_threads(1)
work, found = sys.argv[1], {"version": transformers.__version__}
for task in json.load(open(os.path.join(work, "tasks.json"))):
    folder, kind = os.path.join(work, task["folder"]), getattr(transformers, task["class"])
    if task["do"] == "keys":
        with torch.device("meta"):
            model = kind(transformers.AutoConfig.for_model(**task["config"]))
        found[task["name"]] = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
        continue
    if task["do"] == "make":
        torch.manual_seed(7)
        model = kind(transformers.AutoConfig.from_pretrained(folder))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.2)
        folder += "-" + found["version"][0]
        model.save_pretrained(folder)
        torch.save(model.state_dict(), os.path.join(folder, "running.pth"))
        told = {}
    else:
        model, told = kind.from_pretrained(folder, output_loading_info=True, dtype=torch.float32, attn_implementation="eager")
    given = torch.from_numpy(np.load(os.path.join(work, task["input"])))
    with torch.no_grad():
        out = model.eval()(given)
    out = out[0] if task["class"] == "ViTModel" else out.logits
    at = os.path.join(folder, task["name"] + "-" + found["version"][0] + ".npy")
    np.save(at, out.numpy())
    told = {name: sorted(map(str, told.get(name) or [])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    found[task["name"]] = {"out": at, "folder": folder, **told}
print(json.dumps(found))
"""


def played(work: Path, tasks: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What each version of transformers that is here makes of the tasks, by version; they work side by side."""
    (work / "tasks.json").write_text(json.dumps(tasks))
    env = {**os.environ, "USE_TF": "0", "USE_FLAX": "0", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    roads = {"5": env, "4": {**env, "PYTHONPATH": str(JUDGES)}} if JUDGES.is_dir() else {"5": env}
    running = {
        version: subprocess.Popen(
            [sys.executable, "-c", PLAYER, str(work)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=road
        )
        for version, road in roads.items()
    }
    found = {}
    for version, process in running.items():
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        found[version] = json.loads(out.splitlines()[-1])
        assert found[version]["version"].startswith(version + ".")
    return found


def meta_llama(tied: bool = False) -> Any:
    """A language model as Meta writes it: rotary pairs side by side, turned as complex numbers; grouped keys and values."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    dim, heads, kv, ffn, vocab, count = 64, 4, 2, 112, 96, 2
    head = dim // heads

    class RMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(dim))

        def forward(self, x: Any) -> Any:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight

    def rotated(x: Any, turns: Any) -> Any:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns[: x.shape[1], None]).flatten(3)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wq = nn.Linear(dim, heads * head, bias=False)
            self.wk = nn.Linear(dim, kv * head, bias=False)
            self.wv = nn.Linear(dim, kv * head, bias=False)
            self.wo = nn.Linear(heads * head, dim, bias=False)

        def forward(self, x: Any, turns: Any) -> Any:
            many, length, _ = x.shape
            q = rotated(self.wq(x).view(many, length, heads, head), turns)
            k = rotated(self.wk(x).view(many, length, kv, head), turns).repeat_interleave(heads // kv, 2)
            v = self.wv(x).view(many, length, kv, head).repeat_interleave(heads // kv, 2)
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            scores = q @ k.transpose(2, 3) / head**0.5
            scores = scores + torch.full((length, length), float("-inf")).triu(1)
            return self.wo((scores.softmax(-1) @ v).transpose(1, 2).reshape(many, length, -1))

    class FeedForward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w3 = nn.Linear(dim, ffn, bias=False), nn.Linear(dim, ffn, bias=False)
            self.w2 = nn.Linear(ffn, dim, bias=False)

        def forward(self, x: Any) -> Any:
            return self.w2(F.silu(self.w1(x)) * self.w3(x))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.feed_forward = Attention(), FeedForward()
            self.attention_norm, self.ffn_norm = RMSNorm(), RMSNorm()

        def forward(self, x: Any, turns: Any) -> Any:
            x = x + self.attention(self.attention_norm(x), turns)
            return x + self.feed_forward(self.ffn_norm(x))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tok_embeddings = nn.Embedding(vocab, dim)
            self.layers = nn.ModuleList(Block() for _ in range(count))
            self.norm = RMSNorm()
            self.output = nn.Linear(dim, vocab, bias=False)
            if tied:
                self.output.weight = self.tok_embeddings.weight
            frequencies = 1.0 / (10000.0 ** (torch.arange(0, head, 2).float() / head))
            angles = torch.outer(torch.arange(64).float(), frequencies)
            self.turns = torch.polar(torch.ones_like(angles), angles)

        def forward(self, tokens: Any) -> Any:
            x = self.tok_embeddings(tokens)
            for layer in self.layers:
                x = layer(x, self.turns)
            return self.output(self.norm(x))

    return shaken(Transformer())


def timm_vit() -> Any:
    """An image classifier with timm's names: q, k and v from one matrix, the norms before, exact GELU, epsilon 1e-6."""
    import torch
    from torch import nn

    dim, heads, ffn = 48, 4, 80

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

        def forward(self, x: Any) -> Any:
            many, length, _ = x.shape
            q, k, v = self.qkv(x).reshape(many, length, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
            x = (q @ k.transpose(-2, -1) * (dim // heads) ** -0.5).softmax(-1) @ v
            return self.proj(x.transpose(1, 2).reshape(many, length, dim))

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.act, self.fc2 = nn.Linear(dim, ffn), nn.GELU(), nn.Linear(ffn, dim)

        def forward(self, x: Any) -> Any:
            return self.fc2(self.act(self.fc1(x)))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
            self.attn, self.mlp = Attention(), Mlp()

        def forward(self, x: Any) -> Any:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Conv2d(3, dim, 4, 4)

        def forward(self, x: Any) -> Any:
            return self.proj(x).flatten(2).transpose(1, 2)

    class VisionTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
            self.pos_embed = nn.Parameter(torch.zeros(1, 17, dim))
            self.patch_embed = Patches()
            self.blocks = nn.Sequential(Block(), Block())
            self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, 7)

        def features(self, x: Any) -> Any:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], 1) + self.pos_embed
            return self.norm(self.blocks(x))

        def forward(self, x: Any) -> Any:
            return self.head(self.features(x)[:, 0])

    return shaken(VisionTransformer())


def shaken(model: Any) -> Any:
    """The model with random weights everywhere, so that none can stand for another."""
    import torch

    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.1)
    return model.eval()


def computed(model: Any, given: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(given)).numpy()


def close(ours: Any, theirs: Any, what: str) -> None:
    """Equal within float32 rounding of sums of some hundred terms."""
    difference, scale = float(np.abs(ours - theirs).max()), float(np.abs(ours).max())
    print(f"{what}: {difference:.1e} at {scale:.1f}")
    assert difference <= 2e-6 * max(scale, 1.0), (what, difference, scale)


def values(path: Path) -> dict[str, Any]:
    return {key: tensor.array() for key, tensor in open_checkpoint(str(path)).items()}


def same_bits(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert sorted(one) == sorted(other)
    for key in one:
        assert one[key].dtype == other[key].dtype and one[key].tobytes() == other[key].tobytes(), key
        assert one[key].shape == other[key].shape, key


def folder_for(work: Path, name: str, kind: str, **changes: Any) -> Path:
    """An empty model's folder of transformers, with its config.json beside it until the weights are there."""
    at = work / name
    at.mkdir(exist_ok=True)
    (at / "config.json").write_text(json.dumps(CONFIGS[kind] | changes))
    return at


def task(name: str, folder: str, do: str = "load", cls: str = "LlamaForCausalLM", **more: Any) -> dict[str, Any]:
    kind = "tokens.npy" if cls.startswith("Llama") else "images.npy"
    return {"name": name, "folder": folder, "do": do, "class": cls, "input": kind, **more}


@pytest.mark.frameworks
def test_forward_in_transformers(tmp_path: Path) -> None:
    """Meta's and timm's modules against both transformers, each loading what the other had, through wtool."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    tokens, images = rng.integers(0, 96, (2, 24)), rng.standard_normal((2, 3, 16, 16)).astype(np.float32)
    np.save(tmp_path / "tokens.npy", tokens)
    np.save(tmp_path / "images.npy", images)
    meta, tied, timm = meta_llama(), meta_llama(tied=True), timm_vit()
    halves = {key: tensor.to(torch.bfloat16) for key, tensor in meta.state_dict().items()}
    torch.save(meta.state_dict() | {"rope.freqs": torch.ones(8)}, tmp_path / "consolidated.00.pth")
    torch.save(halves, tmp_path / "bf16.00.pth")
    torch.save(tied.state_dict(), tmp_path / "tied.pth")
    torch.save({key: tensor for key, tensor in tied.state_dict().items() if key != "output.weight"}, tmp_path / "one.pth")
    torch.save(timm.state_dict(), tmp_path / "vit.pth")

    def convert(source: str, target: str, *options: str) -> None:
        assert run(["convert", str(tmp_path / source), str(tmp_path / target), *options, "-q"]) == 0

    for source, target, options in (
        ("consolidated.00.pth", "plain", []),
        ("bf16.00.pth", "sharded", ["--max-shard", "40kB"]),
        ("tied.pth", "tied", []),
        ("one.pth", "one", []),
    ):
        convert(source, target, "--map", LLAMA, *SET, *options)
        folder_for(tmp_path, target, "llama", tie_word_embeddings=target in ("tied", "one"))
    convert("vit.pth", "vit", "--map", VIT)
    folder_for(tmp_path, "vit", "vit")
    convert("vit.pth", "features", "--map", VIT, "--exclude", "head.*")
    folder_for(tmp_path, "features", "vit", architectures=["ViTModel"])
    trap = values(tmp_path / "plain")
    for key, tensor in meta.state_dict().items():
        for short, name in (("wq", "q_proj"), ("wk", "k_proj")):
            if f".{short}." in key:
                trap[f"model.{key.replace('attention.' + short, 'self_attn.' + name)}"] = tensor.numpy()
    folder_for(tmp_path, "trap", "llama")
    from safetensors.numpy import save_file

    save_file(trap, tmp_path / "trap" / "model.safetensors", {"format": "pt"})
    folder_for(tmp_path, "their-llama", "llama")
    folder_for(tmp_path, "their-vit", "vit")
    keys = [
        task(size, ".", "keys", config={"model_type": "llama", **sizes})
        for size, sizes in (("7b", full("7b")), ("70b", full("70b")))
    ]
    found = played(
        tmp_path,
        [
            *(task(name, name) for name in ("plain", "sharded", "tied", "one", "trap")),
            task("vit", "vit", cls="ViTForImageClassification"),
            task("features", "features", cls="ViTModel"),
            task("their-llama", "their-llama", "make"),
            task("their-vit", "their-vit", "make", "ViTForImageClassification"),
            *keys,
        ],
    )

    ours = {
        "plain": computed(meta, tokens),
        "tied": computed(tied, tokens),
        "one": computed(tied, tokens),
        "vit": computed(timm, images),
    }
    with torch.no_grad():
        ours["features"] = timm.features(torch.from_numpy(images)).numpy()
    meta.load_state_dict({key: tensor.float() for key, tensor in halves.items()})
    ours["sharded"] = computed(meta, tokens)
    for version, said in found.items():
        for name, out in ours.items():
            told = said[name]
            pooler = ["pooler.dense.bias", "pooler.dense.weight"] if name == "features" else []
            assert told["missing_keys"] == pooler, (version, name, told)
            assert not (told["unexpected_keys"] or told["mismatched_keys"]), (version, name, told)
            close(out, np.load(told["out"]), f"{name} in transformers {version}")
        # Every key and shape fits without the rotary order, and the model is another.
        assert not any(said["trap"][what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        trapped = float(np.abs(np.load(said["trap"]["out"]) - ours["plain"]).max())
        print(f"without the rotary order: {trapped:.2f}")
        assert trapped > 0.05
        for size in ("7b", "70b"):
            theirs = {key: tuple(shape) for key, shape in said[size].items()}
            heads = {"heads": LLAMAS[size]["heads"], "kv_heads": LLAMAS[size]["kv"]}
            assert made(mapped(LLAMA, llama(**LLAMAS[size]), **heads)) == theirs
        for name, model, given, recipe, options in (
            ("their-llama", meta, tokens, "hf-to-llama-meta", SET),
            ("their-vit", timm, images, "hf-to-vit-timm", []),
        ):
            for source in ("model.safetensors", "running.pth"):  # as it is saved, and as it is called while it runs
                convert(f"{name}-{version}/{source}", f"{name}-{version}/back.pth", "--map", recipe, *options, "--force")
                model.load_state_dict(torch.load(tmp_path / f"{name}-{version}" / "back.pth"))
                close(computed(model, given), np.load(said[name]["out"]), f"{name} of transformers {version} ({source})")

    for source, folder, recipe, options in (
        ("consolidated.00.pth", "plain", LLAMA, SET),
        ("bf16.00.pth", "sharded", LLAMA, SET),
        ("tied.pth", "tied", LLAMA, SET),
        ("tied.pth", "one", LLAMA, SET),
        ("vit.pth", "vit", VIT, []),
    ):
        convert(folder, f"{folder}/back.pth", "--map", recipe, "--reverse", *options)
        before = values(tmp_path / source)
        before.pop("rope.freqs", None)
        same_bits(before, values(tmp_path / folder / "back.pth"))
    back = torch.load(tmp_path / "one" / "back.pth")
    assert back["output.weight"].data_ptr() == back["tok_embeddings.weight"].data_ptr()


def full(size: str) -> dict[str, int]:
    """The configuration of transformers for a LLaMA of this size."""
    sizes = LLAMAS[size]
    return {
        "hidden_size": sizes["dim"],
        "intermediate_size": sizes["ffn"],
        "num_attention_heads": sizes["heads"],
        "num_hidden_layers": sizes["layers"],
        "num_key_value_heads": sizes["kv"],
        "vocab_size": sizes["vocab"],
    }
