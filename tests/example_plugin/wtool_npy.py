"""NumPy's .npy as a format of wtool: one array in a file, under the key "array".

Layout (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html): magic, version, length of the header, the
header, then the values in C or Fortran order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from wtool.adapter import Capabilities, Judged, Match, Probe, SaveRequest
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import BY_NUMPY, DType
from wtool.errors import CorruptError, TruncatedError, UnsupportedError
from wtool.plan import Layout, OutputFile, Patch, Slot
from wtool.tensor import LazyTensor, c_strides

MAGIC = b"\x93NUMPY\x01\x00"
KEY = "array"
PLAIN = {name: row for name, row in BY_NUMPY.items() if not name.startswith(("bfloat", "float8"))}


@dataclass(frozen=True)
class NpySink:
    layout: Layout

    def finish(self, checksums: Mapping[str, int]) -> Iterable[Patch]:
        return ()


class Npy:
    name = "npy"
    suffixes = (".npy",)
    capabilities = Capabilities(write=True, dtypes=frozenset(row.name for row in PLAIN.values()))

    def sniff(self, probe: Probe) -> Match | None:
        return Match(100, "1.0") if probe.head.startswith(MAGIC) else None

    def open(self, probe: Probe) -> Checkpoint:
        assert probe.source is not None  # sniff saw its head
        shape, fortran, dtype, begin = read_header(probe.head, probe.path)
        nbytes = dtype.nbytes(prod(shape))
        if begin + nbytes > probe.size:
            raise TruncatedError(f"the array takes {nbytes} bytes, {probe.size - begin} are there", path=probe.path)
        if begin + nbytes < probe.size:
            raise CorruptError(f"{probe.size - begin - nbytes} bytes stand after the array", path=probe.path)
        strides = tuple(reversed(c_strides(tuple(reversed(shape))))) if fortran else c_strides(shape)
        tensor = LazyTensor.strided(KEY, dtype, shape, probe.source, begin, strides)
        return Checkpoint({KEY: tensor}, Source(probe.path, self.name, "1.0", ((probe.path, probe.size),), "NumPy"))

    def create(self, request: SaveRequest) -> NpySink:
        if len(request.specs) != 1:
            raise UnsupportedError(f".npy holds one array, not {len(request.specs)}", path=request.target)
        [spec] = request.specs
        header = write_header(spec.dtype, spec.shape)
        name = request.target.rpartition("/")[2]
        file = OutputFile(name, len(header) + spec.nbytes)
        return NpySink(Layout((file,), (Patch(0, 0, header),), (Slot(spec.key, 0, len(header), spec.nbytes),)))

    def judge(self, path: str) -> Iterator[Judged]:
        import numpy as np

        array = np.load(path, allow_pickle=False)
        yield Judged(KEY, BY_NUMPY[array.dtype.name].name, array)


ADAPTER = Npy()


def read_header(head: bytes, path: str) -> tuple[tuple[int, ...], bool, DType, int]:
    """Shape, whether in Fortran order, dtype, and the offset of the values. numpy evaluates nothing but literals."""
    from io import BytesIO

    from numpy.lib import format as npy

    stream = BytesIO(head)
    try:
        npy.read_magic(stream)
        shape, fortran, dtype = npy.read_array_header_1_0(stream)
    except Exception as error:  # many kinds, by the fault
        raise CorruptError(f"bad .npy header: {str(error).splitlines()[0]}", path=path) from None
    if any(size < 0 for size in shape):
        raise CorruptError(f"bad .npy header: shape {shape}", path=path)
    if dtype.name not in PLAIN or dtype.byteorder == ">":
        raise UnsupportedError(f"arrays of {dtype.str} are not read", path=path)
    return shape, fortran, PLAIN[dtype.name], stream.tell()


def write_header(dtype: DType, shape: tuple[int, ...]) -> bytes:
    from io import BytesIO

    from numpy.lib import format as npy

    stream = BytesIO()
    fields: dict[str, Any] = {"descr": npy.dtype_to_descr(dtype.numpy()), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(stream, fields)
    return stream.getvalue()
