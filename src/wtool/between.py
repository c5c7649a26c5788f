"""The door between frameworks: recipes and templates by name, on an open checkpoint.

whole = open_checkpoint("model.pth", section="all")
mapped, how = map_checkpoint(whole.section(), ["torch-to-keras"], whole=whole)
save_checkpoint(mapped, "model.ckpt")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from wtool.api import OBJECT_GRAPH, Loss, open_checkpoint
from wtool.checkpoint import Checkpoint
from wtool.errors import MapError, UsageError
from wtool.maps.like import Template, fit, template
from wtool.maps.names import GraphNames
from wtool.maps.recipe import Recipe
from wtool.maps.resolve import Resolved, resolve
from wtool.ops.map import MapTensors

if TYPE_CHECKING:
    from wtool.maps.draft import Draft

AUTO = "auto"
_FEW = 3  # doubts named in a message

_BY_NAME = (
    "a functional Keras 3 model's restore() finds nothing in a file of names alone, and does not say so: convert with --like "
    "CHECKPOINT, of a fresh model by tf.train.Checkpoint(model).write, or read this one into its layers with "
    "tf.train.Checkpoint(**{layer.name: layer for layer in model.layers}).read(PREFIX).assert_existing_objects_matched(), or "
    "by name with tf.compat.v1.train.Saver({v.path: v.value for v in model.weights})"
)


def map_checkpoint(
    checkpoint: Checkpoint,
    recipes: Sequence[str | Recipe],
    *,
    reverse: bool = False,
    like: str | None = None,
    given: Mapping[str, int] | None = None,
    unmatched: str | None = None,
    whole: Checkpoint | None = None,
    strict: bool = False,
) -> tuple[Checkpoint, tuple[Resolved, ...]]:
    """The checkpoint through recipes, left to right, and what each did. Reads headers only.

    `recipes` are names, files or recipes; "auto" alone is one drafted from `like`, if all of it is sure. `reverse` runs
    them backwards, the last first. `like` is the path of a template for the result. `given` are variables by name. `whole`
    is the checkpoint that `checkpoint` is a section of. `strict`: a rule that meets no key, and a kind that had to be
    assumed, are errors. Raises a WtoolError.
    """
    from wtool.maps.catalog import load

    if AUTO in recipes:
        return _by_itself(checkpoint, recipes, reverse, like, given, whole or checkpoint)
    chosen = [load(recipe) if isinstance(recipe, str) else recipe for recipe in recipes]
    if reverse:
        chosen = [recipe.reverse() for recipe in reversed(chosen)]
    names: Mapping[str, str] = full_names(checkpoint, whole or checkpoint)
    done = []
    known = {name for recipe in chosen for name in variable_names(recipe)}
    for recipe in chosen:
        last = recipe is chosen[-1]
        mine = {name: value for name, value in (given or {}).items() if name in variable_names(recipe) or name not in known}
        onto = open_template(like, recipe.sides[1][1]) if like is not None and last else None
        found = resolve(recipe, checkpoint, given=mine, full_names=names, like=onto, unmatched=unmatched)
        if strict and (found.unused or found.warnings):
            said = f"no key met {found.unused[0]}" if found.unused else found.warnings[0]
            raise MapError(f"'{recipe.name}': {said}", path=checkpoint.source.path, hint="without --strict this is only said")
        checkpoint, names = MapTensors(found)(checkpoint), {}
        done.append(found)
    if not chosen and like is not None:
        checkpoint = fitted(checkpoint, open_template(like, None))
    return checkpoint, tuple(done)


def drafted(checkpoint: Checkpoint, like: str, whole: Checkpoint) -> Draft:
    """A recipe guessed from the checkpoint and a template in the file `like`. Reads headers only."""
    from wtool.maps.draft import draft

    other = open_checkpoint(like, section="all")
    part = other.section()
    return draft(checkpoint, part, full_names(checkpoint, whole), full_names(part, other))


def _by_itself(
    checkpoint: Checkpoint,
    recipes: Sequence[str | Recipe],
    reverse: bool,
    like: str | None,
    given: Mapping[str, int] | None,
    whole: Checkpoint,
) -> tuple[Checkpoint, tuple[Resolved, ...]]:
    """The checkpoint by a recipe that was drafted, if nothing in it is a guess. UsageError or MapError."""
    if len(recipes) > 1 or reverse or given:
        raise UsageError("--map auto stands alone: it has no way back, no variables and no other recipe beside it")
    if like is None:
        raise UsageError(
            "--map auto needs --like TEMPLATE", hint="a checkpoint of the target model, such as one just initialised"
        )
    found = drafted(checkpoint, like, whole)
    path = checkpoint.source.path
    hint = "`wtool map draft SRC --like TEMPLATE -o recipe.toml` writes down each guess; read it, then --map recipe.toml"
    doubts = found.doubts()
    if doubts or found.recipe is None:
        said = [f"'{name}' ({why})" if name else why for name, why in list(doubts.items())[:_FEW]]
        more = f" and {len(doubts) - _FEW:,} more" if len(doubts) > _FEW else ""
        many = f"{len(doubts):,} {'doubt' if len(doubts) == 1 else 'doubts'}"
        raise MapError(f"auto is not sure of everything, {many}: {'; '.join(said)}{more}", path=path, hint=hint)
    names = full_names(checkpoint, whole)
    done = resolve(found.recipe, checkpoint, full_names=names, like=open_template(like, found.recipe.sides[1][1]))
    doubtful = next((row for row in done.rows if row.doubt), None)
    if doubtful is not None:
        raise MapError(f"auto is not sure of '{doubtful.sources[0]}' ({doubtful.doubt})", path=path, hint=hint)
    verdicts = found.by_key(checkpoint, names)
    rows = tuple(replace(row, why="; ".join(filter(None, (verdicts[row.sources[0]], row.why)))) for row in done.rows)
    done = replace(done, rows=rows)
    return MapTensors(done)(checkpoint), (done,)


def fitted(checkpoint: Checkpoint, like: Template) -> Checkpoint:
    """The same tensors in the template's order and with its object graph. MapError if keys or shapes differ."""
    made = dict(checkpoint.tensors)
    found = fit(made, like, (), None)
    tensors = [tensor.renamed(found.keys[key]) for key, tensor in made.items()]
    places = {key: place for place, key in enumerate(like.checkpoint)}
    resolved = Resolved(
        like.checkpoint.source.path,
        "torch",
        (),
        tuple(sorted([*tensors, *found.own], key=lambda tensor: places[tensor.key])),
        own=tuple(tensor.key for tensor in found.own),
        warnings=found.warnings,
        structure=like.structure,
    )
    return MapTensors(resolved)(checkpoint)


def open_template(path: str, layout: str | None) -> Template:
    """The model's weights in a checkpoint as a template for names of this layout (None: for its own keys)."""
    whole = open_checkpoint(path, section="all")
    part = whole.section()
    graph = whole.extras.get(OBJECT_GRAPH)
    return template(part, layout, full_names(part, whole), graph if isinstance(graph, bytes) else None)


def full_names(checkpoint: Checkpoint, whole: Checkpoint) -> GraphNames:
    """What TensorFlow's object graph calls the variables; empty for a checkpoint that has no such graph."""
    graph = whole.extras.get(OBJECT_GRAPH)
    if whole.source.format != "tensorflow" or not isinstance(graph, bytes):
        return GraphNames({}, {}, "")
    from wtool.formats.tensorflow.graph import parse_graph
    from wtool.formats.tensorflow.sections import model_paths, whole_model

    parsed = parse_graph(graph)
    found = {attribute.key: attribute.full_name for attribute in parsed.attributes if attribute.full_name}
    paths = model_paths(parsed)
    here = checkpoint.sections[0].name
    prefix = next((section.prefix for section in whole.sections if section.name == here), "")
    prefix = prefix if len(checkpoint) != len(whole) or set(checkpoint) != set(whole) else ""
    return GraphNames(
        {key: found[prefix + key] for key in checkpoint if prefix + key in found},
        {key: paths[prefix + key] for key in checkpoint if prefix + key in paths},
        whole_model(parsed),
    )


def variable_names(recipe: Recipe) -> set[str]:
    """The variables that a recipe knows."""
    from wtool.maps.recipe import used_variables

    return {*recipe.vars, *used_variables(recipe)}


def notes(done: Sequence[Resolved], format: str) -> list[str]:
    """What to know of the result in a file of this format: the recipes' notes, and who finds these names in it."""
    found = [note for resolved in done for note in resolved.notes]
    if format == "tensorflow" and done and done[-1].layout == "keras" and done[-1].structure is None:
        found.append(_BY_NAME)
    return list(dict.fromkeys(found))


def losses(done: Sequence[Resolved], checkpoint: Checkpoint) -> list[Loss]:
    """What is lost on the way: keys that no rule matched and that were dropped, values that are no longer what they were."""
    found = []
    for resolved in done:
        why = f"no rule of '{resolved.recipe}' matches it (--unmatched drop)"
        found += [Loss("unmatched", key, 1, checkpoint[key].nbytes if key in checkpoint else 0, why) for key in resolved.lost]
        for row in resolved.rows:
            if row.exact == "lossy":
                found += [Loss("inexact", key, 1, 0, row.why) for key in row.targets]
    return found
