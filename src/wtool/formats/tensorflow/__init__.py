"""TensorFlow's checkpoints, read and written without TensorFlow.

- `place`: what the user named -> the prefix and its index file
- `bundle`: the entries of the index file as messages
- `strings`, `graph`, `sections`: string tensors, the object graph in one of them, and what it says of the variables
- `reader`, `v1`: -> Checkpoint; V1 files through TensorFlow itself
- `writer`, `judge`: Checkpoint -> files, and TensorFlow's own view of them
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from wtool.adapter import Capabilities, FormatAdapter, Match, Probe
from wtool.dtypes import BY_TF

if TYPE_CHECKING:
    from wtool.adapter import Judged, SaveRequest, TensorSink
    from wtool.checkpoint import Checkpoint


class TensorFlow:
    name = "tensorflow"
    suffixes = (".ckpt", ".index")
    capabilities = Capabilities(write=True, dtypes=frozenset(row.name for row in BY_TF.values()))

    def sniff(self, probe: Probe) -> Match | None:
        from wtool.formats.tensorflow.place import claim

        return claim(probe)

    def open(self, probe: Probe) -> Checkpoint:
        from wtool.formats.tensorflow.reader import open_bundle

        return open_bundle(probe)

    def create(self, request: SaveRequest) -> TensorSink:
        from wtool.formats.tensorflow.writer import create

        return create(request)

    def judge(self, path: str) -> Iterator[Judged]:
        from wtool.formats.tensorflow.judge import judge

        return judge(path)


ADAPTER: FormatAdapter = TensorFlow()
