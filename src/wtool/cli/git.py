"""`wtool git`: make `git diff` and `git log -p` show what changed in a checkpoint, tensor by tensor."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Annotated, Any

import typer

from wtool.cli import options, repository
from wtool.cli.console import Console
from wtool.cli.repository import git
from wtool.cli.textconv import textconv
from wtool.errors import UsageError

# By suffix, since git asks by name. Any of them may be something else: what is no checkpoint is told as such, text as text.
PATTERNS = ("*.safetensors", "*.pth", "*.pt", "*.ckpt", "*.bin", "*.index", "*.gguf")
_DRIVER = "diff.wtool"
_CACHE = "refs/notes/textconv/wtool"
_SETTINGS = ("textconv", "cachetextconv", "binary")


def application(settings: dict[str, object]) -> typer.Typer:
    """The group of commands, mounted. `settings` are those of every command."""
    app = typer.Typer(context_settings=settings)
    app.callback(invoke_without_command=True)(_group)
    for command in (install, uninstall, status, textconv):
        app.command(command.__name__, context_settings=settings)(command)
    return app


def _group(ctx: typer.Context) -> None:
    """Show in `git diff` and `git log -p` what changed in checkpoints, tensor by tensor."""
    if ctx.invoked_subcommand is None:
        Console().out(ctx.get_help() + "\n")


_Shared = Annotated[
    bool, typer.Option("--shared", help="In .gitattributes, for everyone who clones, rather than .git/info/attributes.")
]
_Global = Annotated[bool, typer.Option("--global", help="For all of your repositories, not only this one.")]


def install(
    pattern: Annotated[
        list[str] | None,
        typer.Option("--pattern", metavar="GLOB", help=f"Which files. Repeatable; default {' '.join(PATTERNS)}."),
    ] = None,
    shared: _Shared = False,
    global_: _Global = False,
    quiet: options.Quiet = False,
) -> int:
    """Make git show checkpoints as text.

    From then on a tensor is a line in git diff, git show and git log -p. It has key, dtype, shape, digest,
    mean, std and the largest magnitude. Works with files in the repository and with Git LFS. Nothing of the files or the
    history is changed. Run it again after wtool has moved or been upgraded.
    """
    where = _attributes(shared=shared, everywhere=global_)
    globs = list(dict.fromkeys(pattern or PATTERNS))
    odd = next((glob for glob in globs if not _is_pattern(glob)), None)
    if odd is not None:
        raise UsageError(f"'{odd}' is no pattern of git's attributes", hint="as in '*.safetensors' or 'models/**'")
    # A cache would keep saying that an LFS object has not been fetched after it has.
    cached = "false" if global_ or repository.has_lfs() else "true"
    # -P: git starts us at the top of the repository, whose own wtool.py or numpy.py must never run.
    command = f"{shlex.quote(sys.executable)} -P -m wtool git textconv --"
    scope = "--global" if global_ else "--local"
    for name, value in zip(_SETTINGS, (command, cached, "true"), strict=True):
        git("config", scope, "--replace-all", f"{_DRIVER}.{name}", value)
    repository.put(where, globs)
    if not global_:
        _drop_cache()
    console = Console(quiet=quiet)
    console.note(f"git diff, git show and git log -p now show {', '.join(globs)} tensor by tensor")
    console.note(
        f"written: {_short(where)}, and the driver 'wtool' in git's configuration; `{_undoing(shared, global_)}` undoes it"
    )
    if shared:
        console.note("others see it after `wtool git install` in their own clone: git takes no commands from a repository")
    return 0


def uninstall(shared: _Shared = False, global_: _Global = False, quiet: options.Quiet = False) -> int:
    """Undo `wtool git install`.

    The attributes, the driver and its cache go, and nothing else. .gitattributes is left alone without --shared.
    """
    where = [_attributes(shared=shared, everywhere=global_)]
    if shared:
        where.append(repository.local_attributes())
    scope = "--global" if global_ else "--local"
    there = [path for path in where if repository.put(path, ())]
    known = [name for name in _SETTINGS if git("config", scope, "--get-all", f"{_DRIVER}.{name}", check=False)]
    for name in known:
        git("config", scope, "--unset-all", f"{_DRIVER}.{name}")
    if not global_:
        _drop_cache()
    console = Console(quiet=quiet)
    console.note("undone" if there or known else "there was nothing to undo")
    if not (shared or global_ or repository.is_bare()) and repository.patterns(repository.shared_attributes()):
        console.note(".gitattributes still names the driver, which does nothing without it; --shared takes that out too")
    return 0


def status(json: options.Json = False, format: options.Format = None) -> int:
    """Say whether it works, and for which files.

    Exit code 1 if git does not show checkpoints as text here, or the program that it was told of has gone.
    """
    from wtool.report import Facts, Note, Report

    kind = options.output_kind(json, format)
    git("rev-parse", "--git-dir")
    command = git("config", "--get", f"{_DRIVER}.textconv", check=False)
    places = [repository.local_attributes(), repository.global_attributes()]
    if not repository.is_bare():
        places.insert(1, repository.shared_attributes())
    found = {path: globs for path in places if (globs := repository.patterns(path))}
    works = bool(command) and _runs(command)
    data: dict[str, Any] = {
        "installed": bool(command and found),
        "works": works,
        "command": command or None,
        "cached": git("config", "--type=bool", "--get", f"{_DRIVER}.cachetextconv", check=False) == "true",
        "patterns": [{"path": path, "patterns": globs} for path, globs in found.items()],
    }
    files = _files() if command else []
    shown = [name for name, value in files if value == "wtool"]
    others = [(name, value) for name, value in files if value != "wtool" and name.endswith(tuple(p[1:] for p in PATTERNS))]
    data |= {"files": len(shown), "others": [{"path": name, "diff": value} for name, value in others]}
    rows = [("installed", "yes" if data["installed"] else "no")]
    if command:
        rows.append(("command", command))
        rows.append(("cache", "on" if data["cached"] else "off"))
        rows += [("patterns", f"{' '.join(globs)} in {_short(path)}") for path, globs in found.items()]
        rows.append(("files", f"{len(shown):,} tracked"))
    notes = []
    if command and not works:
        notes.append(Note("The command does not run any more: `wtool git install` mends it.", "warning"))
    if (command or found) and not data["installed"]:
        what = "no file of attributes names the driver" if command else "the attributes name a driver that git does not know"
        notes.append(Note(f"Half of it is missing: {what}. `wtool git install` mends it.", "warning"))
    if command and others:
        some = ", ".join(f"{name} (diff: {value})" for name, value in others[:3]) + (", ..." if len(others) > 3 else "")
        notes.append(Note(f"Not shown tensor by tensor: {some}", "info"))
    good = data["installed"] and works
    report = Report("wtool.git-status/1", "wtool in git", data, (Facts(tuple(rows)), *notes), 0 if good else 1)
    Console().show([report], kind)
    return report.exit_code


def _attributes(*, shared: bool, everywhere: bool) -> str:
    """The file of attributes to write."""
    if shared and everywhere:
        raise UsageError("--shared and --global contradict each other")
    if everywhere:
        return repository.global_attributes()
    return repository.shared_attributes() if shared else repository.local_attributes()


def _is_pattern(glob: str) -> bool:
    return bool(glob) and glob[0] not in '#!"' and not glob.startswith("[attr]") and not any(map(str.isspace, glob))


def _drop_cache() -> None:
    """Forget what was shown before: another version may say it in other words."""
    if git("rev-parse", "--verify", "--quiet", _CACHE, check=False):
        git("update-ref", "-d", _CACHE)


def _runs(command: str) -> bool:
    """Whether the program that git was told of can still say its version."""
    import subprocess

    try:
        words = shlex.split(command)
        words = words[: words.index("git")] if "git" in words else words[:1]
        return subprocess.run([*words, "--version"], capture_output=True, stdin=subprocess.DEVNULL).returncode == 0
    except (OSError, ValueError):
        return False


def _files() -> list[tuple[str, str]]:
    """Tracked files from here down, and what their attribute `diff` is; without those where it says nothing."""
    names = git("ls-files", "-z", check=False)
    told = git("check-attr", "-z", "--stdin", "diff", check=False, given=names).split("\0") if names else []
    found = zip(told[0::3], told[2::3], strict=False)
    return [(name, value) for name, value in found if value != "unspecified"]


def _undoing(shared: bool, everywhere: bool) -> str:
    return "wtool git uninstall" + " --shared" * shared + " --global" * everywhere


def _short(path: str) -> str:
    short = os.path.relpath(path)
    return path if short.startswith("..") else short
