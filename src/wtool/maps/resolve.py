"""A recipe on a checkpoint: every key's fate, decided and checked in both directions before a byte is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from wtool import views
from wtool.checkpoint import Checkpoint
from wtool.dtypes import dtype
from wtool.errors import KeyClashError, MapError, WtoolError
from wtool.keys import matcher
from wtool.maps.flat import flat_doubts
from wtool.maps.kept import kept_name, taken_back
from wtool.maps.kinds import FORMATS, LAYOUTS
from wtool.maps.like import Template, fit
from wtool.maps.match import Fill, Matched, Row, Variables, match
from wtool.maps.names import WRAPPED, own_prefix, plain_wrapped, recipe_names, written_key
from wtool.maps.recipe import ModuleRule, Recipe, TensorRule, used_variables
from wtool.maps.shapes import Sizes, check_shapes
from wtool.maps.step import Step, Wanted
from wtool.maps.steps import chain
from wtool.tensor import LazyTensor, Shape

_FEW = 3  # keys named in a message
_RANKS = ("exact", "function", "lossy")


@dataclass(frozen=True)
class Mapped:
    """One row of the table. `exact` is exact, function (other bits, the same model) or lossy; `why` says more."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    steps: tuple[Step, ...]
    before: tuple[Shape, ...]
    after: tuple[Shape, ...]
    exact: str
    why: str
    rule: str
    doubt: str = ""


@dataclass(frozen=True)
class Resolved:
    """What a recipe makes of a checkpoint. Frozen, picklable data: the tensors in it are lazy.

    `tensors` in the order of the output. `dropped` by the recipe, `lost` because of --unmatched drop, `kept` as they are under
    their own key (but for Flax's `params.`). `filled` had no partner and were made; `own` were taken from the template.
    `unused` are rules that met no key.
    """

    recipe: str
    layout: str
    rows: tuple[Mapped, ...]
    tensors: tuple[LazyTensor, ...]
    dropped: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    structure: bytes | None = None


def resolve(
    recipe: Recipe,
    checkpoint: Checkpoint,
    *,
    given: Mapping[str, int] | None = None,
    full_names: Mapping[str, str] | None = None,
    like: Template | None = None,
    unmatched: str | None = None,
) -> Resolved:
    """Apply a recipe to the headers of a checkpoint.

    `given`: variables that were set; `full_names`: see names.recipe_names; `unmatched`: error, keep or drop (None: the
    recipe's own). MapError, KeyClashError or DtypeError where recipe, checkpoint and template do not fit together.
    """
    given = given or {}
    path = checkpoint.source.path
    source, target = recipe.sides[0][1], recipe.sides[1][1]
    _known(recipe, given)
    names = {key: recipe.real(name, 0) for key, name in source_names(recipe, checkpoint, full_names or {}).items()}
    if like is not None:
        plain = _plainer(recipe, 1)
        like = replace(like, keys={recipe.real(plain(name), 1): key for name, key in like.keys.items()})
    tensors = {name: checkpoint[key] for key, name in names.items()}
    if len(tensors) != len(names):
        raise MapError("two keys of it have one name", path=path)
    policy = unmatched or recipe.unmatched
    try:
        matched = match(recipe, tensors, given, None if like is None else like.shapes)
        if matched.left and policy == "error":
            raise _unmatched(
                recipe, matched.left, _of_other_side(recipe, checkpoint, given, full_names or {}, len(matched.left))
            )
        _check_needs(recipe, tensors)
        sizes: Sizes = {}
        variables = Variables(recipe, given)
        check_shapes(recipe.shapes, 0, tensors, variables, sizes)
        made, rows = _made(matched, tensors, None if like is None else like.shapes)
        if not rows:
            raise MapError(f"no rule of '{recipe.name}' matches a key", hint=_first(tensors))
        odd = _odd(matched, tensors, LAYOUTS[source]) if unmatched is None and policy == "keep" else {}
        if odd:
            raise _unmatched(recipe, odd, None)
        kept = {name: kept_name(name, source, target) for name in matched.left} if policy == "keep" else {}
        for name, onto in kept.items():
            _claim(made, onto, tensors[name].renamed(onto), name)
            rows.append(_kept(name, onto, tensors[name].shape))
        check_shapes(recipe.shapes, 1, made, variables, sizes)
        filled = _filled(matched.fills, made)
        _check_back(recipe, matched, made, tensors, given, {fill.target for fill in matched.fills} | set(kept.values()))
        order = {name: place for place, name in enumerate(tensors)}
        in_order = sorted(matched.rows, key=lambda row: order[row.sources[0]])
        warnings = [*_strange(recipe, checkpoint), *_doubts(rows), *flat_doubts(in_order, (source, target), tensors)]
        warnings += taken_back(recipe, kept, made, tensors, given, _plainer(recipe, 1))
        keys = {name: written_key(name, target) for name in made}
        own: tuple[LazyTensor, ...] = ()
        if like is not None:
            fitting = fit(made, like, recipe.drop[1], target)
            keys, own, warnings = dict(fitting.keys), fitting.own, [*warnings, *fitting.warnings]
    except (MapError, KeyClashError) as error:
        raise error.at(path) from None
    taken: dict[str, str] = {}
    for name, key in keys.items():
        if taken.setdefault(key, name) != name:
            raise KeyClashError(f"'{taken[key]}' and '{name}' would both be '{key}'", path=path)
    done = [tensor.renamed(keys[name]) for name, tensor in made.items()]
    if like is not None:
        places = {key: place for place, key in enumerate(like.checkpoint)}
        done = sorted([*done, *own], key=lambda tensor: places[tensor.key])
    owners = {name: key for key, name in names.items()}
    return Resolved(
        recipe.name,
        target,
        tuple(
            replace(row, sources=tuple(owners[n] for n in row.sources), targets=tuple(keys[n] for n in row.targets))
            for row in rows
        ),
        tuple(done),
        dropped=tuple(owners[name] for name in matched.dropped),
        lost=tuple(owners[name] for name in matched.left) if policy == "drop" else (),
        kept=tuple(keys[name] for name in kept.values()),
        filled=tuple(keys[name] for name in filled),
        own=tuple(tensor.key for tensor in own),
        unused=_unused(recipe, matched),
        notes=recipe.notes,
        warnings=tuple(warnings),
        structure=None if like is None else like.structure,
    )


def source_names(recipe: Recipe, checkpoint: Checkpoint, full_names: Mapping[str, str]) -> dict[str, str]:
    """Key -> the name that the recipe's rules meet: without the model's own name in front, unless a rule has it."""
    layout = recipe.sides[0][1]
    names = recipe_names(checkpoint, layout, full_names)
    own = own_prefix(names, layout, full_names)
    skip = 0 if own and recipe.speaks_of(own) else len(own)
    plain = _plainer(recipe, 0)
    return {key: plain(name[skip:]) for key, name in names.items()}


def _plainer(recipe: Recipe, side: int) -> Callable[[str], str]:
    """What gives Keras' paths the names that follow from torch's, unless a rule has them as they are.

    A Bidirectional names its layers after others; a layer called `block.0.conv` is torch's conv of block.0.
    """
    if recipe.sides[side][1] != "keras":
        return str
    wrapped = any(recipe.speaks_of(word, side) for word in WRAPPED)
    dotted = recipe.has_dots(side)

    def plain(name: str) -> str:
        name = name if wrapped else plain_wrapped(name)
        return name if dotted else name.replace(".", "/")

    return plain


def _known(recipe: Recipe, given: Mapping[str, int]) -> None:
    known = {*recipe.vars, *used_variables(recipe)}
    odd = next((name for name in given if name not in known), None)
    if odd is not None:
        hint = "it has " + ", ".join(sorted(known)) if known else "it has none"
        raise MapError(f"the recipe '{recipe.name}' has no variable '{odd}'", hint=hint)


def _check_needs(recipe: Recipe, names: Mapping[str, object]) -> None:
    for glob, sentence in recipe.needs[0]:
        if glob not in names and not any(map(matcher([glob]), names)):
            raise MapError(f"it has no key '{glob}', which '{recipe.name}' needs", hint=sentence)


def _made(
    matched: Matched, tensors: Mapping[str, LazyTensor], shapes: Mapping[str, Shape] | None
) -> tuple[dict[str, LazyTensor], list[Mapped]]:
    made: dict[str, LazyTensor] = {}
    rows = []
    order = {name: place for place, name in enumerate(tensors)}
    for row in sorted(matched.rows, key=lambda row: order[row.sources[0]]):
        before = [tensors[name] for name in row.sources]
        wanted = Wanted(len(row.targets), tuple(shapes.get(name) for name in row.targets) if shapes is not None else ())
        try:
            after = chain(row.steps, before, wanted)
        except MapError as error:
            raise MapError(f"{row.rule}: {error.message}", hint=error.hint) from None
        for name, tensor in zip(row.targets, after, strict=True):
            _claim(made, name, tensor.renamed(name), row.sources[0])
        exact = max((step.status for step in row.steps), key=_RANKS.index, default="exact")
        whys = [row.evidence, *dict.fromkeys(step.why for step in row.steps)]
        rows.append(
            Mapped(
                row.sources,
                row.targets,
                row.steps,
                tuple(tensor.shape for tensor in before),
                tuple(tensor.shape for tensor in after),
                exact,
                "; ".join(why for why in whys if why),
                row.rule,
                row.doubt,
            )
        )
    return made, rows


def _claim(made: dict[str, LazyTensor], name: str, tensor: LazyTensor, source: str) -> None:
    if name in made:
        raise KeyClashError(f"'{made[name].key}' is made twice, the second time from '{source}'")
    made[name] = tensor


def _odd(matched: Matched, tensors: Mapping[str, LazyTensor], separator: str) -> dict[str, str]:
    """Keys that a recipe may not keep by itself, and why: they look like parts of layers, and have axes to rearrange."""
    known = [key for row in matched.rows if row.evidence for key in row.sources]
    known += [key for key, reason in matched.left.items() if reason]
    homes = {key.rpartition(separator)[0]: key for key in known}
    found = {}
    for key, reason in matched.left.items():
        home = key.rpartition(separator)[0]
        if len(tensors[key].shape) > 1 and (reason or home in homes):
            found[key] = reason or f"it stands beside '{homes[home]}', so it is part of a layer"
    return found


def _kept(name: str, onto: str, shape: Shape) -> Mapped:
    return Mapped((name,), (onto,), (), (shape,), (shape,), "exact", "no rule matches it: kept as it is", "")


def _filled(fills: Sequence[Fill], made: dict[str, LazyTensor]) -> list[str]:
    done = []
    for fill in fills:
        if fill.target in made:
            continue
        done.append(fill.target)
        if fill.copy is not None:
            made[fill.target] = made[fill.copy].renamed(fill.target)
            continue
        beside = None if fill.beside is None else made[fill.beside]
        row = dtype(fill.dtype) if fill.dtype is not None else beside.dtype if beside is not None else dtype("f32")
        made[fill.target] = views.filled(fill.target, row, () if beside is None else beside.shape, fill.value)
    return done


def _check_back(
    recipe: Recipe,
    matched: Matched,
    made: Mapping[str, LazyTensor],
    tensors: Mapping[str, LazyTensor],
    given: Mapping[str, int],
    without: set[str],
) -> None:
    """Read backwards, the recipe must lead every key that was made to where it came from."""
    if any(step.one_way for row in matched.rows for step in row.steps):
        return
    onto = {name: tensor for name, tensor in made.items() if name not in without}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    back = match(recipe.reverse(), onto, given, shapes)
    there = {frozenset(row.targets): row for row in matched.rows}
    for row in back.rows:
        rule = there.get(frozenset(row.sources))
        if rule is None or not set(rule.sources) <= set(row.targets):
            mine = next(other for other in matched.rows if set(other.targets) & set(row.sources))
            raise _ambiguous(recipe, mine, f"{row.rule} takes '{row.sources[0]}' to '{row.targets[0]}'")
    stray = [*back.left, *back.dropped]
    if stray:
        mine = next(other for other in matched.rows if stray[0] in other.targets)
        fate = "nothing takes it" if stray[0] in back.left else "it is dropped"
        raise _ambiguous(recipe, mine, f"{fate}: '{stray[0]}'{_because(back.left.get(stray[0], ''))}")


def _ambiguous(recipe: Recipe, row: Row, fate: str) -> MapError:
    return MapError(
        f"'{recipe.name}' does not lead back: {row.rule} makes '{row.targets[0]}' of '{row.sources[0]}', "
        f"but read backwards {fate}",
        hint="make the template of one side narrower, or put the narrower rule first",
    )


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _unmatched(recipe: Recipe, left: Mapping[str, str], likely: str | None) -> MapError:
    names = sorted(left, key=lambda name: not left[name])
    reason = next((reason for reason in left.values() if reason), "")
    shown = ", ".join(f"'{name}'" for name in names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")
    hint = likely or _loosened(recipe, names[0])
    hint = hint or "--unmatched keep takes them over as they are, --unmatched drop leaves them out"
    many = f"{len(names)} keys match" if len(names) != 1 else "a key matches"
    return MapError(f"{many} no rule of '{recipe.name}': {shown}{_because(reason)}", hint=hint)


def _of_other_side(
    recipe: Recipe, checkpoint: Checkpoint, given: Mapping[str, int], full_names: Mapping[str, str], left: int
) -> str | None:
    """A hint where the recipe would do better the other way round."""
    from wtool.maps.catalog import names as shipped
    from wtool.maps.catalog import turned_name

    turned = recipe.reverse()
    numbers = {**dict.fromkeys([*recipe.vars, *used_variables(recipe)], 1), **given}
    try:
        names = source_names(turned, checkpoint, full_names)
        back = match(turned, {turned.real(name, 0): checkpoint[key] for key, name in names.items()}, numbers)
    except WtoolError:
        return None
    if not back.rows or len(back.left) >= left:
        return None
    asked = recipe.path is None and recipe.name not in shipped()  # a shipped recipe by its turned name
    ways = "--reverse" if recipe.path is not None else f"--map {turned_name(recipe.name)}, or --reverse"
    ways = "leave --reverse out" if recipe.turned != asked else ways
    return f"its keys are those of the other side, '{turned.sides[0][0]}': {ways}"


def _loosened(recipe: Recipe, name: str) -> str | None:
    """A hint at the commonest trap: a slot of one letter is a number."""
    templates = [template for rule in recipe.tensors for template in rule.sides[0]]
    for template in templates:
        for slot, loose in template.loosened():
            if loose.match(name) is not None:
                return f"'{template.source}' would match if {{{slot.name}}} were a word: one letter is a number"
    return None


def _first(tensors: Mapping[str, LazyTensor]) -> str:
    return f"its first key is '{next(iter(tensors))}'" if tensors else "it has no keys"


def _strange(recipe: Recipe, checkpoint: Checkpoint) -> list[str]:
    """A file that says it is of another framework: where names are alike, its axes would be moved a second time."""
    said, name = checkpoint.metadata.get("format"), recipe.sides[0][0]
    if said not in FORMATS.values() or said == FORMATS[recipe.sides[0][1]]:
        return []
    return [f"its metadata say that it is of the format '{said}', but '{recipe.name}' reads the side '{name}'"]


def _doubts(rows: Sequence[Mapped]) -> list[str]:
    groups: dict[str, list[Mapped]] = {}
    for row in rows:
        if row.doubt:
            groups.setdefault(row.doubt, []).append(row)
    found = []
    for doubt, some in groups.items():
        many = f"'{some[0].sources[0]}'" + (f" and {len(some) - 1} more" if len(some) > 1 else "")
        found.append(f"{many} could be {doubt}; --like, or kind = in a recipe, settles it")
    return found


def _unused(recipe: Recipe, matched: Matched) -> tuple[str, ...]:
    rules: list[TensorRule | ModuleRule] = [*recipe.tensors, *recipe.modules]
    return tuple(rule.name for rule in rules if not rule.optional and rule.name not in matched.used)
