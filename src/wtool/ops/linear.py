"""Methods of averaging that are weighted sums: mean, weighted, swa, ema, lerp, task arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import TYPE_CHECKING, Protocol

from wtool import views
from wtool.dtypes import DType
from wtool.errors import UsageError
from wtool.tensor import LazyTensor

if TYPE_CHECKING:
    from wtool.kernels.combine import Tell


class Combine(Protocol):
    """How a method makes one tensor of several. Frozen data."""

    def __call__(
        self,
        key: str,
        parts: Mapping[int, LazyTensor],
        base: LazyTensor | None,
        names: Sequence[str],
        order: Sequence[int],
        dtype: DType | None,
    ) -> LazyTensor:
        """`parts` by number of input, `order` the numbers as they are summed, `dtype` of the outcome (None: the first's)."""
        ...


@dataclass(frozen=True, slots=True)
class Linear:
    """sum(w_i x_i) / divisor, in f64, rounded once. `weights` by number of input.

    `normalize`: the divisor is the sum of the weights of the inputs that have the tensor. `base`: weights apply to
    differences, base + sum(w_i (x_i - base)), task arithmetic (Ilharco et al. 2022, arXiv 2212.04089).
    """

    weights: tuple[float, ...]
    normalize: bool = True
    base: bool = False
    tell: Tell | None = field(default=None, compare=False)

    def __call__(
        self,
        key: str,
        parts: Mapping[int, LazyTensor],
        base: LazyTensor | None,
        names: Sequence[str],
        order: Sequence[int],
        dtype: DType | None,
    ) -> LazyTensor:
        from wtool.kernels.combine import WeightedSum

        numbers = [number for number in order if number in parts and self.weights[number] != 0.0]
        first = parts[min(parts)]
        target = dtype if dtype is not None and first.dtype.floating else first.dtype
        weights = [self.weights[number] for number in numbers]
        tensors = [parts[number] for number in numbers]
        said = [names[number] for number in numbers]
        if self.base:
            if base is None or base.shape != first.shape:
                raise UsageError(
                    f"the base has no '{key}' of shape {list(first.shape)}", hint="--base FILE, or --rule drops it"
                )
            weights = [1.0 - fsum(weights), *weights]
            tensors, said = [base, *tensors], ["the base", *said]
        divisor = fsum(weights) if self.normalize and not self.base else 1.0
        if not divisor or not weights:
            raise UsageError(f"the weights of the inputs that have '{key}' add up to zero", hint="--weights")
        equal = all(weight == weights[0] for weight in weights)
        if self.normalize and equal:  # a mean is a sum and one division
            weights, divisor = [1.0] * len(weights), float(len(weights))
        if not first.elements:
            return first
        function = WeightedSum(
            key,
            tuple(said),
            tuple(tensor.dtype for tensor in tensors),
            target,
            tuple(weights),
            divisor,
            mean=self.normalize or self.base,
            tell=self.tell,
            numbers=tuple(numbers) if self.tell is not None else (),
        )
        if len(tensors) == 1 and weights == [1.0] and divisor == 1.0 and tensors[0].dtype is target:
            return tensors[0]
        return views.computed(key, tensors, function, target)


def mean(count: int) -> Linear:
    """The uniform mean, also called a uniform soup (Wortsman et al. 2022) or SWA (Izmailov et al. 2018), of `count` inputs."""
    return Linear((1.0,) * count)


def weighted(weights: Sequence[float]) -> Linear:
    """sum(w_i x_i) / sum(w_i). UsageError if the weights add up to zero."""
    if not fsum(weights):
        raise UsageError("the weights add up to zero", hint="a weighted mean divides by their sum")
    return Linear(tuple(weights))


def ema(count: int, decay: float) -> Linear:
    """The exponential moving average m <- decay m + (1 - decay) x over inputs in order, begun with the first."""
    if not 0.0 <= decay < 1.0:
        raise UsageError(f"the decay is {decay:g}", hint="from 0 up to, not including, 1")
    later = [(1.0 - decay) * decay ** (count - 1 - number) for number in range(1, count)]
    return Linear((decay ** (count - 1), *later), normalize=False)


def lerp(t: float) -> Linear:
    """(1 - t) a + t b; its ends are the inputs, bit for bit."""
    return Linear((1.0 - t, t), normalize=False)


def task(weights: Sequence[float], scale: float) -> Linear:
    """base + scale * sum(w_i (x_i - base)) (Ilharco et al. 2022, arXiv 2212.04089)."""
    return Linear(tuple(scale * weight for weight in weights), normalize=False, base=True)
