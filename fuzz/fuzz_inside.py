"""Coverage-guided fuzzing below the checksums: the input is what stands inside a container, which is built around it.

    pip install atheris
    python fuzz/fuzz_inside.py pickle -max_total_time=600     # or: legacy, header, index, entries, block

- pickle: data.pkl of an archive; legacy: the pickle of the stream from before torch 1.6
- header: the JSON of a safetensors file; index: that of a sharded checkpoint
- entries: messages of a TensorFlow bundle, each after its length (u8); block: a data block of its table, with the right sum

Anything but an answer or a WtoolError is a crash. A crash becomes a case in tests/hostile.
"""

from __future__ import annotations

import importlib
import io
import pkgutil
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["wtool"]):
    import wtool.formats
    from wtool.api import open_checkpoint
    from wtool.errors import WtoolError

    for module in pkgutil.walk_packages(wtool.formats.__path__, "wtool.formats."):
        importlib.import_module(module.name)
    from wtool.formats.sstable import FOOTER, MAGIC, mask, write_table
    from wtool.formats.tensorflow.bundle import Entry, format_entry, format_header

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from hostile_torch import VALUES, archive, legacy, old_storage, pickled, tensor  # noqa: E402

FOLDER = Path(tempfile.mkdtemp(prefix="wtool-fuzz-"))
SHARD = "model-00001-of-00001.safetensors"
HEADER = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


def header(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data + bytes(64)


def entries(data: bytes) -> bytes:
    rows = {b"": format_header(1)}
    at = 0
    while at < len(data) and len(rows) < 20:
        rows[b"k%02d" % len(rows)] = data[at + 1 : at + 1 + data[at]]
        at += 1 + data[at]
    return write_table(sorted(rows.items()))


def block(data: bytes) -> bytes:
    from google_crc32c import value

    def summed(raw: bytes) -> bytes:
        return raw + mask(value(raw)).to_bytes(4, "little")

    first = summed(data or b"\0")
    handle = b"\0" + struct.pack(
        "BBB", (len(first) - 5) & 127 | 128, (len(first) - 5) >> 7 & 127 | 128, (len(first) - 5) >> 14
    )
    second = summed(b"\0\1" + bytes((len(handle),)) + b"\xff" + handle + struct.pack("<2I", 0, 1) + b"\0")
    number = struct.pack("BBB", len(first) & 127 | 128, len(first) >> 7 & 127 | 128, len(first) >> 14)
    return first + second + (b"\0\0" + number + bytes((len(second) - 5,))).ljust(FOOTER - 8, b"\0") + MAGIC


def inside(path: Path) -> list[bytes]:
    """The pickles of a zip archive."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as file:
        return [file.read(name) for name in file.namelist() if name.endswith(".pkl")]


TENSOR = format_entry(Entry(1, (4,), 0, 0, 16, 0))
TEXT = format_entry(Entry(7, (), 0, 0, 9, 0))
INDEX = b'{"metadata":{"total_size":8},"weight_map":{"w":"%s"}}' % SHARD.encode()
MODES: dict[str, tuple[str, Callable[[bytes], bytes], list[bytes]]] = {
    "pickle": ("f.pt", lambda data: archive(data, {"0": VALUES}), [pickled({"w": tensor()})]),
    "legacy": ("f.pt", legacy, [pickled({"w": tensor(stored=old_storage())})]),
    "header": ("f.safetensors", header, [HEADER]),
    "index": ("model.safetensors.index.json", bytes, [INDEX]),
    "entries": ("x.index", entries, [bytes((len(one),)) + one for one in (TENSOR, TEXT)]),
    "block": (
        "x.index",
        block,
        [b"\0\0\2\x08\1" + b"\0\1" + bytes((len(TENSOR),)) + b"a" + TENSOR + struct.pack("<2I", 0, 1) + b"\0"],
    ),
}


def main() -> None:
    mode = sys.argv.pop(1)
    name, build, seeds = MODES[mode]
    path = FOLDER / name
    (FOLDER / "x.data-00000-of-00001").write_bytes(bytes(4096))
    (FOLDER / SHARD).write_bytes(struct.pack("<Q", len(HEADER)) + HEADER + bytes(8))

    def read(data: bytes) -> None:
        path.write_bytes(build(data))
        try:
            checkpoint = open_checkpoint(path, section="all")
            if checkpoint.nbytes < 1 << 22:
                for one in checkpoint.values():
                    for _ in one.blocks():
                        pass
        except WtoolError as error:
            assert "\n" not in error.message, error.message
            assert error.path

    corpus = Path(tempfile.mkdtemp(prefix="wtool-seeds-"))
    if mode == "pickle":
        seeds += [data for one in sorted((ROOT / "fixtures" / "torch").glob("*/*")) if one.is_file() for data in inside(one)]
    for number, data in enumerate(seeds):
        if len(data) < 1 << 14:
            (corpus / str(number)).write_bytes(data)
    atheris.Setup([*sys.argv, str(corpus), "-max_len=16384", "-timeout=20", "-rss_limit_mb=2048"], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
