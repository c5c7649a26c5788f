"""What `wtool convert` does to a checkpoint between reading and writing."""

from __future__ import annotations

from dataclasses import dataclass

from wtool.checkpoint import Checkpoint
from wtool.dtypes import DType
from wtool.keys import Rename
from wtool.ops.cast import CastTo
from wtool.ops.rename import RenameKeys, ShortKeys, StripPrefix
from wtool.ops.select import Select


@dataclass(frozen=True, slots=True)
class Convert:
    """Select, shorten TensorFlow's keys, strip a prefix, rename, cast: in this order, each only if asked for.

    The history gets the steps, not this.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    short_keys: bool = False
    strip_prefix: str = ""
    renames: tuple[Rename, ...] = ()
    dtype: DType | None = None

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        if self.include or self.exclude:
            checkpoint = Select(self.include, self.exclude)(checkpoint)
        if self.short_keys:
            checkpoint = ShortKeys()(checkpoint)
        if self.strip_prefix:
            checkpoint = StripPrefix(self.strip_prefix)(checkpoint)
        if self.renames:
            checkpoint = RenameKeys(self.renames)(checkpoint)
        if self.dtype is not None:
            checkpoint = CastTo(self.dtype)(checkpoint)
        return checkpoint
