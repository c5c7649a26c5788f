"""The config.json beside a checkpoint, and the other small files of a Hugging Face folder: read, told anew, written with it.

`read(source)` finds the config of a checkpoint; `fewer_layers` and `fewer_experts` change it; `files_beside` is what
`api.save` takes as `beside`. Nothing in a config is believed that does not fit the tensors.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wtool.errors import CorruptError, MismatchError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from wtool.bytesource import ByteSource

NAME = "config.json"
_LARGEST = 8 << 20  # bytes of a config.json
_SMALL = 64 << 20  # and of what comes along
_WEIGHTS = re.compile(
    r"(?i).*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|gguf|onnx|npz|tflite|ot|data-\d+-of-\d+|index)|.*\.index(\.\w+)?\.json"
)
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
_ENCODERS = ("encoder_layers", "num_encoder_layers")
_DECODERS = ("decoder_layers", "num_decoder_layers")
_MORE = ("num_nextn_predict_layers", "mtp_num_hidden_layers")  # layers at the end of the list that the depth does not count
# fmt: off
_NUMBERED = {  # lists of numbers of layers
    "mlp_only_layers", "cross_attention_layers", "moe_layers", "hybrid_layer_ids", "attn_layer_indices",
    "full_attn_idxs", "global_attn_indexes", "attn_layer_ids",
}
_LEADING = ("first_k_dense_replace", "max_window_layers", "num_dense_layers")  # how many layers at the front are otherwise
_PERIODS = (
    "decoder_sparse_step", "encoder_sparse_step", "moe_layer_freq", "moe_every_n_layers", "interleave_moe_layer_step",
    "attn_layer_period", "expert_layer_period", "full_attention_interval", "sliding_window_pattern",
    "no_rope_layer_interval", "global_attn_every_n_layers", "hybrid_attention_period", "cross_attention_freq",
)
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
_CALLED = (
    "num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "top_k_experts", "num_selected_experts",
    "moe_k",
)
_TOLD = {  # what tells it layer by layer, so that the period counts no more
    "sliding_window_pattern": "layer_types", "full_attention_interval": "layer_types",
    "global_attn_every_n_layers": "layer_types", "no_rope_layer_interval": "no_rope_layers",
    "interleave_moe_layer_step": "moe_layers", "decoder_sparse_step": "mlp_layer_types",
}
# fmt: on
_PARTS = {"vision": ("vis", "image"), "text": ("language", "text", "llm"), "audio": ("audio", "speech")}


def read(source: str) -> dict[str, Any] | None:
    """The config.json of a folder, or beside a file; None where there is none. CorruptError."""
    path = os.path.join(source if os.path.isdir(source) else os.path.dirname(source), NAME)
    if not os.path.isfile(path):
        return None
    from wtool.bytesource import LocalFile

    file = LocalFile(path)
    try:
        found = json.loads(file.pread(0, file.size)) if file.size <= _LARGEST else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CorruptError("is no JSON object", path=path)
    return found


def written(config: Mapping[str, Any]) -> bytes:
    """As Hugging Face's libraries indent it, in the order it had."""
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def files_beside(source: str, config: Mapping[str, Any] | None, target: str) -> tuple[dict[str, ByteSource], list[str]]:
    """What goes into a target folder beside the tensors: the config, and all small files of the source folder, by name.

    Weights, folders and dot files stay behind; so does everything where the target is the source itself. Then the names of
    files that are too large.
    """
    from wtool.bytesource import LocalFile, MemoryBytes

    folder = source if os.path.isdir(source) else os.path.dirname(source) or "."
    found: dict[str, ByteSource] = {}
    large = []
    if not (os.path.isdir(target) and os.path.samefile(folder, target)):
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not name.startswith(".") and not _WEIGHTS.fullmatch(name):
                if os.path.getsize(path) > _SMALL:
                    large.append(name)
                else:
                    found[name] = LocalFile(path)
    if config is not None:
        found[NAME] = MemoryBytes(written(config), NAME)
    return found, large


def fewer_layers(
    config: Mapping[str, Any], lists: Mapping[str, Sequence[int]], numbers: Sequence[int]
) -> tuple[dict[str, Any], list[str]]:
    """The config without layers `numbers` of these lists (prefix -> all its numbers), and what a person should know.

    MismatchError where it counts other layers than there are; UnsupportedError where layers are what they are by their
    number, and what stays would be taken for something else.
    """
    found: dict[str, Any] = json.loads(json.dumps(config))
    notes: list[str] = []
    done: set[tuple[str, ...]] = set()
    for prefix, layers in lists.items():
        part, where = _part(found, prefix)
        names, more = _depths(part, prefix, len(layers), not where and bool(found.get("is_encoder_decoder")))
        said = ", ".join(
            f"{where}{name} is {part[name]}" for name in (*_DEPTHS, *_ENCODERS, *_DECODERS) if _number(part, name)
        )
        if not names:
            what = said or "it does not say how many layers there are"
            hint = "write to a file, which takes no config.json along, and mend it by hand"
            raise MismatchError(f"{NAME}: {what}, and '{prefix}' has {len(layers)}", hint=hint)
        if (where, *names) in done:
            continue
        done.add((where, *names))
        _shorten(part, names, layers, numbers, len(layers) - more, where, notes)
    return found, notes


def _part(config: dict[str, Any], prefix: str) -> tuple[dict[str, Any], str]:
    """The part of the config that tells of these layers, and its name."""
    words = prefix.lower()
    for kind, signs in _PARTS.items():
        if any(sign in words for sign in signs):
            for name in (f"{kind}_config", f"{kind}_cfg"):
                if isinstance(config.get(name), dict):
                    return config[name], f"{name}."
    side = "decoder" if "decoder" in words else "encoder"
    if side in words and isinstance(config.get(side), dict):
        return config[side], f"{side}."
    if not any(_number(config, name) for name in (*_DEPTHS, *_ENCODERS, *_DECODERS)):
        for name in ("text_config", "llm_config", "language_config", "model"):
            if isinstance(config.get(name), dict):
                return config[name], f"{name}."
    return config, ""


def _depths(part: dict[str, Any], prefix: str, count: int, both: bool) -> tuple[list[str], int]:
    """The names that count these layers, and how many layers of the list they do not count."""
    words = prefix.lower()
    decoder, encoder = "decoder" in words, "encoder" in words
    plain = [name for name in _DEPTHS if _number(part, name)]
    names = plain
    if decoder and (both or any(_number(part, name) for name in _DECODERS)):
        names = [name for name in _DECODERS if _number(part, name)]
        if not names and "num_layers" in plain:  # T5: as many as the encoder has, unless it says so
            part["num_decoder_layers"] = part["num_layers"]
            names = ["num_decoder_layers"]
    elif encoder and (both or any(_number(part, name) for name in _ENCODERS)):
        if both and "num_layers" in plain and not _number(part, _DECODERS[1]) and not _number(part, _DECODERS[0]):
            part["num_decoder_layers"] = part["num_layers"]
        own = [name for name in _ENCODERS if _number(part, name)]
        names = own + [name for name in plain if not own or part[name] == part[own[0]]]
    more = next((part[name] for name in _MORE if _number(part, name)), 0)
    for extra in dict.fromkeys((0, more)):
        if names and all(part[name] == count - extra for name in names):
            return names, extra
    return [], 0


def _shorten(
    part: dict[str, Any],
    names: Sequence[str],
    layers: Sequence[int],
    numbers: Sequence[int],
    depth: int,
    where: str,
    notes: list[str],
) -> None:
    gone = {layers.index(number) for number in numbers}
    left = [place for place in range(depth) if place not in gone]
    for name in _PERIODS:
        period = part.get(name)
        moved = isinstance(period, int) and period > 1 and any((old - new) % period for new, old in enumerate(left))
        if moved and not isinstance(part.get(_TOLD.get(name, "")), list):
            raise UnsupportedError(
                f"{NAME}: {where}{name} is {period}: layers are told apart by their number, and those behind would be taken "
                "for others",
                hint=f"drop {period} in a row, or a multiple; or write to a file, which takes no {NAME} along",
            )
    if part.get("scale_attn_by_inverse_layer_idx"):
        notes.append(f"{where}scale_attn_by_inverse_layer_idx is set: what a layer computes depends on its number")
    if isinstance(part.get("attention_types"), list) and isinstance(part.get("attention_layers"), list):  # GPT-Neo
        kinds = [part["attention_layers"][place] for place in left] if len(part["attention_layers"]) == depth else []
        part["attention_types"] = [[[kind], 1] for kind in kinds] or part["attention_types"]
    elif isinstance(part.get("attention_types"), list):
        flat = [kind for kinds, times in part["attention_types"] for _ in range(times) for kind in kinds]
        part["attention_types"] = [[[flat[place]], 1] for place in left] if len(flat) == depth else part["attention_types"]
    for name, value in part.items():
        if not isinstance(value, list) or name in ("attention_types", "architectures"):
            continue
        if name in _NUMBERED and all(type(one) is int for one in value):
            part[name] = [left.index(one) for one in value if one in left]
        elif len(value) == depth and ("layer" in name or "block" in name or name in _DEEP):
            part[name] = [value[place] for place in left]
        elif len(value) == depth and depth > 1:
            notes.append(f"{where}{name} has as many entries as there were layers: it was left as it is")
    for name in _LEADING:
        if _number(part, name):
            part[name] = sum(place < part[name] for place in left) + max(part[name] - depth, 0)
    for name in _MORE:
        if _number(part, name) and depth + part[name] == len(layers):
            part[name] -= sum(place >= depth for place in gone)
    for name in names:
        part[name] = len(left)


# fmt: off
_DEEP = {  # lists of one entry a layer
    "attention_types", "num_kv_heads", "num_query_heads", "num_key_value_heads", "intermediate_size",
    "ffn_multipliers", "sliding_windows", "activation_sparsity_pattern", "rope_pattern", "rope_types", "window_sizes",
}
# fmt: on


def fewer_experts(config: Mapping[str, Any], before: int, after: int) -> dict[str, Any]:
    """The config with `after` experts. MismatchError where it counts others; UsageError where a token calls for more."""
    found: dict[str, Any] = json.loads(json.dumps(config))
    changed = False
    subs = [("", found), *((f"{name}.", part) for name, part in found.items() if isinstance(part, dict))]
    for where, part in subs:
        names = [name for name in _EXPERTS if _number(part, name)]
        if not names:
            continue
        odd = next((name for name in names if part[name] != before), None)
        if odd is not None:
            raise MismatchError(f"{NAME}: {where}{odd} is {part[odd]}, and there are {before} experts")
        for name in _CALLED:
            called = part.get(name)
            if isinstance(called, int) and called > after:
                raise UsageError(
                    f"{NAME}: {where}{name} is {called}: {after} experts are too few", hint=f"keep {called} or more"
                )
        groups = part.get("n_group")
        if isinstance(groups, int) and groups > 1:
            raise UnsupportedError(f"{NAME}: {where}n_group is {groups}: experts would change their groups")
        for name in names:
            part[name] = after
        changed = True
    if not changed:
        raise MismatchError(f"{NAME}: it does not say how many experts there are", hint=f"one of {', '.join(_EXPERTS)}")
    return found


def expert_counts(config: Mapping[str, Any] | None) -> tuple[int, ...]:
    """How many experts a layer has, as far as the config says."""
    parts = [config or {}, *(part for part in (config or {}).values() if isinstance(part, dict))]
    return tuple(sorted({part[name] for part in parts for name in _EXPERTS if _number(part, name) and part[name] > 1}))


def _number(part: Mapping[str, Any], name: str) -> bool:
    return type(part.get(name)) is int
