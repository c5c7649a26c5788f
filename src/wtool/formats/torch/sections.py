"""The parts of a checkpoint, found by what they look like: dicts of tensors, states of optimizers, averages of weights."""

from __future__ import annotations

import re
from typing import Any

from wtool.checkpoint import SectionKind
from wtool.formats.pickle_objects import Pairs
from wtool.formats.torch.survey import Survey, is_module, key_text, pairs, tensor

Plan = dict[str, tuple[str, SectionKind]]  # prefix of keys, with its dot -> (name, kind)

_MODEL = re.compile(
    r"(.*_)?(state_?dict|model|models|module|net|network|params|parameters|weights|generator|discriminator|teacher|student"
    r"|encoder_state|backbone|net_?[gd]|unet|vae|text_encoder|controlnet|lora|adapter|policy|actor|critic)(_state(_dict)?|_dict)?"
    r"|(model|net|module)_.*"
)
_EMA = re.compile(r"(.*_)?(ema|averaged?|swa|shadow)(_.*)?|ema[a-z]*")
_OPTIMIZER = re.compile(r"(.*_)?optim(izer)?s?(_.*)?|opt(_state)?")
_AUXILIARY = re.compile(
    r".*(rng|random|scheduler|scaler|callback|loop|buffer_names|param_shapes|generator_state|metric|stats|history|loader"
    r"|sampler).*"
)
_MOMENTS = frozenset(
    ("exp_avg", "exp_avg_sq", "momentum_buffer", "max_exp_avg_sq", "square_avg", "grad_avg", "acc_delta", "sum")
)


def plan_sections(root: Any, survey: Survey) -> Plan:
    """The sections below a root; empty if the whole is one."""
    if type(root) is not Pairs:
        return {}
    plan: Plan = {}
    holders = _holders(root, survey)
    if not any(_recognised(name, value) for name, value in holders):
        return {}
    looked_like: list[tuple[str, str]] = []
    for name, value in holders:
        kind = _recognised(name, value)
        if kind is not None:
            _add(plan, name, value, kind, survey, 0)
        else:
            looked_like.append((name + ".", name))
    # A dict of tensors under a name that says nothing is the model only where nothing else is.
    has_model = any(kind == "model" for _, kind in plan.values())
    for prefix, name in looked_like:
        value = next(value for other, value in holders if other == name)
        if _state_dict(value):
            plan[prefix] = (name, "other" if has_model or _AUXILIARY.fullmatch(name.lower()) else "model")
    plan[""] = ("other", "other")
    return plan


def _add(plan: Plan, path: str, value: Any, kind: SectionKind, survey: Survey, level: int) -> None:
    """A section, or, where all that holds tensors inside is recognised itself, those inside."""
    if type(value) is Pairs and level < 4 and kind != "optimizer":
        inside = _holders(value, survey)
        kinds = [_recognised(name, inner) for name, inner in inside]
        direct = any(tensor(inner) is not None for _, inner in pairs(value))
        if inside and not direct and all(kinds):
            for (name, inner), inner_kind in zip(inside, kinds, strict=True):
                below: SectionKind = kind if inner_kind in (None, "model") else inner_kind
                _add(plan, f"{path}.{name}", inner, below, survey, level + 1)
            return
    plan[path + "."] = (path, kind)


def _holders(thing: Pairs, survey: Survey) -> list[tuple[str, Any]]:
    """The items that are containers with tensors inside."""
    return [(key_text(key), value) for key, value in pairs(thing) if tensor(value) is None and survey.of(value).tensors]


def _recognised(name: str, value: Any) -> SectionKind | None:
    if _is_optimizer(value):
        return "optimizer"
    word = name.lower()
    if _OPTIMIZER.fullmatch(word):
        return "optimizer"
    if _EMA.fullmatch(word):
        return "ema"
    if _AUXILIARY.fullmatch(word):
        return None
    if is_module(value) or _MODEL.fullmatch(word):
        return "model"
    return None


def _state_dict(value: Any) -> bool:
    """A dict whose values are tensors, at least for the greater part."""
    if is_module(value):
        return True
    if type(value) is not Pairs:
        return False
    items = pairs(value)
    return bool(items) and 2 * sum(tensor(inner) is not None for _, inner in items) > len(items)


def _is_optimizer(value: Any, levels: int = 2) -> bool:
    """The state of an optimizer, or a list of them; not deeper, since lists may share their parts without end."""
    if type(value) is list or type(value) is tuple:
        return bool(value) and levels > 0 and all(_is_optimizer(inner, levels - 1) for inner in value[:8])
    if type(value) is not Pairs:
        return False
    items = {key: inner for key, inner in pairs(value) if type(key) is str}
    if "param_groups" in items and "state" in items:
        return True
    if "base_optimizer_state" in items or ("optimizer_state_dict" in items and "param_groups" in items):
        return True
    first = next((inner for _, inner in pairs(value)), None)
    return type(first) is Pairs and any(type(key) is str and key in _MOMENTS for key in first.flat[::2])
