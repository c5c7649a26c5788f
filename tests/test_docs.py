"""The documentation says what is so: commands, options, links, tables, and the examples run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from wtool.cli import commands as mounted
from wtool.cli.app import application, prepared
from wtool.dtypes import BY_NAME
from wtool.errors import WtoolError

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "fixtures"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
README = ROOT / "README.md"

# The files that examples speak of, and what stands for them here.
NAMES = {
    "strange.ckpt": "torch/lightning/epoch=3-step=120.ckpt",
    "last.ckpt": "torch/lightning/epoch=3-step=120.ckpt",
    "model.pth": "torch/fairseq/checkpoint_best.pt",
    "tf": "tensorflow/keras_model",
}
# Options of other programs that the pages name.
FOREIGN = {"--install-completion", "--show-completion", "--help"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, *kinds: str) -> list[str]:
    """The contents of fenced blocks of these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind in kinds]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def invocations(line: str) -> Iterator[list[str]]:
    """The arguments of every `wtool` in a line of shell, also in pipes and substitutions."""
    for inner in re.findall(r"\$\(([^()]*)\)", line):
        yield from invocations(inner)
    words = shlex.shlex(re.sub(r'"?\$\([^()]*\)"?', "X", line), posix=True, punctuation_chars="|;&")
    words.whitespace_split = True
    command: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set("|;&"):
            if command[:1] == ["wtool"]:
                yield command[1:]
            command = []
        else:
            command.append(word)


def written_commands(page: Path) -> list[list[str]]:
    found = []
    for block in blocks(page, "sh", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.lstrip().startswith("$ "):
                line = line.lstrip()[2:]
            if "wtool " in line and not line.startswith(("wtool:", "pip ")):
                found += list(invocations(line))
    for code in re.findall(r"`(wtool [^`]*)`", prose(page)):
        found += list(invocations(" ".join(code.split())))
    return found


@cache
def commands() -> dict[str, Any]:
    """Every command by the words that call it: `convert`, `map list`."""

    def below(group: Mapping[str, Any], words: str) -> Iterator[tuple[str, Any]]:
        for name, found in group.items():
            if hasattr(found, "commands"):
                yield from below(found.commands, f"{words}{name} ")
            else:
                yield words + name, found

    return dict(below({name: mounted.command(name) for name in mounted.COMMANDS}, ""))


def options(command: Any) -> set[str]:
    names = (name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))
    return {name for name in names if name.startswith("-")}


def every_option() -> set[str]:
    root = options(get_command(application()))
    return root.union(FOREIGN, {"-h"}, *(options(command) for command in commands().values()))


@pages
def test_commands_and_options_that_are_named_exist(page: Path) -> None:
    for args in written_commands(page):
        name = args[0]
        if name.startswith("-"):
            assert name in every_option(), args
            continue
        if name.isupper():  # `wtool COMMAND -h`
            continue
        if name not in commands() and len(args) > 1:
            name = " ".join(args[:2])
        if any(known.startswith(f"{args[0]} ") for known in commands()) and len(args) == 1:
            continue  # the group itself
        assert name in commands(), f"wtool {name}"
        known = options(commands()[name]) | {"-h", "--help"}
        # `--verify` may stand without a value; `prepared` gives it one.
        used = {arg.split("=")[0] for arg in prepared(args[1:]) if re.match(r"--?[a-z]", arg)}
        assert used <= known, f"wtool {name} has no {used - known}"


def test_commands_are_found() -> None:
    """The other tests would be content with none."""
    assert len(written_commands(README)) > 20
    assert ["inspect", "a.pth", "--digest"] in list(invocations('test "$(wtool inspect a.pth --digest | jq .)" = x'))


@pages
def test_options_in_prose_exist(page: Path) -> None:
    named = {
        word for code in re.findall(r"`(-[^`]*)`", prose(page)) for word in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", code)
    }
    assert named <= every_option()


def test_every_command_and_option_is_in_the_readme() -> None:
    text = README.read_text()
    for name, command in commands().items():
        assert re.search(rf"wtool {name}\b", text), name
        missing = {option for option in options(command) if not re.search(rf"(?<![\w-]){option}(?![\w-])", text)}
        assert not missing, f"{name}: {missing}"


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(there), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


@pages
def test_pages_are_plain(page: Path) -> None:
    """One newline at the end, and no pictures for letters."""
    text = page.read_text()
    assert text.endswith("\n") and not text.endswith("\n\n")
    assert not re.search("[\U0001f000-\U0001faff☀-➿]", text)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with the files that the examples speak of, and `wtool` in its .bin."""
    folder = tmp_path
    for name, fixture in NAMES.items():
        source = FIXTURES / fixture
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy(source, folder / name)
    programs = folder / ".bin"
    programs.mkdir()
    program = programs / "wtool"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m wtool "$@"\n')
    program.chmod(0o755)
    return folder


def shell(line: str, desk: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{desk / '.bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src")}
    command = ["bash", "-o", "pipefail", "-c", line]
    return subprocess.run(command, cwd=desk, env=environment, capture_output=True, text=True, timeout=100)


def python(code: str, desk: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run([sys.executable, "-c", code], cwd=desk, env=environment, capture_output=True, text=True, timeout=100)


def test_recipes_run(desk: Path) -> None:
    section = README.read_text().split("\n## Everyday jobs\n")[1].split("\n## ")[0]
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S) for line in block.splitlines()]
    assert len(lines) > 10
    for line in lines:
        if "jq " in line and shutil.which("jq") is None:
            continue
        done = shell(line, desk)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        if "--json | jq" in line and "nan" not in line and not line.startswith("test "):
            assert done.stdout.strip(), line  # it finds what it is for


def test_what_is_said_of_dangerous_files(desk: Path) -> None:
    """Exit 1 and the name from `inspect`, exit 0 and a clean file from `convert`, and nothing has run."""
    from hostile_torch import archive, pickled, string, tensor

    call = b"cposix\nsystem\n(" + string(f"touch {desk / 'ran'}") + b"tR"
    (desk / "strange.ckpt").write_bytes(archive(pickled({"weight": tensor(), "more": call})))
    assert shell("wtool inspect strange.ckpt", desk).returncode == 1
    [recipe] = [line for block in blocks(README, "sh") for line in block.splitlines() if "verdict" in line]
    if shutil.which("jq") is not None:
        assert "dangerous posix.system" in shell(recipe, desk).stdout.splitlines()
    done = shell("wtool convert strange.ckpt clean.pth && wtool inspect clean.pth", desk)
    assert done.returncode == 0 and "posix.system" in done.stderr, done.stderr
    assert not (desk / "ran").exists()


def test_python_examples_run(desk: Path) -> None:
    for block in blocks(ROOT / "docs" / "python.md", "python"):
        done = python(block, desk)
        assert done.returncode == 0, f"{block}\n{done.stderr}"


def test_the_digest_as_it_is_defined(desk: Path) -> None:
    """The few lines of docs/digest.md give what wtool gives."""
    [definition] = blocks(ROOT / "docs" / "digest.md", "python")
    use = """
import wtool
from wtool.analysis.digest import digest as ours
checkpoint = wtool.open_checkpoint("last.ckpt", section="all")
theirs = digest({key: (tensor.array(), tensor.dtype.name) for key, tensor in checkpoint.items()})
assert theirs == ours(checkpoint).whole
"""
    done = python(definition + use, desk)
    assert done.returncode == 0, done.stderr


def fields(value: Any, open_maps: tuple[str, ...]) -> set[str]:
    """Every name of an object, but those of maps whose names are the file's."""
    found: set[str] = set()
    if isinstance(value, dict):
        for name, inner in value.items():
            found.add(name)
            if name in open_maps:
                inner = list(inner.values()) if name == "dtypes" else []
            found |= fields(inner, open_maps)
    elif isinstance(value, list):
        for inner in value:
            found |= fields(inner, open_maps)
    return found


@pytest.mark.parametrize(
    "line",
    [
        "wtool inspect strange.ckpt --digest --stats --json",
        "wtool inspect strange.ckpt model.pth --json",
        "wtool convert last.ckpt fields.safetensors --dtype f16 --verify --json",
        "wtool convert last.ckpt fields2.safetensors --dtype f16 --dry-run --json",
    ],
)
def test_every_field_of_the_json_is_documented(desk: Path, line: str) -> None:
    done = shell(line, desk)
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs" / "json.md").read_text()
    documented = set(re.findall(r"[`\"](\w+)[`\"]", page))
    assert fields(json.loads(done.stdout), ("extras", "metadata", "dtypes")) <= documented


def test_every_code_of_an_error_is_documented() -> None:
    def tree(kind: type[WtoolError]) -> Iterator[type[WtoolError]]:
        for below in kind.__subclasses__():
            yield below
            yield from tree(below)

    text = (ROOT / "docs" / "json.md").read_text()
    table = text[text.index("<!-- codes -->") : text.index("<!-- /codes -->")]
    documented = {code: int(number) for code, number in re.findall(r"^\| `([a-z-]+)` \|.*\| (\d+) \|$", table, re.M)}
    ours = {kind.code: kind.exit_code for kind in tree(WtoolError) if kind.__module__.startswith("wtool.")}
    assert documented == ours


def test_the_table_of_dtypes() -> None:
    text = (ROOT / "docs" / "formats.md").read_text()
    table = text[text.index("<!-- dtypes -->") : text.index("<!-- /dtypes -->")]
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\S+) \| (\S+) \| (\S+) \|$", table, re.M)

    def cell(name: str | None) -> str:
        return "-" if name is None else f"`{name}`"

    ours = [
        (row.name, str(row.bits), cell(row.safetensors), cell(row.torch), "-" if row.tf is None else str(row.tf))
        for row in BY_NAME.values()
        if not row.block
    ]
    assert rows == ours
