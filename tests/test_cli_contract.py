"""What users, scripts and CI jobs may rely on: exit codes, streams, JSON, options."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wtool.cli.app import prepared, run, wants_json

FIXTURES = Path(__file__).parent.parent / "fixtures"
LIGHTNING = next((FIXTURES / "torch" / "lightning").glob("*.ckpt"))
TIED = FIXTURES / "torch" / "tied" / "model.pth"
TENSORFLOW = FIXTURES / "tensorflow" / "slots" / "model.ckpt"
WTOOL = (sys.executable, "-m", "wtool")


def safetensors(path: Path, tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file by hand."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    body = b""
    for key, (dtype, shape, data) in tensors.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    values = struct.pack("<4f", 1.0, -2.5, 1e30, 0.0)
    return safetensors(
        tmp_path / "model.safetensors",
        {
            "module.a.weight": ("F32", [2, 2], values),
            "module.b.weight": ("F32", [4], values),
            "module.n": ("I64", [1], b"\1" * 8),
        },
        {"format": "pt", "title": "a model"},
    )


Captured = pytest.CaptureFixture[str]


def answer(capsys: Captured, *argv: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run([str(arg) for arg in argv])
    out, err = capsys.readouterr()
    return code, out, err


# Errors


BAD_USE: list[tuple[list[str], str]] = [
    (["nosuch"], "nosuch"),
    (["inspct"], "inspect"),
    (["inspect"], "SRC"),
    (["inspect", "{model}", "--nosuch"], "--nosuch"),
    (["inspect", "{model}", "--depth", "0"], "--depth"),
    (["inspect", "{model}", "--depth", "x"], "--depth"),
    (["inspect", "{model}", "--sort", "color"], "color"),
    (["inspect", "{model}", "--format", "xml"], "xml"),
    (["inspect", "{model}", "--tree", "--flat"], "--tree"),
    (["inspect", "{model}", "--section", "nosuch"], "nosuch"),
    (["inspect", "{model}", "--include", "nosuch*"], "nosuch*"),
    (["inspect", "{model}", "--report", "{dir}/a.safetensors"], ".json"),
    (["convert", "{model}"], "DST"),
    (["convert", "{model}", "{dir}/out.xyz"], "xyz"),
    (["convert", "{model}", "{dir}/out.pth", "--to", "nosuch"], "nosuch"),
    (["convert", "{model}", "{dir}/out.pth", "--dtype", "f33"], "f33"),
    (["convert", "{model}", "{dir}/out.pth", "--dtype", "i8"], "i8"),
    (["convert", "{model}", "{dir}/out.pth", "--rename", "no arrow"], "no arrow"),
    (["convert", "{model}", "{dir}/out.pth", "--rename", "(=>x"], "position"),
    (["convert", "{model}", "{dir}/out.pth", "--rename", ".*weight=>w"], "w"),
    (["convert", "{model}", "{dir}/out.pth", "--strip-prefix", "nosuch."], "nosuch."),
    (["convert", "{model}", "{dir}/out.pth", "--tied", "maybe"], "maybe"),
    (["convert", "{model}", "{dir}/out.pth", "--metadata", "novalue"], "novalue"),
    (["convert", "{model}", "{dir}/out.pth", "--max-shard", "big"], "big"),
    (["convert", "{model}", "{dir}/out.pth", "--memory", "-1"], "-1"),
    (["convert", "{model}", "{dir}/out.pth", "--jobs", "0"], "--jobs"),
    (["convert", "{model}", "{dir}/out.pth", "--verify=color"], "color"),
    (["convert", "{model}", "{dir}/no/folder/out.pth"], "folder"),
    (["convert", "{model}", "{model}"], "exists"),
    (["convert", "{dir}/none.pth", "{dir}/out.pth"], "none.pth"),
    (["convert", "{model}", "{dir}/out.pth", "--exclude", "**"], "tensor"),
]


@pytest.mark.parametrize(("argv", "word"), BAD_USE, ids=[" ".join(argv) for argv, _ in BAD_USE])
def test_what_cannot_be_done_is_one_error_and_exit_2(argv: list[str], word: str, model: Path, capsys: Captured) -> None:
    argv = [arg.replace("{model}", str(model)).replace("{dir}", str(model.parent)) for arg in argv]
    before = model.read_bytes()
    code, out, err = answer(capsys, *argv)
    assert (code, out) == (2, "")
    errors = [line for line in err.splitlines() if not line.startswith("wtool: warning:")]
    assert errors[0].startswith("wtool: error: ") and len(errors) <= 2
    assert all(line.startswith("hint: ") for line in errors[1:])
    assert word in err
    assert os.listdir(model.parent) == [model.name] and model.read_bytes() == before

    code, out, err = answer(capsys, *argv, "--json")
    assert (code, out) == (2, "")
    found = json.loads(err.splitlines()[-1])
    assert list(found) == ["schema", "code", "message", "hint", "path"]
    assert found["schema"] == "wtool.error/1"
    assert word in json.dumps(found)


def test_a_file_is_named_in_its_error(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"\xff" * 100)
    for argv in (("inspect", path), ("convert", path, tmp_path / "out.pth")):
        code, out, err = answer(capsys, *argv)
        assert (code, out) == (2, "")
        assert err.startswith(f"wtool: error: {path}: ")


def test_a_fault_of_ours_is_exit_70(monkeypatch: pytest.MonkeyPatch, model: Path, capsys: Captured) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("wtool.api.open_checkpoint", broken)
    monkeypatch.delenv("WTOOL_DEBUG", raising=False)
    code, out, err = answer(capsys, "inspect", model)
    assert (code, out) == (70, "")
    assert err.splitlines()[0] == "wtool: error: a fault of wtool itself: RuntimeError: two lines"
    assert "Traceback" not in err and "WTOOL_DEBUG=1" in err
    monkeypatch.setenv("WTOOL_DEBUG", "1")
    assert "Traceback" in answer(capsys, "inspect", model)[2]
    code, out, err = answer(capsys, "inspect", model, "--json")
    assert (code, out, json.loads(err.splitlines()[-1])["code"]) == (70, "", "internal")


@pytest.mark.parametrize(("error", "code"), [(MemoryError(), 2), (KeyboardInterrupt(), 130), (RecursionError(), 70)])
def test_bad_days(monkeypatch: pytest.MonkeyPatch, model: Path, capsys: Captured, error: BaseException, code: int) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("wtool.api.open_checkpoint", broken)
    found, out, err = answer(capsys, "inspect", model)
    assert (found, out) == (code, "")
    assert "Traceback" not in err


# Help and versions


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"], ["inspect", "-h"], ["convert", "--help"]])
def test_help(argv: list[str], capsys: Captured) -> None:
    code, out, err = answer(capsys, *argv)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: wtool")
    assert "inspect" in out or "convert" in out


def test_version(capsys: Captured) -> None:
    from wtool import __version__

    assert answer(capsys, "--version") == (0, f"wtool {__version__}\n", "")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--verify"], ["--verify=digest"]),
        (["--verify", "a", "b"], ["--verify=digest", "a", "b"]),
        (["--verify", "framework"], ["--verify", "framework"]),
        (["--verify=framework"], ["--verify=framework"]),
        (["--", "--verify"], ["--", "--verify"]),
    ],
)
def test_verify_may_stand_alone(args: list[str], expected: list[str]) -> None:
    assert prepared(args) == expected


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--json"], True),
        (["--format", "json"], True),
        (["--format=json"], True),
        (["--format", "html"], False),
        (["--", "--json"], False),
    ],
)
def test_json_errors_are_wanted(args: list[str], expected: bool) -> None:
    assert wants_json(args) is expected


# inspect


def test_inspect_json_is_one_object(model: Path, capsys: Captured) -> None:
    code, out, err = answer(capsys, "inspect", model, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert next(iter(found)) == "schema" and found["path"] == str(model)
    assert json.loads(answer(capsys, "inspect", model, "--format", "json")[1]) == found


def test_inspect_of_several(model: Path, capsys: Captured) -> None:
    code, out, _ = answer(capsys, "inspect", model, LIGHTNING, "--json")
    assert code == 0
    found = json.loads(out)
    assert list(found) == ["schema", "checkpoints"]
    assert [one["path"] for one in found["checkpoints"]] == [str(model), str(LIGHTNING)]
    code, out, err = answer(capsys, "inspect", model, model.parent / "none", LIGHTNING)
    assert code == 2
    assert str(model) in out and str(LIGHTNING) in out
    assert err.startswith("wtool: error: ") and "none" in err
    code, out, err = answer(capsys, "inspect", model, model.parent / "none", "--json")
    assert (code, out) == (2, "") and json.loads(err)["code"] == "not-found"


def test_inspect_selects(model: Path, capsys: Captured) -> None:
    def keys(*argv: object) -> list[str]:
        return [row["key"] for row in json.loads(answer(capsys, "inspect", model, "--json", *argv)[1])["tensors"]]

    assert keys("--include", "**.weight") == ["module.a.weight", "module.b.weight"]
    assert keys("--exclude", "module.*.weight") == ["module.n"]
    assert keys("--include", "module.a.*", "--include", "module.n") == ["module.a.weight", "module.n"]


def test_inspect_sections(capsys: Captured) -> None:
    found = json.loads(answer(capsys, "inspect", LIGHTNING, "--json")[1])
    names = [section["name"] for section in found["sections"]]
    assert "state_dict" in names and "optimizer_states" in names
    assert {row["section"] for row in found["tensors"]} == {"state_dict"}
    assert found["extras"]["epoch"] == 3
    found = json.loads(answer(capsys, "inspect", LIGHTNING, "--json", "--section", "optimizer_states")[1])
    assert {row["section"] for row in found["tensors"]} == {"optimizer_states"}
    found = json.loads(answer(capsys, "inspect", LIGHTNING, "--json", "--section", "all")[1])
    assert {row["section"] for row in found["tensors"]} == set(names)


def test_inspect_digest_and_stats(model: Path, tmp_path: Path, capsys: Captured) -> None:
    pytest.importorskip("numpy")
    found = json.loads(answer(capsys, "inspect", model, "--digest", "--stats", "--json")[1])
    by_key = {row["key"]: row for row in found["tensors"]}
    assert len(found["digest"]) == 64 and len(by_key["module.n"]["digest"]) == 64
    stats = by_key["module.a.weight"]["stats"]
    assert stats["min"] == -2.5 and stats["zeros"] == 1 and stats["nan"] == 0
    assert run(["convert", str(model), str(tmp_path / "m.pth"), "-q"]) == 0
    again = json.loads(answer(capsys, "inspect", tmp_path / "m.pth", "--digest", "--json")[1])
    assert again["digest"] == found["digest"] and again["format"] == "torch"
    text = answer(capsys, "inspect", model, "--digest", "--stats")[1]
    assert found["digest"] in text and "-2.5" in text


def test_a_dangerous_pickle_is_exit_1_and_still_shown(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "evil.pkl.pth"
    path.write_bytes(_pickled_zip())
    code, out, err = answer(capsys, "inspect", path, "--json")
    assert code == 1
    found = json.loads(out)
    assert {"name": "os.system", "verdict": "dangerous"} in found["globals"]
    assert [row["key"] for row in found["tensors"]] == ["w"]
    code, out, err = answer(capsys, "convert", path, tmp_path / "clean.safetensors")
    assert code == 0 and "os.system" in err
    assert not (tmp_path / "ran").exists()


def _pickled_zip() -> bytes:
    """{"w": a tensor of one float, "x": os.system("touch ran")} as torch would save it, by hand."""
    import io
    import zipfile

    stored = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + b"K\x00K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
    pickle = b"\x80\x02}(X\x01\0\0\0w" + tensor + b"X\x01\0\0\0xcos\nsystem\nX\x09\0\0\0touch ran\x85Ru."
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/data/0", struct.pack("<f", 1.0))
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


# convert


def test_convert_says_what_it_did(model: Path, tmp_path: Path, capsys: Captured) -> None:
    target = tmp_path / "out.safetensors"
    code, out, err = answer(
        capsys,
        "convert",
        model,
        target,
        "--dtype",
        "f16",
        "--strip-prefix",
        "module.",
        "--verify",
        "--metadata",
        "k=v=w",
        "--json",
    )
    found = json.loads(out)
    assert code == 0
    assert next(iter(found)) == "schema" and found["schema"] == "wtool.convert/1"
    assert found["files"] == [{"path": str(target), "bytes": target.stat().st_size}]
    assert (found["tensors"], found["renamed"], found["verified"], found["dry_run"]) == (3, 3, "digest", False)
    assert found["dtype_changes"] == [{"from": "f32", "to": "f16", "tensors": 2, "elements": 8, "overflow": 2, "underflow": 0}]
    assert [(loss["kind"], loss["name"], loss["count"]) for loss in found["losses"]] == [
        ("overflow", "a.weight", 1),
        ("overflow", "b.weight", 1),
    ]
    assert found["copied_bytes"] == 8
    assert "wtool: lost: overflow a.weight (1), b.weight (1): values too large for f16" in err.splitlines()
    shown = json.loads(answer(capsys, "inspect", target, "--json")[1])
    assert shown["metadata"] == {"format": "pt", "title": "a model", "k": "v=w"}
    assert [row["key"] for row in shown["tensors"]] == ["a.weight", "b.weight", "n"]


def test_a_dry_run_tells_the_same_and_writes_nothing(tmp_path: Path, capsys: Captured) -> None:
    target = tmp_path / "out.safetensors"
    argv = ("convert", LIGHTNING, target, "--dtype", "bf16", "--json")
    code, planned, _ = answer(capsys, *argv, "--dry-run")
    assert code == 0 and os.listdir(tmp_path) == []
    code, done, _ = answer(capsys, *argv)
    assert code == 0
    before, after = json.loads(planned), json.loads(done)
    for key in (
        "source",
        "target",
        "format",
        "files",
        "tensors",
        "bytes",
        "losses",
        "tied",
        "renamed",
        "copied_bytes",
        "peak_memory",
    ):
        assert before[key] == after[key], key
    assert (before["dry_run"], after["dry_run"]) == (True, False)
    assert before["seconds"] is None and before["dtype_changes"][0]["overflow"] is None
    assert {loss["name"] for loss in before["losses"]} >= {"optimizer_states", "epoch"}


def test_every_loss_is_named_to_people(tmp_path: Path, capsys: Captured) -> None:
    code, out, err = answer(capsys, "convert", LIGHTNING, tmp_path / "out.safetensors")
    assert code == 0
    for word in ("wrote", "tensors", "time", "/s"):
        assert word in out
    for name in ("optimizer_states", "epoch", "global_step"):
        assert f"{name}" in out
        assert any(line.startswith("wtool: lost: ") and name in line for line in err.splitlines())
    assert answer(capsys, "convert", LIGHTNING, tmp_path / "two.safetensors", "-q") == (0, "", "")


def test_strict_makes_a_loss_an_error(model: Path, tmp_path: Path, capsys: Captured) -> None:
    for argv in ((LIGHTNING, tmp_path / "out.safetensors"), (model, tmp_path / "out.safetensors", "--dtype", "f16")):
        code, out, err = answer(capsys, "convert", *argv, "--strict", "--json")
        assert (code, out, json.loads(err.splitlines()[-1])["code"]) == (2, "", "loss")
    assert os.listdir(tmp_path) == [model.name]


def test_an_output_that_exists_is_kept_unless_forced(model: Path, tmp_path: Path, capsys: Captured) -> None:
    target = tmp_path / "out.pth"
    target.write_bytes(b"mine")
    code, _, err = answer(capsys, "convert", model, target)
    assert code == 2 and "--force" in err and target.read_bytes() == b"mine"
    assert answer(capsys, "convert", model, target, "--force", "-q") == (0, "", "")
    assert target.read_bytes() != b"mine"


def test_onto_itself(model: Path, capsys: Captured) -> None:
    digest = json.loads(answer(capsys, "inspect", model, "--digest", "--json")[1])["digest"]
    assert answer(capsys, "convert", model, model, "--force", "--verify", "-q") == (0, "", "")
    assert json.loads(answer(capsys, "inspect", model, "--digest", "--json")[1])["digest"] == digest


def test_a_ckpt_is_tensorflow_and_says_so(model: Path, tmp_path: Path, capsys: Captured) -> None:
    code, _, err = answer(capsys, "convert", model, tmp_path / "x.ckpt")
    assert code == 0 and "TensorFlow" in err and "--to torch" in err
    assert (tmp_path / "x.ckpt.index").exists() and (tmp_path / "x.ckpt.data-00000-of-00001").exists()
    code, _, err = answer(capsys, "convert", model, tmp_path / "y.ckpt", "--to", "torch")
    assert code == 0 and "TensorFlow" not in err
    assert json.loads(answer(capsys, "inspect", tmp_path / "y.ckpt", "--json")[1])["format"] == "torch"


def test_tensorflow_keys_lose_their_suffix_elsewhere_and_it_is_said(tmp_path: Path, capsys: Captured) -> None:
    code, _, err = answer(capsys, "convert", TENSORFLOW, tmp_path / "x.safetensors")
    assert code == 0 and "VARIABLE_VALUE" in err
    keys = [row["key"] for row in json.loads(answer(capsys, "inspect", tmp_path / "x.safetensors", "--json")[1])["tensors"]]
    assert keys and not any("ATTRIBUTES" in key for key in keys)


def test_shards(model: Path, tmp_path: Path, capsys: Captured) -> None:
    code, out, _ = answer(capsys, "convert", model, tmp_path / "folder", "--max-shard", "20", "--json")
    assert code == 0
    assert len(json.loads(out)["files"]) == 4
    assert (tmp_path / "folder" / "model.safetensors.index.json").exists()


def test_ties(tmp_path: Path, capsys: Captured) -> None:
    code, out, _ = answer(capsys, "convert", TIED, tmp_path / "a.pth", "--json")
    assert code == 0 and json.loads(out)["tied"] and json.loads(out)["tied_policy"] == "keep-one"
    code, _, err = answer(capsys, "convert", TIED, tmp_path / "b.pth", "--tied", "error", "--json")
    assert code == 2 and json.loads(err.splitlines()[-1])["code"] == "tied"


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_reports_in_every_kind(command: str, model: Path, tmp_path: Path, capsys: Captured) -> None:
    argv = [command, model] + ([tmp_path / "o.pth", "--force"] if command == "convert" else [])
    starts = {"text": str(model), "json": '{\n  "schema"', "markdown": "## ", "html": "<!doctype html>"}
    for kind, suffix in (("text", "txt"), ("json", "json"), ("markdown", "md"), ("html", "html")):
        code, out, _ = answer(capsys, *argv, "--format", kind, "--report", tmp_path / f"r.{suffix}")
        assert code == 0 and out.startswith(starts[kind])
        assert (tmp_path / f"r.{suffix}").read_text().startswith(starts[kind])


# The process


def start(*argv: object, code: str | None = None, **options: Any) -> subprocess.Popen[bytes]:
    command = WTOOL if code is None else (sys.executable, "-c", code)
    return subprocess.Popen([*command, *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_a_closed_pipe_is_no_error(model: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*WTOOL, "inspect", str(model)], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_a_full_disk_behind_stdout_is_an_error(model: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*WTOOL, "inspect", str(model)], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"wtool: error: ")


@pytest.mark.parametrize("kind", ["text", "json"])
def test_any_encoding_of_the_streams(tmp_path: Path, kind: str) -> None:
    path = safetensors(tmp_path / "modèle.safetensors", {"ключ.\x1b[2J": ("F32", [1], b"\0" * 4)})
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    process = start("inspect", path, "--format", kind, env=environment)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"\x1b" not in out
    assert out.isascii()
    if kind == "json":
        assert json.loads(out)["tensors"][0]["key"] == "ключ.\x1b[2J"


def test_off_a_terminal_keys_are_whole_and_there_is_no_color(tmp_path: Path) -> None:
    key = "model." + "x" * 300
    path = safetensors(tmp_path / "m.safetensors", {key: ("F32", [1], b"\0" * 4)})
    out = start("inspect", path, env={**os.environ, "COLUMNS": "40"}).communicate()[0].decode()
    assert key in out and "\x1b" not in out
    out = start("inspect", path, env={**os.environ, "FORCE_COLOR": "1"}).communicate()[0].decode()
    assert "\x1b[" in out


_KILL_DURING_WRITE = """
import os, sys, wtool.write
from wtool.cli.app import run
original = wtool.write.run
def killed(*args, **kwargs):
    result = original(*args, **kwargs)
    assert len(os.listdir({folder!r})) >= 1
    os.kill(os.getpid(), {number})
    return result
wtool.write.run = killed
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("target", ["out.pth", "folder", "out.ckpt"])
def test_a_signal_leaves_nothing(number: int, code: int, target: str, model: Path, tmp_path: Path) -> None:
    script = _KILL_DURING_WRITE.format(folder=str(tmp_path), number=int(number))
    process = start("convert", model, tmp_path / target, code=script)
    out, err = process.communicate()
    assert process.returncode == code, err
    assert out == b"" and b"Traceback" not in err
    assert os.listdir(tmp_path) == [model.name]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("wtool ", ["inspect", "convert"]),
        ("wtool inspect x --format ", ["text", "json", "markdown", "html"]),
        ("wtool inspect x --sort ", ["size", "key"]),
        ("wtool convert a b --to ", ["safetensors", "torch", "tensorflow"]),
        ("wtool convert a b --dtype f", ["f32", "f16", "f8_e4m3"]),
        ("wtool convert a b --tied ", ["keep-one", "duplicate", "error"]),
        ("wtool inspect {model} --include module.", ["module.a.weight", "module.n"]),
        ("wtool inspect {lightning} --section ", ["state_dict", "optimizer_states", "all"]),
        ("wtool inspect none.pth --include ", []),
        ("wtool inspect none.pth --section ", []),
    ],
)
def test_the_shell_completes(words: str, expected: list[str], model: Path) -> None:
    line = words.format(model=model, lightning=LIGHTNING)
    environment = {**os.environ, "_WTOOL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    process = start(env=environment)
    out, err = process.communicate()
    found = out.decode().split()
    assert err == b""
    assert set(expected) <= set(found)
    assert expected or not found


def test_the_completion_script_names_the_command() -> None:
    process = start("--show-completion", "bash", env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    out, _ = process.communicate()
    assert process.returncode == 0
    assert b"_WTOOL_COMPLETE" in out


def test_a_judge_that_is_not_installed_is_missed_before_writing(
    model: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wtool.verify.find_spec", lambda name: None)
    target = tmp_path / "out.pth"
    code, out, err = answer(capsys, "convert", model, target, "--verify", "framework")
    assert (code, out) == (2, "")
    assert "pip install 'wtool[torch]'" in err
    assert not target.exists()
