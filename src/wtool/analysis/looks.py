"""What kind of model the keys look like: a guess for people, told as one, and never used to decide anything.

The patterns are the parameter names of each family's reference implementation (transformers, diffusers, timm, torchvision,
and the original repositories).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_DIGITS = re.compile("[0-9]+")
_LAYER = re.compile(r"(?:^|[./])((?:[a-z_]*_)?(?:layers?|blocks?|h|resblocks))[._/]?(\d{1,4})(?=[./])")

# The first row whose words all occur in the keys (every number written as #) wins, so special kinds come first.
_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a Stable Diffusion XL checkpoint", ("model.diffusion_model.input_blocks.#", "conditioner.embedders.#")),
    ("a Stable Diffusion checkpoint", ("model.diffusion_model.input_blocks.#", "first_stage_model.")),
    ("a Stable Diffusion UNet", ("diffusion_model.input_blocks.#",)),
    ("a Stable Diffusion 3 transformer", ("joint_blocks.#.context_block",)),
    ("a FLUX transformer", ("double_blocks.#.img_attn", "single_blocks.#")),
    ("a FLUX transformer", ("single_transformer_blocks.#", "transformer_blocks.#")),
    ("a Stable Diffusion XL UNet", ("down_blocks.#.resnets.#", "add_embedding.linear_#")),
    ("a VAE of a diffusion model", ("decoder.up_blocks.#.resnets", "encoder.down_blocks.#.resnets")),
    ("a Stable Diffusion UNet", ("down_blocks.#.attentions.#", "up_blocks.#.resnets.#")),
    ("a ControlNet", ("controlnet_cond_embedding", "controlnet_down_blocks.#")),
    ("LLaVA (vision and language)", ("vision_tower.", "mm_projector")),
    ("LLaVA (vision and language)", ("vision_tower.", "multi_modal_projector")),
    ("CLIP", ("text_model.encoder.layers.#", "vision_model.encoder.layers.#")),
    ("CLIP", ("visual.", "transformer.resblocks.#", "text_projection")),
    ("a CLIP text encoder", ("text_model.encoder.layers.#",)),
    ("a CLIP vision encoder", ("vision_model.encoder.layers.#",)),
    ("Segment Anything", ("image_encoder.blocks.#.attn", "mask_decoder.")),
    ("Whisper", ("encoder.conv#.", "decoder.layers.#.encoder_attn")),
    ("Whisper", ("encoder.conv#.", "decoder.blocks.#.cross_attn")),
    ("wav2vec 2.0", ("feature_extractor.conv_layers.#", "encoder.layers.#.attention")),
    ("T5", ("block.#.layer.#.SelfAttention",)),
    ("BART", ("decoder.layers.#.encoder_attn", "layernorm_embedding")),
    ("an encoder-decoder transformer", ("decoder.layers.#.encoder_attn", "encoder.layers.#.self_attn")),
    ("an encoder-decoder transformer", ("decoder.layers.#.multihead_attn", "encoder.layers.#.self_attn")),
    ("ALBERT", ("albert_layer_groups",)),
    ("DeBERTa", ("encoder.rel_embeddings", "encoder.layer.#.attention")),
    ("DistilBERT", ("transformer.layer.#.attention.q_lin",)),
    ("RoBERTa", ("roberta.encoder.layer.#.attention",)),
    ("ELECTRA", ("electra.encoder.layer.#.attention",)),
    ("ViT", ("embeddings.patch_embeddings", "encoder.layer.#.attention")),
    ("BERT", ("embeddings.word_embeddings", "encoder.layer.#.attention.self.query")),
    ("BERT", ("embeddings/word_embeddings", "encoder/layer_#/attention/self/query")),
    ("BERT", ("embeddings.LayerNorm", "encoder.layer.#.attention.self")),
    ("GPT-2", ("h.#.attn.c_attn",)),
    ("GPT-2", ("h#/attn/c_attn",)),
    ("GPT-J", ("h.#.attn.q_proj", "h.#.mlp.fc_in")),
    ("GPT-NeoX", ("layers.#.attention.query_key_value", "layers.#.mlp.dense_h_to_#h")),
    ("BLOOM", ("h.#.self_attention.query_key_value", "word_embeddings_layernorm")),
    ("Falcon", ("h.#.self_attention.query_key_value",)),
    ("OPT", ("decoder.layers.#.self_attn.q_proj", "decoder.embed_positions")),
    ("DeepSeek", ("layers.#.self_attn.kv_a_proj_with_mqa",)),
    ("Mixtral", ("layers.#.block_sparse_moe.experts.#",)),
    ("a LLaMA-like mixture of experts", ("layers.#.self_attn.q_proj", "layers.#.mlp.experts.")),
    ("Gemma", ("layers.#.self_attn.q_proj", "layers.#.pre_feedforward_layernorm")),
    ("Qwen3", ("layers.#.self_attn.q_norm", "layers.#.mlp.gate_proj")),
    ("a LLaMA-like transformer", ("layers.#.self_attn.q_proj", "layers.#.mlp.gate_proj")),
    ("LLaMA", ("layers.#.attention.wq", "layers.#.feed_forward.w#")),
    ("Phi-3", ("layers.#.self_attn.qkv_proj", "layers.#.mlp.gate_up_proj")),
    ("Phi", ("layers.#.self_attn.dense", "layers.#.mlp.fc#")),
    ("Mamba", ("layers.#.mixer.A_log",)),
    ("RWKV", ("blocks.#.att.", "blocks.#.ffn.")),
    ("a Swin transformer", ("layers.#.blocks.#.attn.relative_position_bias_table",)),
    ("ViT", ("patch_embed.proj", "blocks.#.attn.qkv")),
    ("ViT", ("conv_proj.", "encoder_layer_#.self_attention")),
    ("ConvNeXt", ("stages.#.", "dwconv.weight")),
    ("ConvNeXt", ("stages.#.blocks.#.conv_dw",)),
    ("DenseNet", ("denseblock#.denselayer#",)),
    ("Inception", ("Mixed_#", "Conv#d_#")),
    ("MobileNet or EfficientNet", ("blocks.#.#.conv_dw", "blocks.#.#.conv_pw")),
    ("MobileNet", ("features.#.conv.#.#.weight",)),
    ("EfficientNet", ("features.#.#.block.#.#",)),
    ("MobileNet", ("features.#.block.#.#",)),
    ("MobileNet", ("conv_dw_#",)),
    ("MobileNet", ("block_#_expand",)),
    ("YOLO", ("model.#.cv#.conv", "model.#.m.#")),
    ("VGG", ("features.#.weight", "classifier.#.weight")),
)
_CONVOLUTION = re.compile(r"(?:^|\.)layer[1-4]\.\d+\.conv\d\.weight$")


def looks_like(keys: Iterable[str]) -> str | None:
    """`GPT-2, 12 layers`, or None where no kind fits. `keys` are those of the model's weights."""
    keys = list(keys)
    words = "\n".join(sorted({_DIGITS.sub("#", key) for key in keys}))
    if "lora_" in words and sum("lora_" in key for key in keys) * 2 > len(keys):
        return "a LoRA adapter"
    if "\nconv#.weight" in "\n" + words or ".conv#.weight" in words:
        # Named after their weighted layers: the stem, the convolutions of the blocks, the classifier.
        depth = sum(1 for key in keys if _CONVOLUTION.search(key))
        if depth:
            return f"ResNet-{depth + 2}" if depth + 2 in (18, 34, 50, 101, 152) else "a ResNet"
    for name, needed in _KINDS:
        if all(word in words for word in needed):
            layers = _layers(keys)
            return f"{name}, {layers} layers" if layers > 1 else name
    return None


def _layers(keys: list[str]) -> int:
    """How many numbers the most numerous kind of block goes through."""
    numbers: dict[str, set[str]] = {}
    for key in keys:
        match = _LAYER.search(key)
        if match:
            numbers.setdefault(key[: match.end(1)], set()).add(match[2])
    return max(map(len, numbers.values()), default=0)
