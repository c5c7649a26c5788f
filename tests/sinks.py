"""The plainest writer there is, so that a format's layout can be tested without wtool's own."""

from __future__ import annotations

import os
from collections.abc import Mapping

from wtool.adapter import TensorSink
from wtool.tensor import LazyTensor


def write_plainly(sink: TensorSink, tensors: Mapping[str, LazyTensor], target: str | os.PathLike[str]) -> list[str]:
    """Write a sink of a format that wants no checksums; the paths, in the order of the layout."""
    target = os.fspath(target)
    layout = sink.layout
    folder = target if layout.folder else os.path.dirname(target)
    os.makedirs(folder, exist_ok=True)
    contents = [bytearray(file.size) for file in layout.files]
    for patch in (*layout.patches, *sink.finish({})):
        contents[patch.file][patch.offset : patch.offset + len(patch.data)] = patch.data
    for slot in layout.slots:
        values = tensors[slot.key].array().tobytes()
        assert len(values) == slot.nbytes
        contents[slot.file][slot.offset : slot.offset + slot.nbytes] = values
    paths = [os.path.join(folder, file.name) for file in layout.files]
    for path, file, content in zip(paths, layout.files, contents, strict=True):
        assert len(content) == file.size, file
        with open(path, "wb") as output:
            output.write(content)
    return paths
