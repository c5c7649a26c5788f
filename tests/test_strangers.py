"""Files that no reader knows: each is named in one sentence."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtool.adapter import PROBE_BYTES, Probe, probe
from wtool.bytesource import MemoryBytes
from wtool.formats.strangers import describe


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"), io.BytesIO())
    return stream.getvalue()


def saved(save: object, *arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    save(stream, *arrays)  # type: ignore[operator]
    return stream.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 437955512\n"
# ir_version 8, producer_name "pytorch", producer_version "2.0", then a graph
ONNX = b"\x08\x08\x12\x07pytorch\x1a\x032.0\x3a\x90\x20" + bytes(range(200))
ONNX_PLAIN = b"\x08\x07\x3a\x90\x20" + bytes(range(200))
SAVED_MODEL = b"\x08\x01\x12\xf2\x8b\x01\x0a\xa1\x03" + bytes(range(200))
FLAX = b"\x81\xa6params\x82\xa5Dense\x81" + bytes(range(128, 200))

FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "a Git LFS pointer": (LFS, "437955512 bytes): fetch it with `git lfs pull`"),
    "a web page": (b"<!DOCTYPE html>\n<html><head>", "web page"),
    "a page after white space": (b"\n  <html>", "web page"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML document"),
    "a JSON error": (b'{"error":"Repository not found"}', "JSON error message"),
    "other JSON": (json.dumps({"model_type": "bert"}).encode(), "is JSON"),
    "text": ("Größe: 3\n".encode(), "is text, not a checkpoint; it begins with 'Größe: 3'"),
    "text that is cut in a character": (("ä" * 5000).encode()[:-1], "is text"),
    "zeros": (bytes(10_000), "nothing but zeros at both ends (10000 bytes)"),
    "zeros first": (bytes(5_000) + b"\xff" * 5_000, "zeros in its first 4096 bytes"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "Keras": (zipped(**{"config.json": b"{}", "model.weights.h5": b"\x89HDF"}), "Keras 3"),
    "npz": (saved(np.savez, np.ones(3)), ".npz"),
    "npy": (saved(np.save, np.ones(3)), ".npy"),
    "a zip": (zipped(x=b"y"), "zip archive without a checkpoint"),
    "a zip cut off": (zipped(x=bytes(100))[:-60], "without its end"),
    "a tar": (tarred(), "tar archive"),
    "gzip": (gzip.compress(b"x"), "gunzip"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x00\x01", "zstd"),
    "xz": (lzma.compress(b"x"), "unxz"),
    "bzip2": (bz2.compress(b"x"), "bunzip2"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04", "7z"),
    "ONNX": (ONNX, "ONNX"),
    "ONNX without a producer": (ONNX_PLAIN, "ONNX"),
    "SavedModel": (SAVED_MODEL, "variables/variables"),
    "TFLite": (b"\x1c\x00\x00\x00TFL3" + bytes(50), "TensorFlow Lite"),
    "Flax": (FLAX, "Flax checkpoint"),
    "PNG": (b"\x89PNG\r\n\x1a\n\x00\x00", "PNG"),
    "a program": (b"\x7fELF\x02\x01\x01\x00", "ELF"),
    "bytes": (b"\x9a\x01\xfe\x00" * 10, "begins with 9a 01 fe 00"),
    "few bytes": (b"\x9a\x01", "too short"),
    **{
        f"a pickle of protocol {protocol}": (
            pickle.dumps({"w": list(range(300))}, protocol),
            f"protocol {protocol}" if protocol > 1 else "plain pickle" if protocol else "pickle",
        )
        for protocol in range(6)
    },
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_named_for_what_it_is(name: str, tmp_path: Path) -> None:
    content, text = FILES[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    sentence = describe(probe(path))
    assert text in sentence
    assert "\n" not in sentence
    assert sentence[0].islower()


FOLDERS = {
    "empty": ([], "empty folder"),
    "torch.distributed": ([".metadata", "__0_0.distcp"], "dcp_to_torch"),
    "Orbax": (["_CHECKPOINT_METADATA", "manifest.ocdbt"], "Orbax"),
    "zarr": ([".zgroup", "w"], "zarr"),
    "SavedModel": (["saved_model.pb", "assets"], "variables/variables.index is missing"),
    "DeepSpeed": (["zero_pp_rank_0_mp_rank_00_optim_states.pt", "x"], "zero_to_fp32.py"),
    "another": (["config.json"], "folder without a checkpoint"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_named_for_what_it_holds(name: str, tmp_path: Path) -> None:
    names, text = FOLDERS[name]
    for entry in names:
        (tmp_path / entry).write_bytes(b"")
    assert text in describe(probe(tmp_path))


def test_the_folders_of_a_folder_are_listed(tmp_path: Path) -> None:
    for name in ("unet", "vae", ".git"):
        os.mkdir(tmp_path / name)
    assert "its folders are unet, vae" in describe(probe(tmp_path))


@given(
    st.one_of(st.binary(max_size=64), st.sampled_from([content for content, _ in FILES.values()])),
    st.integers(0, 64),
    st.data(),
)
def test_any_bytes_have_a_sentence(content: bytes, at: int, data: st.DataObject) -> None:
    changed = bytearray(content)
    if at < len(changed):
        changed[at] = data.draw(st.integers(0, 255))
        del changed[data.draw(st.integers(at, len(changed))) :]
    source = MemoryBytes(bytes(changed))
    seen = Probe("x", "file", source, bytes(changed[:PROBE_BYTES]), bytes(changed[-PROBE_BYTES:]))
    sentence = describe(seen)
    assert sentence
    assert all(char.isprintable() for char in sentence)
