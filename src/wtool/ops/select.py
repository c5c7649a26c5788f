"""Keep some tensors and leave the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wtool.checkpoint import Checkpoint, Warning
from wtool.errors import NoTensorsError, UsageError
from wtool.keys import matcher, short_key


@dataclass(frozen=True, slots=True)
class Select:
    """Keep the keys that match one of `include` (none: all) and none of `exclude`; see keys.matcher for the globs.

    TensorFlow's long keys may be matched in full or as people see them. UsageError if an include matches nothing;
    NoTensorsError if nothing is left; an exclude that matches nothing is a warning.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        path = checkpoint.source.path
        included = dict.fromkeys(checkpoint) if not self.include else {}
        for glob in self.include:
            found = _found(glob, checkpoint)
            if not found:
                raise UsageError(f"no key matches --include '{glob}'", path=path, hint="'*' stays inside a part, '**' crosses")
            included |= found
        excluded: dict[str, None] = {}
        warnings = []
        for glob in self.exclude:
            found = _found(glob, checkpoint)
            if not found:
                warnings.append(Warning("no-match", f"no key matches --exclude '{glob}'"))
            excluded |= found
        kept = [tensor for key, tensor in checkpoint.items() if key in included and key not in excluded]
        if not kept:
            raise NoTensorsError("no tensor is left after --include and --exclude", path=path)
        chosen = checkpoint.with_tensors(kept, operation=self)
        return replace(chosen, warnings=(*chosen.warnings, *warnings))


def _found(glob: str, checkpoint: Checkpoint) -> dict[str, None]:
    matches = matcher([glob])
    return {key: None for key in checkpoint if matches(key) or matches(short_key(key))}
