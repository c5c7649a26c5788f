"""Give tensors other keys. The values stay where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from wtool.checkpoint import Checkpoint, Operation, Warning
from wtool.errors import KeyClashError, UsageError
from wtool.keys import SEPARATORS, TF_SUFFIX, Rename, short_key


@dataclass(frozen=True, slots=True)
class RenameKeys:
    """Apply each rename in turn to every key. One that changes nothing is a warning.

    KeyClashError if two keys become the same, UsageError if one becomes empty.
    """

    renames: tuple[Rename, ...]

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        names = {key: key for key in checkpoint}
        warnings = []
        for rename in self.renames:
            after = {key: rename(name) for key, name in names.items()}
            if after == names:
                text = f"--rename '{rename.pattern}=>{rename.replacement}' changes no key"
                warnings.append(Warning("no-match", text))
            names = after
        return rekeyed(checkpoint, names, self, *warnings)


@dataclass(frozen=True, slots=True)
class StripPrefix:
    """Take a prefix off the keys that have it; the others stay and are warned of. UsageError if no key has it.

    `module` is understood as `module.` where a separator follows in every key that has it.
    """

    prefix: str

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        having = [key for key in checkpoint if self.prefix and key.startswith(self.prefix)]
        if not having:
            first = next(iter(checkpoint), "")
            hint = f"the first key is '{first}'"
            raise UsageError(f"no key begins with '{self.prefix}'", path=checkpoint.source.path, hint=hint)
        skip = len(self.prefix)
        if self.prefix[-1] not in SEPARATORS and len({key[skip : skip + 1] for key in having} | set(SEPARATORS)) == 2:
            skip += 1
        names = {key: key[skip:] if key.startswith(self.prefix) else key for key in checkpoint}
        warnings = []
        if len(having) < len(checkpoint):
            without = next(key for key in checkpoint if not key.startswith(self.prefix))
            text = f"{len(checkpoint) - len(having)} keys do not begin with '{self.prefix}' and stay as they are ('{without}')"
            warnings.append(Warning("without-prefix", text))
        return rekeyed(checkpoint, names, self, *warnings)


@dataclass(frozen=True, slots=True)
class ShortKeys:
    """Take TensorFlow's `/.ATTRIBUTES/VARIABLE_VALUE` off every key; said as a warning."""

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        names = {key: short_key(key) for key in checkpoint}
        changed = sum(key != name for key, name in names.items())
        if not changed:
            return checkpoint
        text = f"'{TF_SUFFIX}' was taken off {changed} keys; the TensorFlow writer puts it back"
        return rekeyed(checkpoint, names, self, Warning("short-keys", text))


def rekeyed(checkpoint: Checkpoint, names: Mapping[str, str], operation: Operation, *warnings: Warning) -> Checkpoint:
    """The checkpoint with each key replaced by its entry in `names`; sections keep their tensors."""
    owners: dict[str, str] = {}
    for key, name in names.items():
        if not name:
            raise UsageError(f"'{key}' would be left with an empty key", path=checkpoint.source.path)
        other = owners.setdefault(name, key)
        if other != key:
            raise KeyClashError(f"'{other}' and '{key}' would both become '{name}'", path=checkpoint.source.path)
    changed = any(key != name for key, name in names.items())
    sections = []
    for section in checkpoint.sections:
        keys = tuple(names[key] for key in section.keys)
        prefix = section.prefix if all(key.startswith(section.prefix) for key in keys) else ""
        sections.append(replace(section, keys=keys, prefix=prefix))
    return replace(
        checkpoint,
        tensors={names[key]: tensor.renamed(names[key]) for key, tensor in checkpoint.items()},
        sections=tuple(sections),
        structure=None if changed else checkpoint.structure,
        sparse=tuple(
            found
            for one in checkpoint.sparse
            if all(part in names for part in one.parts)
            if (found := one.renamed(names.__getitem__)) is not None
        ),
        warnings=(*checkpoint.warnings, *warnings),
        history=(*checkpoint.history, operation),
    )
