"""Reading safetensors: the official library is the oracle of what must be refused and of what is in a file."""

from __future__ import annotations

import json
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from wtool.adapter import probe
from wtool.bytesource import MemoryBytes
from wtool.dtypes import BY_SAFETENSORS
from wtool.errors import CorruptError, LimitError, TruncatedError, UnsafeError, WtoolError
from wtool.formats.safetensors import ADAPTER, read_header
from wtool.formats.safetensors_header import MAX_HEADER

INFO = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def a_file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def official(content: bytes) -> list[tuple[str, str, list[int]]] | None:
    """What the official library finds, None if it refuses."""
    try:
        return sorted((key, found["dtype"], found["shape"]) for key, found in deserialize(content))
    except SafetensorError:
        return None


def ours(content: bytes) -> list[tuple[str, str, list[int]]] | None:
    try:
        tensors = read_header(MemoryBytes(content)).tensors
    except WtoolError:
        return None
    return sorted((key, tensor.dtype.safetensors or "", list(tensor.shape)) for key, tensor in tensors.items())


def info(**fields: object) -> bytes:
    return a_file({"a": {**INFO, **fields}}, bytes(8))


def raw(text: str) -> bytes:
    return a_file(text.encode(), bytes(8))


ENTRY = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'

BAD = {
    "nothing": (b"", TruncatedError, "too short"),
    "a length alone": ((100).to_bytes(8, "little"), TruncatedError, "too short"),
    "longer than the file": (a_file({"a": INFO}, bytes(8), 10_000), TruncatedError, "10000 bytes, but only"),
    "beyond the limit": (a_file({"a": INFO}, bytes(8), MAX_HEADER + 1), LimitError, "allows 100000000"),
    "length of 2^64-1": (a_file({"a": INFO}, bytes(8), 2**64 - 1), LimitError, "18446744073709551615"),
    "no brace": (a_file(b"[1,2,3]"), CorruptError, "begin with"),
    "a space first": (raw(" {}"), CorruptError, "begin with"),
    "no utf-8": (a_file(b'{"\xff":1}'), CorruptError, "UTF-8 at byte 10"),
    "no json": (raw('{"a":}'), CorruptError, "malformed"),
    "a trailing comma": (raw('{"a":' + ENTRY + ",}"), CorruptError, "malformed"),
    "a zero at the end": (raw('{"a":' + ENTRY + "}\0"), CorruptError, "malformed"),
    "a control character": (raw('{"a\n":' + ENTRY + "}"), CorruptError, "malformed"),
    "a name twice": (raw('{"a":' + ENTRY + ',"a":' + ENTRY + "}"), UnsafeError, "'a' stands twice"),
    "a field twice": (raw('{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}'), UnsafeError, "'dtype'"),
    "metadata twice": (raw('{"__metadata__":{},"__metadata__":{}}'), UnsafeError, "twice"),
    "a metadata name twice": (raw('{"__metadata__":{"x":"1","x":"2"},"a":' + ENTRY + "}"), UnsafeError, "'x'"),
    "half a surrogate": (raw('{"\\ud800":' + ENTRY + "}"), CorruptError, "surrogate"),
    "half a surrogate aside": (raw('{"a":' + ENTRY[:-1] + ',"x":"\\udc00"}}'), CorruptError, "surrogate"),
    "metadata of numbers": (raw('{"__metadata__":{"x":1},"a":' + ENTRY + "}"), CorruptError, "'x' is no text"),
    "metadata of objects": (raw('{"__metadata__":{"x":{}},"a":' + ENTRY + "}"), CorruptError, "'x' is no text"),
    "metadata a list": (raw('{"__metadata__":["x"],"a":' + ENTRY + "}"), CorruptError, "no JSON object"),
    "an entry a list": (raw('{"a":["F32",[2],[0,8]]}'), CorruptError, "no JSON object"),
    "an entry a text": (raw('{"a":"F32"}'), CorruptError, "no JSON object"),
    "an entry null": (raw('{"a":null}'), CorruptError, "no JSON object"),
    "no dtype": (raw('{"a":{"shape":[2],"data_offsets":[0,8]}}'), CorruptError, "no dtype"),
    "no shape": (raw('{"a":{"dtype":"F32","data_offsets":[0,8]}}'), CorruptError, "no shape"),
    "no offsets": (raw('{"a":{"dtype":"F32","shape":[2]}}'), CorruptError, "no data_offsets"),
    "an unknown dtype": (info(dtype="F7"), CorruptError, "'F7'"),
    "a lower-case dtype": (info(dtype="f32"), CorruptError, "'f32'"),
    "a dtype NaN": (raw('{"a":{"dtype":NaN,"shape":[2],"data_offsets":[0,8]}}'), CorruptError, "NaN"),
    "a dtype of no text": (info(dtype=["F32"]), CorruptError, "no text"),
    "a negative size": (info(shape=[-2]), CorruptError, "no whole number"),
    "a fractional size": (info(shape=[2.0]), CorruptError, "no whole number"),
    "a size true": (info(shape=[True, 2]), CorruptError, "no whole number"),
    "a size null": (info(shape=[None]), CorruptError, "no whole number"),
    "a size of text": (info(shape=["2"]), CorruptError, "no whole number"),
    "a size of 2^64": (info(shape=[2**64]), CorruptError, "no whole number"),
    "a size of 5000 digits": (raw('{"a":' + ENTRY.replace("[2]", f"[{'9' * 5000}]") + "}"), CorruptError, "beyond"),
    "a shape of text": (info(shape="2"), CorruptError, "no whole number"),
    "a shape null": (info(shape=None), CorruptError, "no whole number"),
    "elements beyond 64 bits": (info(shape=[2**33, 2**33]), CorruptError, "overflows"),
    "beyond 64 bits, then 0": (info(shape=[2**33, 2**33, 0], data_offsets=[0, 0]), CorruptError, "overflows"),
    "bits beyond 64 bits": (info(shape=[2**60]), CorruptError, "overflows"),
    "a minus zero": (raw('{"a":' + ENTRY.replace("[0,", "[-0,") + "}"), CorruptError, "no whole number"),
    "offsets true": (info(data_offsets=[False, 8]), CorruptError, "no whole number"),
    "three offsets": (info(data_offsets=[0, 8, 8]), CorruptError, "no pair"),
    "one offset": (info(data_offsets=[8]), CorruptError, "no pair"),
    "offsets a number": (info(data_offsets=8), CorruptError, "no pair"),
    "offsets turned round": (info(data_offsets=[8, 0]), CorruptError, "not those from 8 to 0"),
    "another size": (info(shape=[3]), CorruptError, "takes 12 bytes"),
    "a hole first": (info(data_offsets=[8, 16]), CorruptError, "hole"),
    "a hole between": (a_file({"a": INFO, "b": {**INFO, "data_offsets": [16, 24]}}, bytes(24)), CorruptError, "hole"),
    "an overlap": (a_file({"a": INFO, "b": {**INFO, "data_offsets": [4, 12]}}, bytes(12)), CorruptError, "overlaps"),
    "the same place twice": (a_file({"a": INFO, "b": INFO}, bytes(8)), CorruptError, "overlaps"),
    "values cut off": (a_file({"a": INFO}, bytes(7)), TruncatedError, "1 bytes are missing"),
    "values left over": (a_file({"a": INFO}, bytes(11)), CorruptError, "3 bytes stand after the last tensor"),
    "values of nothing": (a_file({}, b"x"), CorruptError, "1 bytes stand after"),
    "half a byte": (a_file({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, b"xx"), CorruptError, "whole bytes"),
    "deep lists": (raw('{"a":' + "[" * 90_000), WtoolError, ""),
    "deep lists aside": (raw('{"a":' + ENTRY[:-1] + ',"x":' + "[" * 300 + "]" * 300 + "}}"), WtoolError, "deep"),
    "a bomb of brackets": (raw('{"a":[' + "{}," * 500_000 + "{}]}"), LimitError, "brackets"),
    "infinity": (raw('{"a":' + ENTRY[:-1] + ',"x":1e999}}'), CorruptError, "beyond"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_error_that_says_why(name: str, tmp_path: Path) -> None:
    content, kind, text = BAD[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(kind) as caught:
        read_header(probe(path).source)  # type: ignore[arg-type]
    assert caught.value.path == str(path)
    assert text in caught.value.message
    assert "\n" not in caught.value.message


STRICTER = {"a space first", "a name twice", "a metadata name twice", "an entry a list", "a bomb of brackets"}


@pytest.mark.parametrize("name", BAD)
def test_only_these_are_refused_by_us_alone(name: str) -> None:
    content = BAD[name][0]
    if name not in STRICTER:
        assert official(content) is None
    elif name in ("a name twice", "a metadata name twice", "an entry a list"):
        assert official(content) is not None, "strictness that is no longer ours alone"


GOOD = {
    "no tensors": a_file({}),
    "spaces after": raw('{"a":' + ENTRY + "}   \n\t"),
    "spaces between": raw('{ "a" : ' + ENTRY + " }"),
    "metadata null": raw('{"__metadata__":null,"a":' + ENTRY + "}"),
    "a pair of surrogates": raw('{"\\ud83d\\ude00":' + ENTRY + "}"),
    "an unknown field": info(comment={"by": [1, -2.5, "x"]}),
    "a 0-d tensor": a_file({"a": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}}, bytes(8)),
    "an empty tensor of a wide shape": a_file({"a": {"dtype": "F32", "shape": [0, 2**63, 2**63], "data_offsets": [0, 0]}}),
    "out of order": a_file({"b": {**INFO, "data_offsets": [8, 16]}, "a": INFO}, bytes(16)),
    "empty tensors amid": a_file(
        {k: {"dtype": "U8", "shape": [n], "data_offsets": [0, n]} for k, n in (("a", 3), ("b", 0), ("c", 0))}, b"xyz"
    ),
    "an empty key": a_file({"": INFO}, bytes(8)),
    **{
        f"dtype {name}": a_file({"a": {"dtype": name, "shape": [4], "data_offsets": [0, row.nbytes(4)]}}, bytes(row.nbytes(4)))
        for name, row in BY_SAFETENSORS.items()
    },
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_allowed_is_read_as_the_library_reads_it(name: str) -> None:
    assert ours(GOOD[name]) == official(GOOD[name]) is not None


def test_tensors_stand_in_the_order_of_their_places() -> None:
    header = read_header(MemoryBytes(GOOD["out of order"]))
    assert list(header.tensors) == ["a", "b"]
    assert [tensor.span.offset for tensor in header.tensors.values()] == [len(GOOD["out of order"]) - 16 + at for at in (0, 8)]  # type: ignore[union-attr]


numbers = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([2**31, 2**32, 2**61, 2**63, 2**64 - 1, 2**64, 10**30, -1, 8.0, 0.5, True, None, "8", [], {}]),
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*BY_SAFETENSORS, "F7", "f32", "", None, 3]),
        "shape": st.one_of(st.lists(numbers, max_size=4), numbers),
        "data_offsets": st.one_of(st.lists(numbers, min_size=1, max_size=3), numbers),
    },
    optional={"extra": st.recursive(numbers, lambda inner: st.lists(inner, max_size=3), max_leaves=5)},
)
names = st.sampled_from(["a", "b", "c", "", "__metadata__", "\ud800", "\U0001f600"])


@settings(max_examples=600, deadline=None)
@given(st.dictionaries(names, st.one_of(entries, numbers, st.just({"format": "pt"})), max_size=4), st.integers(0, 40))
def test_whatever_the_library_refuses_we_refuse(table: dict[str, object], nbytes: int) -> None:
    content = a_file(table, bytes(nbytes))
    found = ours(content)
    assert found is None or found == official(content)


@st.composite
def sound_files(draw: st.DrawFn) -> bytes:
    table: dict[str, object] = {}
    if draw(st.booleans()):
        table["__metadata__"] = draw(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
    end = 0
    for key in draw(st.lists(st.text(max_size=6).filter(lambda key: key != "__metadata__"), max_size=4, unique=True)):
        row = draw(st.sampled_from(list(BY_SAFETENSORS.values())))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        if not row.itemsize:
            shape.append(4)
        nbytes = row.nbytes(prod(shape))
        table[key] = {"dtype": row.safetensors, "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
    return a_file(json.dumps(table, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass"), bytes(end))


@settings(max_examples=150, deadline=None)
@given(sound_files())
def test_every_sound_file_is_read(content: bytes) -> None:
    assert ours(content) == official(content)


@settings(max_examples=400, deadline=None)
@given(sound_files(), st.data())
@example(a_file({"a": INFO}, bytes(8)), None)
def test_any_change_of_bytes_is_refused_or_read_as_the_library_does(content: bytes, data: st.DataObject | None) -> None:
    changed = bytearray(content)
    if data is not None:
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(changed) - 1))
            kind = data.draw(st.sampled_from(["set", "insert", "delete", "cut"]))
            value = data.draw(st.one_of(st.sampled_from(list(b'{}[]",:0123456789-.e \\u')), st.integers(0, 255)))
            if kind == "set":
                changed[at] = value
            elif kind == "insert":
                changed.insert(at, value)
            elif kind == "delete" and len(changed) > 1:
                del changed[at]
            else:
                del changed[at + 1 :]
    found = ours(bytes(changed))
    assert found is None or found == official(bytes(changed))


def test_every_truncation_is_an_error_of_ours(tmp_path: Path) -> None:
    content = a_file({"__metadata__": {"format": "pt"}, "a": INFO}, bytes(8))
    for length in range(len(content)):
        with pytest.raises(WtoolError):
            read_header(MemoryBytes(content[:length]))


class Counted(MemoryBytes):
    taken = 0

    def pread(self, offset: int, nbytes: int) -> bytes:
        self.taken += nbytes
        return super().pread(offset, nbytes)


def test_only_the_header_is_read() -> None:
    content = a_file({"a": {"dtype": "U8", "shape": [100_000], "data_offsets": [0, 100_000]}}, bytes(100_000))
    source = Counted(content)
    read_header(source)
    assert source.taken == len(content) - 100_000


def test_sniffing_goes_by_content(tmp_path: Path) -> None:
    def sniffed(content: bytes) -> int:
        path = tmp_path / "x.pth"
        path.write_bytes(content)
        match = ADAPTER.sniff(probe(path))
        return match.score if match else 0

    good = a_file({"a": INFO}, bytes(8))
    assert sniffed(good) == 100
    assert 0 < sniffed(good[:20]) < 100, "a file that was cut off is still safetensors"
    assert sniffed(b"PK\x03\x04" + bytes(60)) == 0
    assert sniffed(b"someword{...}") == 0, "text is no length"
    assert sniffed(b"") == sniffed(good[:8]) == 0


def opened(tmp_path: Path, table: dict[str, object]) -> object:
    path = tmp_path / "x.safetensors"
    path.write_bytes(a_file(table, bytes(16)))
    return ADAPTER.open(probe(path))


TWO = {"w": INFO, "v": {**INFO, "data_offsets": [8, 16]}}


def test_an_alias_in_the_metadata_is_a_tied_key(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, {"__metadata__": {"head": "w", "format": "pt", "note": "none"}, **TWO})
    assert list(checkpoint) == ["w", "v", "head"]  # type: ignore[call-overload]
    assert checkpoint.tied() == [["w", "head"]]  # type: ignore[attr-defined]
    assert checkpoint.metadata == {"format": "pt", "note": "none"}  # type: ignore[attr-defined]
    assert checkpoint.source.framework == "PyTorch"  # type: ignore[attr-defined]


@pytest.mark.parametrize("metadata", [{"format": "w"}, {"v": "w"}, {"x": "y"}, {"x": ""}])
def test_other_metadata_ties_nothing(tmp_path: Path, metadata: dict[str, str]) -> None:
    checkpoint = opened(tmp_path, {"__metadata__": metadata, **TWO})
    assert list(checkpoint) == ["w", "v"]  # type: ignore[call-overload]
    assert checkpoint.metadata == metadata  # type: ignore[attr-defined]


def test_opening_imports_no_numpy(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(a_file(TWO, bytes(16)))
    code = (
        "import sys; from wtool.adapter import probe; from wtool.formats.registry import find\n"
        f"seen = probe({str(path)!r}); find(seen)[0].open(seen)\n"
        "assert not {'numpy', 'torch', 'tensorflow', 'safetensors', 'wtool.formats.torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
