"""The hostile corpus: every file gets the right answer, under watch, in little time and memory."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import CASES

HERE = Path(__file__).parent
FREE = 64 << 20
TIMES = 8
Watch = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    """Opens a path in a child of a process that has everything imported."""
    warm = tmp_path_factory.mktemp("warm")
    paths = []
    for number, name in enumerate(
        (
            "benign deflated",
            "index true",
            "tensorflow true",
            "legacy true",
            "tar true",
            "text",
            "nothing there",
            "torch error of many lines",
        )
    ):
        folder = warm / str(number)
        folder.mkdir()
        paths.append(str(CASES[name].build(folder)))
    process = subprocess.Popen(
        [sys.executable, str(HERE / "hostile" / "child.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdin and process.stdout
    process.stdin.write("".join(json.dumps(path) + "\n" for path in paths) + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "ready\n"

    def ask(path: Path) -> dict[str, Any]:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(str(path)) + "\n")
        process.stdin.flush()
        return dict(json.loads(process.stdout.readline()))

    yield ask
    process.stdin.close()
    process.wait()


def weight(path: Path) -> int:
    """Bytes of the files that were given."""
    base = path if path.is_dir() else path.parent
    return sum(one.lstat().st_size for one in base.rglob("*") if one.is_file() and not one.is_symlink())


@pytest.mark.parametrize("name", CASES)
def test_answer(name: str, tmp_path: Path, watch: Watch) -> None:
    path = CASES[name].build(tmp_path)
    answer = watch(path)
    assert answer["outcome"] in CASES[name].expect, answer
    assert not answer["events"]
    assert answer["peak"] <= FREE + TIMES * weight(tmp_path), f"{answer['peak'] >> 20} MiB"
    if "message" in answer:
        assert "\n" not in answer["message"] and answer["message"]
        assert answer["path"] and str(tmp_path) in answer["path"]
        assert len(answer["message"]) < 2000
    else:
        assert answer["values"] in ("read", "corrupt", "truncated", "limit", "unsupported"), answer["values"]


def wtool(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-m", "wtool", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1"},
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("benign deflated", 0),
        ("benign stranger evaluator.EvalResult", 0),
        ("cache with links to blobs", 0),
        ("expanded view of 2^50 elements", 0),
        ("laughs by memo", 0),
        ("REDUCE (zip)", 1),
        ("OBJ and POP (legacy)", 1),
        ("dotted 0 torch+serialization.os.system", 1),
        ("zip duplicate data.pkl", 2),
        ("zip flag 0x1", 2),
        ("safetensors key twice", 2),
        ("torch error of many lines", 2),
        ("index names '/etc/passwd'", 2),
        ("pipe", 2),
        ("pointer of Git LFS", 2),
        ("table wrong sum", 2),
    ],
)
def test_command(name: str, code: int, tmp_path: Path) -> None:
    path = CASES[name].build(tmp_path)
    for words in ((), ("--json",)):
        done = wtool("inspect", *words, str(path), cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert not any(ord(char) < 32 and char != "\n" for char in done.stderr)
        if words:
            json.loads(done.stdout or done.stderr)
        elif code == 2:
            assert str(path)[:40] in done.stderr
        if code == 2:
            assert done.stdout == ""


@pytest.mark.parametrize("name", ["REDUCE (zip)", "REDUCE (legacy)", "STACK_GLOBAL (zip)", "tar gadget in the object"])
def test_dangerous_files_are_converted(name: str, tmp_path: Path) -> None:
    """The tensors are what one came for: they are written, the danger is said, and the code is 0."""
    from wtool.api import open_checkpoint

    path = CASES[name].build(tmp_path)
    done = wtool("convert", str(path), str(tmp_path / "out.safetensors"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "os.system" in done.stderr
    assert open_checkpoint(tmp_path / "out.safetensors")["w"].array().tolist() == [1, 2, 3, 4]
    assert not Path("/tmp/wtool-was-here").exists()


def test_the_bomb_is_listed_and_not_written(tmp_path: Path) -> None:
    path = CASES["expanded view of 2^50 elements"].build(tmp_path)
    done = wtool("convert", str(path), "out.safetensors", cwd=tmp_path)
    assert done.returncode == 2 and "expanded view" in done.stderr
    assert sorted(one.name for one in tmp_path.iterdir()) == [path.name]


FORBIDDEN_MODULES = {
    "pickle",
    "_pickle",
    "marshal",
    "runpy",
    "imp",
    "subprocess",
    "ctypes",
    "dill",
    "cloudpickle",
    "shelve",
    "code",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "getattr", "setattr", "globals", "vars", "input"}
FORBIDDEN_ATTRIBUTES = {
    ("torch", "load"), ("numpy", "load"), ("np", "load"), ("np", "save"), ("os", "system"), ("os", "popen"),
    ("np", "fromfile"), ("tf", "saved_model"), ("keras", "models"),
}  # fmt: skip
READERS = sorted(
    path for path in (HERE.parent / "src" / "wtool" / "formats").rglob("*.py") if path.name not in ("judge.py", "registry.py")
)


@pytest.mark.parametrize("path", READERS, ids=lambda path: path.name)
def test_readers_cannot_run_anything(path: Path) -> None:
    """By construction: nothing in a reader could import, look up or call what a file names.

    Left out: the registry, which imports from its own fixed table and from entry points of installed packages, and the judges,
    which load what wtool wrote itself with the frameworks.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
            assert not names & (FORBIDDEN_MODULES | {"importlib"}), ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN_MODULES, ast.unparse(node)
            if (node.module or "").startswith("importlib"):
                assert [alias.name for alias in node.names] == ["find_spec"], ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, ast.unparse(node)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in FORBIDDEN_ATTRIBUTES, ast.unparse(node)
        elif isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle" or (isinstance(node.value, ast.Constant) and not node.value.value)


def test_the_static_test_can_fail(tmp_path: Path) -> None:
    for text in ("import pickle", "from importlib import import_module", "eval(x)", "getattr(a, b)", "torch.load(x)"):
        (tmp_path / "x.py").write_text(text)
        with pytest.raises(AssertionError):
            test_readers_cannot_run_anything(tmp_path / "x.py")


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 150
