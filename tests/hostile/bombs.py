"""Files whose cost is far beyond their size, if one believes them.

Ideas: CVE-2018-20406 and cpython#115952 (memo and lengths), billion laughs by memo and by DUP (fickling's expansion tests),
keys that collide in a hash table or overflow the C stack, calls that copy a shared object, states that are shared.
"""

from __future__ import annotations

import io
import struct
import zipfile

from hostile_torch import VALUES, archive, integer, legacy, old_storage, pickled, storage, string, tensor

from hostile import add, late

GOOD = pickled({"w": tensor()})


def beside(evil: bytes) -> bytes:
    """A torch archive with the object beside a tensor."""
    return archive(pickled({"x": evil, "w": tensor()}))


def only(body: bytes, stored: dict[str, bytes] | None = None) -> bytes:
    return archive(b"\x80\x02" + body + b".", stored)


def old(evil: bytes) -> bytes:
    return legacy(pickled({"x": evil, "w": tensor(stored=old_storage())}))


def collisions(count: int) -> bytes:
    return b"}(" + b"".join(b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N" for k in range(count)) + b"u"


add("laughs by memo", beside(b"]q\x00" + b"0](h\x00h\x00h\x00eq\x00" * 60), "clean")
add("laughs by DUP", beside(b"N" + b"2\x86" * 80), "clean")
add("laughs of tuples", beside(b")" + b"q\x00h\x00h\x00h\x00\x87" * 80), "clean")
add("laughs of dicts", beside(b"}q\x00" + b"0}(K\x01h\x00K\x02h\x00uq\x00" * 60), "clean")
add("laughs of tensors", only(tensor() + b"\x85q\x00" + b"h\x00\x86q\x00" * 60), "limit")
add("a million tensors by laughing", only(tensor() + b"\x85q\x00" + b"h\x00\x86q\x00" * 19), "limit")
add("a shared row beside a tensor", only(b"](" + tensor() + b"N" * 50_000 + b"eq\x000](" + b"h\x00" * 5_000 + b"e"), "limit")
add("cycle", beside(b"]q\x05h\x05a"), "clean")
add("cycle through a tensor's list", only(b"]q\x05(h\x05" + tensor() + b"e"), "clean")
add("cycle of dicts", only(b"}q\x05(" + string("a") + b"h\x05" + string("w") + tensor() + b"u"), "clean")
late("deep tuple", lambda: beside(b"N" + b"\x85" * 100_000), "clean")
late("deep tuple as a key", lambda: beside(b"}N" + b"\x85" * 200_000 + b"Ns"), "clean")
late("deep tuple as a key (legacy)", lambda: old(b"}N" + b"\x85" * 200_000 + b"Ns"), "clean")
late("deep lists", lambda: beside(b"]" * 100_000 + b"a" * 99_999), "clean")
late("deep lists closed by marks", lambda: beside(b"(" * 100_000 + b"l" * 100_000), "limit")
late("deep tensor", lambda: only(tensor() + b"\x85" * 2_000), "limit")
late("deep objects", lambda: beside(b"N" + b"q\x01cm\nC\n)\x81h\x01b" * 30_000), "unknown")
late(
    "deep state of a dict",
    lambda: beside(b"ccollections\nOrderedDict\n)R" + b"}" + string("s") + b"N" + b"\x85" * 50_000 + b"sb"),
    "clean",
)
late(
    "deep tuple as an offset",
    lambda: only(b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage() + b"N" + b"\x85" * 100_000 + b"(K\x04t(K\x01t\x89NtR"),
    "corrupt",
    "limit",
)
late(
    "deep tuple as a storage's count",
    lambda: only(
        b"(" + string("storage") + b"ctorch\nFloatStorage\n" + string("0") + string("cpu") + b"N" + b"\x85" * 100_000 + b"tQ"
    ),
    "corrupt",
    "limit",
)
late(
    "deep tuple as a storage's key",
    lambda: only(b"(" + string("storage") + b"ctorch\nFloatStorage\nN" + b"\x85" * 100_000 + string("cpu") + b"K\x04tQ"),
    "corrupt",
    "limit",
)
late(
    "deep tuple as a word",
    lambda: only(b"(N" + b"\x85" * 100_000 + b"ctorch\nFloatStorage\n" + string("0") + string("cpu") + b"K\x04tQ"),
    "corrupt",
    "limit",
)
late(
    "deep tuple as a word (legacy)",
    lambda: legacy(b"\x80\x02(N" + b"\x85" * 100_000 + b"ctorch\nFloatStorage\n" + string("0") + string("cpu") + b"K\x04NtQ."),
    "corrupt",
    "limit",
)
late(
    "deep tuple as a layout",
    lambda: only(b"ctorch._utils\n_rebuild_sparse_tensor\nN" + b"\x85" * 100_000 + b")\x86R"),
    "corrupt",
    "limit",
)
FROM = b"ctorch._tensor\n_rebuild_from_type_v2\n"


def nested_from_type(count: int) -> bytes:
    """from_type((from_type, K, (from_type, K, ..., None), None)): one frame of a naive reader for each."""
    build = b"(" + FROM + b"q\x010h\x01N)Nt"
    # The tuple on the stack goes into the memo, and from there among the parts of the next one.
    build += b"r\x10\0\0\x000(h\x01Nj\x10\0\0\0Nt" * count
    return build + b"r\x11\0\0\x000h\x01j\x11\0\0\0R"


late("tensor types within tensor types", lambda: only(nested_from_type(5_000)), "corrupt", "limit", "no-tensors", "clean")
late("keys that collide", lambda: beside(collisions(60_000)), "clean")
late("keys that collide (legacy)", lambda: old(collisions(60_000)), "clean")
late(
    "floats that collide with integers",
    lambda: beside(b"}(" + b"".join(b"G" + struct.pack(">d", float(k * 2**61)) + b"N" for k in range(60_000)) + b"u"),
    "clean",
)
late(
    "a set that collides",
    lambda: beside(
        b"cbuiltins\nset\n"
        + b"]("
        + b"".join(b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") for k in range(60_000))
        + b"e\x85R"
    ),
    "clean",
)
add("memo at 2^32", beside(b"Nr\xff\xff\xff\xff"), "limit")
add("memo at 10^30 as text", beside(b"Np" + b"9" * 30 + b"\n"), "limit")
add("memo below 0", beside(b"Np-5\n"), "limit")
late("memo for every byte", lambda: beside(b"N" + b"\x94" * 3_000_000), "limit")
late("marks", lambda: beside(b"(" * 2_000_000), "limit")
late("tuples of one", lambda: beside(b"N" + b"\x85" * 4_000_000), "limit", "clean")
late("empty lists", lambda: beside(b"](" + b"]" * 2_000_000 + b"e"), "limit")
late("empty dicts", lambda: beside(b"](" + b"}" * 900_000 + b"e"), "limit", "clean")
late("empty sets", lambda: beside(b"](" + b"\x8f" * 900_000 + b"e"), "limit", "clean")
late("objects of no size", lambda: beside(b"cm\nC\nq\x010](" + b"h\x01)\x81" * 400_000 + b"e"), "limit", "unknown")
late(
    "names without number",
    lambda: beside(b"](" + b"".join(b"cm\n%x\n" % n for n in range(200_000)) + b"e"),
    "unknown",
    "limit",
)
late("DUP without end", lambda: beside(b"N" + b"2" * 3_000_000), "corrupt", "clean", "limit")
late("fifty million opcodes", lambda: deflated(b"N0" * 26_000_000), "limit")
late("integer of a million bytes", lambda: beside(b"\x8b" + struct.pack("<i", 1 << 20) + b"\1" * (1 << 20)), "limit")
late("integer of a million digits", lambda: beside(b"L" + b"9" * 1_000_000 + b"L\n"), "limit")
late("integer of a million digits as INT", lambda: beside(b"I" + b"9" * 1_000_000 + b"\n"), "limit")
late("float of a million digits", lambda: beside(b"F" + b"9" * 1_000_000 + b"\n"), "clean", "corrupt", "limit")
add("long of a negative length", beside(b"\x8b\xfb\xff\xff\xff"), "corrupt")
add("string longer than the file", beside(b"X\xff\xff\xff\xffabc"), "truncated")
add("bytes of 2^63", beside(b"\x8e" + struct.pack("<Q", 1 << 63)), "truncated")
add("bytearray of 2^62", beside(b"\x96" + struct.pack("<Q", 1 << 62)), "truncated")
add("string of 2^64", beside(b"\x8d" + b"\xff" * 8), "truncated")
add("out-of-band buffer", beside(b"\x97"), "unsupported")
add("protocol 99", archive(b"\x80\x63N."), "unsupported")
add("unknown opcode", beside(b"\xfe"), "corrupt")
add("empty stack", archive(b"\x80\x02" + b"0" * 40 + b"."), "corrupt")
add("no STOP", archive(b"\x80\x02N"), "truncated")
add("item of a number", beside(b"K\x01K\x02K\x03s"), "corrupt")
add("append to a number", beside(b"K\x01K\x02a"), "corrupt")
add("odd items", beside(b"}(K\x01u"), "corrupt")
add("items set on a tensor", beside(tensor() + b"K\x01K\x02s"), "corrupt")

# Copies: a short call on a long object that is in the memo (each call costs five bytes of the file).
LONG = b"](" + b"N" * 100_000 + b"eq\x010"
COPIES = {
    "list": b"cbuiltins\nlist\nq\x020](" + b"h\x02h\x01\x85R" * 20_000 + b"e",
    "tuple": b"cbuiltins\ntuple\nq\x020](" + b"h\x02h\x01\x85R" * 20_000 + b"e",
    "Size": b"ctorch\nSize\nq\x020](" + b"h\x02h\x01\x85R" * 20_000 + b"e",
    "set": b"cbuiltins\nset\nq\x020](" + b"h\x02h\x01\x85R" * 20_000 + b"e",
    "list by NEWOBJ": b"cbuiltins\nlist\nq\x020](" + b"h\x02h\x01\x85\x81" * 20_000 + b"e",
    "list by OBJ": b"cbuiltins\nlist\nq\x020](" + b"(h\x02h\x01o" * 20_000 + b"e",
    "list by __newobj__": b"ccopyreg\n__newobj__\nq\x03cbuiltins\nlist\nq\x0200](" + b"h\x03h\x02h\x01\x86R" * 20_000 + b"e",
    "list by a tensor's type": b"cbuiltins\nlist\nq\x02" + FROM + b"q\x0300](" + b"h\x03(h\x02Nh\x01\x85NtR" * 20_000 + b"e",
}
for word, body in COPIES.items():
    late(f"copies by {word}", lambda body=body: beside(LONG + body), "limit", "clean", "corrupt", "unknown")
late(
    "copies by dict",
    lambda: beside(
        b"}(" + b"K\x01N" * 50_000 + b"uq\x010ccollections\nOrderedDict\nq\x020](" + b"h\x02h\x01\x85R" * 20_000 + b"e"
    ),
    "limit",
)
late(
    "copies by encode",
    lambda: beside(
        string("x" * 1_000_000)
        + b"q\x010"
        + string("latin1")
        + b"q\x040c_codecs\nencode\nq\x020]("
        + b"h\x02h\x01h\x04\x86R" * 2_000
        + b"e"
    ),
    "limit",
)
late(
    "copies by bytearray",
    lambda: beside(
        b"B"
        + struct.pack("<I", 1_000_000)
        + b"x" * 1_000_000
        + b"q\x010cbuiltins\nbytearray\nq\x020]("
        + b"h\x02h\x01\x85R" * 2_000
        + b"e"
    ),
    "limit",
    "clean",
)
late(
    "copies by size",
    lambda: beside(
        LONG
        + storage()
        + b"q\x050ctorch._utils\n_rebuild_tensor_v2\nq\x020]("
        + b"h\x02(h\x05K\x00h\x01h\x01\x89NtR" * 5_000
        + b"e"
    ),
    "limit",
    "corrupt",
)
late(
    "bits of a tensor",
    lambda: beside(
        b"}("
        + (string("conj") + b"q\x070" + b"h\x07\x89" * 100_000)
        + b"uq\x010"
        + storage()
        + b"q\x050ctorch._utils\n_rebuild_tensor_v2\nq\x020]("
        + b"h\x02(h\x05K\x00(K\x04t(K\x01t\x89Nh\x01tR" * 5_000
        + b"e"
    ),
    "limit",
    "corrupt",
)
late(
    "scale of a million digits",
    lambda: beside(
        string("9" * 1_000_000)
        + b"q\x010"
        + storage(kind="torch\nQInt8Storage", count=16)
        + b"q\x050ctorch._utils\n_rebuild_qtensor\nq\x020ctorch\nper_tensor_affine\nq\x030]("
        + b"h\x02(h\x05K\x00(K\x04t(K\x01t(h\x03h\x01K\x00t\x89NtR" * 2_000
        + b"e"
    ),
    "limit",
    "corrupt",
)
late(
    "complex from a long text",
    lambda: beside(string("9" * 1_000_000) + b"q\x010cbuiltins\ncomplex\nq\x020](" + b"h\x02h\x01\x85R" * 2_000 + b"e"),
    "limit",
    "corrupt",
)
SHARED = b"}(" + b"".join(b"X\x04\0\0\0%04xN" % n for n in range(30_000)) + b"uq\x010"
late("objects that share a state", lambda: beside(SHARED + b"cm\nC\nq\x020](" + b"h\x02)\x81h\x01b" * 30_000 + b"e"), "limit")
late(
    "objects that share a state filled late",
    lambda: beside(
        b"}q\x010cm\nC\nq\x020]("
        + b"h\x02)\x81h\x01b" * 30_000
        + b"eh\x01("
        + b"".join(b"X\x04\0\0\0%04xN" % n for n in range(30_000))
        + b"u0"
    ),
    "limit",
)
late(
    "objects that share their arguments",
    lambda: beside(b"(" + b"N" * 30_000 + b"tq\x010cm\nC\nq\x020](" + b"h\x02h\x01\x81" * 30_000 + b"e"),
    "limit",
    "unknown",
)
late(
    "long shared keys in a mixed dict",
    lambda: beside(string("k" * 1_000_000) + b"q\x010}(K\x01N" + b"h\x01N" * 30_000 + b"u"),
    "clean",
    "limit",
)
late(
    "long key at every level",
    lambda: only(string("k" * 500_000) + b"q\x010" + tensor() + b"q\x020" + b"}h\x01h\x02s" + b"q\x020}h\x01h\x02s" * 900),
    "limit",
)
late(
    "long prefix over many items",
    lambda: beside(b"}" + string("k" * 500_000) + b"](" + tensor() + b"N" * 300_000 + b"es"),
    "limit",
    "clean",
)
late(
    "numpy arrays that share a text",
    lambda: beside(
        b"X"
        + struct.pack("<I", 1_000_000)
        + b"x" * 1_000_000
        + b"q\x010(K\x01("
        + integer(1_000_000)
        + b"tcnumpy\ndtype\n("
        + string("u1")
        + b"K\x00K\x01tR(K\x03"
        + string("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89h\x01tq\x030cnumpy.core.multiarray\n_reconstruct\nq\x020]("
        + b"h\x02)Rh\x03b" * 2_000
        + b"e"
    ),
    "limit",
    "corrupt",
)

# An optimizer's state that holds nothing, eight times in a list, that list eight times in another...
OPTIMIZERS = b"}(" + string("state") + b"}" + string("param_groups") + b"]uq\x00" + b"0](" + b"h\x00" * 8 + b"eq\x00"
OPTIMIZERS += (b"0](" + b"h\x00" * 8 + b"eq\x00") * 20
add("optimizers within optimizers", only(b"}(" + string("a") + b"](" + OPTIMIZERS + tensor() + b"eu"), "clean", "limit")
late("objects made by objects", lambda: beside(b"](cm\nC\n" + b")R2" * 60_000 + b"0e"), "unknown", "limit")
late("extras that are one long list", lambda: only(b"}(" + string("w") + tensor() + string("x") + b"](" + b"N" * 200_000
     + b"eq\x01" + b"".join(string(f"k{n}") + b"h\x01" for n in range(5_000)) + b"u"), "clean", "limit")  # fmt: skip
late("a module that holds itself", lambda: only(b"cm\nC\n)\x81q\x01}(" + string("_parameters") + b"}" + string("w") + tensor()
     + b"s" + string("_buffers") + b"}" + string("_modules") + b"}" + string("m") + b"h\x01sub"), "unknown")  # fmt: skip


def deflated(pickle: bytes, stored: dict[str, bytes] | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + pickle + b".")
        for key, data in (stored or {}).items():
            file.writestr(f"archive/data/{key}", data)
    return out.getvalue()


late("deflated string", lambda: deflated(b"X" + struct.pack("<I", 300 << 20) + bytes(300 << 20)), "limit")
late("deflated opcodes", lambda: deflated(b"(" + b"N" * (40 << 20) + b"t"), "limit")
late("deflated storages", lambda: deflated(
    b"](" + b"".join(tensor((0), (262_144,), (1,), storage(str(n), 262_144)) for n in range(400)) + b"e",
    {str(n): bytes(1 << 20) for n in range(400)}), "clean")  # fmt: skip
add("expanded view of 2^50 elements", archive(pickled({"w": tensor(shape=(1 << 50,), strides=(0,))})), "clean")
add(
    "expanded view of 2^62 by 2^62",
    archive(pickled({"w": tensor(shape=(1 << 62, 1 << 62), strides=(0, 0))})),
    "clean",
    "limit",
    "corrupt",
)
add("small values", archive(GOOD, {"0": VALUES}), "clean")
