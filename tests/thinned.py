"""Checkpoints of arrays in memory, a method run over them as the command does, and other projects' own code."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wtool.analysis.thinning import Noting, prepared
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import dtype
from wtool.ops.average import average
from wtool.tensor import LazyTensor

Array = NDArray[Any]
Table = Mapping[str, Array]


def checkpoint(table: Table, name: str = "memory") -> Checkpoint:
    found: dict[str, LazyTensor] = {}
    for key, values in table.items():
        row = dtype(values.dtype.name)
        found[key] = LazyTensor.contiguous(key, row, values.shape, MemoryBytes(values.tobytes(), name), 0)
    return Checkpoint(found, Source(name, "torch", "zip", ((name, 0),)))


def merged(method: Any, base: Table, inputs: Sequence[Table], *, jobs: int = 1, **options: Any) -> dict[str, Array]:
    """The outcome of a method with its first pass, as arrays."""
    opened = [checkpoint(table, f"in{number}") for number, table in enumerate(inputs)]
    names = [f"in{number}" for number in range(len(inputs))]
    origin = checkpoint(base, "base")
    noting = Noting(method)
    average(opened, names, noting, base=origin, **options)
    found = average(opened, names, prepared(method, noting.asked, jobs=jobs), base=origin, **options)
    return {key: tensor.array() for key, tensor in found.checkpoint.items()}


def peer(script: str, folder: Path, **arrays: Array) -> dict[str, Array]:
    """What a script leaves in `out`, run by the Python that has the peers, with these arrays in `given`."""
    where = os.environ.get("WTOOL_PEERS")
    if not where:
        pytest.skip("WTOOL_PEERS names no folder with bin/python that has the peers")
    np.savez(folder / "given.npz", **arrays)
    text = f"import numpy as np\ngiven = np.load({json.dumps(str(folder / 'given.npz'))})\nout = {{}}\n{script}\n"
    text += f"np.savez({json.dumps(str(folder / 'out.npz'))}, **out)\n"
    done = subprocess.run([Path(where) / "bin" / "python", "-c", text], capture_output=True, text=True, check=False)
    if done.returncode and "ModuleNotFoundError" in done.stderr:
        pytest.skip(f"in WTOOL_PEERS: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(np.load(folder / "out.npz"))
