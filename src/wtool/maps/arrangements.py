"""Operations that only move values: every one of them is exact and has its way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from wtool import views
from wtool.errors import MapError
from wtool.maps.step import Step, Tensors, Wanted, axis_of, rank, shown, single, without
from wtool.tensor import LazyTensor, Shape


@dataclass(frozen=True, slots=True)
class Swap(Step):
    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        for tensor in tensors:
            rank(self, tensor, 2)
        return [views.transpose(tensor, (1, 0)) for tensor in tensors]

    def back(self) -> Step:
        return self


@dataclass(frozen=True, slots=True)
class Permute(Step):
    order: tuple[int, ...] = ()

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        for tensor in tensors:
            rank(self, tensor, len(self.order))
        return [views.transpose(tensor, self.order) for tensor in tensors]

    def back(self) -> Step:
        order = tuple(self.order.index(axis) for axis in range(len(self.order)))
        return Permute(f"permute {' '.join(map(str, order))}", order)


@dataclass(frozen=True, slots=True)
class Rearrange(Step):
    """`left` and `right` are groups of axis names, "1" for an axis of one; each name stands once on either side.

    `guesses` (written `m?=1`) are sizes taken where nothing else says; `asked` (`h=$heads`) those of variables that have no
    value, which the shapes must tell.
    """

    left: tuple[tuple[str, ...], ...] = ()
    right: tuple[tuple[str, ...], ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()
    guesses: tuple[tuple[str, int], ...] = ()
    asked: tuple[tuple[str, str], ...] = ()

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        shapes = wanted.shapes if len(wanted.shapes) == len(tensors) else (None,) * len(tensors)
        return [self._one(tensor, shape) for tensor, shape in zip(tensors, shapes, strict=True)]

    def _one(self, tensor: LazyTensor, shape: Shape | None) -> LazyTensor:
        rank(self, tensor, len(self.left))
        known = dict(self.sizes)
        misfit = MapError(f"'{self.text}' does not fit the shape of {shown(tensor)}")
        _solve(self.left, tensor.shape, known, misfit)
        if shape is not None and len(shape) == len(self.right):
            _solve(self.right, shape, known, MapError(f"'{self.text}' of {shown(tensor)} does not give {list(shape)}"))
            _solve(self.left, tensor.shape, known, misfit)
        for name, size in self.guesses:
            if name not in known:
                known[name] = size
                _solve(self.left, tensor.shape, known, misfit)
        names = [name for group in self.left for name in group if name != "1"]
        unknown = [name for name in names if name not in known]
        if unknown:
            variable = next((variable for name, variable in self.asked if name in unknown), None)
            if variable is not None:
                raise MapError(
                    f"the variable '{variable}' is not set: '{self.text}' of {shown(tensor)} needs it",
                    hint=f"--set {variable}=N, or give a template with --like",
                )
            raise MapError(
                f"'{self.text}' of {shown(tensor)} needs the size of '{unknown[0]}'",
                hint=f"write it behind the operation: ; {unknown[0]}=N, or give a template with --like",
            )
        order = [names.index(name) for group in self.right for name in group if name != "1"]
        after = tuple(prod(known[name] for name in group if name != "1") for group in self.right)
        return views.arrange(tensor, tuple(known[name] for name in names), order, after)

    def back(self) -> Step:
        sides = self.text.removeprefix("rearrange ").partition(";")
        left, _, right = sides[0].partition("->")
        tail = f" ;{sides[2]}" if sides[1] else ""
        return Rearrange(
            f"rearrange {right.strip()} -> {left.strip()}{tail}", self.right, self.left, self.sizes, self.guesses, self.asked
        )


def _solve(groups: Sequence[Sequence[str]], shape: Shape, known: dict[str, int], fault: MapError) -> None:
    """Sizes that follow from a shape: in a group with one unknown, it is what is left."""
    for group, size in zip(groups, shape, strict=True):
        given = prod(known[name] for name in group if name in known)
        missing = [name for name in group if name != "1" and name not in known]
        if not missing and given != size:
            raise fault
        if len(missing) == 1:
            if not given or size % given:
                raise fault
            known[missing[0]] = size // given


@dataclass(frozen=True, slots=True)
class Flip(Step):
    axis: int = 0

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        return [views.flip(tensor, axis_of(self, tensor, self.axis)) for tensor in tensors]

    def back(self) -> Step:
        return self


@dataclass(frozen=True, slots=True)
class Blocks(Step):
    axis: int = 0
    order: tuple[int, ...] = ()

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        found = []
        for tensor in tensors:
            axis, many = axis_of(self, tensor, self.axis), len(self.order)
            if tensor.shape[axis] % many:
                raise MapError(f"'{self.text}': axis {axis} of {shown(tensor)} cannot be cut into {many} equal blocks")
            size = tensor.shape[axis] // many
            parts = [views.narrow(tensor, axis, block * size, (block + 1) * size) for block in self.order]
            found.append(views.concat(tensor.key, parts, axis))
        return found

    def back(self) -> Step:
        order = tuple(self.order.index(block) for block in range(len(self.order)))
        return Blocks(f"blocks {self.axis} {' '.join(map(str, order))}", self.axis, order)


@dataclass(frozen=True, slots=True)
class Split(Step):
    axis: int = 0
    sizes: tuple[int, ...] = ()
    parts: ClassVar[bool] = True

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        tensor = single(self, tensors)
        axis, count = axis_of(self, tensor, self.axis), len(self.sizes) or wanted.count
        length = tensor.shape[axis]
        sizes = self.sizes
        if not sizes:
            told = [shape[axis] for shape in wanted.shapes if shape is not None and len(shape) == len(tensor.shape)]
            if len(told) == count and sum(told) == length:
                sizes = tuple(told)
            elif length % count:
                raise MapError(
                    f"'{self.text}': axis {axis} of {shown(tensor)} cannot be cut into {count} equal parts",
                    hint="write the sizes behind the axis, as in 'split 0 4096 1024 1024'",
                )
            else:
                sizes = (length // count,) * count
        if sum(sizes) != length:
            raise MapError(f"'{self.text}': the sizes do not add up to axis {axis} of {shown(tensor)}")
        starts = [sum(sizes[:part]) for part in range(count)]
        return [views.narrow(tensor, axis, start, start + size) for start, size in zip(starts, sizes, strict=True)]

    def back(self) -> Step:
        return Concat("concat" + self.text.removeprefix("split"), self.axis, self.sizes)


@dataclass(frozen=True, slots=True)
class Concat(Step):
    axis: int = 0
    sizes: tuple[int, ...] = ()
    joins: ClassVar[bool] = True

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        first = tensors[0]
        axis = axis_of(self, first, self.axis)
        for tensor in tensors[1:]:
            if without(tensor.shape, axis) != without(first.shape, axis):
                raise MapError(f"'{self.text}': {shown(first)} and {shown(tensor)} do not fit together")
        lengths = tuple(tensor.shape[axis] for tensor in tensors)
        if self.sizes and lengths != self.sizes:
            raise MapError(f"'{self.text}': the parts ({shown(first)}, ...) have the sizes {' '.join(map(str, lengths))}")
        return [views.concat(first.key, tensors, axis)]

    def back(self) -> Step:
        return Split("split" + self.text.removeprefix("concat"), self.axis, self.sizes)


@dataclass(frozen=True, slots=True)
class Stack(Step):
    axis: int = 0
    joins: ClassVar[bool] = True

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        first = tensors[0]
        axis = self.axis if self.axis >= 0 else self.axis + len(first.shape) + 1
        if not 0 <= axis <= len(first.shape):
            raise MapError(f"'{self.text}': {shown(first)} has no place for axis {self.axis}")
        for tensor in tensors:
            if tensor.shape != first.shape:
                raise MapError(f"'{self.text}': {shown(first)} and {shown(tensor)} have different shapes")
        shape = (*first.shape[:axis], 1, *first.shape[axis:])
        return [views.concat(first.key, [views.reshape(tensor, shape) for tensor in tensors], axis)]

    def back(self) -> Step:
        return Unstack("un" + self.text, self.axis)


@dataclass(frozen=True, slots=True)
class Unstack(Step):
    axis: int = 0
    parts: ClassVar[bool] = True

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        tensor = single(self, tensors)
        axis = axis_of(self, tensor, self.axis)
        shape = without(tensor.shape, axis)
        cuts = [views.narrow(tensor, axis, index, index + 1) for index in range(tensor.shape[axis])]
        return [views.reshape(cut, shape) for cut in cuts]

    def back(self) -> Step:
        return Stack(self.text.removeprefix("un"), self.axis)
