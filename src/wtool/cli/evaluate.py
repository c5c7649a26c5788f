"""Run the command that scores a checkpoint, and find the number it says."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO

from wtool.errors import EvaluationError, UsageError

PLACE = "{}"
VARIABLE = "WTOOL_CHECKPOINT"

_TAIL = 1 << 16  # bytes of the end of what a command says that are looked at
_LINES = 20  # of its stderr that are shown when it fails
_GRACE = 3.0  # seconds to end in, before it is killed
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf|infinity)", re.IGNORECASE | re.ASCII)
_JOINS = "|;&<>()`\n#"


def shell_line(command: str) -> str:
    """The command as the shell gets it: with the path in place of `{}`, else behind it.

    What is put there is `"${WTOOL_CHECKPOINT}"` and never the path itself: whatever a path holds, no shell reads it as code.
    UsageError for `{}` in quotes, where that would not be one word of its own, and for a command that does not say where the
    path goes and is more than one plain command.
    """
    found, joined, quote, at = "", False, "", 0
    places = command.count(PLACE)
    while at < len(command):
        char = command[at]
        if command.startswith(PLACE, at):
            if quote:
                raise UsageError(
                    f"'{PLACE}' stands in quotes in --eval", hint=f'take it out of them, or write ${VARIABLE} ("${VARIABLE}")'
                )
            found += f'"${{{VARIABLE}}}"'
            at += len(PLACE)
            continue
        if char == "\\" and quote != "'":
            found += command[at : at + 2]
            at += 2
            continue
        if char == "#" and not quote and (at == 0 or command[at - 1] in " \t\n;&|()"):
            joined = True
            stop = command.find("\n", at)
            stop = len(command) if stop < 0 else stop
            found, at = found + command[at:stop], stop
            continue
        if char == quote:
            quote = ""
        elif char in "'\"" and not quote:
            quote = char
        joined = joined or (not quote and char in _JOINS)
        found += char
        at += 1
    if quote:
        raise UsageError(f"a quote ({quote}) is not closed in --eval")
    if not found.strip():
        raise UsageError("--eval needs a command", hint="as in --eval 'python evaluate.py {}'")
    if places or VARIABLE in command:
        return found
    if joined:
        raise UsageError("--eval does not say where the checkpoint goes", hint="{} stands for its path")
    return f'{found.rstrip()} "${{{VARIABLE}}}"'


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A command line of the user, the field of its JSON that counts, and the seconds it may take."""

    command: str
    field: str | None = None
    timeout: float | None = None

    def __call__(self, path: str, round: int, *, show: bool = False) -> float:
        """The score of the checkpoint at `path`. EvaluationError, with the end of its stderr as `said`.

        The command runs in a process group of its own, which does not outlive this call when it fails, is too slow or is
        interrupted. `show` lets its stderr through.
        """
        environment = {**os.environ, VARIABLE: os.path.abspath(path), "WTOOL_ROUND": str(round)}
        with TemporaryFile() as out, TemporaryFile() as err:
            code = self._run(environment, out, None if show else err)
            said = tuple(_tail(err).splitlines()[-_LINES:])
            if code is None:
                raise EvaluationError(f"the command took longer than {self.timeout:g} s and was stopped", said=said)
            if code:
                how = f"was killed by {_signal(-code)}" if code < 0 else f"failed with exit code {code}"
                why = next((f": {line.strip()}" for line in reversed(said) if line.strip()), "")
                raise EvaluationError(f"the command {how}{why}", said=said)
            try:
                return score_of(_tail(out), self.field)
            except EvaluationError as error:
                raise EvaluationError(error.message, hint=error.hint, said=said) from None

    def _run(self, environment: Mapping[str, str], out: IO[bytes], err: IO[bytes] | None) -> int | None:
        """The exit code, None if it took too long."""
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", shell_line(self.command)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise EvaluationError(f"the command cannot be run: {error.strerror}") from None
        try:
            return process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.returncode is None:
                _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the whole group, which has the number of its first process."""
    try:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    finally:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def score_of(text: str, field: str | None = None) -> float:
    """The number, or the one in a JSON object, on the last line that is not blank. EvaluationError where there is none.

    `field` is a key of the object, or keys with dots between; without it the object has one number only.
    """
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    if not lines:
        raise EvaluationError("the command printed nothing", hint="a number, or a JSON object with one, on its last line")
    line = lines[-1]
    if _NUMBER.fullmatch(line):
        if field is not None:
            raise EvaluationError(f"the command printed '{line}', no JSON object with '{field}'", hint="leave --field out")
        return _finite(float(line), line)
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        shown = line if len(line) < 80 else line[:77] + "..."
        raise EvaluationError(
            f"the last line that the command printed is no score: '{shown}'", hint="a number, or a JSON object on one line"
        )
    if field is not None:
        value = _field(found, field)
        if not _numeric(value):
            raise EvaluationError(
                f"the command printed no number called '{field}'", hint="it has " + (", ".join(found) or "none")
            )
        return _finite(value, field)
    numbers = [name for name, value in found.items() if _numeric(value)]
    if len(numbers) != 1:
        many = f"{len(numbers)} numbers" if numbers else "no number"
        raise EvaluationError(
            f"the command printed an object with {many}", hint=f"--field NAME, of {', '.join(found) or 'none'}"
        )
    return _finite(found[numbers[0]], numbers[0])


def _field(found: Mapping[str, object], field: str) -> object:
    if field in found:
        return found[field]
    value: object = found
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _numeric(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(value: object, name: str) -> float:
    assert isinstance(value, (int, float))
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise EvaluationError(f"the score is not finite: {name if _NUMBER.fullmatch(name) else f'{name} is {number}'}")
    return number


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _TAIL, 0))
    return file.read().decode("utf-8", "replace")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
