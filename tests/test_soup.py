"""Greedy soups: what is chosen, what the user's command is asked, and that nothing is asked twice."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from wtool.cli.app import run
from wtool.cli.evaluate import Evaluation, score_of, shell_line
from wtool.cli.scratch import scratch
from wtool.errors import CorruptError, EvaluationError, NoTensorsError, UnreadableError, UsageError
from wtool.journal import Journal, read_journal
from wtool.ops.greedy import Objective, greedy, most

WTOOL = (sys.executable, "-m", "wtool")
Captured = pytest.CaptureFixture[str]

# Which are chosen


def recipe_1(own: Sequence[float], score: Callable[[frozenset[int]], float]) -> list[int]:
    """The paper's Recipe 1, word for word: a higher score is better."""
    ingredients: list[int] = []
    for one in sorted(range(len(own)), key=lambda number: -own[number]):
        if not ingredients or score(frozenset([*ingredients, one])) >= score(frozenset(ingredients)):
            ingredients.append(one)
    return ingredients


@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.integers(2, 30))
@settings(deadline=None, max_examples=60)
def test_it_is_the_recipe_of_the_paper(count: int, seed: int, levels: int) -> None:
    def score(members: frozenset[int]) -> float:
        return float(np.random.default_rng([seed, *sorted(members)]).integers(levels)) / levels

    own = [score(frozenset([one])) for one in range(count)]
    names = [f"m{one}" for one in range(count)]
    asked: list[tuple[int, ...]] = []

    def ask(numbers: tuple[int, ...], tried: int, round: int) -> float:
        assert tried in numbers and (round == 0) == (len(asked) < count)
        asked.append(numbers)
        return score(frozenset(numbers))

    soup = greedy(names, ask, Objective(maximize=True))
    assert list(soup.ingredients) == recipe_1(own, score)
    assert soup.score == score(frozenset(soup.ingredients)) >= max(own)
    assert len(set(asked)) == len(asked) == 2 * count - 1 == most(count)
    assert [own[one] for one in soup.ingredients] == sorted((own[one] for one in soup.ingredients), reverse=True)
    turned = greedy(names, lambda numbers, *_: -score(frozenset(numbers)), Objective(maximize=False))
    assert (turned.ingredients, turned.score) == (soup.ingredients, -soup.score)
    for passes in (2, 3):
        asked.clear()
        again = greedy(names, lambda numbers, *_: asked.append(numbers) or score(frozenset(numbers)), Objective(True), passes)
        assert again.score >= soup.score and len(asked) <= most(count, passes)


def test_equal_scores_are_tried_in_natural_order() -> None:
    soup = greedy(["m10", "m9", "m2"], lambda *_: 0.5, Objective(maximize=True))
    assert soup.ingredients == (2, 1, 0)


@pytest.mark.parametrize(
    ("accept", "delta", "before", "score", "accepted"),
    [
        ("ge", 0.0, 0.5, 0.5, True),
        ("gt", 0.0, 0.5, 0.5, False),
        ("gt", 0.0, 0.5, 0.5000001, True),
        ("ge", 0.0, 0.5, 0.4999999, False),
        ("ge", 0.1, 0.2, 0.3, True),  # 0.3 - 0.2 < 0.1 in binary
        ("gt", 0.1, 0.2, 0.3, True),
        ("ge", 0.1, 0.2, 0.29, False),
    ],
)
def test_what_is_no_worse(accept: str, delta: float, before: float, score: float, accepted: bool) -> None:
    assert Objective(True, accept, delta).accepts(score, before) is accepted
    assert Objective(False, accept, delta).accepts(-score, -before) is accepted


def test_what_has_no_score_is_left_out() -> None:
    scores = {(0,): 1.0, (2,): 3.0, (3,): 2.0, (2, 3): None, (2, 0): 3.5}
    soup = greedy(list("abcd"), lambda numbers, *_: scores.get(numbers), Objective(maximize=True))
    assert soup.ingredients == (2, 0) and soup.score == 3.5
    assert [(trial.round, trial.ingredient, trial.accepted) for trial in soup.trials] == [
        (0, 2, True),
        (1, 3, False),
        (2, 0, True),
        (0, 1, False),
    ]
    with pytest.raises(NoTensorsError):
        greedy(["a"], lambda *_: None, Objective(maximize=True))


# The journal


def test_a_torn_journal_loses_its_last_line_only(tmp_path: Path) -> None:
    path = tmp_path / "j"
    entries = [{"n": 1, "text": "a\nb"}, {"n": 2.5}]
    with Journal(str(path), "s/1") as journal:
        for entry in entries:
            journal.append(entry)
    whole = path.read_bytes()
    assert read_journal(str(path), "s/1") == entries
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = max(whole[:cut].count(b"\n") - 1, 0)
        assert read_journal(str(path), "s/1") == entries[:kept]
        assert path.read_bytes() == whole[:cut]
        with Journal(str(path), "s/1") as journal:
            assert journal.entries == entries[:kept]
            journal.append({"n": 3})
        assert read_journal(str(path), "s/1") == [*entries[:kept], {"n": 3}]


@pytest.mark.parametrize("data", [b"\x80\x02}q\x00.", b'{"schema": "other/1"}\n', b'{"schema": "s/10"}\n', b"\n"])
def test_a_stranger_is_no_journal_and_stays_as_it_is(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(data)
    for use in (Journal, read_journal):
        with pytest.raises(UsageError, match="no journal"):
            use(str(path), "s/1")
    assert path.read_bytes() == data


def test_journals_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b'{"schema": "s/1"}\nnonsense\n{"n": 1}\n')
    with pytest.raises(CorruptError, match="line 2"):
        Journal(str(path), "s/1")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UnreadableError):
        Journal(str(tmp_path / "fifo"), "s/1")
    assert read_journal(str(tmp_path / "none"), "s/1") == []


def test_one_run_at_a_time(tmp_path: Path) -> None:
    path = str(tmp_path / "j")
    with Journal(path, "s/1"), pytest.raises(UsageError, match="another run"):
        Journal(path, "s/1")
    Journal(path, "s/1").close()


def test_scratch_of_the_dead_goes_and_that_of_the_living_stays(tmp_path: Path) -> None:
    output = str(tmp_path / "o[1] \n.pth")
    dead = tmp_path / ".o[1] \n.pth.wtool-soup-0"
    dead.mkdir()
    (dead / "big").write_bytes(b"x")
    with scratch(output) as first, scratch(output) as second:
        assert first != second and os.path.isdir(first) and os.path.isdir(second)
        assert not dead.exists()
    assert os.listdir(tmp_path) == []


# The command

EVIL = [
    "a b.pt",
    "it's.pt",
    'say "hi".pt',
    "new\nline.pt",
    "$(touch pwned).pt",
    "`touch pwned`.pt",
    "; touch pwned;.pt",
    "$WTOOL_ROUND.pt",
    "{}.pt",
    "-n",
    "back\\slash*?.pt",
    "\udcff.pt",
]


@pytest.mark.parametrize(
    "command", ["./say {}", "./say", './say "$WTOOL_CHECKPOINT"', "./say a={} 2>&1 | cat", "x=1; ./say {} # don't"]
)
@pytest.mark.parametrize("name", EVIL)
def test_a_path_is_one_word_whatever_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "say").write_text('#!/bin/sh\nprintf %s "$#:$1:$WTOOL_ROUND" > said\necho 1\n')
    (tmp_path / "say").chmod(0o755)
    assert Evaluation(command)(name, 7) == 1.0
    said = os.fsdecode((tmp_path / "said").read_bytes())
    assert said == f"1:{'a=' * ('a=' in command)}{tmp_path}/{name}:7"
    assert sorted(os.listdir(tmp_path)) == ["said", "say"]


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("", "needs a command"),
        ("  \n", "needs a command"),
        ("sh -c 'evaluate {}'", "quotes"),
        ('evaluate "{}"', "quotes"),
        ("evaluate 'x", "not closed"),
        ("evaluate | tail -1", "where the checkpoint goes"),
        ("evaluate # {}", "where the checkpoint goes"),
        ("evaluate &", "where the checkpoint goes"),
    ],
)
def test_commands_that_are_refused(command: str, word: str) -> None:
    if "# {}" in command:
        assert shell_line(command) == command  # a comment: nothing is put there, and the path is in the environment
        return
    with pytest.raises(UsageError, match=word):
        shell_line(command)


@pytest.mark.parametrize(
    ("text", "field", "score"),
    [
        ("0.5", None, 0.5),
        ("loading\n 12\n\n", None, 12.0),
        ("10%\r90%\r-1e-3", None, -1e-3),
        ("+.5", None, 0.5),
        ('{"acc": 0.5, "name": "x", "ok": true}', None, 0.5),
        ('{"acc": 0.5, "loss": 2}', "loss", 2.0),
        ('{"val": {"acc": 0.5}}', "val.acc", 0.5),
        ('{"val.acc": 0.25, "val": {"acc": 0.5}}', "val.acc", 0.25),
    ],
)
def test_scores_that_are_read(text: str, field: str | None, score: float) -> None:
    assert score_of(text, field) == score


@pytest.mark.parametrize(
    ("text", "field", "word"),
    [
        ("", None, "nothing"),
        ("\n \n", None, "nothing"),
        ("0.5\ndone", None, "'done'"),
        ("accuracy 0.5", None, "no score"),
        ("1_000", None, "no score"),
        ("nan", None, "not finite"),
        ("-Infinity", None, "not finite"),
        ("1e999", None, "not finite"),
        ('{"acc": NaN}', None, "not finite"),
        ('{"acc": 1' + "0" * 400 + "}", None, "not finite"),
        ("[0.5]", None, "no score"),
        ('{"a": 1, "b": 2}', None, "2 numbers"),
        ('{"a": "1"}', None, "no number"),
        ('{"a": true}', "a", "'a'"),
        ('{"a": {"b": 1}}', "a.c", "'a.c'"),
        ("0.5", "acc", "no JSON"),
        ("[" * 100_000, None, "no score"),
    ],
)
def test_scores_that_are_none(text: str, field: str | None, word: str) -> None:
    with pytest.raises(EvaluationError, match=re.escape(word)):
        score_of(text, field)


def test_failures_of_a_command(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="exit code 3: no such thing") as error:
        Evaluation("echo 1; echo no such thing >&2; exit 3; : {}")("a", 0)
    assert error.value.said == ("no such thing",)
    with pytest.raises(EvaluationError, match="SIGKILL"):
        Evaluation("kill -9 $$; : {}")("a", 0)
    with pytest.raises(EvaluationError, match="exit code 127"):
        Evaluation("/no/such/program {}")("a", 0)


def test_a_command_that_takes_too_long_ends_with_all_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    command = f"sh -c 'trap \"\" TERM; sleep 100 & echo $! > {shlex.quote(str(note))}; wait'; : {{}}"
    with pytest.raises(EvaluationError, match="longer than"):
        Evaluation(command, timeout=1)("a", 0)
    assert_gone(int(note.read_text()))


def assert_gone(pid: int) -> None:
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except OSError as error:
            assert error.errno == errno.ESRCH
            return
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return  # dead, and nobody has asked for it
        time.sleep(0.02)
    raise AssertionError(f"process {pid} still runs")


# On the command line: a model is one value, its score is how near it is to 10

SCORE = """\
import json, os, struct, sys, time
data = open(sys.argv[1], "rb").read()
size = struct.unpack("<Q", data[:8])[0]
begin, end = json.loads(data[8:8 + size])["w"]["data_offsets"]
value = struct.unpack("<f", data[8 + size + begin:8 + size + end])[0]
with open("calls", "a") as calls:
    calls.write(f"{os.environ['WTOOL_ROUND']} {value:g} {os.environ['WTOOL_CHECKPOINT'] == sys.argv[1]}\\n")
print("scoring", value, file=sys.stderr)
if os.path.exists(f"fail-{value:g}"):
    sys.exit(5)
if os.path.exists(f"hang-{value:g}"):
    open("hanging", "w").write(str(os.getpid()))
    time.sleep(100)
print(json.dumps({"near": -abs(value - 10), "value": value}))
"""
VALUES = {"a": 4.0, "b": 14.0, "c": 7.0, "d": 30.0}  # best first c (7), b (14), a (4), d (30)
# c alone -3; c+b 10.5: -0.5, in; c+b+a 8.33: -1.67, out; c+b+d 17: out
CALLS = ["0 4", "0 14", "0 7", "0 30", "1 10.5", "2 8.33333", "3 17"]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "score.py").write_text(SCORE)
    for name, value in VALUES.items():
        save_file({"w": np.array([value], "f4"), "n": np.array([3])}, f"{name}.safetensors", {"format": "pt"})
    return tmp_path


COMMAND = f"{shlex.quote(sys.executable)} -S -E score.py {{}}"
NAMES = [f"{name}.safetensors" for name in VALUES]
GREEDY = ["average", *NAMES, "-o", "out.safetensors", "--greedy", "--eval", COMMAND, "--maximize", "--field", "near"]


def answer(capsys: Captured, *argv: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run([str(arg) for arg in argv])
    out, err = capsys.readouterr()
    return code, out, err


def calls() -> list[str]:
    """What the command has been asked since this was last called: the round and the value it saw."""
    path = Path("calls")
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    assert all(line.endswith(" True") for line in lines)
    return [line.removesuffix(" True") for line in lines]


def left() -> list[str]:
    return sorted(set(os.listdir()) - {"score.py", *NAMES})


def test_a_soup_and_its_story(bench: Path, capsys: Captured) -> None:
    before = {name: Path(name).read_bytes() for name in NAMES}
    code, out, err = answer(capsys, *GREEDY, "--json")
    assert code == 0, err
    assert calls() == CALLS
    assert load_file("out.safetensors")["w"].tolist() == [10.5]
    found = json.loads(out)
    story = found["greedy"]
    assert found["schema"] == "wtool.average/1"
    assert [one["path"] for one in found["inputs"]] == ["c.safetensors", "b.safetensors"]
    assert story["soup"] == {"paths": ["c.safetensors", "b.safetensors"], "score": -0.5}
    assert story["best"] == {"path": "c.safetensors", "score": -3.0}
    assert story["objective"]["goal"] == "maximize" and story["objective"]["command"] == COMMAND
    assert (story["most"], story["known"], story["evaluated"]) == (7, 0, 7)
    rows = [(one["round"], one["path"][0], one["own"], one["accepted"]) for one in story["rounds"]]
    assert rows == [(0, "c", -3.0, True), (1, "b", -4.0, True), (2, "a", -6.0, False), (3, "d", -20.0, False)]
    assert [round(one["score"], 2) for one in story["rounds"]] == [-3.0, -0.5, -1.67, -7.0]
    assert "selected-on" in [warning["code"] for warning in found["warnings"]] and "flatters" in err
    assert "round 1: with b.safetensors: -0.5 (" in err
    assert left() == ["out.safetensors", "out.safetensors.soup.jsonl"]
    assert {name: Path(name).read_bytes() for name in NAMES} == before

    code, out, _ = answer(capsys, "inspect", "out.safetensors", "--json")
    kept = json.loads(json.loads(out)["metadata"]["wtool.soup"])
    assert [(one["name"], one["accepted"]) for one in kept["rounds"]][:2] == [("c.safetensors", True), ("b.safetensors", True)]
    assert str(bench) not in out and "score.py" not in out
    assert answer(capsys, "average", "c.safetensors", "b.safetensors", "-o", "same.safetensors")[0] == 0
    assert answer(capsys, "diff", "same.safetensors", "out.safetensors")[0] == 0


@pytest.mark.parametrize("kind", ["text", "markdown", "html"])
def test_the_story_is_shown(bench: Path, capsys: Captured, kind: str) -> None:
    code, out, _ = answer(capsys, *GREEDY, "--format", kind)
    assert code == 0
    for word in ("Greedy soup", "a.safetensors", "-1.66666", "2 of 4 inputs", "7 run, 0 known"):
        assert word in out, word


def test_bits_are_those_of_the_mean_of_what_was_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names = [f"m{n} '$x'.safetensors" for n in range(5)]
    for name in names:
        save_file({"w": rng.normal(size=(40, 30)).astype("f2"), "b": rng.normal(size=7).astype("f4")}, name)
    code, out, _ = answer(
        capsys, "average", *names, "-o", "out.safetensors", "--greedy", "--eval", "echo 1; : {}", "--maximize", "--json"
    )
    accepted = json.loads(out)["greedy"]["soup"]["paths"]
    assert code == 0 and accepted == names
    made = load_file("out.safetensors")
    for key, value in made.items():
        total = sum(load_file(name)[key].astype("f8") for name in names) / 5
        assert (value == total.astype(value.dtype)).all()
    assert answer(capsys, "average", *accepted, "-o", "same.safetensors")[0] == 0
    same = load_file("same.safetensors")
    assert all(made[key].tobytes() == same[key].tobytes() for key in made)
    assert (
        answer(
            capsys,
            *["average", *names, "-o", "gt.safetensors", "--greedy", "--eval", "echo 1; : {}"],
            "--minimize",
            "--accept",
            "gt",
        )[0]
        == 0
    )
    assert load_file("gt.safetensors")["w"].tobytes() == load_file(names[0])["w"].tobytes()


def test_the_recipe_of_a_soup_of_one_is_replayed(bench: Path, capsys: Captured) -> None:
    code, out, err = answer(capsys, *GREEDY, "--min-delta", "100", "--json")
    assert code == 0 and json.loads(out)["greedy"]["soup"]["paths"] == ["c.safetensors"], err
    Path("report.json").write_text(out)
    for recipe in ("report.json", "out.safetensors"):
        code, out, err = answer(capsys, "average", "--recipe", recipe, "-o", "again.safetensors", "--force")
        assert code == 0 and out.startswith("1 input -> again.safetensors"), err
        assert load_file("again.safetensors")["w"].tolist() == [7.0]
    code, out, err = answer(capsys, "average", "c.safetensors", "-o", "again.safetensors", "--force")
    assert code == 2 and "nothing to average" in err


def test_nothing_is_evaluated_twice(bench: Path, capsys: Captured) -> None:
    assert answer(capsys, *GREEDY)[0] == 0
    first = Path("out.safetensors").read_bytes()
    assert calls() == CALLS
    code, out, err = answer(capsys, *GREEDY, "--force", "--json")
    assert (code, calls()) == (0, []) and "(known)" in err and "warning: out.safetensors.soup.jsonl" not in err
    assert json.loads(out)["greedy"]["known"] == 7
    assert Path("out.safetensors").read_bytes() == first
    # Other places and another order of the inputs are the same to it; so are other rules of accepting.
    os.rename("b.safetensors", "z.safetensors")
    argv = [{"b.safetensors": "z.safetensors"}.get(word, word) for word in GREEDY]
    argv[1:5] = reversed(argv[1:5])
    assert answer(capsys, *argv, "--force", "--min-delta", 0.1)[0] == 0
    assert calls() == []
    assert answer(capsys, *argv, "--force", "--minimize")[0] == 2
    argv[argv.index("--maximize")] = "--minimize"
    code, _, err = answer(capsys, *argv, "--force")
    assert code == 0 and "the last run was to maximize" in err
    assert len(calls()) == 3  # other soups: d first


def test_what_has_changed_is_noticed(bench: Path, capsys: Captured) -> None:
    assert answer(capsys, *GREEDY)[0] == 0
    calls()
    save_file({"w": np.array([13.0], "f4"), "n": np.array([3])}, "b.safetensors", {"format": "pt"})
    code, _, err = answer(capsys, *GREEDY, "--force")
    assert code == 0 and "b.safetensors: has changed since it was scored" in err
    assert calls() == ["0 13", "1 10", "2 8", "3 16.6667"]
    # Another command, another field: nothing of before counts.
    argv = [f"{word} #" if word == COMMAND else word for word in GREEDY]
    code, _, err = answer(capsys, *argv, "--force")
    assert code == 0 and "the last run was with the command" in err and len(calls()) == 7
    argv = ["value" if word == "near" else word for word in argv]
    code, _, err = answer(capsys, *argv, "--force")
    assert code == 0 and "was with the field 'near'" in err and len(calls()) == 7
    # Soups of another dtype are other soups.
    code, _, err = answer(capsys, *argv, "--force", "--include", "w")
    assert code == 0 and "made otherwise" in err and len(calls()) == 7


def test_a_failure_loses_nothing(bench: Path, capsys: Captured) -> None:
    Path("fail-8.33333").touch()
    code, out, err = answer(capsys, *GREEDY, "--json")
    error = json.loads(err.splitlines()[-1])
    assert (code, out, error["code"], error["path"]) == (2, "", "evaluation", "a.safetensors")
    assert "exit code 5" in error["message"] and "round 2" in error["message"] and "run it again" in error["hint"]
    assert "| scoring 8.33" in err
    assert calls() == CALLS[:6]
    assert left() == ["fail-8.33333", "out.safetensors.soup.jsonl"]
    os.unlink("fail-8.33333")
    assert answer(capsys, *GREEDY)[0] == 0
    assert calls() == CALLS[5:]
    assert load_file("out.safetensors")["w"].tolist() == [10.5]


def test_a_failure_may_be_skipped(bench: Path, capsys: Captured) -> None:
    Path("fail-7").touch()
    Path("fail-9").touch()
    code, out, err = answer(capsys, *GREEDY, "--on-failure", "skip", "--json")
    assert code == 0 and "it is left out" in err
    story = json.loads(out)["greedy"]
    assert story["soup"]["paths"] == ["b.safetensors"]
    assert [(one["path"][0], "exit code 5" in (one["error"] or "")) for one in story["rounds"]] == [
        ("b", False),
        ("a", True),
        ("d", False),
        ("c", True),
    ]
    assert load_file("out.safetensors")["w"].tolist() == [14.0]
    for value in (4, 14, 30):
        Path(f"fail-{value}").touch()
    os.unlink("out.safetensors.soup.jsonl")
    code, _, err = answer(capsys, *GREEDY, "--on-failure", "skip", "--force")
    assert code == 2 and "no ingredient has a score" in err
    assert load_file("out.safetensors")["w"].tolist() == [14.0]


def test_a_model_that_is_not_finite(bench: Path, capsys: Captured) -> None:
    """NaN in a tensor that the score does not show."""
    save_file({"w": np.array([10.0], "f4"), "v": np.array([np.nan], "f4")}, "a.safetensors")
    save_file({"w": np.array([10.5], "f4"), "v": np.array([1.0], "f4")}, "b.safetensors")
    argv = [word for word in GREEDY if word not in ("c.safetensors", "d.safetensors")]
    code, _, err = answer(capsys, *argv)
    assert code == 2 and "'v' holds NaN" in err and "a.safetensors" in err
    assert answer(capsys, *argv, "--on-failure", "skip")[0] == 0
    assert load_file("out.safetensors")["w"].tolist() == [10.0]


def test_the_same_model_twice_counts_once(bench: Path, capsys: Captured) -> None:
    Path("c2.safetensors").write_bytes(Path("c.safetensors").read_bytes())
    code, _, err = answer(capsys, "average", "c2.safetensors", *GREEDY[1:])
    assert code == 0 and "the same, byte for byte, as c2.safetensors" in err
    assert load_file("out.safetensors")["w"].tolist() == [10.5]
    assert len(calls()) == 7


def test_what_was_left_out_may_be_tried_again(bench: Path, capsys: Captured) -> None:
    for name, value in {"a": 8.8, "b": 10.8, "c": 10.5, "d": 30.0}.items():
        save_file({"w": np.array([value], "f4"), "n": np.array([3])}, f"{name}.safetensors", {"format": "pt"})
    # With c alone (10.5), b makes it worse (10.65), a better (9.65), and then b does too (10.03).
    code, out, _ = answer(capsys, *GREEDY, "--passes", 3, "--json")
    story = json.loads(out)["greedy"]
    assert code == 0 and story["most"] == 4 + 3 + 2 + 1
    rows = [(one["round"], one["path"][0], one["accepted"]) for one in story["rounds"]]
    assert rows[:4] == [(0, "c", True), (1, "b", False), (2, "a", True), (3, "d", False)]
    assert rows[4:] == [(4, "b", True), (5, "d", False), (6, "d", False)]
    assert story["soup"]["paths"] == ["c.safetensors", "b.safetensors", "a.safetensors"]
    assert (story["known"], story["evaluated"], len(calls())) == (0, 9, 9)  # the last round is that before it
    assert load_file("out.safetensors")["w"][0] == np.float32(sum(np.array([8.8, 10.8, 10.5], "f4").astype("f8")) / 3)


def test_a_dry_run_runs_nothing(bench: Path, capsys: Captured) -> None:
    code, out, _ = answer(capsys, *GREEDY, "-n")
    assert code == 0 and "at most 7 evaluations of 4 inputs" in out and COMMAND in out
    assert left() == []
    assert answer(capsys, *GREEDY)[0] == 0
    calls()
    os.unlink("out.safetensors")
    before = Path("out.safetensors.soup.jsonl").read_bytes()
    code, out, _ = answer(capsys, *GREEDY, "-n", "--json")
    story = json.loads(out)["greedy"]
    assert (code, story["most"], story["known"], story["soup"], story["rounds"]) == (0, 7, 4, None, [])
    assert calls() == [] and left() == ["out.safetensors.soup.jsonl"]
    assert Path("out.safetensors.soup.jsonl").read_bytes() == before


def test_other_formats_are_handed_over_as_the_output_is(bench: Path, capsys: Captured) -> None:
    assert answer(capsys, "convert", "b.safetensors", "b.pth")[0] == 0
    argv = ["b.pth" if word == "b.safetensors" else word for word in GREEDY]
    assert answer(capsys, *argv)[0] == 0
    assert calls() == CALLS  # the command reads safetensors only
    assert load_file("out.safetensors")["w"].tolist() == [10.5]


@pytest.mark.parametrize(("target", "kind"), [("out/", "folder"), ("out.pth", "file"), ("out.ckpt", "prefix")])
def test_soups_look_like_the_output(bench: Path, capsys: Captured, target: str, kind: str) -> None:
    test = {"folder": "test -d {} -a -f {}/model.safetensors", "file": "test -f {}", "prefix": "test -f {}.index"}[kind]
    code, _, err = answer(
        capsys,
        "average",
        *NAMES,
        "-o",
        target,
        "--greedy",
        "--eval",
        f"{test} && echo 1",
        "--minimize",
        "--on-failure",
        "abort",
    )
    assert code == 0, err
    assert os.path.exists(target.rstrip("/") + ".soup.jsonl")
    assert not [name for name in os.listdir() if "wtool-soup" in name]


def test_all_is_checked_before_anything_is_run(bench: Path, capsys: Captured) -> None:
    save_file({"w": np.array([1.0, 2.0], "f4"), "n": np.array([3])}, "odd.safetensors")
    Path("there.safetensors").touch()
    head = ["average", *NAMES, "--greedy", "--eval", "touch ran; : {}"]
    for argv, word in [
        ([*head, "--maximize", "-o", "there.safetensors"], "exists already"),
        ([*head, "--maximize", "-o", "no/folder.safetensors"], "folder"),
        ([*head, "--maximize", "-o", "out.safetensors", "odd.safetensors"], "odd.safetensors"),
        ([*head, "--maximize", "-o", "out.safetensors", "--journal", "a.safetensors"], "no journal"),
        ([*head, "--maximize", "-o", "out.safetensors", "--journal", "out.safetensors"], "cannot be the output"),
        ([*head, "--maximize", "-o", "out.safetensors", "--journal", "no/j"], "journal's folder"),
        ([*head, "-o", "out.safetensors"], "--maximize or --minimize"),
        ([*head, "-o", "out.safetensors", "--maximize", "--minimize"], "--maximize or --minimize"),
        ([*head, "-o", "out.safetensors", "--maximize", "--method", "ema", "--decay", "0.5"], "ema"),
        ([*head, "-o", "out.safetensors", "--maximize", "--keep-extras"], "--keep-extras"),
        ([*head, "-o", "out.safetensors", "--maximize", "--accept", "lt"], "--accept"),
        ([*head, "-o", "out.safetensors", "--maximize", "--on-failure", "cry"], "--on-failure"),
        ([*head, "-o", "out.safetensors", "--maximize", "--min-delta=-1"], "--min-delta"),
        ([*head, "-o", "out.safetensors", "--maximize", "--min-delta", "nan"], "--min-delta"),
        ([*head, "-o", "out.safetensors", "--maximize", "--timeout", "0"], "--timeout"),
        ([*head, "-o", "out.safetensors", "--maximize", "--passes", "0"], "--passes"),
        ([*head[:-1], "evaluate '{}'", "-o", "out.safetensors", "--maximize"], "quotes"),
        (["average", *NAMES, "-o", "out.safetensors", "--greedy", "--maximize"], "--eval"),
        (["average", *NAMES, "-o", "out.safetensors", "--eval", "x {}"], "without --greedy"),
        (["average", *NAMES, "-o", "out.safetensors", "--timeout", "1"], "without --greedy"),
    ]:
        code, _, err = answer(capsys, *argv)
        assert code == 2 and word in err, (argv, err)
        assert left() == ["odd.safetensors", "there.safetensors"], argv


def test_an_input_that_changes_under_the_run(bench: Path, capsys: Captured) -> None:
    argv = [f"{COMMAND}; touch a.safetensors" if word == COMMAND else word for word in GREEDY]
    code, _, err = answer(capsys, *argv)
    assert code == 2 and "a.safetensors: has changed while the soup was made" in err
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_goes_on_where_it_was(bench: Path, capsys: Captured, number: int) -> None:
    Path("hang-8.33333").touch()
    process = subprocess.Popen([*WTOOL, *GREEDY], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(1000):
        if Path("hanging").exists() and Path("hanging").read_text():
            break
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    child = int(Path("hanging").read_text())
    stray = [name for name in os.listdir() if "wtool-soup" in name]
    if number == signal.SIGKILL:
        assert len(stray) == 1
        os.kill(child, signal.SIGKILL)
    else:
        assert process.returncode == 128 + number, err
        assert stray == []
    assert_gone(child)
    assert not Path("out.safetensors").exists()
    assert calls() == CALLS[:6]
    os.unlink("hang-8.33333")
    code, _, err2 = answer(capsys, *GREEDY)
    assert code == 0, err2
    assert calls() == CALLS[5:]
    assert load_file("out.safetensors")["w"].tolist() == [10.5]
    assert left() == ["hanging", "out.safetensors", "out.safetensors.soup.jsonl"]


def test_a_command_that_hangs_is_a_failure(bench: Path, capsys: Captured) -> None:
    Path("fail-10.5").touch()
    assert answer(capsys, *GREEDY, "--on-failure", "skip")[0] == 0  # all other scores are known now
    os.unlink("fail-10.5")
    Path("hang-10.5").touch()
    code, _, err = answer(capsys, *GREEDY, "--force", "--timeout", 0.5)
    assert code == 2 and "longer than 0.5 s" in err
    code, out, _ = answer(capsys, *GREEDY, "--force", "--timeout", 0.5, "--on-failure", "skip", "--json")
    assert code == 0 and "longer than 0.5 s" in json.loads(out)["greedy"]["rounds"][1]["error"]
    assert load_file("out.safetensors")["w"].tolist() == [7.0]


@pytest.mark.frameworks
def test_the_example(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    root = Path(__file__).parent.parent
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, root / "examples" / "soup.py", tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    best = float(re.findall(r"best of the models: .* validation (\S+),", done.stdout)[0])
    soup = float(re.findall(r"the greedy soup: validation (\S+),", done.stdout)[0])
    assert soup >= best > 0.5
