"""What an operation of a recipe answers, and the checks that they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from wtool.errors import MapError, RecipeError
from wtool.tensor import LazyTensor, Shape

Tensors = list[LazyTensor]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is known of the result before it is there: how many tensors, and their shapes if a template says so."""

    count: int
    shapes: tuple[Shape | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One operation. `status` and `why` are of this direction."""

    text: str
    status: ClassVar[str] = "exact"
    why: ClassVar[str] = ""
    one_way: ClassVar[bool] = False
    joins: ClassVar[bool] = False  # several become one
    parts: ClassVar[bool] = False  # one becomes several

    def __call__(self, tensors: Tensors, wanted: Wanted) -> Tensors:
        raise NotImplementedError

    def back(self) -> Step:
        """The step that undoes this one. RecipeError if there is none."""
        raise RecipeError(f"'{self.text}' has no way back")


def shown(tensor: LazyTensor) -> str:
    return f"'{tensor.key}' {list(tensor.shape)}"


def rank(step: Step, tensor: LazyTensor, rank: int) -> None:
    if len(tensor.shape) != rank:
        raise MapError(
            f"'{step.text}' takes {rank} {'axis' if rank == 1 else 'axes'}; {shown(tensor)} has {len(tensor.shape)}"
        )


def axis_of(step: Step, tensor: LazyTensor, axis: int) -> int:
    rank = len(tensor.shape)
    if not -rank <= axis < rank:
        raise MapError(f"'{step.text}': {shown(tensor)} has no axis {axis}")
    return axis % rank


def single(step: Step, tensors: Tensors) -> LazyTensor:
    if len(tensors) != 1:
        raise MapError(f"'{step.text}' takes one tensor, not {len(tensors)} ('{tensors[0].key}', ...)")
    return tensors[0]


def alike(step: Step, tensors: Tensors) -> Tensors:
    first = tensors[0]
    for other in tensors[1:]:
        if (other.shape, other.dtype) != (first.shape, first.dtype):
            raise MapError(f"'{step.text}': {shown(first)} and {shown(other)} differ in shape or dtype")
    return tensors


def without(shape: Shape, axis: int) -> Shape:
    return (*shape[:axis], *shape[axis + 1 :])
