"""Make another framework's weights of a checkpoint's, as a recipe says."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wtool.checkpoint import Checkpoint, Section, Warning
from wtool.maps.kinds import FORMATS
from wtool.maps.resolve import Resolved

# TensorFlow 1 knew no objects, and those who read its files take every key for a variable.
_NO_GRAPH = b""


@dataclass(frozen=True)
class MapTensors:
    """What `maps.resolve` decided, done. The result is one section; what is unsure or unused is a warning."""

    resolved: Resolved

    @property
    def keeps(self) -> frozenset[str]:
        """Of keys with the same values, those that loaders look for: what a recipe names first, and what it did not fill.

        Of two rows whose sources are tied already it is the earlier one: the embedding, before the head.
        """
        tensors = {tensor.key: tensor for tensor in self.resolved.tensors}
        firsts: dict[object, str] = {}
        for row in self.resolved.rows:
            key = row.targets[0]
            firsts.setdefault(tensors[key].identity or key, key)
        return frozenset(firsts.values())

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        tensors = {tensor.key: tensor for tensor in self.resolved.tensors}
        main = checkpoint.main_section()
        warnings = [Warning("assumed", text) for text in self.resolved.warnings]
        if self.resolved.unused:
            rules = ", ".join(self.resolved.unused)
            warnings.append(Warning("unused-rule", f"of the recipe '{self.resolved.recipe}', no key met {rules}"))
        return replace(
            checkpoint,
            metadata={**checkpoint.metadata, "format": FORMATS[self.resolved.layout]},
            tensors=tensors,
            sections=(Section(main.name, main.kind, tuple(tensors)),),
            structure=_NO_GRAPH if self.resolved.layout == "tf1" else self.resolved.structure,
            warnings=(*checkpoint.warnings, *warnings),
            history=(*checkpoint.history, self),
        )
