"""Which checkpoints: globs that the shell did not expand, the last few, the best few, a range of steps."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from wtool.errors import NotFoundError, UsageError
from wtool.keys import natural

_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".index", ".tar", ".h5", ".msgpack", ".npz")
_WHOLE = ("*.index.json", "model.safetensors", "pytorch_model.bin", "saved_model.pb")  # a folder that is one checkpoint
_DATA = re.compile(r"\.data-\d+-of-\d+$")
_SHARD = re.compile(r"[-_.]\d+-of-\d+")
_STEP = re.compile(
    r"(?i)(?<![a-z])(?:global_?|num_|train_)?(?:steps?|iter(?:ation)?s?|it|updates?)[=_-]?(\d+)(?![\d.]*[a-z]?\d)"
)
_EPOCH = re.compile(r"(?i)(?<![a-z])(?:epochs?|ep)[=_-]?(\d+)")
_VALUE = re.compile(r"(?i)[a-z][a-z_/]*[=_-]?\d+\.\d+|[a-z][a-z_/]*=[\d.e+-]*")  # val_loss=0.25: no step
_NUMBER = re.compile(r"(\d+)(?!.*\d)")
_FOLDER = re.compile(r"(?i)(?:checkpoint|ckpt|global_?step|step|iter|epoch)[=_-]?(\d+)")


@dataclass(frozen=True, slots=True)
class Input:
    """A path, the step or epoch that its name tells, and the number that `--metric` found in it."""

    path: str
    step: int | None = None
    metric: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """What the command line asks for. UsageError where it contradicts itself."""

    last: int | None = None
    best: int | None = None
    metric: str | None = None
    lower: bool = False
    higher: bool = False
    min_step: int | None = None
    max_step: int | None = None

    def __post_init__(self) -> None:
        if self.last is not None and self.best is not None:
            raise UsageError("--last and --best contradict each other", hint="--best N with --min-step takes late ones")
        if self.best is not None and self.metric is None:
            raise UsageError("--best needs --metric", hint="a regex with one group, as in --metric 'val_loss=([0-9.]+)'")
        if self.best is not None and self.lower == self.higher:
            raise UsageError("--best needs --lower or --higher", hint="--lower for a loss, --higher for an accuracy")
        if self.best is None and (self.lower or self.higher or self.metric is not None):
            raise UsageError("--metric, --lower and --higher are for --best N")

    def __bool__(self) -> bool:
        return any(one is not None for one in (self.last, self.best, self.min_step, self.max_step))


def chosen(sources: Sequence[str], choice: Choice) -> list[Input]:
    """The checkpoints to take, in the order of the arguments or, where there is a choice, by rising number.

    A source that is no path and holds * ? or [ is a glob (** crosses folders), in natural order. Where there is a choice a
    folder stands for the checkpoints in it, and a file that is met twice counts once. The number of a name is that of its
    step, else of its epoch, else the last one in it; where no name has one, the natural order counts. UsageError where fewer
    are left than asked for, where some names have a number and some none, where a name has no metric.
    """
    paths = [path for source in sources for path in _expanded(source, folders=bool(choice))]
    if not choice:
        return [Input(path, step(path)) for path in paths]
    once = list({os.path.realpath(path): path for path in reversed(paths)}.values())[::-1]
    found = _ordered([Input(path, step(path)) for path in once])
    found = _within(found, choice)
    if choice.last is not None:
        return _enough(found, choice.last, "--last")[-choice.last :]
    if choice.best is not None:
        assert choice.metric is not None
        read = _metric(choice.metric)
        rated = [replace(one, metric=read(one.path)) for one in found]
        _enough(rated, choice.best, "--best")
        sign = 1.0 if choice.lower else -1.0
        places = sorted(range(len(rated)), key=lambda place: (sign * (rated[place].metric or 0.0), place))
        return [rated[place] for place in sorted(places[: choice.best])]
    return _enough(found, 1, "--min-step and --max-step")


def _enough(found: list[Input], count: int, option: str) -> list[Input]:
    if len(found) < count:
        there = "nothing was" if not found else f"only {len(found)} {'was' if len(found) == 1 else 'were'}"
        names = ", ".join(one.path for one in found[:5])
        raise UsageError(f"{option} asks for {count}, and {there} found" + (f": {names}" if names else ""))
    return found


def _within(found: list[Input], choice: Choice) -> list[Input]:
    if choice.min_step is None and choice.max_step is None:
        return found
    unnumbered = next((one for one in found if one.step is None), None)
    if unnumbered is not None:
        raise UsageError("its name tells no step", path=unnumbered.path, hint="--min-step and --max-step go by names")
    low = 0 if choice.min_step is None else choice.min_step
    return [one for one in found if low <= (one.step or 0) and (choice.max_step is None or (one.step or 0) <= choice.max_step)]


def _ordered(found: list[Input]) -> list[Input]:
    bare = [one for one in found if one.step is None]
    if bare and len(bare) < len(found):
        raise UsageError(
            f"its name tells no step, and '{next(one for one in found if one.step is not None).path}' does",
            path=bare[0].path,
            hint="leave it out with a narrower glob, as in 'ckpts/*step*.ckpt'",
        )
    return sorted(found, key=lambda one: (one.step or 0, natural(one.path)))


def step(path: str) -> int | None:
    """The number that a checkpoint's name tells: of a step, else of an epoch, else the last one.

    A name without one has that of its folder, if it is called checkpoint-N, step-N or the like.

    `epoch=3-step=1200.ckpt` is 1200, `checkpoint-500/pytorch_model.bin` 500, `val_loss=0.25.pt` nothing.
    """
    path = path.rstrip("/")
    name = _SHARD.sub("", os.path.basename(path))
    while os.path.splitext(name)[1].lower() in (*_SUFFIXES, ".gz", ".json"):
        name = os.path.splitext(name)[0]
    for known in (_STEP, _EPOCH):
        hit = known.search(name)
        if hit:
            return int(hit[1][:18])
    hit = _NUMBER.search(_VALUE.sub("", name)) or _FOLDER.fullmatch(os.path.basename(os.path.dirname(path)))
    return int(hit[1][:18]) if hit else None


def _metric(pattern: str) -> Callable[[str], float]:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"bad --metric '{pattern}': {error.msg}") from None
    if regex.groups != 1:
        raise UsageError(f"--metric '{pattern}' has {regex.groups} groups", hint="one, as in 'val_loss=([0-9.]+)'")

    def read(path: str) -> float:
        hit = regex.search(path)
        if hit is None or hit[1] is None:
            raise UsageError(f"its name has nothing that --metric '{pattern}' matches", path=path)
        try:
            value = float(hit[1].rstrip("."))  # [0-9.]+ takes the dot of the suffix along
        except ValueError:
            raise UsageError(f"'{hit[1]}', which --metric found, is no number", path=path) from None
        if not isfinite(value):
            raise UsageError(f"the metric is {value}", path=path)
        return value

    return read


def _expanded(source: str, *, folders: bool) -> list[str]:
    if os.path.lexists(source) or not glob.has_magic(source):
        inside = _inside(source) if folders and os.path.isdir(source) else []
        return inside or [source]
    found = _checkpoints(glob.glob(os.path.expanduser(source), recursive=True))
    if not found:
        raise NotFoundError("no file matches this glob", path=source)
    return found


def _inside(folder: str) -> list[str]:
    """The checkpoints of a folder that is not one itself: files by their suffix, folders with a number in their name."""
    inside = [os.path.join(folder, name) for name in os.listdir(folder) if not name.startswith(".")]
    if any(glob.glob(os.path.join(glob.escape(folder), name)) for name in _WHOLE):
        return []
    files = [path for path in inside if os.path.isfile(path) and path.lower().endswith(_SUFFIXES)]
    if files and all(_SHARD.search(os.path.basename(path)) for path in files):
        return []
    return _checkpoints(
        [*files, *(path for path in inside if os.path.isdir(path) and re.search(r"\d", os.path.basename(path)))]
    )


def _checkpoints(paths: Sequence[str]) -> list[str]:
    """Paths in natural order; of TensorFlow's files the index alone, without its suffix: that is the checkpoint's name."""
    found = set()
    for path in paths:
        if os.path.basename(path.rstrip("/")) == "checkpoint" and os.path.isfile(path):
            continue  # TensorFlow's note of the latest one
        prefix = _DATA.sub("", path)
        if prefix == path and path.endswith(".index"):
            prefix = path.removesuffix(".index")
        found.add(prefix if prefix != path and os.path.exists(f"{prefix}.index") else path)
    return sorted(found, key=natural)
