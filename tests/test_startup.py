"""Start-up is a feature: what a command imports is counted, not timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wtool.cli.commands import COMMANDS, command

FIXTURES = Path(__file__).parent.parent / "fixtures"

# What no question needs. concurrent.futures brings logging; the rest are packages or large parts of the standard library.
HEAVY = {
    "numpy", "torch", "tensorflow", "ml_dtypes", "safetensors", "google_crc32c", "huggingface_hub", "transformers", "rich",
    "pydantic", "asyncio", "ssl", "socket", "http", "email", "logging", "multiprocessing", "sqlite3", "unittest", "tempfile",
    "secrets", "concurrent.futures", "importlib.metadata", "importlib.resources", "pickle", "decimal", "fractions", "csv",
    "xml", "ctypes",
}  # fmt: skip
# What some questions do need.
ALLOWED = {
    "tensorflow/": {"google_crc32c"},  # every block of an index has a checksum
    "sharded": {"concurrent.futures", "logging"},  # headers of shards are read in parallel
    "nosuch": {"importlib.metadata", "importlib.resources", "tempfile", "email", "csv", "socket"},  # plugins are asked last
}
SCRIPT = """
import io, json, sys
from wtool.cli.app import run
real, sys.stdout = sys.stdout, io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
code = run(sys.argv[1:])
sys.stdout = real
print(json.dumps([code, sorted(sys.modules)]))
"""
SOURCES = [
    "safetensors/single/model.safetensors",
    "safetensors/sharded",
    "torch/plain/model.pth",
    "torch/lightning/epoch=3-step=120.ckpt",
    "torch/legacy/model.pth",
    "tensorflow/slots/model.ckpt",
    "tensorflow/saved_model",
]
CASES = [["--version"], ["--help"], ["inspect", "--help"], ["convert", "--help"], ["inspect", "nosuch.pth"]]
CASES += [["inspect", *kind, str(FIXTURES / source)] for source in SOURCES for kind in ([], ["--json"], ["--flat"])]


def imported(argv: list[str]) -> tuple[int, set[str]]:
    out = subprocess.run([sys.executable, "-c", SCRIPT, *argv], capture_output=True, check=True, text=True).stdout
    code, modules = json.loads(out)
    return code, set(modules)


@pytest.mark.parametrize("argv", CASES, ids=lambda argv: " ".join(argv).replace(str(FIXTURES), ""))
def test_nothing_heavy_is_imported(argv: list[str]) -> None:
    code, modules = imported(argv)
    assert code == (2 if "nosuch.pth" in argv else 0)
    allowed = {name for word, names in ALLOWED.items() if word in argv[-1] for name in names}
    assert modules & HEAVY <= allowed


def test_help_and_version_open_no_format() -> None:
    for argv in (["--version"], ["--help"]):
        _, modules = imported(argv)
        assert not [name for name in modules if name.startswith(("wtool.formats", "wtool.api", "wtool.analysis"))]


def test_a_question_about_one_format_imports_no_writer() -> None:
    _, modules = imported(["inspect", str(FIXTURES / "safetensors/single/model.safetensors")])
    assert not {"wtool.write", "wtool.stage", "wtool.formats.torch.write", "wtool.kernels.cast"} & modules


def test_the_library_costs_nothing_to_import() -> None:
    code = "import sys; before = set(sys.modules); import wtool; print(*sorted(set(sys.modules) - before))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert set(out.split()) <= {"wtool", "__future__", "typing", "collections", "functools", "contextlib", "re", "copyreg"} | {
        name for name in out.split() if name.startswith(("_", "collections.", "re.", "typing.", "enum", "operator", "types"))
    } | {"keyword", "reprlib", "itertools", "warnings"}


def test_a_command_imports_no_other() -> None:
    _, modules = imported(["inspect", str(FIXTURES / "safetensors/single/model.safetensors")])
    assert not {f"wtool.cli.{name}" for name in COMMANDS if name != "inspect"} & modules
    _, modules = imported(["--help"])
    assert not {f"wtool.cli.{name}" for name in COMMANDS} & modules


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_of_a_command_is_its_own(name: str) -> None:
    assert " ".join(command(name).help.split("\n\n")[0].split()) == COMMANDS[name]
