"""Methods of averaging that are weighted sums: mean, weighted, swa, ema, lerp, task arithmetic; and the sums of two more.

The weights of slerp and of model stock differ from tensor to tensor and depend on dot products of the inputs: a first pass
(analysis/gram) fills them in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import acos, fsum, sin, sqrt
from typing import TYPE_CHECKING, Protocol

from wtool import views
from wtool.dtypes import DType
from wtool.errors import UsageError
from wtool.tensor import LazyTensor

if TYPE_CHECKING:
    from wtool.kernels.combine import Tell

PARALLEL = 0.9995  # a cosine beyond which slerp is lerp, in mergekit and in the code that most have copied
_FLAT = 1e-6  # of model stock: a denominator below it gives the base, as in mergekit
_SHORT = 1e-6  # of mergekit's model stock: the least product of lengths
_EPSILON = 1e-8  # of mergekit: vectors that are shorter are not normalized

Gram = tuple[tuple[float, ...], ...]  # dot products of the inputs that take part, in f64


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

    `normalize`: the divisor is the sum of the weights of the inputs that have the tensor. `affine`: the weights add up to one,
    and are divided by their sum only where an input has no such tensor. `base`: weights apply to differences,
    base + sum(w_i (x_i - base)), task arithmetic (Ilharco et al. 2022, arXiv 2212.04089). In these three cases inputs that are
    all the same are the outcome, bit for bit. An input of weight 0 is not read.
    """

    weights: tuple[float, ...]
    normalize: bool = True
    base: bool = False
    affine: bool = False
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
            base = based(key, first, base)
            weights = [1.0 - fsum(weights), *weights]
            tensors, said = [base, *tensors], ["the base", *said]
        divisor = 1.0
        if self.normalize or (self.affine and len(parts) < len(self.weights)):
            divisor = fsum(weights)
        if not divisor or not weights:
            raise UsageError(f"the weights of the inputs that have '{key}' add up to zero", hint="--weights")
        if self.normalize and all(weight == weights[0] for weight in weights):  # a mean is a sum and one division
            weights, divisor = [1.0] * len(weights), float(len(weights))
        if not first.elements:
            return first
        if len(tensors) == 1 and weights[0] == divisor:
            weights, divisor = [1.0], 1.0
            if tensors[0].dtype is target:
                return tensors[0]
        function = WeightedSum(
            key,
            tuple(said),
            tuple(tensor.dtype for tensor in tensors),
            target,
            tuple(weights),
            divisor,
            mean=self.normalize or self.base or self.affine,
            tell=self.tell,
            numbers=tuple(numbers) if self.tell is not None else (),
        )
        return views.computed(key, tensors, function, target)


def based(key: str, first: LazyTensor, base: LazyTensor | None) -> LazyTensor:
    """The base of a tensor. UsageError if there is none of its shape and kind."""
    if base is None or base.shape != first.shape:
        raise UsageError(
            f"the base has no '{key}' of shape {list(first.shape)}", hint=f"--base FILE, or --rule '{key}=first' or drop"
        )
    if base.dtype.kind != first.dtype.kind:
        raise UsageError(f"'{key}' is {first.dtype}, in the base {base.dtype}", hint=f"--rule '{key}=first'")
    return base


@dataclass(frozen=True, slots=True)
class Slerp:
    """Spherical interpolation of two inputs, each tensor a flat vector (Shoemake 1985), with the angle O between them:

    (sin((1 - t) O) a + sin(t O) b) / sin O. `raw`: of a and b as they are, as in mergekit; else of a/|a| and b/|b|, times
    (1 - t)|a| + t|b|. The straight line (1 - t) a + t b where there is no arc: the cosine is above 0.9995 or below -0.9995, or
    a vector is zero. Its ends are the inputs, bit for bit. `grams` by key: without them only specs are right.
    """

    t: float
    raw: bool = True
    grams: Mapping[str, Gram] | None = field(default=None, compare=False, repr=False)
    tell: Tell | None = field(default=None, compare=False)
    base = False

    def __call__(
        self,
        key: str,
        parts: Mapping[int, LazyTensor],
        base: LazyTensor | None,
        names: Sequence[str],
        order: Sequence[int],
        dtype: DType | None,
    ) -> LazyTensor:
        gram = None if self.grams is None or len(parts) < 2 else self.grams.get(key)
        weights, straight = ((1.0 - self.t, self.t), True) if gram is None else arc(gram, self.t, self.raw)
        combine = Linear(weights, normalize=False, affine=straight, tell=self.tell)
        return combine(key, parts, base, names, order, dtype)

    def why(self, key: str) -> str:
        """What became of a tensor that is not on an arc."""
        gram = None if self.grams is None else self.grams.get(key)
        return "a straight line: nearly parallel, opposite or zero" if gram and arc(gram, self.t, self.raw)[1] else ""


def arc(gram: Gram, t: float, raw: bool) -> tuple[tuple[float, float], bool]:
    """The weights of two vectors at `t` of the arc between them; whether that is a straight line."""
    one, two = sqrt(gram[0][0]), sqrt(gram[1][1])
    line = (1.0 - t, t)
    if t in (0.0, 1.0) or one <= _EPSILON or two <= _EPSILON:
        return line, True
    cosine = gram[0][1] / one / two
    if not abs(cosine) <= PARALLEL:
        return line, True
    angle = acos(cosine)
    first, second = sin((1.0 - t) * angle) / sin(angle), sin(t * angle) / sin(angle)
    if raw:
        return (first, second), False
    length = (1.0 - t) * one + t * two
    return (first * length / one, second * length / two), False


@dataclass(frozen=True, slots=True)
class ModelStock:
    """t mean(x_i) + (1 - t) base with t = N c / (1 + (N - 1) c), tensor by tensor (Jang et al. 2024, arXiv 2403.19522).

    c is the cosine between the differences of inputs from the base, for more than two inputs the mean over all pairs. Where
    they point apart (c < 0) the formula would step beyond the base, without bound as c nears -1 / (N - 1): there t is 0, the
    base, unless `beyond` (as in mergekit). `grams` of the differences, by key: without them only specs are right.
    """

    count: int
    beyond: bool = False
    grams: Mapping[str, Gram] | None = field(default=None, compare=False, repr=False)
    tell: Tell | None = field(default=None, compare=False)
    base = True

    def __call__(
        self,
        key: str,
        parts: Mapping[int, LazyTensor],
        base: LazyTensor | None,
        names: Sequence[str],
        order: Sequence[int],
        dtype: DType | None,
    ) -> LazyTensor:
        weights = (self.ratio(key) / len(parts),) * self.count
        return Linear(weights, normalize=False, base=True, tell=self.tell)(key, parts, base, names, order, dtype)

    def ratio(self, key: str) -> float:
        """How far from the base to the mean the outcome lies: t."""
        gram = None if self.grams is None else self.grams.get(key)
        return 1.0 if gram is None else stock(gram, self.beyond)

    def why(self, key: str) -> str:
        """The ratio, for people."""
        return "" if self.grams is None or key not in self.grams else f"{self.ratio(key):.4g} of the way from the base"


def stock(gram: Gram, beyond: bool) -> float:
    """The ratio t of model stock; 1 where only one input has the tensor.

    A difference that is zero is at right angles to all others, as in mergekit, which takes a product of lengths of less than
    1e-6 for that.
    """
    count = len(gram)
    if count < 2:
        return 1.0
    cosines = []
    for one in range(count):
        for two in range(one):
            lengths = sqrt(gram[one][one]) * sqrt(gram[two][two])
            lengths = max(lengths, _SHORT) if beyond else lengths
            cosines.append(max(-1.0, min(1.0, gram[one][two] / lengths)) if lengths else 0.0)
    cosine = fsum(cosines) / len(cosines)
    below = 1.0 + (count - 1) * cosine
    if abs(below) < _FLAT or (cosine < 0.0 and not beyond):
        return 0.0
    return count * cosine / below


def mean(count: int) -> Linear:
    """The uniform mean, also called a uniform soup (Wortsman et al. 2022) or SWA (Izmailov et al. 2018), of `count` inputs."""
    return Linear((1.0,) * count)


def weighted(weights: Sequence[float]) -> Linear:
    """sum(w_i x_i) / sum(w_i). UsageError if the weights add up to zero."""
    if abs(fsum(weights)) <= 1e-9 * max(map(abs, weights), default=0.0):
        raise UsageError("the weights add up to zero", hint="a weighted mean divides by their sum")
    return Linear(tuple(weights))


def ema(count: int, decay: float) -> Linear:
    """The exponential moving average m <- decay m + (1 - decay) x over inputs in order, begun with the first."""
    if not 0.0 <= decay < 1.0:
        raise UsageError(f"the decay is {decay:g}", hint="from 0 up to, not including, 1")
    later = [(1.0 - decay) * decay ** (count - 1 - number) for number in range(1, count)]
    return Linear((decay ** (count - 1), *later), normalize=False, affine=True)


def lerp(t: float) -> Linear:
    """(1 - t) a + t b; its ends are the inputs, bit for bit."""
    return Linear((1.0 - t, t), normalize=False, affine=True)


def task(weights: Sequence[float], scale: float) -> Linear:
    """base + scale * sum(w_i (x_i - base)) (Ilharco et al. 2022, arXiv 2212.04089)."""
    return Linear(tuple(scale * weight for weight in weights), normalize=False, base=True)
