"""`wtool git`: make `git diff` and `git log -p` show what changed in a checkpoint, tensor by tensor."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from typing import Annotated

import typer

from wtool.cli import options
from wtool.cli.console import Console
from wtool.errors import MissingExtraError, NotFoundError, UnsupportedError, UsageError, WriteError, WtoolError

# By suffix, since git asks by name. `.bin` may be anything: what is no checkpoint is told as such, in one line.
PATTERNS = ("*.safetensors", "*.pth", "*.pt", "*.ckpt", "*.bin", "*.index")
_DRIVER = "diff.wtool"
_CACHE = "refs/notes/textconv/wtool"
_BEGIN, _END = "# wtool: checkpoints as text in git diff", "# wtool: end"


def application(settings: dict[str, object]) -> typer.Typer:
    """The group of commands, mounted. `settings` are those of every command."""
    app = typer.Typer(context_settings=settings)
    app.callback(invoke_without_command=True)(_group)
    app.command("install", context_settings=settings)(install)
    app.command("uninstall", context_settings=settings)(uninstall)
    app.command("textconv", context_settings=settings)(textconv)
    return app


def _group(ctx: typer.Context) -> None:
    """Show in `git diff` and `git log -p` what changed in checkpoints, tensor by tensor."""
    if ctx.invoked_subcommand is None:
        Console().out(ctx.get_help() + "\n")


_Shared = Annotated[
    bool, typer.Option("--shared", help="Write .gitattributes, for everyone who clones, rather than .git/info/attributes.")
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
    """Set this checkout up so that git shows checkpoints as text, a line for each tensor.

    The line has key, dtype, shape, digest, mean, std and the largest magnitude. Works with files in the repository and with Git
    LFS. Nothing of the files or the history is changed.
    """
    if shared and global_:
        raise UsageError("--shared and --global contradict each other")
    globs = tuple(pattern or PATTERNS)
    odd = next((glob for glob in globs if not glob or glob[0] in '#!"' or any(char.isspace() for char in glob)), None)
    if odd is not None:
        raise UsageError(f"'{odd}' is no pattern of git's attributes", hint="as in '*.safetensors' or 'models/**'")
    where = _attributes(shared=shared, everywhere=global_)
    scope = ["--global"] if global_ else ["--local"]
    lines = [f"{glob} diff=wtool" for glob in globs]
    _replace(where, [_BEGIN, *lines, _END])
    command = f"{shlex.quote(sys.executable)} -m wtool git textconv"
    # A cache would keep saying that an LFS object has not been fetched after it has.
    cached = "false" if global_ or _has_lfs() else "true"
    for name, value in (("textconv", command), ("cachetextconv", cached), ("binary", "true")):
        _git("config", *scope, f"{_DRIVER}.{name}", value)
    console = Console(quiet=quiet)
    console.note(f"git diff, git show and git log -p now show {', '.join(globs)} tensor by tensor")
    console.note(
        f"written: {_relative(where)}, and the driver 'wtool' in git's configuration; `wtool git uninstall` undoes it"
    )
    if shared:
        console.note("others see it after `wtool git install` in their own clone: git takes no commands from a repository")
    return 0


def uninstall(shared: _Shared = False, global_: _Global = False, quiet: options.Quiet = False) -> int:
    """Undo `wtool git install`: the attributes, the driver and its cache."""
    where = _attributes(shared=shared, everywhere=global_)
    scope = "--global" if global_ else "--local"
    there = _replace(where, [])
    known = bool(_git("config", scope, "--get-regexp", rf"^{_DRIVER}\.", check=False))
    if known:
        _git("config", scope, "--remove-section", _DRIVER)
    if not global_ and _git("rev-parse", "--verify", "--quiet", _CACHE, check=False):
        _git("update-ref", "-d", _CACHE)
    Console(quiet=quiet).note("undone" if there or known else "there was nothing to undo")
    return 0


def textconv(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What git hands over: a checkpoint or an LFS pointer.")],
) -> int:
    """Print a checkpoint as sorted lines of text, for git. Always answers, since git gives up where a driver does."""
    console = Console()
    for line in _lines(file):
        console.out(line + "\n")
    return 0


def _lines(path: str) -> list[str]:
    from wtool.lfs import LONGEST, local_object, parse_pointer

    try:
        with open(path, "rb") as handle:
            head = handle.read(LONGEST + 1)
    except OSError as error:
        return [f"# cannot be read: {error.strerror}"]
    pointer = parse_pointer(head)
    if pointer is None:
        return _listed(path)
    there = local_object(pointer, _lfs_store())
    if there is None:
        return [f"# Git LFS: {pointer.size} bytes, sha256 {pointer.oid}", "# not fetched: `git lfs fetch --all` brings it"]
    return _listed(there)


def _listed(path: str) -> list[str]:
    """The listing, or one line that says why there is none. Of a TensorFlow index alone, what the index says."""
    from wtool.analysis.listing import listing
    from wtool.api import open_checkpoint

    try:
        checkpoint = open_checkpoint(path, section="all")
        source = checkpoint.source
        return [f"# {source.format} {source.variant}", *listing(checkpoint, options.worker_count(None))]
    except (NotFoundError, UnsupportedError) as error:
        from wtool.formats.tensorflow.reader import index_lines

        return index_lines(path) or [f"# no checkpoint that can be shown: {error.message}"]
    except WtoolError as error:
        return [f"# no checkpoint that can be shown: {error.message}"]


def _has_lfs() -> bool:
    """Whether this repository keeps files in LFS."""
    return bool(_git("grep", "--untracked", "-l", "-e", "filter=lfs", "--", "*.gitattributes", check=False))


def _lfs_store() -> str:
    """The folder of LFS's objects of the repository that git runs us for."""
    try:
        folder = _git("config", "--get", "lfs.storage", check=False)
        common = _git("rev-parse", "--git-common-dir")
    except WtoolError:
        return ""
    if not folder:
        return os.path.join(common, "lfs")
    return folder if os.path.isabs(folder) else os.path.join(common, folder)


def _attributes(*, shared: bool, everywhere: bool) -> str:
    """The file of attributes to write."""
    if everywhere:
        given = _git("config", "--global", "--get", "--path", "core.attributesFile", check=False)
        home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
        return given or os.path.join(home, "git", "attributes")
    top = _git("rev-parse", "--show-toplevel")
    return (
        os.path.join(top, ".gitattributes") if shared else os.path.abspath(_git("rev-parse", "--git-path", "info/attributes"))
    )


def _replace(path: str, lines: list[str]) -> bool:
    """Put our lines at the end of a file of attributes, in place of those of before; none takes them out. Whether any were."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            old = file.read().splitlines()
    except FileNotFoundError:
        old = []
    except OSError as error:
        raise WriteError(f"cannot be read: {error.strerror}", path=path) from None
    kept = list(old)
    if _BEGIN in kept:
        first = kept.index(_BEGIN)
        last = kept.index(_END, first) if _END in kept[first:] else first
        del kept[first : last + 1]
    after = kept + lines
    if after != old:
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            temporary = f"{path}.wtool"
            with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write("".join(f"{line}\n" for line in after))
            if after:
                os.replace(temporary, path)
            else:
                os.remove(temporary)
                os.remove(path)
        except OSError as error:
            raise WriteError(f"cannot be written: {error.strerror}", path=path) from None
    return kept != old


def _git(*words: str, check: bool = True) -> str:
    """What git answers, without its last newline; "" if it fails and `check` is off."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, errors="surrogateescape")
    except FileNotFoundError:
        raise MissingExtraError("git is not installed", hint="wtool git works on a checkout of git") from None
    if done.returncode and check:
        said = done.stderr.strip().splitlines()
        message = said[0].removeprefix("fatal: ") if said else f"git {words[0]} failed"
        raise UsageError(f"git: {message}", hint="run it inside a repository")
    return "" if done.returncode else done.stdout.rstrip("\n")


def _relative(path: str) -> str:
    short = os.path.relpath(path)
    return path if short.startswith("..") else short
