"""wtool: look into and convert neural-network checkpoints.

The library's names are imported when first used, so that `import wtool` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from wtool.api import open_checkpoint as open_checkpoint
    from wtool.api import save_checkpoint as save_checkpoint
    from wtool.checkpoint import Checkpoint as Checkpoint
    from wtool.dtypes import DType as DType
    from wtool.errors import WtoolError as WtoolError
    from wtool.tensor import LazyTensor as LazyTensor
    from wtool.tensor import TensorSpec as TensorSpec

_HOMES = {
    "open_checkpoint": "wtool.api",
    "save_checkpoint": "wtool.api",
    "Checkpoint": "wtool.checkpoint",
    "DType": "wtool.dtypes",
    "WtoolError": "wtool.errors",
    "LazyTensor": "wtool.tensor",
    "TensorSpec": "wtool.tensor",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wtool' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
