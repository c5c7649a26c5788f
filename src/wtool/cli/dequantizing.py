"""What is stored quantized as plain numbers again, and what goes beside them."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wtool.cli import hf_config
from wtool.errors import NoTensorsError, QuantizedError, WtoolError

if TYPE_CHECKING:
    from wtool.bytesource import ByteSource
    from wtool.checkpoint import Checkpoint
    from wtool.layout import Quantized

KEY = "wtool.quantized"  # of the metadata of what quantize writes
QUANTIZATION = ("quantization_config", "quantization", "compression_config")  # of a config.json


def opened(src: str, section: str | None) -> tuple[Checkpoint, dict[str, Any] | None]:
    """The checkpoint, or its section, and the config.json beside it."""
    from wtool.api import open_checkpoint

    return open_checkpoint(src, section=section), hf_config.read(src)


def dequantized(
    checkpoint: Checkpoint, config: Mapping[str, Any] | None, dtype: str | None = None
) -> tuple[Checkpoint, dict[str, Quantized]]:
    """The checkpoint with everything that is stored quantized as plain numbers, and what that was."""
    from wtool.dtypes import dtype as named
    from wtool.layouts import registry
    from wtool.ops.dequantize import Dequantize

    found = registry.find(checkpoint.tensors, config, checkpoint.metadata)
    if not found:
        return checkpoint, found
    dense = Dequantize(found, None if dtype is None else named(dtype))(checkpoint)
    return replace(dense, metadata={name: text for name, text in dense.metadata.items() if name != KEY}), found


def stored(checkpoint: Checkpoint, src: str, keys: Container[str] | None = None) -> str | None:
    """What (of these keys) is stored quantized, in a few words; None if nothing is, as far as wtool knows."""
    from wtool.layout import looks_quantized
    from wtool.layouts import registry

    if not looks_quantized(checkpoint.tensors):
        return None
    try:
        found = list(registry.find(checkpoint.tensors, hf_config.read(src), checkpoint.metadata).values())
    except WtoolError:
        return None
    found = [one for one in found if keys is None or any(part in keys for part in one.parts)]
    if not found:
        return None
    return f"{found[0].layout} {found[0].scheme}, {len(found):,} {'tensor' if len(found) == 1 else 'tensors'}"


def refuse_quantized(checkpoint: Checkpoint, src: str, would: str, keys: Container[str] | None = None) -> None:
    """QuantizedError if codes and scales (of these keys) would be taken for weights; `would` says what would be done."""
    said = stored(checkpoint, src, keys)
    if said is not None:
        hint = "`wtool convert --dequantize` makes plain numbers first; --exclude leaves such tensors out"
        raise QuantizedError(f"is stored quantized ({said}): {would}", path=src, hint=hint)


def plain_numbers(checkpoint: Checkpoint, src: str, dtype: str | None) -> Checkpoint:
    """The checkpoint without anything quantized. NoTensorsError where nothing is."""
    try:
        dense, found = dequantized(checkpoint, hf_config.read(src), dtype)
    except WtoolError as error:
        raise error.at(src) from None
    if not found:
        raise NoTensorsError("nothing in it is stored quantized, in a layout that wtool knows", path=src)
    return dense


def files_of_dense(src: str, dst: str) -> dict[str, ByteSource]:
    """What goes into a folder beside tensors that are plain numbers again: all small files, config.json telling so."""
    config = hf_config.read(src)
    if config is None:
        return {}
    plain = {name: value for name, value in config.items() if name not in QUANTIZATION}
    return hf_config.files_beside(src, plain, dst)[0]
