"""Which weights quantization leaves alone unless it is asked for them, told from keys and shapes, and what lies beside."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from wtool.keys import SEPARATORS
from wtool.ops.spared import spared, words
from wtool.tensor import LazyTensor

SMALL = 4096  # weights of a tensor that is not worth its scales
_HEADS = frozenset(["lm_head", "head", "embed_out", "output", "logits", "classifier", "score", "output_layer", "qa_outputs"])
_ROUTERS = frozenset(["router", "gate_inp", "shared_expert_gate", "wg"])
_CONVOLUTIONS = ("conv", "patch_embed", "patch_embedding", "downsample")
_TOWERS = frozenset(["vision", "visual", "audio", "image", "speech", "mm", "multimodal"])
_LANGUAGE = frozenset(["language_model", "lm_head", "embed_tokens", "llm", "wte"])
_DRAFTS = frozenset(["mtp", "nextn", "mtp_layers", "mtp_block"])
_STATES = frozenset(["a_log", "dt_bias", "a", "d"])
_FEW = 512  # rows of a `gate` that may be a router, where nothing tells how many experts there are
_EXPERT = re.compile(r"(.*?)(?:^|\.)[a-z_]*experts\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What one key alone does not tell: numbers of experts, and the modules in which a tensor of some name lies."""

    experts: frozenset[int]  # counted from keys and stacks, or given
    talks: bool  # a language model is there, so that towers are towers
    drafts: frozenset[str]  # modules that guess further tokens
    states: frozenset[str]  # modules of state space models
    turned: frozenset[str]  # keys of matrices [in, out]

    @classmethod
    def of(cls, tensors: Mapping[str, LazyTensor], experts: tuple[int, ...] = ()) -> Surroundings:
        counted: dict[str, int] = {}
        stacks = set(experts)
        for key, tensor in tensors.items():
            if match := _EXPERT.match(key):
                counted[match[1]] = max(counted.get(match[1], 0), int(match[2]) + 1)
            elif len(tensor.shape) == 3 and "experts" in key:
                stacks.add(tensor.shape[0])
        parents = {key: key.rpartition(".")[0].rpartition(".")[0] for key in tensors}
        return cls(
            frozenset(stacks.union(counted.values())),
            any(_LANGUAGE.intersection(key.split(".")) for key in tensors),
            frozenset(f"{parents[key]}." for key in tensors if key.endswith(".eh_proj.weight")),
            frozenset(key.removesuffix(".A_log") for key in tensors if key.endswith(".A_log")),
            frozenset(key for key, tensor in tensors.items() if _turned(key, tensor, parents[key], tensors)),
        )


def _turned(key: str, tensor: LazyTensor, parent: str, tensors: Mapping[str, LazyTensor]) -> bool:
    """Whether it is the weight of GPT-2's Conv1D, [in, out]: Linear's siblings of the same names are wider than tall."""
    if len(tensor.shape) != 2 or not key.endswith((".c_attn.weight", ".c_fc.weight", ".c_proj.weight", ".q_attn.weight")):
        return False
    for name in ("c_attn", "c_fc"):
        other = tensors.get(f"{parent}.{name}.weight")
        if other is not None and len(other.shape) == 2:
            return other.shape[0] < other.shape[1]
    return False


def left(key: str, tensor: LazyTensor, around: Surroundings) -> str:
    """Why a tensor is better left as it is, in a few words; empty if it is none of these."""
    why = spared(key, tensor)
    parts = re.split(f"[{re.escape(SEPARATORS)}]", key)
    module = parts[-2] if len(parts) > 1 else ""
    if why:
        return "an output layer" if module == "embed_out" and why == "an embedding" else why
    if len(tensor.shape) < 2:
        return "of fewer than two axes"
    if _DRAFTS.intersection(parts) or any(key.startswith(prefix) for prefix in around.drafts if prefix != "."):
        return "guesses further tokens (MTP)"
    if _head(parts, module):
        return "an output layer"
    if _router(parts, module, tensor.shape, around):
        return "a router"
    if any(sign in part.lower() for part in parts[-3:-1] for sign in _CONVOLUTIONS) or len(tensor.shape) > 3:
        return "a convolution"
    if words(parts[-1]) & {"pos", "position", "token", "query"}:
        return "learned positions or tokens"
    if around.talks and any(
        _TOWERS & set(part.lower().replace("multi_modal", "multimodal").split("_")) for part in parts[:-1]
    ):
        return "of a vision or audio tower"
    parent = ".".join(parts[:-2])
    if (
        parts[-1].lower() in _STATES
        or parts[-1].startswith("time_")
        or (module in ("x_proj", "dt_proj") and parent in around.states)
    ):
        return "steers a state"
    return f"fewer than {SMALL:,} weights" if tensor.elements < SMALL else ""


def _split(part: str) -> list[str]:
    return part.lower().replace("multi_modal", "multimodal").split("_")


def _head(parts: list[str], module: str) -> bool:
    if module in _HEADS or (module in ("weight", "") and parts[0] in _HEADS):
        return True
    above = parts[-3] if len(parts) > 2 else ""
    return above == "classifier" or (above == "predictions" and module == "decoder") or parts[:-1] == ["proj_out"]


def _router(parts: list[str], module: str, shape: tuple[int, ...], around: Surroundings) -> bool:
    """`gate` is also the name of gates as wide as the model (RWKV): it must have a row for each expert."""
    rows, columns = shape[0], shape[-1]
    if _ROUTERS.intersection(parts[-3:-1]):
        return rows <= 2 * _FEW
    if module != "gate":
        return False
    return rows in around.experts if around.experts else rows <= _FEW and 2 * rows <= columns
