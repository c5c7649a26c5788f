"""Operations that make, add up, compare or cast values."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from wtool import views
from wtool.dtypes import dtype
from wtool.errors import MapError
from wtool.maps.step import Step, Tensors, Wanted, alike, shown, single

if TYPE_CHECKING:
    from wtool.tensor import Array


@dataclass(frozen=True, slots=True)
class Tie(Step):
    parts: ClassVar[bool] = True

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        return [single(self, tensors)] * wanted.count

    def back(self) -> Step:
        return Untie(self.text)


@dataclass(frozen=True, slots=True)
class Untie(Step):
    """Several that must be equal become the first. Compared while they are written, unless they are tied in the file."""

    joins: ClassVar[bool] = True

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        first = tensors[0]
        for other in tensors[1:]:
            if (other.shape, other.dtype) != (first.shape, first.dtype):
                raise MapError(f"{shown(first)} and {shown(other)} should be tied but are not alike")
        others = [other for other in tensors[1:] if other.identity != first.identity and other.elements]
        if not others:
            return [first]
        return [views.computed(first.key, [first, *others], Same((first.key, *(other.key for other in others))))]

    def back(self) -> Step:
        return Tie(self.text)


@dataclass(frozen=True, slots=True)
class Sum(Step):
    status: ClassVar[str] = "function"
    why: ClassVar[str] = "one bias where there were two"
    joins: ClassVar[bool] = True

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        return [views.computed(tensors[0].key, alike(self, tensors), Added())]

    def back(self) -> Step:
        return Unsum(self.text)


@dataclass(frozen=True, slots=True)
class Unsum(Step):
    status: ClassVar[str] = "function"
    why: ClassVar[str] = "two biases where there was one: the second is zero"
    parts: ClassVar[bool] = True

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        tensor = single(self, tensors)
        zeros = [views.filled(tensor.key, tensor.dtype, tensor.shape, 0) for _ in range(wanted.count - 1)]
        return [tensor, *zeros]

    def back(self) -> Step:
        return Sum(self.text)


@dataclass(frozen=True, slots=True)
class Gru(Step):
    """[input bias, recurrent bias], each (reset, update, candidate) -> the biases of a cell that has one less.

    reset = sigmoid(Wx + b + Uh + c) and update know the sum b + c only; candidate = tanh(Wx + b + reset * (Uh + c)) both.
    Two are wanted: (3u,) with the sums and the candidate's b, and (u,) its c; or four of (u,), one a gate and the last c.
    """

    status: ClassVar[str] = "function"
    why: ClassVar[str] = "one bias a gate where there were two"
    joins: ClassVar[bool] = True
    parts: ClassVar[bool] = True

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        if len(tensors) != 2:
            raise MapError(f"'{self.text}' takes two biases")
        first, second = alike(self, tensors)
        if len(first.shape) != 1 or first.shape[0] % 3:
            raise MapError(f"'{self.text}': {shown(first)} is not of three gates")
        units = first.shape[0] // 3
        cuts = [[views.narrow(tensor, 0, gate * units, (gate + 1) * units) for gate in range(3)] for tensor in (first, second)]
        gates = [views.computed(first.key, [cuts[0][gate], cuts[1][gate]], Added()) for gate in range(2)] + [cuts[0][2]]
        if wanted.count == 2:
            gates = [views.concat(first.key, gates, 0)]
        return [*gates, cuts[1][2]]

    def back(self) -> Step:
        return Ungru(self.text)


@dataclass(frozen=True, slots=True)
class Ungru(Step):
    status: ClassVar[str] = "function"
    why: ClassVar[str] = "two biases a gate where there was one: the second is zero"
    joins: ClassVar[bool] = True
    parts: ClassVar[bool] = True

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        *gates, last = tensors
        if len(last.shape) != 1 or sum(prod(gate.shape) for gate in gates) != 3 * last.shape[0]:
            raise MapError(f"'{self.text}': {shown(tensors[0])} and {shown(last)} are not the biases of three gates")
        zeros = views.filled(last.key, last.dtype, (2 * last.shape[0],), 0)
        return [views.concat(gates[0].key, gates, 0), views.concat(last.key, [zeros, last], 0)]

    def back(self) -> Step:
        return Gru(self.text)


@dataclass(frozen=True, slots=True)
class Unabsorb(Step):
    why: ClassVar[str] = "the bias before a norm is zero"
    parts: ClassVar[bool] = True

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        mean = single(self, tensors)
        return [views.filled(mean.key, mean.dtype, mean.shape, 0), mean]

    def back(self) -> Step:
        return Absorb(self.text)


@dataclass(frozen=True, slots=True)
class Absorb(Step):
    status: ClassVar[str] = "function"
    why: ClassVar[str] = "the bias before a norm goes into its mean"
    joins: ClassVar[bool] = True

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        if len(tensors) != 2:
            raise MapError(f"'{self.text}' takes a bias and a mean")
        bias, mean = alike(self, tensors)
        return [views.computed(mean.key, [mean, bias], Less())]

    def back(self) -> Step:
        return Unabsorb(self.text)


@dataclass(frozen=True, slots=True)
class Add(Step):
    number: float = 0.0
    status: ClassVar[str] = "function"
    why: ClassVar[str] = "a number is added, with one rounding"

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        whole = next((tensor for tensor in tensors if not tensor.dtype.floating), None)
        if whole is not None:
            raise MapError(f"'{self.text}' takes floating values; {shown(whole)} is {whole.dtype}")
        return [views.computed(tensor.key, [tensor], Plus(self.number)) for tensor in tensors]

    def back(self) -> Step:
        return Add(f"add {-self.number:g}", -self.number)


@dataclass(frozen=True, slots=True)
class Cast(Step):
    to: str = ""
    status: ClassVar[str] = "lossy"
    why: ClassVar[str] = "cast to another dtype"
    one_way: ClassVar[bool] = True

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        from wtool.kernels.cast import Cast as Kernel

        row = dtype(self.to)
        return [tensor if tensor.dtype is row else tensor.map(Kernel(tensor.dtype, row)) for tensor in tensors]


@dataclass(frozen=True, slots=True)
class Same:
    """The first of equal blocks. MapError if they are not equal, bit for bit."""

    keys: tuple[str, ...]

    def __call__(self, first: Array, *others: Array) -> Array:
        for key, other in zip(self.keys[1:], others, strict=True):
            if first.tobytes() != other.tobytes():
                raise MapError(f"'{self.keys[0]}' and '{key}' become one tensor but hold different values")
        return first


@dataclass(frozen=True, slots=True)
class Added:
    def __call__(self, first: Array, *others: Array) -> Array:
        for other in others:
            first = first + other
        return first


@dataclass(frozen=True, slots=True)
class Less:
    def __call__(self, first: Array, other: Array) -> Array:
        return first - other


@dataclass(frozen=True, slots=True)
class Plus:
    number: float

    def __call__(self, block: Array) -> Array:
        found: Array = (block + block.dtype.type(self.number)).astype(block.dtype)
        return found
