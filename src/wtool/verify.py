"""Was what was meant what was written? Read the output back, with our reader or with the framework's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec

from wtool.analysis.digest import digest
from wtool.api import SavePlan, open_checkpoint
from wtool.errors import MissingExtraError, VerifyError, WtoolError
from wtool.tensor import LazyTensor

Progress = Callable[[int], None]
# Formats that are called as their framework; safetensors' library is always there.
_FRAMEWORKS = ("torch", "tensorflow", "gguf")


def check_ready(plan: SavePlan, mode: str) -> None:
    """MissingExtraError if "framework" is asked for and the framework is not installed. Before anything is written."""
    name = plan.format
    if mode == "framework" and name in _FRAMEWORKS and find_spec(name) is None:
        raise MissingExtraError(
            f"--verify framework needs {name}, which is not installed", path=plan.target, hint=_install(name)
        )


def _install(name: str) -> str:
    return "pip install gguf" if name == "gguf" else f"pip install 'wtool[{name}]'"


def verify(plan: SavePlan, mode: str = "digest", *, jobs: int = 1, progress: Progress | None = None) -> None:
    """Compare the output on the disk with the checkpoint that was to be written.

    "digest" opens it with wtool and compares keys and digests; "framework" loads it with torch, TensorFlow or the safetensors
    library and compares bit for bit. Raises VerifyError. A new output is removed then; one that replaced another is left:
    it may be all that there is. Errors of the source are raised as they are, and the output is left.
    """
    try:
        if mode == "framework":
            _by_framework(plan, progress)
        else:
            _by_digest(plan, jobs, progress)
    except WtoolError as error:
        if not isinstance(error, VerifyError) and error.path not in (plan.target, *plan.paths):
            raise
        if isinstance(error, MissingExtraError):
            raise
        if plan.force:
            hint = "the output was left where it is: do not trust it"
            raise VerifyError(error.message, path=plan.target, hint=hint) from None
        for path in reversed(plan.paths):
            if os.path.lexists(path):
                os.unlink(path)
        raise VerifyError(f"{error.message}; the output was removed", path=plan.target, hint="convert it again") from None


def _by_digest(plan: SavePlan, jobs: int, progress: Progress | None) -> None:
    meant = digest(plan.checkpoint, jobs, progress)
    written = digest(open_checkpoint(plan.target, section="all"), jobs, progress)
    if meant.whole == written.whole:
        return
    wrong = [key for key, value in meant.tensors.items() if written.tensors.get(key) != value]
    wrong += [key for key in written.tensors if key not in meant.tensors]
    raise VerifyError(f"{len(wrong)} tensors are not what was to be written, first {wrong[0]}")


def _by_framework(plan: SavePlan, progress: Progress | None) -> None:
    from wtool.formats import registry

    adapter = registry.by_name(plan.format)
    missing = dict(plan.checkpoint.tensors)
    try:
        for judged in adapter.judge(plan.target):
            tensor = missing.pop(judged.key, None)
            if tensor is None:
                if judged.key in plan.checkpoint.tensors:
                    raise VerifyError(f"{judged.key} was loaded twice")
                raise VerifyError(f"{judged.key} was loaded by the framework but never written")
            if judged.dtype != tensor.dtype.name:
                raise VerifyError(f"{judged.key} was loaded as {judged.dtype}, not {tensor.dtype}")
            _same(tensor, judged.key, judged.array)
            if progress is not None:
                progress(tensor.nbytes)
    except ImportError as error:
        name = error.name or plan.format
        raise MissingExtraError(f"--verify framework needs {name}", path=plan.target, hint=_install(plan.format)) from None
    aliases = {key for group in plan.tied for key in group[1:]} if plan.tied_policy == "keep-one" else set()
    absent = [key for key in missing if key not in aliases]
    if absent:
        raise VerifyError(f"the framework did not load {absent[0]} and {len(absent) - 1} more")


def _same(tensor: LazyTensor, key: str, array: object) -> None:
    import numpy as np

    values = np.asarray(array)
    if tensor.dtype.itemsize and values.shape != tensor.shape:
        raise VerifyError(f"{key} was loaded with shape {values.shape}, not {tensor.shape}")
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    done = 0
    for block in tensor.blocks():
        raw = block.view(np.uint8)
        if not np.array_equal(flat[done : done + raw.size], raw):
            raise VerifyError(f"{key} was loaded with other values")
        done += raw.size
    if done != flat.size:
        raise VerifyError(f"{key} was loaded with {flat.size} bytes, not {done}")
