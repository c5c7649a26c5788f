"""Keys that no rule takes and that are kept as they are: what they are called there, and what they look like from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wtool.errors import KeyClashError, MapError
from wtool.maps.kinds import joined
from wtool.maps.match import match
from wtool.maps.recipe import Recipe
from wtool.tensor import LazyTensor

_FEW = 3  # keys named in a message


def kept_name(name: str, source: str, target: str) -> str:
    """The name of a key that no rule matches, on the other side: in Flax all parameters lie in a collection."""
    bare = name.removeprefix("params.") if source == "flax" else name
    return joined(target, "", bare) if target == "flax" and not bare.startswith("batch_stats.") else bare


def taken_back(
    recipe: Recipe,
    kept: Mapping[str, str],
    made: Mapping[str, LazyTensor],
    tensors: Mapping[str, LazyTensor],
    given: Mapping[str, int],
    plain: Callable[[str], str],
) -> list[str]:
    """What is said where a key that was kept looks like part of a layer on the other side, or hides one from the way back.

    `plain` gives a name as it is read there. KeyClashError if two are read as one.
    """
    if not kept:
        return []
    seen: dict[str, LazyTensor] = {}
    for name, tensor in made.items():
        if seen.setdefault(plain(name), tensor) is not tensor:
            raise KeyClashError(f"'{seen[plain(name)].key}' and '{tensor.key}' would be read as one, '{plain(name)}'")
    try:
        back = match(recipe.reverse(), seen, given, {name: tensor.shape for name, tensor in tensors.items()})
    except MapError as error:
        return [f"with what is kept as it is, there is no way back: {error.message}"]
    came = {plain(onto): name for name, onto in kept.items()}
    there = {source: row.targets for row in back.rows for source in row.sources}
    wrong = [f"'{name}' becomes '{there[onto][0]}'" for onto, name in came.items() if (name,) != there.get(onto, (name,))]
    wrong += [f"no rule takes '{name}'" for name in back.left if name not in came]
    more = f" and {len(wrong) - _FEW:,} more" if len(wrong) > _FEW else ""
    return [f"back, what is kept as it is looks like a part of a layer: {', '.join(wrong[:_FEW])}{more}"] if wrong else []
