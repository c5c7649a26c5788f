"""What git says of the repository that we stand in, and our lines in its files of attributes."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Sequence

from wtool.errors import MissingExtraError, UsageError, WriteError, WtoolError

_BEGIN, _END = b"# wtool: checkpoints as text in git diff", b"# wtool: end"
_OURS = b" diff=wtool"


def git(*words: str, check: bool = True, given: str | None = None) -> str:
    """What git answers to `given` on its stdin, without the last newline; "" if it fails and `check` is off."""
    try:
        done = subprocess.run(
            ["git", *words],
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            env={**os.environ, "LC_ALL": "C"},
            **({"stdin": subprocess.DEVNULL} if given is None else {"input": given}),
        )
    except FileNotFoundError:
        raise MissingExtraError("git is not installed", hint="wtool git works on a checkout of git") from None
    except OSError as error:
        raise UsageError(f"git cannot be run: {error.strerror}") from None
    if done.returncode and check:
        said = done.stderr.strip().splitlines()
        message = said[0].removeprefix("fatal: ").removeprefix("error: ") if said else f"git {words[0]} failed"
        hint = "run it inside a repository" if "not a git repository" in message else None
        raise UsageError(f"git: {message}", hint=hint)
    return "" if done.returncode else done.stdout.rstrip("\n")


def local_attributes() -> str:
    """This repository's own file of attributes, which nobody else sees and which overrides all others."""
    return os.path.abspath(git("rev-parse", "--git-path", "info/attributes"))


def shared_attributes() -> str:
    """The `.gitattributes` at the top of this checkout. UsageError where there is none to see."""
    if is_bare():
        raise UsageError("a bare repository has no files, so no .gitattributes", hint="leave --shared out")
    return os.path.join(git("rev-parse", "--show-toplevel"), ".gitattributes")


def global_attributes() -> str:
    """The user's file of attributes for all repositories."""
    given = git("config", "--global", "--get", "--type=path", "core.attributesFile", check=False)
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return given or os.path.join(home, "git", "attributes")


def is_bare() -> bool:
    return git("rev-parse", "--is-bare-repository") == "true"


def has_lfs() -> bool:
    """Whether this repository keeps files in LFS, as far as its attributes and its own folder tell."""
    if os.path.isdir(os.path.join(git("rev-parse", "--git-common-dir"), "lfs")):
        return True
    where = ("HEAD", "--") if is_bare() else ("--untracked", "--")
    if git("grep", "-l", "-e", "filter=lfs", *where, ":(top)*.gitattributes", check=False):
        return True
    return b"filter=lfs" in _read(local_attributes())


def lfs_store() -> str:
    """The folder of LFS's objects of the repository that we stand in; "" outside of one."""
    try:
        folder = git("config", "--get", "--type=path", "lfs.storage", check=False) or "lfs"
        return os.path.join(git("rev-parse", "--git-common-dir"), folder)
    except WtoolError:
        return ""


def patterns(path: str) -> list[str]:
    """The patterns that our lines in a file of attributes name."""
    _, ours, _ = _cut(_read(path))
    names = (line.rstrip(b"\r\n") for line in ours.splitlines(keepends=True))
    return [os.fsdecode(name.removesuffix(_OURS)) for name in names if name.endswith(_OURS)]


def put(path: str, globs: Sequence[str]) -> bool:
    """Put our lines at the end of a file of attributes, in place of those of before; no globs take them out. Whether any were.

    Taking them out gives back the file as it was, byte for byte: where it does not end in a newline, our lines do not either,
    and one that was not there goes.
    """
    old = _read(path)
    before, ours, after = _cut(old)
    bare_end = bool(ours) and not ours.endswith(b"\n") and not after
    if bare_end:
        before = before[:-1]  # the newline that we put between
    kept = before + after
    new = kept
    if globs:
        newline = not kept.endswith(b"\n") and (bool(kept) or (os.path.lexists(path) and (not ours or bare_end)))
        lines = (_BEGIN, *(os.fsencode(glob) + _OURS for glob in globs), _END)
        new = kept + b"\n" * newline + b"\n".join(lines) + b"\n" * (not newline)
    if new != old or (not new and ours):
        _write(path, new, remove=not new and not bare_end)
    return bool(ours)


def _cut(data: bytes) -> tuple[bytes, bytes, bytes]:
    """What stands before our lines, our lines, and what stands after. Lines of others between ours go to the latter."""
    lines = data.splitlines(keepends=True)
    plain = [line.rstrip(b"\r\n") for line in lines]
    if _BEGIN not in plain:
        return data, b"", b""
    first = plain.index(_BEGIN)
    last = plain.index(_END, first) if _END in plain[first:] else len(lines) - 1
    ours: list[bytes] = []
    others: list[bytes] = []
    for line, words in zip(lines[first : last + 1], plain[first : last + 1], strict=True):
        (ours if words in (_BEGIN, _END) or words.endswith(_OURS) else others).append(line)
    return b"".join(lines[:first]), b"".join(ours), b"".join((*others, *lines[last + 1 :]))


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise WriteError(f"cannot be read: {error.strerror}", path=path) from None


def _write(path: str, data: bytes, *, remove: bool) -> None:
    """The file whole or as it was. A link (to a folder of dotfiles, say) stays one."""
    real = os.path.realpath(path)
    part = f"{real}.{os.getpid()}.part"
    try:
        if remove:
            os.unlink(real)
            return
        os.makedirs(os.path.dirname(real), exist_ok=True)
        try:
            with open(part, "wb") as file:
                file.write(data)
            if os.path.exists(real):
                os.chmod(part, stat.S_IMODE(os.stat(real).st_mode))
            os.replace(part, real)
        except BaseException:
            if os.path.lexists(part):
                os.unlink(part)
            raise
    except OSError as error:
        raise WriteError(f"cannot be written: {error.strerror}", path=path) from None
