"""Every way wtool can fail, as one tree.

An error carries a stable kebab-case `code` for scripts, the exit code of the process, the path it is about and, where
there is one, a hint that says what to do. The message is one line and names the place and the fault.
"""

from __future__ import annotations

from os import PathLike, fspath
from typing import ClassVar

from wtool.text import printable

_LONGEST = 1000  # characters of a message: a key of a hostile file may be a novel


class WtoolError(Exception):
    """Base of all errors that are the input's, the user's or the machine's fault, never ours."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, path: str | PathLike[str] | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
        self.message = printable(message)
        self.path = None if path is None else fspath(path)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message

    def at(self, path: str | PathLike[str]) -> WtoolError:
        """The same error, with a path if it had none."""
        if self.path is None:
            self.path = fspath(path)
        return self


class UsageError(WtoolError):
    """The command line asks for something that makes no sense."""

    code = "usage"


class NotFoundError(WtoolError):
    """There is no such file."""

    code = "not-found"


class UnreadableError(WtoolError):
    """The file is there but cannot be read: permissions, an I/O error, a FIFO, a device."""

    code = "unreadable"


class UnknownFormatError(WtoolError):
    """The bytes are no checkpoint that any reader knows; the message names what they look like."""

    code = "unknown-format"


class UnsupportedError(WtoolError):
    """Known, but not something wtool can do."""

    code = "unsupported"


class MissingExtraError(UnsupportedError):
    """Works when an optional package is installed; the hint names the extra."""

    code = "missing-extra"


class CorruptError(WtoolError):
    """The file contradicts its own format."""

    code = "corrupt"


class TruncatedError(CorruptError):
    """The file ends before what it promises."""

    code = "truncated"


class UnsafeError(WtoolError):
    """Refused because two readers could read two different models from it, or because it reaches outside itself."""

    code = "unsafe"


class LimitError(UnsafeError):
    """A declared size or count is beyond the documented limit."""

    code = "limit"


class MissingShardError(CorruptError):
    """The index, or the numbering, names a shard that is not there."""

    code = "missing-shard"


class ForeignShardError(CorruptError):
    """A shard of another checkpoint: it holds nothing of what the index says it holds, or is of another format."""

    code = "foreign-shard"


class MissingTensorError(CorruptError):
    """The index names a tensor that no shard has."""

    code = "missing-tensor"


class MisplacedTensorError(CorruptError):
    """A tensor is in another shard than the index says."""

    code = "misplaced-tensor"


class DuplicateTensorError(UnsafeError):
    """Two shards hold a tensor of the same key."""

    code = "duplicate-tensor"


class NoTensorsError(WtoolError):
    """There is nothing to convert: an empty result is never written."""

    code = "no-tensors"


class KeyClashError(WtoolError):
    """Two tensors would get the same key."""

    code = "key-collision"


class RecipeError(WtoolError):
    """A mapping recipe that says nothing sensible: bad TOML, an unknown slot, operation or kind."""

    code = "recipe"


class MapError(WtoolError):
    """A recipe, or a template, that does not fit this checkpoint."""

    code = "map"


class DtypeError(WtoolError):
    """The target format has no such dtype, or a cast is impossible."""

    code = "dtype"


class MismatchError(WtoolError):
    """Checkpoints that should be alike have other keys, shapes or integers."""

    code = "mismatch"


class NotFiniteError(WtoolError):
    """A NaN or an infinity where values are computed with."""

    code = "not-finite"


class EvaluationError(WtoolError):
    """A command of the user gave no score. `said` is the end of what it wrote on stderr."""

    code = "evaluation"

    def __init__(
        self,
        message: str,
        *,
        path: str | PathLike[str] | None = None,
        hint: str | None = None,
        said: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, path=path, hint=hint)
        self.said = said


class QuantizedError(WtoolError):
    """A checkpoint is stored quantized where it must not be, or not as it should."""

    code = "quantized"


class BudgetError(WtoolError):
    """Nothing fits into the bytes or bits that were asked for."""

    code = "budget"


class TiedError(WtoolError):
    """Tied tensors, and `--tied error` was asked for."""

    code = "tied"


class LossError(WtoolError):
    """Something would be lost, and `--strict` was asked for."""

    code = "loss"


class OutputExistsError(WtoolError):
    """The output is there already and `--force` was not given."""

    code = "output-exists"


class WriteError(WtoolError):
    """The output cannot be written: permissions, a missing folder, an I/O error."""

    code = "write"


class DiskFullError(WriteError):
    """No room for the output."""

    code = "disk-full"


class VerifyError(WtoolError):
    """What was written is not what was read. The output is removed."""

    code = "verify"
    exit_code = 1
