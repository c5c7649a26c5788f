"""Layouts whose parts lie transposed: the inputs of a matrix are their rows, as in GPTQ and AWQ."""

from __future__ import annotations

from wtool.layout import Scheme
from wtool.quantized import LONGEST
from wtool.tensor import LazyTensor
from wtool.views import transpose


def turned(tensor: LazyTensor) -> LazyTensor:
    """The transpose."""
    return transpose(tensor, (1, 0))


def misfit(tensor: LazyTensor, scheme: Scheme, many: int) -> str | None:
    """Why a tensor cannot be stored in groups of inputs, and outputs by so `many`."""
    assert isinstance(scheme.group, int)
    if not tensor.key.endswith(".weight"):
        return "its key does not end in .weight"
    if len(tensor.shape) != 2 or not tensor.elements:
        return "no matrix" if tensor.elements else "empty"
    outputs, inputs = tensor.shape
    if inputs % scheme.group:
        return f"rows of {inputs:,} are no groups of {scheme.group}"
    if outputs % many:
        return f"{outputs:,} rows are no multiple of {many}"
    return f"rows longer than {LONGEST:,}" if inputs > LONGEST else None


def is_gptq(packed: LazyTensor, zeros: LazyTensor, scales: LazyTensor) -> bool:
    """Whether these are GPTQ's qweight, qzeros and scales, by their shapes: AWQ's qweight has an eighth of the columns."""
    whole = all(len(tensor.shape) == 2 for tensor in (packed, zeros, scales))
    return whole and packed.dtype.name == "i32" and packed.shape[1] == scales.shape[1] and packed.elements > 0
