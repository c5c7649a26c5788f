"""Methods of averaging by name, from what the command line or a recipe says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from wtool.errors import UsageError

if TYPE_CHECKING:
    from wtool.cli.console import Console
    from wtool.ops.average import Averaged
    from wtool.ops.linear import Combine

THINNED = ("ties", "dare", "dare-ties")
METHODS = ("mean", "weighted", "swa", "ema", "lerp", "slerp", "task", *THINNED, "model-stock")
BASED = ("task", *THINNED, "model-stock")  # they need a base
COMPATS = ("paper", "mergekit", "peft")

_TAKES = {  # which settings mean something to which methods
    "weights": ("weighted", "task", *THINNED),
    "decay": ("ema",),
    "t": ("lerp", "slerp"),
    "scale": ("task", *THINNED),
    "density": THINNED,
    "seed": ("dare", "dare-ties"),
    "trim_scope": ("ties",),
    "vote": ("ties", "dare-ties"),
    "compat": ("slerp", *THINNED, "model-stock"),
}
_KNOWN = {"slerp": ("mergekit", "paper"), "model-stock": ("paper", "mergekit")}  # compats, the default first


@dataclass(frozen=True, slots=True)
class Settings:
    """A method and its numbers; None is what was not said. What a recipe keeps."""

    method: str = "mean"
    weights: tuple[float, ...] | None = None
    decay: float | None = None
    t: float | None = None
    scale: float | None = None
    density: float | None = None
    seed: int | None = None
    trim_scope: str | None = None
    vote: str | None = None
    compat: str | None = None

    def data(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items() if value is not None}

    @staticmethod
    def of(data: Mapping[str, Any]) -> Settings:
        """The settings of a recipe. UsageError if there are any that this version does not know."""
        known = {one.name for one in fields(Settings)}
        odd = [name for name in data if name not in known]
        if odd:
            raise UsageError(f"the recipe has '{odd[0]}', which this wtool does not know", hint="a newer wtool wrote it")
        plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        return Settings(**plain)


def settings(method: str | None, weights: str | None, **numbers: Any) -> Settings:
    """What the command line says. UsageError."""
    given = None if weights is None else _weights(weights)
    return Settings(method or ("weighted" if given is not None else "mean"), given, **numbers)


def method(said: Settings, count: int, *, based: bool) -> Combine:
    """The method for `count` inputs. UsageError where settings lack, contradict or mean nothing to it."""
    from wtool.ops import linear

    name = said.method
    if name not in METHODS:
        if name == "geometric":
            raise UsageError("weights have both signs, and those have no geometric mean", hint="mean, or slerp for directions")
        raise UsageError(f"there is no method '{name}'", hint="one of " + ", ".join(METHODS))
    for option, names in _TAKES.items():
        if getattr(said, option) is not None and name not in names:
            said_as = option.replace("_", "-")
            raise UsageError(f"--{said_as} means nothing to {name}", hint=f"it is for {', '.join(names)}")
    known = _KNOWN.get(name, COMPATS)
    if said.compat is not None and said.compat not in known:
        raise UsageError(f"{name} has no '{said.compat}'", hint="--compat " + " or ".join(known))
    if said.weights is not None and len(said.weights) != count:
        raise UsageError(f"there are {len(said.weights)} weights for {count} inputs")
    for option in ("decay", "t", "scale", "density"):
        if not isfinite(getattr(said, option) or 0.0):
            raise UsageError(f"--{option} is not finite")
    if name in BASED and not based:
        raise UsageError(f"{name} needs --base, what the inputs were trained from")
    if name == "weighted":
        if said.weights is None:
            raise UsageError("weighted needs --weights", hint="such as --weights 0.5,0.3,0.2")
        return linear.weighted(said.weights)
    if name == "ema":
        if said.decay is None:
            raise UsageError("ema needs --decay", hint="such as --decay 0.9")
        return linear.ema(count, said.decay)
    if name in ("lerp", "slerp"):
        if count != 2 or said.t is None:
            raise UsageError(f"{name} takes two inputs and --t", hint="--t 0 is the first, --t 1 the second")
        return linear.lerp(said.t) if name == "lerp" else linear.Slerp(said.t, raw=said.compat != "paper")
    if name == "task":
        return linear.task(said.weights or (1.0,) * count, 1.0 if said.scale is None else said.scale)
    if name in THINNED:
        return _thinned(said, count)
    if name == "model-stock":
        return linear.ModelStock(count, beyond=said.compat == "mergekit")
    return linear.mean(count)


def _thinned(said: Settings, count: int) -> Combine:
    from wtool.ops.dare import dare
    from wtool.ops.ties import ties

    if said.density is None:
        raise UsageError(f"{said.method} needs --density, the share of the differences that is kept", hint="such as 0.2")
    weights, scale = said.weights or (1.0,) * count, 1.0 if said.scale is None else said.scale
    if said.method == "ties":
        return ties(weights, said.density, scale, compat=said.compat, scope=said.trim_scope, vote=said.vote)
    elect = said.method == "dare-ties"
    return dare(weights, said.density, scale, seed=said.seed or 0, compat=said.compat, elect=elect, vote=said.vote)


def two_passes(combine: Combine) -> bool:
    """Whether the values must be read once before any can be written."""
    from wtool.ops.linear import ModelStock, Slerp
    from wtool.ops.ties import Thinned

    return isinstance(combine, (Slerp, ModelStock)) or (isinstance(combine, Thinned) and combine.unready)


def prepared(combine: Combine, run: Callable[[Combine], Averaged], jobs: int, console: Console) -> Combine:
    """The method with what it must know of the values filled in, by a first pass over them. `run` plans with a method."""
    from wtool.ops.linear import ModelStock, Slerp
    from wtool.ops.ties import Thinned

    if isinstance(combine, (Slerp, ModelStock)):
        from wtool.analysis.gram import Noting, grams

        noting = Noting(combine.base)
        run(noting)
        total = sum(part.nbytes for one in noting.asked for part in (*one.parts.values(), *((one.base,) if one.base else ())))
        with console.progress("measuring", total) as advance:
            return replace(combine, grams=grams(noting.asked, jobs=jobs, progress=advance))
    if isinstance(combine, Thinned):
        from wtool.analysis import thinning

        noted = thinning.Noting(combine)
        run(noted)
        with console.progress("looking", noted.nbytes) as advance:
            return thinning.prepared(combine, noted.asked, jobs=jobs, progress=advance)
    return combine


def _weights(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"'{text}' are no weights", hint="numbers with commas between, as in 0.5,0.3,0.2") from None
    if not all(map(isfinite, found)):
        raise UsageError("a weight is not finite")
    return found
