"""What a recipe states besides rules: shapes that must agree, copies of tied tensors, why keys have no partner; hints."""

from __future__ import annotations

import pytest
from support import checkpoint_on

from wtool.bytesource import MemoryBytes
from wtool.errors import MapError, RecipeError
from wtool.maps.recipe import Recipe, parse_recipe
from wtool.maps.resolve import Resolved, resolve

HEAD = 'schema = "wtool.map/1"\n'
SIDES = '[sides]\na = "torch"\nb = "torch"\n'
RULE = '[[tensor]]\na = "{path*}"\nb = "x.{path*}"\n'


def recipe(text: str) -> Recipe:
    return parse_recipe(HEAD + SIDES + text + RULE, "mine")


def on(found: Recipe, shapes: dict[str, tuple[int, ...]], **given: int) -> Resolved:
    checkpoint = checkpoint_on(MemoryBytes(bytes(1 << 16), "m.pth"), {key: ("f32", shape) for key, shape in shapes.items()})
    return resolve(found, checkpoint, given=given)


@pytest.mark.parametrize(
    ("axes", "shapes", "fault"),
    [
        ("6 4", {"w": (6, 4)}, None),
        ("6 4", {"w": (6, 5)}, "'w' is [6, 5], not [6, 4]"),
        ("6 4", {"w": (6,)}, "'w' is [6], not [6, 4]"),
        ("", {"w": ()}, None),
        ("n n", {"w": (6, 6)}, None),
        ("n n", {"w": (6, 5)}, "'w' is [6, 5], not [n, n]: n is 6 in 'w'"),
        ("3*n n", {"w": (18, 6)}, None),
        ("3*n n", {"w": (16, 6)}, "'w' is [16, 6], not [3*n, n]: 16 is no multiple of 3"),
        ("$k*2*n", {"w": (16,)}, None),
        ("$k*3*n", {"w": (16,)}, "not [4*3*n]: 16 is no multiple of 12"),
        ("n=$k*m", {"w": (16,), "v": (4,)}, None),
        ("n", {"w": (16,), "other": (5, 5)}, None),
        ("0*n", {}, "is no axis"),
        ("n*m", {}, "is no axis"),
        ("n=", {}, "is no axis"),
        ("n-1", {}, "is no axis"),
    ],
)
def test_shapes(axes: str, shapes: dict[str, tuple[int, ...]], fault: str | None) -> None:
    text = f'[vars]\nk = 4\n[[shape]]\na = "w"\nshape = "{axes}"\nwrong = "do this"\n[[shape]]\na = "v"\nshape = "m"\n'
    if fault is not None and not shapes:
        with pytest.raises(RecipeError, match=fault):
            recipe(text)
        return
    if fault is None:
        assert len(on(recipe(text), shapes).tensors) == len(shapes)
        turned = {f"x.{key}": shape for key, shape in shapes.items()}
        assert len(on(recipe(text).reverse(), turned).tensors) == len(shapes)
        return
    for found, given in (
        (recipe(text), shapes),
        (recipe(text).reverse(), {f"x.{key}": shape for key, shape in shapes.items()}),
    ):
        with pytest.raises(MapError) as caught:
            on(found, given)
        assert fault in caught.value.message and caught.value.hint == "do this"


def test_shapes_of_both_sides_are_one_set_of_sizes() -> None:
    found = recipe('[[shape]]\na = "w"\nshape = "n"\n[[shape]]\nb = "x.v"\nshape = "n"\n')
    on(found, {"w": (3,), "v": (3,)})
    with pytest.raises(MapError, match=r"'x\.v' is \[4\], not \[n\]: n is 3 in 'w'"):
        on(found, {"w": (3,), "v": (4,)})


def test_a_variable_of_a_shape_is_asked_for_where_it_matters() -> None:
    found = recipe('[vars]\nk = "how many"\n[[shape]]\na = "w"\nshape = "$k*n"\n')
    assert len(on(found, {"v": (3,)}).tensors) == 1
    with pytest.raises(MapError, match="the variable 'k' is not set: how many"):
        on(found, {"w": (3,)})
    assert len(on(found, {"w": (3,)}, k=3).tensors) == 1


def test_copies() -> None:
    found = recipe('[[fill]]\nb = "x.head"\nbeside = "x.norm"\ncopy = "x.embed"\n')
    done = on(found, {"embed": (3, 2), "norm": (2,)})
    tensors = {tensor.key: tensor for tensor in done.tensors}
    assert done.filled == ("x.head",) and tensors["x.head"].identity == tensors["x.embed"].identity
    assert on(found, {"embed": (3, 2)}).filled == () and on(found, {"norm": (2,)}).filled == ()
    assert on(found, {"embed": (3, 2), "norm": (2,), "head": (3, 2)}).filled == ()
    assert [tensor.key for tensor in on(found.reverse(), {"x.head": (3, 2), "x.norm": (2,)}).tensors] == ["head", "norm"]
    with pytest.raises(RecipeError, match="a value and 'copy'"):
        recipe('[[fill]]\nb = "x.head"\nbeside = "x.norm"\ncopy = "x.embed"\nvalue = 1\n')
    with pytest.raises(RecipeError, match=r"the slot '\{i\}' is not in 'x\.norm'"):
        recipe('[[fill]]\nb = "x.head"\nbeside = "x.norm"\ncopy = "x.{i}"\n')


def test_reasons() -> None:
    text = '[why.a]\n"**.gate" = "there are no gates"\n[why.b]\n"odd" = "it is odd"\n[[tensor]]\na = "w"\nb = "x.w"\n'
    found = parse_recipe(HEAD + SIDES + text, "mine")
    with pytest.raises(MapError, match=r"2 keys match no rule of 'mine': 'l.0.gate', 'v' \(there are no gates\)"):
        on(found, {"w": (1,), "v": (1,), "l.0.gate": (1,)})
    with pytest.raises(MapError, match=r"'odd' \(it is odd\)"):
        on(found.reverse(), {"x.w": (1,), "odd": (1,)})
    with pytest.raises(RecipeError, match=r"\[why\] names a side 'c'"):
        recipe('[why.c]\n"x" = "y"\n')
    with pytest.raises(RecipeError):
        recipe("[why.a]\nx = 3\n")


def test_the_other_direction_is_hinted_at() -> None:
    found = parse_recipe(HEAD + SIDES + '[[tensor]]\na = "w.{i}"\nb = "x.{i}.w"\n', "mine", "mine.toml")
    with pytest.raises(MapError) as caught:
        on(found, {"x.0.w": (1,)})
    assert caught.value.hint == "its keys are those of the other side, 'b': --reverse"
    with pytest.raises(MapError) as caught:
        on(found.reverse(), {"w.0": (1,)})
    assert caught.value.hint == "its keys are those of the other side, 'a': leave --reverse out"
