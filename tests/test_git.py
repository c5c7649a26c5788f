"""`wtool git` in real repositories: what git shows, what is written where, and that nothing of it stays."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile_torch import archive, pickled, string, tensor

from wtool.cli.app import run

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
FIXTURES = Path(__file__).parent.parent / "fixtures"
INDEX = FIXTURES / "tensorflow" / "slots" / "model.ckpt.index"
DATA = FIXTURES / "tensorflow" / "slots" / "model.ckpt.data-00000-of-00001"


def git(*words: str, at: Path | None = None, check: bool = True) -> str:
    done = subprocess.run(["git", *words], cwd=at, capture_output=True, encoding="utf-8", errors="surrogateescape")
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def model(path: Path, **tensors: object) -> Path:
    """A safetensors file of f32 vectors, by hand."""
    header, body = {}, b""
    for key, values in tensors.items():
        data = np.array(values, "<f4").tobytes()
        shape = list(np.shape(values))
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user of git who is nobody's, and git's own environment out of the way."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    for name, value in {
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / ".config"),
        "GIT_CONFIG_GLOBAL": str(folder / "gitconfig"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CEILING_DIRECTORIES": str(tmp_path),
        "GIT_PAGER": "cat",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(FIXTURES.parent / "src"),
        **{f"GIT_{who}_{what}": f"{what}@example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }.items():
        monkeypatch.setenv(name, value)
    (folder / "gitconfig").write_text("[init]\n\tdefaultBranch = main\n")
    return folder


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two versions of a checkpoint, and us in it."""
    folder = tmp_path / "a repo"
    git("init", "-q", str(folder))
    monkeypatch.chdir(folder)
    model(folder / "m.safetensors", a=[1, 2], b=[3, 4])
    commit("one")
    model(folder / "m.safetensors", a=[1, 2], b=[3, 5])
    commit("two")
    return folder


def commit(message: str) -> None:
    git("add", "-A")
    git("commit", "-q", "-m", message)


def changed(*words: str) -> list[str]:
    """The lines that a command of git shows as added or removed."""
    return [line for line in git(*words).splitlines() if line[:1] in ("+", "-") and line[:3] not in ("+++", "---")]


def everything(*paths: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.exists() else None for path in paths}


def textconv(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert run(["git", "textconv", *map(str, argv)]) == 0
    return capsys.readouterr().out


# What git shows


ASKED = [
    ["diff", "HEAD~1"],
    ["diff", "HEAD~1", "HEAD"],
    ["show"],
    ["log", "-p", "-1"],
    ["diff", "HEAD~1", "--", "m.safetensors"],
]


@pytest.mark.parametrize("words", ASKED, ids=" ".join)
def test_a_change_is_the_line_of_its_tensor(repo: Path, words: list[str]) -> None:
    assert run(["git", "install", "-q"]) == 0
    lines = changed(*words)
    assert [line.split("  ")[:2] for line in lines] == [["-b", "f32 [2]"], ["+b", "f32 [2]"]]
    assert "mean 3.5 std 0.5 absmax 4" in lines[0] and "mean 4 std 1 absmax 5" in lines[1]


def test_blame_knows_who_changed_a_tensor(repo: Path) -> None:
    run(["git", "install", "-q"])
    shas = [line[:7].lstrip("^") for line in git("blame", "-s", "m.safetensors").splitlines()]
    assert shas[1] != shas[2] == git("rev-parse", "HEAD")[:7]


def test_the_working_tree(repo: Path) -> None:
    run(["git", "install", "-q"])
    model(repo / "m.safetensors", a=[1, 2], c=[3, 5])
    assert [line[:2] for line in changed("diff")] == ["-b", "+c"]
    assert changed("diff", "--cached") == []
    git("add", "-A")
    assert [line[:2] for line in changed("diff", "--cached")] == ["-b", "+c"]


def test_added_deleted_renamed_and_a_merge(repo: Path) -> None:
    run(["git", "install", "-q"])
    model(repo / "n.safetensors", a=[9])
    commit("added")
    assert [line[:4] for line in changed("show")] == ["+# s", "+a  "]
    git("mv", "n.safetensors", "k.safetensors")
    commit("renamed")
    assert "rename to k.safetensors" in git("show", "-M")
    assert changed("show", "-M") == []
    (repo / "k.safetensors").unlink()
    commit("deleted")
    assert [line[:4] for line in changed("show")] == ["-# s", "-a  "]
    git("checkout", "-q", "-b", "side")
    model(repo / "m.safetensors", a=[7, 7], b=[3, 5])
    commit("side")
    git("checkout", "-q", "main")
    model(repo / "m.safetensors", a=[1, 2], b=[8, 8])
    commit("main")
    git("merge", "-q", "-s", "ours", "--no-commit", "side")
    model(repo / "m.safetensors", a=[7, 7], b=[9, 9])
    commit("merged")
    shown = git("show")
    assert "diff --cc m.safetensors" in shown
    assert any(line.startswith("++b  f32 [2]") for line in shown.splitlines())


def test_numbers_of_bytes_and_patches_stay_those_of_the_files(repo: Path, tmp_path: Path) -> None:
    run(["git", "install", "-q"])
    assert "Bin" in git("diff", "--stat", "HEAD~1")
    patch = tmp_path / "0001.patch"
    patch.write_text(git("format-patch", "-1", "--stdout"))
    assert "GIT binary patch" in patch.read_text()
    before = (repo / "m.safetensors").read_bytes()
    git("reset", "-q", "--hard", "HEAD~1")
    git("am", "-q", str(patch))
    assert (repo / "m.safetensors").read_bytes() == before


def test_the_cache_is_used_and_dropped(repo: Path) -> None:
    run(["git", "install", "-q"])
    first = git("log", "-p")
    assert git("rev-parse", "--verify", "refs/notes/textconv/wtool")
    assert git("log", "-p") == first
    run(["git", "install", "-q"])
    assert not git("rev-parse", "--verify", "-q", "refs/notes/textconv/wtool", check=False)
    git("log", "-p")
    run(["git", "uninstall", "-q"])
    assert not git("rev-parse", "--verify", "-q", "refs/notes/textconv/wtool", check=False)


def test_code_that_lies_in_the_repository_never_runs(repo: Path) -> None:
    for name in ("wtool", "numpy", "typer", "json"):
        (repo / f"{name}.py").write_text("open('ran', 'w')\nraise SystemExit(3)\n")
    run(["git", "install", "-q"])
    assert len(changed("diff", "HEAD~1", "--", "m.safetensors")) == 2
    assert not (repo / "ran").exists()


# Where it is written


def files(repo: Path) -> list[Path]:
    return [repo / ".gitattributes", repo / ".git" / "info" / "attributes", repo / ".git" / "config"]


OLD = [None, b"", b"\n", b"*.png -text\n", b"*.png -text", b"*.png -text\r\n\xff* x\r\n", b"*.pt filter=lfs diff=lfs -text\n"]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("old", OLD)
def test_uninstall_restores_every_byte(repo: Path, old: bytes | None, shared: bool) -> None:
    options = ["--shared"] * shared
    path = files(repo)[0 if shared else 1]
    path.unlink(missing_ok=True)
    if old is not None:
        path.write_bytes(old)
    before = everything(*files(repo))
    for _ in range(2):
        assert run(["git", "install", "-q", *options]) == 0
        assert path.read_bytes().startswith(old or b"") and b"*.pt diff=wtool" in path.read_bytes()
        assert path.read_bytes().count(b"*.pt diff=wtool") == 1
    assert git("check-attr", "diff", "m.pt").endswith("diff: wtool\n")
    assert run(["git", "uninstall", "-q", *options]) == 0
    assert everything(*files(repo)) == before
    assert run(["git", "uninstall", "-q", *options]) == 0
    assert everything(*files(repo)) == before


def test_lines_of_others_stay_wherever_they_were_put(repo: Path) -> None:
    path = repo / ".gitattributes"
    path.write_text("*.png -text\n")
    run(["git", "install", "-q", "--shared", "--pattern", "*.pt", "--pattern", "models/**"])
    ours = path.read_text()
    path.write_text(ours.replace("*.pt diff", "*.x -text\n*.pt diff") + "*.pt filter=lfs diff=lfs merge=lfs -text\n")
    assert git("check-attr", "diff", "m.pt").endswith("diff: lfs\n")
    run(["git", "install", "-q", "--shared"])
    assert git("check-attr", "diff", "m.pt").endswith("diff: wtool\n")
    assert git("check-attr", "filter", "m.pt").endswith("filter: lfs\n")
    assert git("check-attr", "diff", "models/x").endswith("diff: unspecified\n")
    run(["git", "uninstall", "-q", "--shared"])
    assert path.read_text() == "*.png -text\n*.x -text\n*.pt filter=lfs diff=lfs merge=lfs -text\n"


def test_half_of_our_lines_are_taken_out_too(repo: Path) -> None:
    path = repo / ".gitattributes"
    run(["git", "install", "-q", "--shared"])
    path.write_text(path.read_text().replace("# wtool: end\n", "*.x -text\n"))
    run(["git", "uninstall", "-q", "--shared"])
    assert path.read_text() == "*.x -text\n"


def test_foreign_settings_stay(repo: Path) -> None:
    git("config", "diff.other.textconv", "cat")
    git("config", "diff.wtool.xfuncname", "mine")
    before = everything(*files(repo))
    run(["git", "install", "-q"])
    run(["git", "uninstall", "-q"])
    assert everything(*files(repo)) == before


def test_in_a_submodule(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("init", "-q", str(tmp_path / "outer"))
    monkeypatch.chdir(tmp_path / "outer")
    git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(repo), "inner")
    monkeypatch.chdir("inner")
    before = everything(tmp_path / "outer" / ".git" / "config")
    assert run(["git", "install", "-q"]) == 0
    assert len(changed("diff", "HEAD~1")) == 2
    assert everything(tmp_path / "outer" / ".git" / "config") == before


def test_from_a_subfolder(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repo / "sub" / "deep").mkdir(parents=True)
    monkeypatch.chdir(repo / "sub" / "deep")
    assert run(["git", "install", "-q", "--shared"]) == 0
    assert (repo / ".gitattributes").exists() and os.listdir(".") == []
    assert len(changed("diff", "HEAD~1")) == 2
    assert run(["git", "uninstall", "-q", "--shared"]) == 0
    assert run(["git", "install", "-q"]) == 0
    assert len(changed("diff", "HEAD~1")) == 2


def test_in_a_linked_worktree(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("worktree", "add", "-q", str(tmp_path / "linked"))
    monkeypatch.chdir(tmp_path / "linked")
    before = everything(*files(repo))
    assert run(["git", "install", "-q"]) == 0
    assert len(changed("diff", "HEAD~1")) == 2
    assert len(git("diff", "HEAD~1", at=repo).splitlines()) > 4
    assert run(["git", "uninstall", "-q"]) == 0
    assert everything(*files(repo)) == before


def test_in_a_bare_repository(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    git("clone", "-q", "--bare", str(repo), str(tmp_path / "bare.git"))
    monkeypatch.chdir(tmp_path / "bare.git")
    assert run(["git", "install", "--shared"]) == 2
    assert "bare" in capsys.readouterr().err
    assert run(["git", "install", "-q"]) == 0
    assert len(changed("diff", "HEAD~1", "HEAD")) == 2
    assert run(["git", "status"]) == 0
    assert run(["git", "uninstall", "-q"]) == 0


@pytest.mark.parametrize("command", ["install", "uninstall", "status"])
def test_outside_of_a_repository(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["git", command]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("wtool: error: git: not a git repository") and "hint: run it inside" in err


def test_without_git(repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    assert run(["git", "install"]) == 2
    assert "git is not installed" in capsys.readouterr().err
    assert textconv(capsys, "m.safetensors").startswith("# safetensors single\na  f32")


@pytest.mark.parametrize("bad", ["", "a b", "#x", "!x", '"x"', "[attr]x", "a\tb"])
def test_what_is_no_pattern(repo: Path, bad: str) -> None:
    before = everything(*files(repo))
    assert run(["git", "install", "--pattern", bad]) == 2
    assert run(["git", "install", "--shared", "--global"]) == 2
    assert run(["git", "uninstall", "--shared", "--global"]) == 2
    assert everything(*files(repo)) == before


def test_globally(repo: Path, home: Path) -> None:
    attributes = home / ".config" / "git" / "attributes"
    before = everything(attributes, home / "gitconfig", *files(repo))
    assert run(["git", "install", "-q", "--global"]) == 0
    assert everything(*files(repo)).items() <= before.items()
    assert len(changed("diff", "HEAD~1")) == 2
    assert run(["git", "uninstall", "-q", "--global"]) == 0
    assert everything(attributes, home / "gitconfig", *files(repo)) == before
    git("config", "--global", "core.attributesFile", "~/dots/attributes")
    (home / "dots").mkdir()
    (home / "real").write_text("*.x -text\n")
    (home / "dots" / "attributes").symlink_to(home / "real")
    assert run(["git", "install", "-q", "--global"]) == 0
    assert "diff=wtool" in (home / "real").read_text() and (home / "dots" / "attributes").is_symlink()
    assert len(changed("diff", "HEAD~1")) == 2
    assert run(["git", "uninstall", "-q", "--global"]) == 0
    assert (home / "real").read_text() == "*.x -text\n"


def test_an_interpreter_with_odd_names(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / 'it\'s a "dir" $HOME'
    folder.mkdir()
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert run(["git", "install", "-q"]) == 0
    assert len(changed("diff", "HEAD~1")) == 2
    assert run(["git", "status"]) == 0
    # The environment moves away: git says so, we say so, and a new install mends it.
    folder.rename(tmp_path / "moved")
    assert run(["git", "status"]) == 1
    monkeypatch.setattr(sys, "executable", str(tmp_path / "moved" / "python"))
    assert run(["git", "install", "-q"]) == 0
    assert len(changed("diff", "HEAD~1")) == 2


def test_status(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["git", "status"]) == 1
    (repo / "deep").mkdir()
    (repo / "deep" / ".gitattributes").write_text("*.safetensors diff=lfs\n")
    model(repo / "deep" / "n.safetensors", a=[1])
    commit("deep")
    run(["git", "install", "-q", "--shared"])
    capsys.readouterr()
    assert run(["git", "status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "wtool.git-status/1"
    assert (found["installed"], found["works"], found["cached"], found["files"]) == (True, True, True, 1)
    assert found["others"] == [{"path": "deep/n.safetensors", "diff": "lfs"}]
    assert "*.pth" in found["patterns"][0]["patterns"]
    run(["git", "uninstall"])
    assert ".gitattributes still names the driver" in capsys.readouterr().err
    assert run(["git", "status"]) == 1
    assert "Half of it is missing" in capsys.readouterr().out


def test_alone_it_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["git"]) == 0
    assert "textconv" in capsys.readouterr().out
    for command in ("install", "uninstall", "status", "textconv"):
        assert run(["git", command, "-h"]) == 0


# What is no ordinary checkpoint


def hostile(folder: Path) -> Path:
    """A torch file with a tensor beside a command."""
    bomb = b"cos\nsystem\n(" + string(f"touch {shlex.quote(str(folder / 'ran'))}") + b"tR"
    path = folder / "h.pth"
    path.write_bytes(archive(pickled({"a": tensor(), "b": bomb})))
    return path


def test_strange_files_in_history(repo: Path) -> None:
    run(["git", "install", "-q"])
    whole = model(repo / "t.safetensors", a=[1, 2, 3]).read_bytes()
    (repo / "t.safetensors").write_bytes(whole[:-4])
    (repo / "other.bin").write_bytes(b"\0\1\2")
    (repo / "empty.pt").write_bytes(b"")
    (repo / "words.bin").write_text("one\ntwo\n")
    hostile(repo)
    (repo / os.fsdecode(b"\xff \"'.pt")).write_bytes(b"\0")
    (repo / "-h.safetensors").write_bytes(whole)
    commit("strange")
    shown = git("show")
    assert "+# DANGER: " in shown
    assert "+one\n+two\n" in shown
    assert "+# 3 bytes, blake2b " in shown
    assert shown.count("# no checkpoint that can be shown") == 3
    (repo / "other.bin").write_bytes(b"\0\1\3")
    (repo / "words.bin").write_text("one\n2\n")
    (repo / "-h.safetensors").write_bytes(model(repo / "x", a=[1, 2, 4]).read_bytes())
    lines = changed("diff")
    assert [line[:3] for line in lines if " no checkpoint " not in line] == ["-a ", "+a ", "-# ", "+# ", "-tw", "+2"]
    assert not (repo / "ran").exists()


def test_dangers_are_called_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = textconv(capsys, hostile(tmp_path))
    assert "# DANGER: unpickling this file elsewhere would call os.system\n" in shown
    assert "\na  f32 [4]  " in shown
    assert not (tmp_path / "ran").exists()


def test_a_tensorflow_index_reads_the_same_beside_its_data_and_in_history(repo: Path) -> None:
    run(["git", "install", "-q"])
    shutil.copy(INDEX, repo)
    shutil.copy(DATA, repo)
    commit("index")
    lines = [line for line in changed("show") if "crc32c" in line]
    assert [line[1:].split("  ")[:2] for line in lines][1] == ["layers/0", "f32 [3, 2]"]
    other = FIXTURES / "tensorflow" / "object_based" / "ckpt-1.index"
    shutil.copy(other, repo / INDEX.name)
    told = git("diff", "--", INDEX.name)
    assert "\n-layers/0  f32 [3, 2]  crc32c " in told and "no checkpoint" not in told
    git("checkout", "-q", INDEX.name)
    (repo / INDEX.name).write_bytes(INDEX.read_bytes())
    assert git("diff") == ""


def test_the_slices_of_a_partitioned_variable(capsys: pytest.CaptureFixture[str]) -> None:
    shown = textconv(capsys, FIXTURES / "tensorflow" / "partitioned" / "model.ckpt.index")
    line = next(line for line in shown.splitlines() if line.startswith("net/table"))
    assert len(line.split("crc32c ")[1].split()) == 3 and "00000000" not in line


def test_what_a_person_asks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "layers.0.weight  f32" in textconv(capsys, FIXTURES / "safetensors" / "sharded")
    assert run(["git", "textconv", str(tmp_path / "nosuch")]) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) <= 2


# Git LFS, without git-lfs


Pointer = Callable[..., bytes]


@pytest.fixture
def pointer() -> Pointer:
    """Puts a file into LFS's store, as git-lfs does, and answers the pointer that goes into the repository."""

    def make(data: bytes, store: Path | None, size: int | None = None) -> bytes:
        oid = hashlib.sha256(data).hexdigest()
        if store is not None:
            path = store / "objects" / oid[:2] / oid[2:4] / oid
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size or len(data)}\n".encode()

    return make


def versions(repo: Path) -> list[bytes]:
    return [model(repo / "x", a=[1, 2], b=[n]).read_bytes() for n in (1, 2, 3)]


@pytest.mark.parametrize("where", ["usual", "absolute", "relative", "worktree"])
def test_lfs_pointers_are_followed(
    where: str, repo: Path, tmp_path: Path, pointer: Pointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = {"absolute": tmp_path / "store", "relative": repo / ".git" / "big"}.get(where, repo / ".git" / "lfs")
    if where in ("absolute", "relative"):
        git("config", "lfs.storage", str(store) if where == "absolute" else "big")
    one, two, three = versions(repo)
    (repo / "x").unlink()
    (repo / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    (repo / "l.safetensors").write_bytes(pointer(one, store))
    commit("lfs")
    (repo / "l.safetensors").write_bytes(pointer(two, store))
    commit("lfs again")
    if where == "worktree":
        git("worktree", "add", "-q", str(tmp_path / "linked"))
        monkeypatch.chdir(tmp_path / "linked")
    assert run(["git", "install", "-q"]) == 0
    assert git("config", "diff.wtool.cachetextconv") == "false\n"
    assert [line[:2] for line in changed("show")] == ["-b", "+b"]
    Path("l.safetensors").write_bytes(three)  # as git-lfs leaves it in the working tree
    assert [line[:2] for line in changed("diff")] == ["-b", "+b"]


@pytest.mark.parametrize("told", ["attributes", "nothing"])
def test_a_missing_object_is_said_and_not_remembered(repo: Path, told: str, pointer: Pointer) -> None:
    """Also where nothing told at the time of the installation that there would be LFS."""
    one, two, _ = versions(repo)
    if told == "attributes":
        (repo / "sub").mkdir()
        (repo / "sub" / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs\n")
    run(["git", "install", "-q"])
    assert git("config", "diff.wtool.cachetextconv") == ("false\n" if told == "attributes" else "true\n")
    (repo / "l.safetensors").write_bytes(pointer(one, None))
    commit("lfs")
    (repo / "l.safetensors").write_bytes(pointer(two, None))
    commit("lfs again")
    shown = changed("show", "--", "l.safetensors")
    assert len(shown) == 2 and "sha256" in shown[0] and "not fetched" in git("show", "--", "l.safetensors")
    assert git("config", "diff.wtool.cachetextconv") == "false\n"
    for data in (one, two):
        pointer(data, repo / ".git" / "lfs")
    assert [line[:2] for line in changed("show", "--", "l.safetensors")] == ["-b", "+b"]


def test_an_object_that_is_there_in_part(repo: Path, pointer: Pointer, capsys: pytest.CaptureFixture[str]) -> None:
    (repo / "p").write_bytes(pointer(b"half", repo / ".git" / "lfs", size=1000))
    assert "not fetched" in textconv(capsys, "p")


def test_a_pointer_outside_of_a_repository(
    tmp_path: Path, pointer: Pointer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.pt").write_bytes(pointer(b"x", tmp_path))
    assert "not fetched" in textconv(capsys, "p.pt")


def test_an_index_in_lfs(repo: Path, pointer: Pointer, capsys: pytest.CaptureFixture[str]) -> None:
    (repo / "m.ckpt.index").write_bytes(pointer(INDEX.read_bytes(), repo / ".git" / "lfs"))
    assert "layers/0  f32 [3, 2]  crc32c" in textconv(capsys, "m.ckpt.index")
