"""Keys of the same tensors under other prefixes: what training puts around a model and its checkpoints carry along."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from wtool.errors import KeyClashError
from wtool.keys import short_key

FRONT = ("module.",)  # DataParallel, DistributedDataParallel, AveragedModel
ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # torch.compile, FSDP, checkpointing


def unwrapped(keys: Collection[str]) -> dict[str, str]:
    """Key -> key without wrappers; a front one is taken off only where every key of a model has it.

    AveragedModel counts in `n_averaged`, which stands outside of its `module.`.
    """
    found = {key: _inner(key) for key in keys}
    for front in FRONT:
        while any(key.startswith(front) for key in found.values()) and all(
            inner.startswith(front) or inner == "n_averaged" for inner in found.values()
        ):
            found = {key: inner.removeprefix(front) for key, inner in found.items()}
    return found


def _inner(key: str) -> str:
    for part in ANYWHERE:
        if key.startswith(part) or f".{part}" in key:
            key = key.removeprefix(part).replace(f".{part}", ".")
    return key


def aligned(groups: Sequence[Collection[str]], names: Sequence[str]) -> list[dict[str, str]]:
    """For each group of keys: common key -> its own key.

    Common keys are without TensorFlow's suffix and, where the groups differ, without wrappers. KeyClashError where two keys of
    a group would be one.
    """
    found = [{key: short_key(key) for key in keys} for keys in groups]
    if any(set(table.values()) != set(found[0].values()) for table in found[1:]):
        bare = [unwrapped(table.values()) for table in found]
        found = [{key: inner[short] for key, short in table.items()} for table, inner in zip(found, bare, strict=True)]
    turned = []
    for table, name in zip(found, names, strict=True):
        common = {inner: key for key, inner in table.items()}
        if len(common) != len(table):
            twice = next(key for key, inner in table.items() if common[inner] != key)
            raise KeyClashError(f"'{twice}' and '{common[table[twice]]}' are one key without their wrappers", path=name)
        turned.append(common)
    return turned


def prefix_between(ours: Iterable[str], theirs: Iterable[str]) -> tuple[str, str] | None:
    """Prefixes (of ours, of theirs), one of them empty, without which the keys would be the same; None if there are none."""
    one, two = set(ours), set(theirs)
    for longer, shorter, turn in ((one, two, False), (two, one, True)):
        some = min(longer, default="")
        for at in range(len(some), 0, -1):
            if (
                some[at - 1] in "./"
                and all(key.startswith(some[:at]) for key in longer)
                and {key[at:] for key in longer} == shorter
            ):
                return ("", some[:at]) if turn else (some[:at], "")
    return None


def taken_off(table: Mapping[str, str]) -> str | None:
    """The front that alignment took off the keys of a group, for people."""
    for common, key in table.items():
        if short_key(key) != common:
            return short_key(key).removesuffix(common) or "wrappers"
    return None
