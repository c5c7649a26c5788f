"""A template: a checkpoint of the target model, whose keys, shapes and order the output takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wtool.checkpoint import Checkpoint
from wtool.errors import MapError
from wtool.keys import matcher
from wtool.maps.names import own_prefix, recipe_names
from wtool.tensor import LazyTensor, Shape

# Variables that a model's file has and that are not weights: a random state, a counter of saves.
OWN = ("**/seed_generator_state", "**seed_generator_state", "**/seed_generator/**", "save_counter", "**/save_counter")


@dataclass(frozen=True)
class Template:
    """`keys`: the recipe's name -> the template's own key, in the template's order. `prefix` stands before every name."""

    checkpoint: Checkpoint
    keys: Mapping[str, str]
    prefix: str = ""
    structure: bytes | None = None

    @property
    def shapes(self) -> dict[str, Shape]:
        """By the names that a recipe gives."""
        shapes = {name: self.checkpoint[key].shape for name, key in self.keys.items()}
        return shapes | {name.removeprefix(self.prefix): shape for name, shape in shapes.items()}

    def key(self, name: str) -> str | None:
        return self.keys.get(self.prefix + name)


@dataclass(frozen=True)
class Fit:
    """How far what was made fits the template. `own` are keys of the template that are taken from it as they are."""

    keys: Mapping[str, str]
    own: tuple[LazyTensor, ...] = ()
    warnings: tuple[str, ...] = field(default=())


def template(checkpoint: Checkpoint, layout: str | None, full_names: Mapping[str, str], structure: bytes | None) -> Template:
    """A checkpoint as the template for names of this layout (None: its own keys).

    A Keras Sequential model puts its own name before every path; where all names of a keras template begin with one part
    that no module shares, the recipe's names need not have it.
    """
    names = recipe_names(checkpoint, layout, full_names) if layout else {key: key for key in checkpoint}
    keys = {name: key for key, name in names.items()}
    own = matcher(OWN)
    known = {key: name for name, key in keys.items() if not own(name)}
    prefix = own_prefix(known, layout, full_names) if layout else ""
    return Template(checkpoint, keys, prefix or _prefix(keys, layout, full_names), structure)


def _prefix(names: Mapping[str, str], layout: str | None, full_names: Mapping[str, str]) -> str:
    """The same for a list of paths, which has no object graph that tells."""
    own = matcher(OWN)
    starts = {name.partition("/")[0] for name in names if not own(name)}
    one = len(starts) == 1 and all(name.count("/") > 1 for name in names if not own(name))
    return next(iter(starts)) + "/" if layout == "keras" and one and not full_names else ""


def fit(made: Mapping[str, LazyTensor], like: Template, drop: tuple[str, ...], layout: str | None) -> Fit:
    """Made names (and shapes, dtypes) against the template. MapError names the first few that are missing, extra, unlike."""
    bare = {name for name in made if like.key(name) is None and name in like.keys}
    keys = {name: like.keys[name] if name in bare else like.key(name) for name in made}
    extra = [name for name, key in keys.items() if key is None]
    taken = set(keys.values())
    missing = {name: key for name, key in like.keys.items() if key not in taken}
    dropped = matcher([*drop, *OWN])
    own = [key for name, key in missing.items() if dropped(name) or dropped(name.removeprefix(like.prefix))]
    missing = {name: key for name, key in missing.items() if key not in set(own)}
    unlike = [name for name, key in keys.items() if key is not None and made[name].shape != like.checkpoint[key].shape]
    path = like.checkpoint.source.path
    if missing or extra or unlike:
        said = []
        if missing:
            said.append(f"{len(missing)} of its keys are not made ({_some(list(missing))})")
        if extra:
            said.append(f"{len(extra)} keys are not in it ({_some(extra)})")
        if unlike:
            name = unlike[0]
            key = keys[name]
            assert key is not None
            there = list(like.checkpoint[key].shape)
            said.append(f"{len(unlike)} shapes differ ('{name}' is {list(made[name].shape)}, there {there})")
        raise MapError("the template says otherwise: " + "; ".join(said), path=path, hint="-n without --like shows the table")
    found = {name: key for name, key in keys.items() if key is not None}
    warnings = []
    cast = [name for name, key in found.items() if made[name].dtype is not like.checkpoint[key].dtype]
    if cast:
        name = cast[0]
        there_dtype = like.checkpoint[found[name]].dtype
        many = f"{len(cast)} {'tensor has' if len(cast) == 1 else 'tensors have'} another dtype than the template"
        warnings.append(f"{many}: '{name}' is {made[name].dtype}, there {there_dtype}; --dtype casts")
    return Fit(found, tuple(like.checkpoint[key] for key in own), tuple(warnings))


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
