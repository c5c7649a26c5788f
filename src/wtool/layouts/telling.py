"""What layouts are told, and say, beside the tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from wtool.errors import CorruptError
from wtool.layout import Scheme
from wtool.tensor import LazyTensor


def damaged(key: str, *parts: LazyTensor) -> CorruptError:
    """What to say of parts that do not belong together."""
    shapes = " and ".join(f"'{part.key}' {part.dtype} {list(part.shape)}" for part in parts)
    return CorruptError(f"'{key}', stored quantized, is damaged: {shapes} do not fit")


def told_of(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What config.json says of quantization."""
    found = (config or {}).get("quantization_config")
    return found if isinstance(found, dict) else {}


def usual_scheme(chosen: Mapping[str, Scheme]) -> Scheme:
    """The one that most weights have; of equals the first."""
    return Counter(chosen.values()).most_common(1)[0][0]
