"""The `wtool` command: turns whatever happens into an exit code and at most two lines."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from wtool.cli.commands import SETTINGS, Commands, announce
from wtool.cli.console import ClosedPipe, Console, show_error
from wtool.errors import UsageError, WtoolError

_VERIFY = ("digest", "framework", "none")


class _Stopped(BaseException):
    """A signal that ends the process, as an exception so that what is half-written is removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Fault(WtoolError):
    """Something that must not happen."""

    code = "internal"
    exit_code = 70


class _NoMemory(WtoolError):
    code = "memory"


def application() -> typer.Typer:
    """The command line. A command is imported when it is called."""
    app = typer.Typer(
        name="wtool",
        cls=Commands,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=True,
        context_settings=SETTINGS,
        help="Look into and convert neural-network checkpoints. Never runs code from a file.",
    )
    app.callback()(_root)
    announce(app)
    return app


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line and answer the exit code of the process. Never raises."""
    args = prepared(list(sys.argv[1:] if argv is None else argv))
    as_json = wants_json(args)
    for stream in (sys.stdout, sys.stderr):
        # A key or a path may hold what the stream's encoding has not.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # A header of 100,000 tensors is a million objects and no garbage, and nothing here makes cycles that matter: looking for
    # some takes half of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with _signals():
            result = application()(args or ["--help"], prog_name="wtool", standalone_mode=False)
            Console().out("")
        return result if isinstance(result, int) else 0
    except ClosedPipe:
        _discard_stdout()
        return 0
    except WtoolError as error:
        show_error(error, as_json=as_json)
        return error.exit_code
    except _Stopped as stop:
        return 128 + stop.number
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except MemoryError:
        show_error(
            _NoMemory("not enough memory", hint="--memory bounds the blocks, --jobs 1 works on one tensor"), as_json=as_json
        )
        return 2
    except SystemExit as stop:  # shell completion ends like this
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:
        return _unexpected(error, as_json=as_json)
    finally:
        if collecting:
            gc.enable()


def _unexpected(error: Exception, *, as_json: bool) -> int:
    # Usage errors are told by their shape: their class is typer's own in some versions and click's in others.
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        context = getattr(error, "ctx", None)
        command = getattr(context, "command_path", None) or "wtool"
        message = str(error.format_message()).strip().rstrip(".").replace("\n", " ")
        show_error(UsageError(message, hint=f"{command} -h shows what it takes"), as_json=as_json)
        return 2
    if os.environ.get("WTOOL_DEBUG"):
        import traceback

        traceback.print_exc()
    words = " ".join(str(error).split())
    fault = _Fault(
        f"a fault of wtool itself: {type(error).__name__}{': ' if words else ''}{words}",
        hint="WTOOL_DEBUG=1 shows where; please report it",
    )
    show_error(fault, as_json=as_json)
    return fault.exit_code


def prepared(args: list[str]) -> list[str]:
    """The arguments with what typer cannot say: an option whose value may be left out (`--verify`)."""
    found: list[str] = []
    for index, arg in enumerate(args):
        if arg == "--":
            return found + args[index:]
        if arg == "--verify" and args[index + 1 : index + 2] not in [[word] for word in _VERIFY]:
            arg = "--verify=digest"
        found.append(arg)
    return found


def wants_json(args: Sequence[str]) -> bool:
    """Whether errors, of the command line itself too, are to be JSON."""
    for index, arg in enumerate(args):
        if arg == "--":
            return False
        if arg in ("--json", "--format=json") or (arg == "--format" and args[index + 1 : index + 2] == ["json"]):
            return True
    return False


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the stack like Ctrl-C does. Ignored ones (nohup) stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped(number)

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _discard_stdout() -> None:
    """Let the interpreter's last flush go nowhere instead of complaining."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):
        pass


def _version(value: bool) -> None:
    if value:
        from wtool import __version__

        Console().out(f"wtool {__version__}\n")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Look into and convert neural-network checkpoints: PyTorch, safetensors, TensorFlow.

    Never runs code from a file. Reads headers only, streams values, writes whole files or none.
    """
