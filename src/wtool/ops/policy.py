"""What a person wants to become of some keys of an average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wtool.checkpoint import Warning
from wtool.errors import UsageError
from wtool.keys import matcher

POLICIES = ("mean", "first", "last", "max", "base", "drop", "error")


@dataclass(frozen=True, slots=True)
class Rule:
    """Keys that match `glob` are treated by `policy`, one of POLICIES; `mean` is whatever the method does."""

    glob: str
    policy: str

    def __str__(self) -> str:
        return f"{self.glob}={self.policy}"


def parse_rule(text: str) -> Rule:
    """`GLOB=policy`. UsageError."""
    glob, sign, policy = text.rpartition("=")
    if not sign or not glob or policy not in POLICIES:
        raise UsageError(f"'{text}' is no rule", hint="GLOB=POLICY, the policy one of " + ", ".join(POLICIES))
    matcher([glob])
    return Rule(glob, policy)


class Rules:
    """Rules in order: the first that matches a key decides; and which of them never matched."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = [(rule, matcher([rule.glob])) for rule in rules]
        self._used: set[int] = set()

    def find(self, key: str) -> Rule | None:
        found = None
        for number, (rule, matches) in enumerate(self._rules):
            if matches(key):
                self._used.add(number)
                found = found or rule
        return found

    def unused(self, strict: bool) -> list[Warning]:
        idle = [str(rule) for number, (rule, _) in enumerate(self._rules) if number not in self._used]
        if idle and strict:
            raise UsageError(f"--rule {idle[0]} matches no key", hint="without --strict this is a warning")
        return [Warning("unused-rule", f"--rule {text} matches no key") for text in idle]
