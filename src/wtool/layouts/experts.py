"""Stacks of experts as one matrix for each: what runtimes of compressed-tensors look for, `experts.N.gate_proj.weight`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from wtool import views
from wtool.tensor import LazyTensor

_STACK = re.compile(r"(.*\bexperts)\.gate_up_proj(\.weight)?")


def split(tensors: Mapping[str, LazyTensor]) -> dict[str, list[LazyTensor]]:
    """Key of a stack of three axes -> the matrices [out, in] in it, views with their keys; only where shapes leave no doubt.

    `gate_up_proj` and `down_proj` of one module settle it together: [E, 2I, H] and [E, H, I] (transformers 5's usual order:
    Qwen3.5) or [E, H, 2I] and [E, I, H] (Llama 4, Qwen3-VL), the halves of 2I being gate, then up. Stacks with biases
    (gpt-oss) alternate gate and up, and are left.
    """
    found: dict[str, list[LazyTensor]] = {}
    for key, both in tensors.items():
        match = _STACK.fullmatch(key)
        down = tensors.get(f"{match[1]}.down_proj{match[2] or ''}") if match else None
        if match is None or down is None or not _stack(both) or not _stack(down) or both.shape[0] != down.shape[0]:
            continue
        module = match[1]
        if f"{module}.gate_up_proj_bias" in tensors or f"{module}.gate_up_proj.bias" in tensors:
            continue
        (count, tall, wide), (_, high, deep) = both.shape, down.shape
        if (tall, wide) == (2 * deep, high):
            turned = False
        elif (wide, tall) == (2 * high, deep):
            turned = True
        else:
            continue
        inner = deep if not turned else high
        first: list[LazyTensor] = []
        second: list[LazyTensor] = []
        for number in range(count):
            pair = _matrix(both, number, turned)
            for at, name in enumerate(("gate_proj", "up_proj")):
                part = views.narrow(pair, 0, at * inner, (at + 1) * inner)
                first.append(part.renamed(f"{module}.{number}.{name}.weight"))
            second.append(_matrix(down, number, turned).renamed(f"{module}.{number}.down_proj.weight"))
        if not any(part.key in tensors for part in (*first, *second)):
            found[key], found[down.key] = first, second
    return found


def _stack(tensor: LazyTensor) -> bool:
    return len(tensor.shape) == 3 and tensor.dtype.floating and bool(tensor.dtype.itemsize) and bool(tensor.elements)


def _matrix(stack: LazyTensor, number: int, turned: bool) -> LazyTensor:
    """One expert's, [out, in]; `turned` where the stack has [in, out]."""
    one = views.narrow(stack, 0, number, number + 1)
    flat = views.reshape(one, stack.shape[1:])
    return views.transpose(flat, (1, 0)) if turned else flat
