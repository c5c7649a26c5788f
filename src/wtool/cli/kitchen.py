"""Cook a greedy soup: score checkpoints by the user's command, once each, whatever happens in between."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from wtool.cli.scores import SCHEMA, Key, Scores, digest_of, state_of
from wtool.cli.scratch import scratch
from wtool.errors import DtypeError, EvaluationError, MismatchError, NotFiniteError, UsageError, WtoolError
from wtool.journal import Journal, read_journal
from wtool.ops.greedy import Soup, greedy, most

if TYPE_CHECKING:
    from wtool.api import SavePlan
    from wtool.checkpoint import Checkpoint
    from wtool.cli.console import Console
    from wtool.cli.soup import Order
    from wtool.ops.average import Averaged

Mixed = Callable[[Sequence[int], str], "tuple[Averaged, SavePlan]"]


@dataclass(frozen=True, slots=True)
class Told:
    """What came of one evaluation. `reused`: it is from the journal. `error`: why there is no score."""

    score: float | None
    seconds: float
    reused: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Story:
    """How a soup came about; of a dry run there is none. `known` scores were in the journal, at most `most` are needed."""

    order: Order
    names: tuple[str, ...]
    digests: Mapping[int, str]
    told: Mapping[tuple[int, ...], Told]
    soup: Soup | None
    known: int
    most: int


class Kitchen:
    """What scoring needs: `mixed` plans the mean of some ingredients (best first) at a path, `write` carries a plan out.

    An ingredient is handed to the command as it is where it holds just what a soup of it alone would, in the format of the
    output; else it is written in that format first, as every soup is, so that a command need only read one. Scores are kept
    by the command, the field, the digests of the ingredients and what was made of them; not by what the command reads besides.
    """

    def __init__(
        self,
        order: Order,
        names: Sequence[str],
        inputs: Sequence[Checkpoint],
        base: Checkpoint | None,
        output: str,
        mixed: Mixed,
        write: Callable[[SavePlan], object],
        console: Console,
    ) -> None:
        self._order, self._names, self._inputs, self._base = order, tuple(names), inputs, base
        self._output, self._mixed, self._write, self._console = output, mixed, write, console
        self._states = [state_of(one) for one in inputs]
        self._digests: dict[int, str] = {}
        self._told: dict[tuple[int, ...], Told] = {}
        self._base_digest: str | None = None

    def cook(self, *, dry_run: bool = False) -> Story:
        """All that can be known is checked before the first run of the command. EvaluationError where it gives no score."""
        every = tuple(range(len(self._names)))
        averaged, plan = self._mixed(every, self._output)
        self._folder = plan.plan.layout.folder
        path = self._order.journal
        if os.path.realpath(path) in {os.path.realpath(one) for one in (self._output, *plan.paths)}:
            raise UsageError("the journal cannot be the output", path=path)
        limit = most(len(every), self._order.passes)
        made = self._made(averaged, plan)
        if dry_run:
            entries = read_journal(path, SCHEMA)
            self._scores = Scores(self._order, entries)
            self._scores.notice(made, path, self._console)
            known = sum(self._key((one,), self._output)[0] in self._scores.found for one in every) if entries else 0
            return Story(self._order, self._names, self._digests, {}, None, known, limit)
        with Journal(path, SCHEMA) as self._journal, scratch(self._output) as self._scratch:
            self._scores = Scores(self._order, self._journal.entries)
            self._scores.notice(made, path, self._console)
            self._note("run", every, made=made)
            self._console.note(
                f"at most {limit} evaluations of {len(every)} inputs and their soups; scores are kept in {path}"
            )
            soup = greedy(self._names, self._score, self._order.objective, self._order.passes)
            for one in every:
                self._unchanged(one)
            self._note("soup", soup.ingredients, score=soup.score)
        known = sum(told.reused for told in self._told.values())
        return Story(self._order, self._names, self._digests, self._told, soup, known, limit)

    def _score(self, numbers: tuple[int, ...], tried: int, round: int) -> float | None:
        if numbers in self._told:  # in an earlier pass
            return self._told[numbers].score
        name = self._names[tried]
        what = name if round == 0 else f"with {name}"
        twin = self._twin(tried) if round == 0 else None
        if twin is not None:
            told = Told(None, 0.0, error=f"the same, byte for byte, as {twin}")
        else:
            try:
                told = self._tell(numbers, round)
            except (EvaluationError, NotFiniteError, MismatchError, DtypeError) as error:
                for line in getattr(error, "said", ()):
                    self._console.note(f"  | {line}")
                self._note("failure", numbers, round=round, error=error.message)
                if not self._order.skip:
                    raise self._abort(error, name, round) from None
                told = Told(None, 0.0, error=error.message)
        self._told[numbers] = told
        if told.score is None:
            self._console.warn(f"round {round}: {what}: {told.error}; it is left out")
        else:
            when = "known" if told.reused else f"{told.seconds:.1f} s"
            self._console.note(f"round {round}: {what}: {told.score:.10g} ({when})")
        return told.score

    def _tell(self, numbers: tuple[int, ...], round: int) -> Told:
        folder = os.path.join(self._scratch, f"round-{round}")
        target = os.path.join(folder, os.path.basename(self._output.rstrip(os.sep)))
        try:
            os.mkdir(folder)
            key, plan = self._key(numbers, target + os.sep * self._folder)
            if key in self._scores.found:
                return Told(*self._scores.found[key], reused=True)
            if plan is not None:
                self._write(plan)
            for number in numbers:
                self._unchanged(number)
            began = time.monotonic()
            path = self._names[numbers[0]] if plan is None else target
            score = self._order.evaluation(path, round, show=self._console.verbose)
            seconds = float(f"{time.monotonic() - began:.3f}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._note("score", numbers, made=key.made, round=round, score=score, seconds=seconds)
        self._scores.found[key] = (score, seconds)
        return Told(score, seconds)

    def _key(self, numbers: tuple[int, ...], target: str) -> tuple[Key, SavePlan | None]:
        """What a score is kept under, and the plan of what is to be scored; None: the ingredient as it is."""
        averaged, plan = self._mixed(numbers, target)
        as_it_is = len(numbers) == 1 and self._as_it_is(numbers[0], plan)
        made = None if as_it_is else self._made(averaged, plan)
        return self._scores.key(made, [self._digest(number) for number in numbers]), None if as_it_is else plan

    def _as_it_is(self, number: int, plan: SavePlan) -> bool:
        from wtool.api import open_checkpoint

        path = self._names[number]
        whole = open_checkpoint(path, section="all")
        alike = whole.source.format == plan.format and os.path.isdir(path) == self._folder
        if not self._folder:  # an index of shards, or one of TensorFlow's files, is not what a soup would be
            alike = alike and len(whole.source.files) == len(plan.paths) and not path.endswith(".index")
        return alike and dict(whole.tensors) == dict(plan.checkpoint.tensors)

    def _made(self, averaged: Averaged, plan: SavePlan) -> str:
        """A fingerprint of everything but the ingredients' values that decides what is written."""
        if self._base is not None and self._base_digest is None:
            self._base_digest = digest_of(self._base)
        specs = [(spec.key, str(spec.dtype), spec.shape) for spec in plan.checkpoint.specs]
        files = [os.path.basename(path) for path in plan.paths]
        fates = [(fate.key, fate.policy) for fate in averaged.fates]
        said = json.dumps([plan.format, files, self._base_digest, specs, fates])
        return blake2b(said.encode(), digest_size=16).hexdigest()

    def _digest(self, number: int) -> str:
        if number not in self._digests:
            self._unchanged(number)
            found = digest_of(self._inputs[number])
            self._unchanged(number)
            self._digests[number] = found
            if self._scores.changed(self._names[number], found):
                self._console.warn("has changed since it was scored: its scores are not used", self._names[number])
        return self._digests[number]

    def _twin(self, number: int) -> str | None:
        digest = self._digest(number)
        return next((self._names[one] for one in range(number) if self._digests.get(one) == digest), None)

    def _unchanged(self, number: int) -> None:
        if state_of(self._inputs[number]) != self._states[number]:
            raise UsageError("has changed while the soup was made", path=self._names[number], hint="run it again")

    def _note(self, kind: str, numbers: Sequence[int], **more: object) -> None:
        names, digests = [self._names[one] for one in numbers], [self._digests.get(one) for one in numbers]
        self._journal.append(self._scores.entry(kind, names, digests, **more))

    def _abort(self, error: WtoolError, name: str, round: int) -> WtoolError:
        hint = "run it again to go on from here, or with --on-failure skip"
        what = error.message if round == 0 else f"{error.message} (a soup with this, in round {round})"
        return type(error)(what, path=error.path or name, hint=f"{error.hint}; {hint}" if error.hint else hint)
