"""Key sets of real models at full depth, in the order in which their files hold them; nothing is loaded, nothing is large."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import dtype
from wtool.views import filled

Shapes = dict[str, tuple[int, ...]]


def checkpoint(shapes: Mapping[str, tuple[int, ...]], path: str = "model.pth", format: str = "torch") -> Checkpoint:
    tensors = {key: filled(key, dtype("f32"), shape, 0) for key, shape in shapes.items()}
    return Checkpoint(tensors, Source(path, format, "zip", ()))


def alphabetical(shapes: Shapes) -> Shapes:
    return {key: shapes[key] for key in sorted(shapes)}


def bert_tf1(layers: int = 12, d: int = 768) -> Shapes:
    def layer_norm(at: str) -> Shapes:
        return {f"{at}/LayerNorm/beta": (d,), f"{at}/LayerNorm/gamma": (d,)}

    def dense(at: str, i: int, o: int) -> Shapes:
        return {f"{at}/kernel": (i, o), f"{at}/bias": (o,)}

    at = "bert/embeddings"
    found: Shapes = {f"{at}/word_embeddings": (30522, d), f"{at}/token_type_embeddings": (2, d)}
    found |= {f"{at}/position_embeddings": (512, d), **layer_norm(at)}
    for layer in range(layers):
        at = f"bert/encoder/layer_{layer}"
        for name in ("query", "key", "value"):
            found |= dense(f"{at}/attention/self/{name}", d, d)
        found |= dense(f"{at}/attention/output/dense", d, d) | layer_norm(f"{at}/attention/output")
        found |= dense(f"{at}/intermediate/dense", d, 4 * d) | dense(f"{at}/output/dense", 4 * d, d)
        found |= layer_norm(f"{at}/output")
    found |= dense("bert/pooler/dense", d, d) | {"cls/predictions/output_bias": (30522,)}
    found |= dense("cls/predictions/transform/dense", d, d) | layer_norm("cls/predictions/transform")
    return found | {"cls/seq_relationship/output_weights": (2, d), "cls/seq_relationship/output_bias": (2,)}


def bert_hf(layers: int = 12, d: int = 768) -> Shapes:
    def of(at: str, *shape: int) -> Shapes:
        return {f"{at}.weight": shape, f"{at}.bias": shape[:1]}

    at = "bert.embeddings"
    found: Shapes = {f"{at}.word_embeddings.weight": (30522, d), f"{at}.position_embeddings.weight": (512, d)}
    found |= {f"{at}.token_type_embeddings.weight": (2, d), **of(f"{at}.LayerNorm", d)}
    for layer in range(layers):
        at = f"bert.encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            found |= of(f"{at}.attention.self.{name}", d, d)
        found |= of(f"{at}.attention.output.dense", d, d) | of(f"{at}.attention.output.LayerNorm", d)
        found |= (
            of(f"{at}.intermediate.dense", 4 * d, d) | of(f"{at}.output.dense", d, 4 * d) | of(f"{at}.output.LayerNorm", d)
        )
    found |= of("bert.pooler.dense", d, d) | {"cls.predictions.bias": (30522,)}
    found |= of("cls.predictions.transform.dense", d, d) | of("cls.predictions.transform.LayerNorm", d)
    found |= {"cls.predictions.decoder.weight": (30522, d), "cls.predictions.decoder.bias": (30522,)}
    return found | of("cls.seq_relationship", 2, d)


def gpt2_tf1(layers: int = 12, d: int = 768) -> Shapes:
    found: Shapes = {"model/wpe": (1024, d), "model/wte": (50257, d)}
    for layer in range(layers):
        at = f"model/h{layer}"
        found |= {f"{at}/ln_1/g": (d,), f"{at}/ln_1/b": (d,)}
        found |= {f"{at}/attn/c_attn/w": (1, d, 3 * d), f"{at}/attn/c_attn/b": (3 * d,)}
        found |= {f"{at}/attn/c_proj/w": (1, d, d), f"{at}/attn/c_proj/b": (d,)}
        found |= {f"{at}/ln_2/g": (d,), f"{at}/ln_2/b": (d,)}
        found |= {f"{at}/mlp/c_fc/w": (1, d, 4 * d), f"{at}/mlp/c_fc/b": (4 * d,)}
        found |= {f"{at}/mlp/c_proj/w": (1, 4 * d, d), f"{at}/mlp/c_proj/b": (d,)}
    return found | {"model/ln_f/g": (d,), "model/ln_f/b": (d,)}


def gpt2_hf(layers: int = 12, d: int = 768) -> Shapes:
    found: Shapes = {"transformer.wte.weight": (50257, d), "transformer.wpe.weight": (1024, d)}
    for layer in range(layers):
        at = f"transformer.h.{layer}"
        found |= {f"{at}.ln_1.weight": (d,), f"{at}.ln_1.bias": (d,)}
        found |= {f"{at}.attn.c_attn.weight": (d, 3 * d), f"{at}.attn.c_attn.bias": (3 * d,)}
        found |= {f"{at}.attn.c_proj.weight": (d, d), f"{at}.attn.c_proj.bias": (d,)}
        found |= {f"{at}.ln_2.weight": (d,), f"{at}.ln_2.bias": (d,)}
        found |= {f"{at}.mlp.c_fc.weight": (d, 4 * d), f"{at}.mlp.c_fc.bias": (4 * d,)}
        found |= {f"{at}.mlp.c_proj.weight": (4 * d, d), f"{at}.mlp.c_proj.bias": (d,)}
    return found | {"transformer.ln_f.weight": (d,), "transformer.ln_f.bias": (d,), "lm_head.weight": (50257, d)}


def gpt2_linear(layers: int = 12, d: int = 768) -> Shapes:
    """nanoGPT's: the names of Hugging Face's, torch's own Linear."""
    dense = ("c_attn", "c_proj", "c_fc")
    return {
        key: shape[::-1] if len(shape) == 2 and any(name in key for name in dense) else shape
        for key, shape in gpt2_hf(layers, d).items()
    }


def llama_meta(layers: int = 32, d: int = 4096, f: int = 11008) -> Shapes:
    found: Shapes = {"tok_embeddings.weight": (32000, d)}
    for layer in range(layers):
        at = f"layers.{layer}"
        found |= {f"{at}.attention.{name}.weight": (d, d) for name in ("wq", "wk", "wv", "wo")}
        found |= {f"{at}.feed_forward.w1.weight": (f, d), f"{at}.feed_forward.w2.weight": (d, f)}
        found |= {f"{at}.feed_forward.w3.weight": (f, d)}
        found |= {f"{at}.attention_norm.weight": (d,), f"{at}.ffn_norm.weight": (d,)}
    return found | {"norm.weight": (d,), "output.weight": (32000, d)}


def llama_hf(layers: int = 32, d: int = 4096, f: int = 11008) -> Shapes:
    found: Shapes = {"model.embed_tokens.weight": (32000, d)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        found |= {f"{at}.self_attn.{name}_proj.weight": (d, d) for name in "qkvo"}
        found |= {f"{at}.mlp.gate_proj.weight": (f, d), f"{at}.mlp.up_proj.weight": (f, d)}
        found |= {f"{at}.mlp.down_proj.weight": (d, f), f"{at}.input_layernorm.weight": (d,)}
        found |= {f"{at}.post_attention_layernorm.weight": (d,)}
    return found | {"model.norm.weight": (d,), "lm_head.weight": (32000, d)}


def vit_timm(layers: int = 12, d: int = 768) -> Shapes:
    def of(at: str, *shape: int) -> Shapes:
        return {f"{at}.weight": shape, f"{at}.bias": shape[:1]}

    found: Shapes = {"cls_token": (1, 1, d), "pos_embed": (1, 197, d), **of("patch_embed.proj", d, 3, 16, 16)}
    for layer in range(layers):
        at = f"blocks.{layer}"
        found |= of(f"{at}.norm1", d) | of(f"{at}.attn.qkv", 3 * d, d) | of(f"{at}.attn.proj", d, d)
        found |= of(f"{at}.norm2", d) | of(f"{at}.mlp.fc1", 4 * d, d) | of(f"{at}.mlp.fc2", d, 4 * d)
    return found | of("norm", d) | of("head", 1000, d)


def vit_hf(layers: int = 12, d: int = 768) -> Shapes:
    def of(at: str, *shape: int) -> Shapes:
        return {f"{at}.weight": shape, f"{at}.bias": shape[:1]}

    at = "vit.embeddings"
    found: Shapes = {f"{at}.cls_token": (1, 1, d), f"{at}.position_embeddings": (1, 197, d)}
    found |= of(f"{at}.patch_embeddings.projection", d, 3, 16, 16)
    for layer in range(layers):
        at = f"vit.encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            found |= of(f"{at}.attention.attention.{name}", d, d)
        found |= of(f"{at}.attention.output.dense", d, d) | of(f"{at}.intermediate.dense", 4 * d, d)
        found |= of(f"{at}.output.dense", d, 4 * d) | of(f"{at}.layernorm_before", d) | of(f"{at}.layernorm_after", d)
    return found | of("vit.layernorm", d) | of("classifier", 1000, d)


def torch_norm(at: str, c: int) -> Shapes:
    found: Shapes = {f"{at}.{leaf}": (c,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return found | {f"{at}.num_batches_tracked": ()}


def keras_norm(at: str, c: int) -> Shapes:
    return {f"{at}/{leaf}": (c,) for leaf in ("gamma", "beta", "moving_mean", "moving_variance")}


def _stages() -> Iterator[tuple[int, int, int, int, int]]:
    """Stage, block, channels in, in the middle, out."""
    entering = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(blocks):
            yield stage, block, entering, width, 4 * width
            entering = 4 * width


def resnet50_torch() -> Shapes:
    found: Shapes = {"conv1.weight": (64, 3, 7, 7), **torch_norm("bn1", 64)}
    for stage, block, i, m, o in _stages():
        at = f"layer{stage + 1}.{block}"
        found |= {f"{at}.conv1.weight": (m, i, 1, 1), **torch_norm(f"{at}.bn1", m)}
        found |= {f"{at}.conv2.weight": (m, m, 3, 3), **torch_norm(f"{at}.bn2", m)}
        found |= {f"{at}.conv3.weight": (o, m, 1, 1), **torch_norm(f"{at}.bn3", o)}
        if block == 0:
            found |= {f"{at}.downsample.0.weight": (o, i, 1, 1), **torch_norm(f"{at}.downsample.1", o)}
    return found | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def resnet50_keras() -> Shapes:
    def conv(at: str, *shape: int) -> Shapes:
        return {f"{at}_conv/kernel": shape, f"{at}_conv/bias": shape[-1:]}

    found: Shapes = {**conv("conv1", 7, 7, 3, 64), **keras_norm("conv1_bn", 64)}
    for stage, block, i, m, o in _stages():
        at = f"conv{stage + 2}_block{block + 1}"
        found |= conv(f"{at}_1", 1, 1, i, m) | keras_norm(f"{at}_1_bn", m)
        found |= conv(f"{at}_2", 3, 3, m, m) | keras_norm(f"{at}_2_bn", m)
        found |= conv(f"{at}_0", 1, 1, i, o) if block == 0 else {}
        found |= conv(f"{at}_3", 1, 1, m, o)
        found |= keras_norm(f"{at}_0_bn", o) if block == 0 else {}
        found |= keras_norm(f"{at}_3_bn", o)
    return found | {"predictions/kernel": (2048, 1000), "predictions/bias": (1000,)}


def _inverted() -> Iterator[tuple[int, int, int, int]]:
    """Block, channels in, in the middle, out; the first has no expansion."""
    entering, block = 32, 0
    for times, o, n in ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)):
        for _ in range(n):
            yield block, entering, times * entering, o
            entering, block = o, block + 1


def mobilenet_torch() -> Shapes:
    found: Shapes = {"features.0.0.weight": (32, 3, 3, 3), **torch_norm("features.0.1", 32)}
    for block, i, m, o in _inverted():
        at = f"features.{block + 1}.conv"
        if block:
            found |= {f"{at}.0.0.weight": (m, i, 1, 1), **torch_norm(f"{at}.0.1", m)}
        one = f"{at}.{1 if block else 0}"
        found |= {f"{one}.0.weight": (m, 1, 3, 3), **torch_norm(f"{one}.1", m)}
        last = 2 if block else 1
        found |= {f"{at}.{last}.weight": (o, m, 1, 1), **torch_norm(f"{at}.{last + 1}", o)}
    found |= {"features.18.0.weight": (1280, 320, 1, 1), **torch_norm("features.18.1", 1280)}
    return found | {"classifier.1.weight": (1000, 1280), "classifier.1.bias": (1000,)}


def mobilenet_keras() -> Shapes:
    found: Shapes = {"Conv1/kernel": (3, 3, 3, 32), **keras_norm("bn_Conv1", 32)}
    for block, i, m, o in _inverted():
        at = f"block_{block}" if block else "expanded_conv"
        if block:
            found |= {f"{at}_expand/kernel": (1, 1, i, m), **keras_norm(f"{at}_expand_BN", m)}
        found |= {f"{at}_depthwise/kernel": (3, 3, m, 1), **keras_norm(f"{at}_depthwise_BN", m)}
        found |= {f"{at}_project/kernel": (1, 1, m, o), **keras_norm(f"{at}_project_BN", o)}
    found |= {"Conv_1/kernel": (1, 1, 320, 1280), **keras_norm("Conv_1_bn", 1280)}
    return found | {"predictions/kernel": (1280, 1000), "predictions/bias": (1000,)}


_VGG = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16_torch() -> Shapes:
    found: Shapes = {}
    entering, place = 3, 0
    for stage in _VGG:
        for o in stage:
            found |= {f"features.{place}.weight": (o, entering, 3, 3), f"features.{place}.bias": (o,)}
            entering, place = o, place + 2
        place += 1
    for at, i, o in ((0, 25088, 4096), (3, 4096, 4096), (6, 4096, 1000)):
        found |= {f"classifier.{at}.weight": (o, i), f"classifier.{at}.bias": (o,)}
    return found


def vgg16_keras() -> Shapes:
    found: Shapes = {}
    entering = 3
    for block, stage in enumerate(_VGG, 1):
        for place, o in enumerate(stage, 1):
            at = f"block{block}_conv{place}"
            found |= {f"{at}/kernel": (3, 3, entering, o), f"{at}/bias": (o,)}
            entering = o
    for at, i, o in (("fc1", 25088, 4096), ("fc2", 4096, 4096), ("predictions", 4096, 1000)):
        found |= {f"{at}/kernel": (i, o), f"{at}/bias": (o,)}
    return found
