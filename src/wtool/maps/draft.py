"""A recipe guessed from two checkpoints, with what each guess is worth: `wtool map draft` and `--map auto`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from wtool.checkpoint import Checkpoint
from wtool.errors import MapError, WtoolError
from wtool.keys import TF_SUFFIX, matcher, natural
from wtool.maps.align import SURE, align
from wtool.maps.fused import fused
from wtool.maps.guesses import Guesses, Rule, doubted
from wtool.maps.like import OWN, template
from wtool.maps.names import recipe_names
from wtool.maps.questions import NOTES, questions
from wtool.maps.recipe import Recipe, parse_recipe
from wtool.maps.resolve import resolve
from wtool.maps.signatures import Part, guess_layout, parts
from wtool.maps.writing import comment, lines, literal, recipe_text, writable, writable_rule
from wtool.tensor import LazyTensor, Shape

_COUNT = "**num_batches_tracked"
_NAME = "auto"


@dataclass(frozen=True)
class Side:
    """One checkpoint under the names that a recipe of this layout gives its keys, in the model's order if it is kept."""

    layout: str
    tensors: Mapping[str, LazyTensor]
    dropped: tuple[str, ...] = ()  # globs of what is no weight

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}


@dataclass(frozen=True)
class Draft:
    """`text` is the TOML; `recipe` the same, read; None where nothing could be paired.

    `left` and `lacking` are names of either side without a partner, `asked` the questions about the whole model. `fault`: what
    the recipe does is not what its lines say, and why.
    """

    text: str
    recipe: Recipe | None
    rules: tuple[Rule, ...]
    left: tuple[str, ...]
    lacking: tuple[str, ...]
    asked: tuple[str, ...]
    fault: str = ""

    def by_key(self, checkpoint: Checkpoint, full_names: Mapping[str, str]) -> dict[str, str]:
        """The verdict on every key of the source that has a partner."""
        verdicts = {name: rule.verdict for rule in self.rules for sources, _ in rule.rows for name in sources}
        if self.recipe is None:
            return {}
        names = recipe_names(checkpoint, self.recipe.sides[0][1], full_names)
        return {key: verdicts[name] for key, name in names.items() if name in verdicts}

    def doubts(self) -> dict[str, str]:
        """Every name (of either side, or empty: the model) that `--map auto` may not trust, and why."""
        found = {"": "; ".join(self.asked)} if self.asked else {}
        for rule in self.rules:
            if rule.verdict not in SURE or rule.doubt:
                why = rule.doubt if rule.verdict in SURE else rule.verdict
                found |= {name: why for sources, _ in rule.rows for name in sources}
        found |= dict.fromkeys(self.left, "no partner in the template")
        found |= dict.fromkeys(self.lacking, "the template's, with no partner")
        return found | ({"": self.fault} if self.fault else {})


def side(checkpoint: Checkpoint, full_names: Mapping[str, str], *, onto: bool) -> Side:
    """A checkpoint as a side of a draft, its layout guessed. `onto`: the template."""
    suffixed = any(key.endswith(TF_SUFFIX) for key in checkpoint)
    keys = sorted(checkpoint, key=natural) if suffixed else list(checkpoint)
    named = [full_names[key] for key in keys if key in full_names]
    unique = bool(named) and len(set(named)) == len(named) and len(named) * 2 > len(keys)
    tag = checkpoint.metadata.get("format", "")
    layout = guess_layout(keys, {key: checkpoint[key].shape for key in keys}, suffixed, unique, tag)
    if layout == "keras" and suffixed:
        try:
            recipe_names(checkpoint, layout, full_names)
        except MapError:
            layout = "object"
    if onto:
        like = template(checkpoint, layout, full_names, None)
        names = {key: name.removeprefix(like.prefix) for name, key in like.keys.items()}
    else:
        names = recipe_names(checkpoint, layout, full_names)
    own = matcher(OWN)
    tensors = {names[key]: checkpoint[key] for key in keys if not own(names[key])}
    others = [name for name in names.values() if name not in tensors]
    met = tuple(glob for glob in OWN if any(map(matcher([glob]), others)))
    return Side(layout, tensors, met)


def draft(
    checkpoint: Checkpoint,
    like: Checkpoint,
    full_names: Mapping[str, str] | None = None,
    like_names: Mapping[str, str] | None = None,
) -> Draft:
    """A recipe from a checkpoint to a template. Headers only; `full_names` are those of TensorFlow's object graphs."""
    one, two = side(checkpoint, full_names or {}, onto=False), side(like, like_names or {}, onto=True)
    layouts = (one.layout, two.layout)
    left, right = parts(one.shapes, one.layout, two.layout), parts(two.shapes, two.layout, one.layout)
    guesses = Guesses(layouts, one.tensors, two.shapes)
    rules: list[Rule] = []
    gone: set[int] = set()
    for found in fused(left, right):
        made = guesses.fused(found)
        rules += [doubted(rule, "query, key and value in one: plain, or head by head? the order is a guess") for rule in made]
        gone |= {id(part) for part in (found.one, *found.three)} if made else set()
    left, right = [part for part in left if id(part) not in gone], [part for part in right if id(part) not in gone]
    aligned = align(left, right, one.layout == two.layout)
    asked = questions(aligned, left, right, layouts)
    if rules and "" not in asked:
        asked |= {path: text for path, text in questions(aligned, *_all(one, two), layouts).items() if not path}
    for match, some in zip(aligned.matches, guesses.rules(aligned.matches), strict=True):
        question = asked.get(match.left.path, "") if match.left.path else ""
        rules += [doubted(rule, question) if question else rule for rule in some]
    rules = [rule for rule in rules if writable_rule(rule)]
    return _written(checkpoint, full_names or {}, one, two, rules, tuple(text for path, text in asked.items() if not path))


def _all(one: Side, two: Side) -> tuple[list[Part], list[Part]]:
    return parts(one.shapes, one.layout, two.layout), parts(two.shapes, two.layout, one.layout)


def _written(
    checkpoint: Checkpoint, full_names: Mapping[str, str], one: Side, two: Side, rules: Sequence[Rule], asked: tuple[str, ...]
) -> Draft:
    """The draft's text, proven to do what it lists; rule by rule where templates with slots do not."""
    counts = matcher([_COUNT])
    across = one.layout != two.layout
    paired = [{name for rule in rules for row in rule.rows for name in row[at]} for at in (0, 1)]
    rest = [[name for name in side.tensors if name not in paired[at]] for at, side in enumerate((one, two))]
    globs = [list(side.dropped) + ([_COUNT] if across and any(map(counts, side.tensors)) else []) for side in (one, two)]
    left, lacking = ([name for name in some if not (across and counts(name))] for some in rest)
    names = (one.layout, two.layout) if across else ("source", "target")
    drop = {name: some for name, some in zip(names, globs, strict=True) if some}
    tally = Counter(rule.verdict for rule in rules for _ in rule.rows)
    head = ["Drafted from two checkpoints by names, shapes and order. Every line says what it rests on; `?` wants an answer."]
    head += [f"{count} of {sum(tally.values())}: {verdict}" for verdict, count in tally.most_common()]
    head += [f"? {text}" for text in asked]
    for name in left:
        why = (
            ""
            if name and writable(name)
            else " (no template can be written for it: it is empty, has a brace, or half a character)"
        )
        head.append(f"? '{name}' has no partner in the template{why}: a rule, or [drop]")
    head += [f"? the template's '{name}' has no partner" for name in lacking]
    if not rules:
        return Draft("".join(comment(line) + "\n" for line in head), None, (), tuple(left), tuple(lacking), asked)
    others = tuple(
        tuple(dict.fromkeys([*some, *(_path(name, at) for name in some)])) for some, at in ((rest[0], one), (rest[1], two))
    )
    fault = ""
    for made in (lines(rules, (others[0], others[1])), literal(rules)):
        about = "drafted: read it, answer what it asks, and check it with `wtool map check`"
        text = recipe_text(head, about, NOTES, tuple(zip(names, (one.layout, two.layout), strict=True)), made, drop)
        recipe = parse_recipe(text, _NAME)
        fault = _fault(recipe, checkpoint, full_names, rules)
        if not fault:
            break
    if fault:
        text = comment(f"? the engine does not do what these rules say: {fault}") + "\n" + text
    return Draft(text, recipe, tuple(rules), tuple(left), tuple(lacking), asked, fault)


def _path(name: str, side: Side) -> str:
    from wtool.maps.signatures import split_leaf

    return split_leaf(name, side.layout)[0]


def _fault(recipe: Recipe, checkpoint: Checkpoint, full_names: Mapping[str, str], rules: Sequence[Rule]) -> str:
    """Why the recipe does not lead from each rule's sources to its targets; empty if it does."""
    wanted = {row for rule in rules for row in rule.rows}
    try:
        done = resolve(replace(recipe, unmatched="drop"), checkpoint, full_names=full_names)
    except WtoolError as error:
        return error.message
    names = recipe_names(checkpoint, recipe.sides[0][1], full_names)
    found = {
        (tuple(names[key] for key in row.sources), tuple(name.removesuffix(TF_SUFFIX) for name in row.targets))
        for row in done.rows
    }
    odd = found ^ wanted
    return "" if not odd else f"'{next(iter(odd))[0][0]}' goes elsewhere"
