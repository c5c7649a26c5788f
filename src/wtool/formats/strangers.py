"""What a path holds that no reader knows: one sentence that names it and says what to do.

The signatures are those of the formats' own specifications; what has no signature (ONNX, msgpack, plain pickles) is guessed
from its first bytes, and the sentence says "looks like".
"""

from __future__ import annotations

import os
import re

from wtool.adapter import Probe

_NOT_READ = "wtool does not read it"

# (offset, bytes, what it is and what to do)
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras' .h5: load it in Keras and save the weights in another format"),
    (4, b"TFL3", f"a TensorFlow Lite model: {_NOT_READ}; convert the model it was made from"),
    (0, b"\x93NUMPY", "one NumPy array (.npy), no checkpoint: load it with numpy and save it by a name"),
    (0, b"\x1f\x8b", "compressed with gzip: unpack it first (gunzip)"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first (unzstd)"),
    (0, b"\xfd7zXZ\x00", "compressed with xz: unpack it first (unxz)"),
    (0, b"BZh", "compressed with bzip2: unpack it first (bunzip2)"),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4: unpack it first (unlz4)"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it and name the checkpoint inside"),
    (0, b"Rar!\x1a\x07", "a RAR archive: unpack it and name the checkpoint inside"),
    (257, b"ustar", "a tar archive: unpack it and name the checkpoint inside"),
    (0, b"ggml", f"an old GGML model: {_NOT_READ}"),
    (0, b"ggjt", f"an old GGML model (GGJT): {_NOT_READ}"),
    (0, b"\x89PNG\r\n", "a PNG picture, no checkpoint"),
    (0, b"\xff\xd8\xff", "a JPEG picture, no checkpoint"),
    (0, b"GIF8", "a GIF picture, no checkpoint"),
    (0, b"%PDF-", "a PDF document, no checkpoint"),
    (0, b"\x7fELF", "a program or a library (ELF), no checkpoint"),
    (0, b"MZ", "a Windows program or library, no checkpoint"),
    (0, b"SQLite format 3\x00", "an SQLite database, no checkpoint"),
    (0, b"PAR1", "a Parquet table, no checkpoint"),
    (0, b"ARROW1", "an Arrow table, no checkpoint"),
    (0, b"#!", "a script, no checkpoint"),
)
# A name in a zip's directory or first entries, and what it means.
_ZIPS = (
    (b"model.weights.h5", "is a Keras 3 model (.keras): load it in Keras and save the weights in another format"),
    (b".npy", "holds NumPy arrays in a zip (.npz): " + _NOT_READ),
    (b"AndroidManifest.xml", "is an Android package, no checkpoint"),
    (b"[Content_Types].xml", "is an Office document, no checkpoint"),
)
# How pickles of protocol 0 (a dict, a list, a class by name) and 1 (a dict, a list) begin.
_OLD_PICKLE = re.compile(rb"\([dl]p\d+\n|\(i?c?[\w.]+\n[\w.]+\n|c[\w.]+\n[\w.]+\n|[}\]]q.", re.DOTALL)
_WORDS = re.compile(rb"\s*<(!doctype html|html|head|\?xml|!--)", re.IGNORECASE)


def describe(probe: Probe) -> str:
    """One sentence: what is there, and what to do."""
    if probe.kind == "folder":
        return _folder(probe)
    if probe.kind != "file":
        return "nothing is there"
    if not probe.size:
        return "is empty: the download or the copy failed"
    early = _pickle(probe) or _text(probe)  # an old pickle is text too
    if early:
        return early
    for offset, signature, what in _SIGNATURES:
        if probe.head[offset : offset + len(signature)] == signature:
            return f"is {what}"
    guess = _zip(probe) or _protobuf(probe) or _msgpack(probe)
    if guess:
        return guess
    if not probe.head.strip(b"\0"):
        return _zeros(probe)
    start = probe.head[:8].hex(" ")
    short = ", too short for any" if probe.size < 16 else ""
    return f"is no checkpoint that wtool knows{short}: it has {probe.size} bytes and begins with {start}"


def _text(probe: Probe) -> str | None:
    """Text files that stand where a checkpoint should: pointers, error pages, messages."""
    head = probe.head
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        fields = dict(line.split(" ", 1) for line in head.decode("ascii", "replace").splitlines() if " " in line)
        oid, size = fields.get("oid", "?")[:24], fields.get("size", "?")[:20]
        return f"is a Git LFS pointer, not the file itself ({oid}..., {size} bytes): fetch it with `git lfs pull`"
    page = _WORDS.match(head)
    if page:
        kind = "an XML document" if page.group(1)[:1] == b"?" and b"<html" not in head.lower() else "a web page (HTML)"
        return f"is {kind}, not a checkpoint: the download brought an error or a login page; fetch it again"
    if head.lstrip()[:1] in (b"{", b"[") and _readable(head):
        if b'"error"' in head or b'"message"' in head:
            return "is a JSON error message, not a checkpoint: the download failed; fetch it again"
        return "is JSON, not a checkpoint: name the file of the weights that belongs to it"
    if _readable(head):
        first = head.decode("utf-8", "replace").splitlines()[0].strip() if head.strip() else ""
        return f"is text, not a checkpoint; it begins with {first[:60]!r}"
    return None


def _readable(head: bytes) -> bool:
    """Whether this is UTF-8 (perhaps cut in a character) without control characters but white space."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4 or not error.start:
            return False
        text = head[: error.start].decode()
    return all(char.isprintable() or char in "\t\n\r\f\x1b" for char in text)


def _zip(probe: Probe) -> str | None:
    if probe.head[:4] not in (b"PK\x03\x04", b"PK\x05\x06"):
        return None
    seen = probe.head + probe.tail
    for name, what in _ZIPS:
        if name in seen:
            return what
    if b"PK\x05\x06" not in probe.tail:
        return "is a zip archive without its end: the download or the copy was cut off; fetch it again"
    return "is a zip archive without a checkpoint of PyTorch in it: unpack it and name the checkpoint inside"


def _pickle(probe: Probe) -> str | None:
    head, last = probe.head, probe.tail[-1:]
    protocol = head[1] if len(head) > 2 and head[0] == 0x80 else -1
    if 2 <= protocol <= 5 and (last == b"." or head[2:3] in (b"\x95", b"}", b"]", b"c", b"(", b"\x8a")):
        return f"looks like a plain pickle (protocol {protocol}) without PyTorch tensors: it is never run; {_NOT_READ}"
    if last == b"." and _OLD_PICKLE.match(head):
        return f"looks like a plain pickle (protocol 0 or 1) without PyTorch tensors: it is never run; {_NOT_READ}"
    return None


def _protobuf(probe: Probe) -> str | None:
    """ONNX: ir_version (field 1), then a short producer_name (2), or the graph (7), or the opset (8).

    SavedModel: schema version (field 1), then a meta graph (2), which is long.
    """
    head = probe.head
    if len(head) < 8 or head[0] != 0x08 or not 1 <= head[1] <= 32:
        return None
    field, size = head[2], head[3]
    if field == 0x12 and (size >= 0x80 or os.path.basename(probe.path) == "saved_model.pb"):
        return "is the graph of a TensorFlow SavedModel: the weights are beside it, name the folder or its variables/variables"
    name = head[4 : 4 + size]
    if field in (0x3A, 0x42) or (field == 0x12 and name.isascii() and name.decode("ascii", "replace").isprintable()):
        return f"looks like an ONNX model: {_NOT_READ}; convert the model it was made from"
    return None


def _msgpack(probe: Probe) -> str | None:
    """Flax writes a msgpack map (fixmap, map 16 or map 32) whose first key is text."""
    head = probe.head
    first = head[0]
    at = 1 if 0x81 <= first <= 0x8F else 3 if first == 0xDE else 5 if first == 0xDF else 0
    if not at or len(head) < at + 4:
        return None
    mark = head[at]
    size, begin = (mark & 0x1F, at + 1) if 0xA1 <= mark <= 0xBF else (head[at + 1], at + 2) if mark == 0xD9 else (0, 0)
    name = head[begin : begin + size]
    if size and len(name) == size and name.isascii() and name.decode().isprintable():
        return f"looks like a Flax checkpoint (msgpack): {_NOT_READ}; load it in Flax and save it in another format"
    return None


def _zeros(probe: Probe) -> str:
    where = "at both ends" if not probe.tail.strip(b"\0") else f"in its first {len(probe.head)} bytes"
    return f"has nothing but zeros {where} ({probe.size} bytes): the download or the copy failed"


def _folder(probe: Probe) -> str:
    names = set(probe.names)
    if not names:
        return "is an empty folder"
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        return (
            "is a torch.distributed checkpoint: wtool does not read it; "
            "turn it into one file with `python -m torch.distributed.checkpoint.format_utils dcp_to_torch`"
        )
    if names & {"_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt", "ocdbt.process_0"}:
        return f"is an Orbax checkpoint of JAX: {_NOT_READ}; restore it in JAX and save it in another format"
    if names & {".zarray", ".zgroup", ".zattrs", "zarr.json"}:
        return f"is a zarr store: {_NOT_READ}"
    if "saved_model.pb" in names:
        return "is a TensorFlow SavedModel without weights: variables/variables.index is missing"
    if any(name.startswith(("mp_rank_", "zero_pp_rank_", "bf16_zero_pp_rank_")) for name in names):
        return "is a DeepSpeed checkpoint in pieces: join it with its own zero_to_fp32.py and name the result"
    folders = [name for name in sorted(names) if os.path.isdir(os.path.join(probe.path, name)) and not name.startswith(".")]
    hint = f"; its folders are {', '.join(folders[:6])}{', ...' if len(folders) > 6 else ''}" if folders else ""
    return f"is a folder without a checkpoint that wtool knows{hint}"
