"""Opens files, each in a child of its own that is watched: one path a line on stdin, one JSON line of answer on stdout.

The child may not import, execute, start, connect or write anything while it opens (sys.addaudithook); it has 5 s of CPU, and
its peak of memory is measured from the point where it was forked.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import resource
import sys
import traceback

QUIET = {
    "builtins.id",
    "os.listdir",
    "os.scandir",
    "sys._getframe",
    "object.__getattr__",
    "_thread.start_new_thread",
    "_thread.start_joinable_thread",
}
LIMIT = 4 << 30
seen: list[str] = []
watching = False


def hook(event: str, args: tuple[object, ...]) -> None:
    if not watching or event in QUIET:
        return
    if event == "open" and isinstance(args[2], int) and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return
    seen.append(f"{event} {args!r}"[:200])


def status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))


def attempt(path: str) -> dict[str, object]:
    global watching
    from wtool.api import open_checkpoint
    from wtool.errors import WtoolError

    answer: dict[str, object] = {}
    before = status("VmRSS")
    watching = True
    try:
        opened = open_checkpoint(path, section="all")
        watching = False
        verdicts = {found.verdict for found in opened.globals}
        answer["outcome"] = next((word for word in ("dangerous", "unknown") if word in verdicts), "clean")
        answer["tensors"] = len(opened)
    except WtoolError as error:
        watching = False
        answer.update(outcome=error.code, text=str(error), path=error.path, message=error.message)
    except BaseException:
        watching = False
        answer.update(outcome="crash", text=traceback.format_exc()[-3000:])
    answer.update(peak=status("VmHWM") - before, events=seen)
    if answer["outcome"] in ("dangerous", "unknown", "clean"):
        try:
            if opened.nbytes < 1 << 24:
                for tensor in opened.values():
                    for _ in tensor.blocks():
                        pass
            answer["values"] = "read"
        except WtoolError as error:
            answer["values"] = error.code
        except BaseException:
            answer["values"] = traceback.format_exc()[-3000:]
    return answer


def watched(path: str) -> dict[str, object]:
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.close(receive)
        resource.setrlimit(resource.RLIMIT_CPU, (5, 6))
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with os.fdopen(send, "w") as out:
            json.dump(attempt(path), out)
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        text = pipe.read()
    _, code = os.waitpid(child, 0)
    return json.loads(text) if text else {"outcome": f"ended by signal {os.WTERMSIG(code)}", "events": [], "peak": 0}


def main() -> None:
    import concurrent.futures.thread  # noqa: F401

    import wtool.formats

    for module in pkgutil.walk_packages(wtool.formats.__path__, "wtool.formats."):
        importlib.import_module(module.name)
    import wtool.kernels.byteswap
    import wtool.kernels.signs

    for name in ("utf-32-le", "utf-32-be", "latin-1", "raw-unicode-escape", "cp437", "utf-16", "ascii"):
        "a".encode(name)
    for line in sys.stdin:  # warm, so that what is imported late is there
        if not line.strip():
            break
        attempt(json.loads(line))
    seen.clear()
    sys.addaudithook(hook)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(watched(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
