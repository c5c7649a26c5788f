"""What `--map` and its kin ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wtool.errors import UsageError

if TYPE_CHECKING:
    from wtool.api import Loss
    from wtool.checkpoint import Checkpoint
    from wtool.maps.resolve import Resolved

_UNMATCHED = ("error", "keep", "drop")


def checked_policy(unmatched: str | None) -> None:
    """UsageError for a --unmatched that there is not."""
    if unmatched not in (None, *_UNMATCHED):
        raise UsageError(f"unknown policy for unmatched keys '{unmatched}'", hint="one of " + ", ".join(_UNMATCHED))


@dataclass(frozen=True)
class Choice:
    """The options. False where nothing is to be mapped."""

    maps: tuple[str, ...]
    reverse: bool
    like: str | None
    given: Mapping[str, int]
    unmatched: str | None
    strict: bool

    def __post_init__(self) -> None:
        checked_policy(self.unmatched)
        if not self.maps:
            given = {"--reverse": self.reverse, "--set": bool(self.given), "--unmatched": self.unmatched is not None}
            alone = next((name for name, there in given.items() if there), None)
            if alone is not None:
                raise UsageError(f"{alone} needs --map", hint="`wtool map list` names the recipes")

    def __bool__(self) -> bool:
        return bool(self.maps) or self.like is not None

    def __call__(self, checkpoint: Checkpoint, whole: Checkpoint) -> tuple[Checkpoint, tuple[Resolved, ...]]:
        """The checkpoint through the recipes, and what each did."""
        if not self:
            return checkpoint, ()
        from wtool.between import map_checkpoint

        return map_checkpoint(
            checkpoint,
            self.maps,
            reverse=self.reverse,
            like=self.like,
            given=self.given,
            unmatched=self.unmatched,
            whole=whole,
            strict=self.strict,
        )

    def losses(self, resolved: tuple[Resolved, ...], checkpoint: Checkpoint) -> list[Loss]:
        """What the recipes lost of the checkpoint that they were given."""
        if not resolved:
            return []
        from wtool.between import losses

        return losses(resolved, checkpoint)
