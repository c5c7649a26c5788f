"""V1 checkpoints (one file, before TensorFlow 0.12), read through TensorFlow.

They are sorted tables too, but their values are protos in protos, compressed, and in slices; none has been written by default
since 2016.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from wtool.checkpoint import Checkpoint, Opaque, Source
from wtool.dtypes import BY_TF
from wtool.errors import CorruptError, TruncatedError
from wtool.formats.tensorflow.graph import EMPTY
from wtool.formats.tensorflow.judge import load_tensorflow
from wtool.formats.tensorflow.place import Place
from wtool.formats.tensorflow.sections import sections
from wtool.tensor import LazyTensor

_WHY = "is a V1 checkpoint, which only TensorFlow itself reads"


def open_v1(place: Place) -> Checkpoint:
    """The checkpoint as TensorFlow sees it. MissingExtraError without TensorFlow, CorruptError if it cannot read the file."""
    path = place.table.name
    reader = _reader(path)
    dtypes = reader.get_variable_to_dtype_map()
    tensors: dict[str, LazyTensor] = {}
    extras: dict[str, Any] = {}
    for key, shape in sorted(reader.get_variable_to_shape_map().items()):
        dtype = BY_TF.get(dtypes[key].as_datatype_enum)
        if dtype is None:
            extras[key] = Opaque(f"tensorflow.{dtypes[key].name} {list(shape)}")
            continue
        size = dtype.nbytes(1)
        for extent in shape:
            size *= extent
        tensors[key] = LazyTensor.contiguous(key, dtype, tuple(shape), _Values(path, key, size), 0)
    source = Source(path, "tensorflow", "v1", ((path, place.table.size),), "TensorFlow")
    return Checkpoint(tensors, source, extras=extras, sections=sections(tensors, EMPTY))


class _Values:
    """The bytes of one variable, which TensorFlow loads whole when they are first asked for."""

    __slots__ = ("_key", "_path", "size")

    def __init__(self, path: str, key: str, size: int) -> None:
        self._path, self._key, self.size = path, key, size

    @property
    def name(self) -> str:
        return self._path

    def pread(self, offset: int, nbytes: int) -> bytes:
        data = _load(self._path, self._key)
        if offset < 0 or nbytes < 0 or offset + nbytes > len(data):
            raise TruncatedError(f"'{self._key}' has {len(data)} bytes, not {offset + nbytes}", path=self._path)
        return data[offset : offset + nbytes]

    def readinto(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.pread(offset, len(buffer))


@lru_cache(maxsize=2)
def _load(path: str, key: str) -> bytes:
    tf = load_tensorflow(path, _WHY)
    try:
        dtype = _reader(path).get_variable_to_dtype_map()[key]
        # Not the reader's get_tensor, which refuses variables that were saved in slices.
        found = tf.raw_ops.RestoreV2(prefix=path, tensor_names=[key], shape_and_slices=[""], dtypes=[dtype])
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise CorruptError(f"TensorFlow does not read '{key}': {str(error).splitlines()[0]}", path=path) from None
    data: bytes = found[0].numpy().tobytes()
    return data


@lru_cache(maxsize=2)
def _reader(path: str) -> Any:
    tf = load_tensorflow(path, _WHY)
    try:
        return tf.train.load_checkpoint(path)
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise CorruptError(f"TensorFlow does not read it: {str(error).splitlines()[0]}", path=path) from None
