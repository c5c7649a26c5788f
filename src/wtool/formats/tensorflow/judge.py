"""What TensorFlow itself reads from a checkpoint, for `--verify framework`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from os.path import isdir
from typing import Any

from wtool.adapter import Judged
from wtool.dtypes import BY_TF
from wtool.errors import MissingExtraError, VerifyError
from wtool.formats.tensorflow.graph import alias, is_object_key
from wtool.formats.tensorflow.place import INDEX


def load_tensorflow(path: str, why: str) -> Any:
    """The framework. MissingExtraError, saying of `path` why it is needed, if it is not installed."""
    # Or it greets the user on stderr.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow
    except ImportError:
        raise MissingExtraError(
            f"{why}, and that is not installed", path=path, hint="pip install 'wtool[tensorflow]'"
        ) from None
    return tensorflow


def judge(path: str) -> Iterator[Judged]:
    """Every numeric tensor, in the order of the keys; object keys that repeat a plain one are left out.

    MissingExtraError without TensorFlow; VerifyError if it cannot read the checkpoint.
    """
    tf = load_tensorflow(path, "cannot be judged by TensorFlow")
    prefix = tf.train.latest_checkpoint(path) if isdir(path) else path.removesuffix(INDEX)
    try:
        reader = tf.train.load_checkpoint(prefix)
        dtypes = reader.get_variable_to_dtype_map()
        repeated = {alias(key) for key in dtypes if not is_object_key(key)}
        for key in sorted(dtypes):
            dtype = BY_TF.get(dtypes[key].as_datatype_enum)
            if dtype is not None and key not in repeated:
                yield Judged(key, dtype.name, reader.get_tensor(key))
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise VerifyError(f"TensorFlow does not read it: {str(error).splitlines()[0]}", path=path) from None
