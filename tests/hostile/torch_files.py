"""Torch files whose numbers lie: the stream from before 1.6, the tar from before 0.2, storages and views.

Ideas: CVE-2025-32434 (the old path is another reader), CVE-2026-24747 (items set on what is no dict, storage sizes), the
sparse tensors that are built without a check of their indices.
"""

from __future__ import annotations

import io
import pickle
import struct
import tarfile

from hostile_torch import VALUES, archive, integer, legacy, old_storage, pickled, storage, string, tensor

from hostile import add


def view(name: str, *expect: str, **lie: object) -> None:
    add(f"torch {name}", archive(pickled({"w": tensor(**lie)})), *expect)  # type: ignore[arg-type]


view("shape beyond the storage", "corrupt", shape=(5,))
view("offset beyond the storage", "corrupt", offset=1)
view("stride beyond the storage", "corrupt", strides=(2,))
view("offset below 0", "corrupt", offset=-1)
view("size below 0", "corrupt", shape=(-4,))
view("stride below 0", "corrupt", offset=3, strides=(-1,))
view("2^64 elements", "corrupt", shape=(1 << 32, 1 << 32), strides=(1 << 32, 1))
view("size of 2^70", "corrupt", shape=(1 << 70,), strides=(0,))
view("stride of 2^62", "corrupt", shape=(2,), strides=(1 << 62,))
view("offset of 2^63", "corrupt", offset=1 << 63)
view("offset of 2^2000", "corrupt", offset=1 << 2000)
view("more sizes than strides", "corrupt", shape=(2, 2))
view("rank 65", "corrupt", shape=(1,) * 65, strides=(1,) * 65)
view("storage of more than its entry", "corrupt", stored=storage(count=5))
view("storage of fewer than its entry", "corrupt", stored=storage(count=3), shape=(3,))
view("storage of -1", "corrupt", stored=storage(count=-1))
view("storage of 2^80", "corrupt", stored=storage(count=1 << 80))
view("storage not there", "corrupt", stored=storage(key="7"))
view("storage in another folder", "corrupt", stored=storage(key="../../etc/passwd"))
view("storage at an absolute path", "corrupt", stored=storage(key="/etc/passwd"))
view("storage of no known class", "unsupported", stored=storage(kind="torch\nEvilStorage"))
view("storage of a dangerous class", "unsupported", "corrupt", stored=storage(kind="os\nsystem"))
view("storage that is a number", "corrupt", stored=b"K\x05")
view("meta storage", "unsupported", stored=storage(location="meta"))
view("empty with an absurd other size", "clean", "corrupt", shape=(0, 1 << 62), strides=(1, 1))
add("torch two dtypes of one storage",
    archive(pickled({"a": tensor(), "b": tensor(stored=storage(kind="torch\nLongStorage", count=2), shape=(2,))})),
    "corrupt")  # fmt: skip
add("torch keys that clash", archive(pickled({"a": pickled({"b": tensor()})[2:-1], "a.b": tensor()})), "key-collision")
add("torch persistent id of another kind", archive(pickled({"w": b"(" + string("module") + b"NNNNtQ"})), "corrupt")
add("torch persistent id of six", archive(pickled({"w": old_storage()})), "corrupt")
add("torch persistent id as text", archive(b"\x80\x02Pabc\n."), "corrupt")
add("torch rebuild without arguments", archive(pickled({"w": b"ctorch._utils\n_rebuild_tensor_v2\n)R"})), "corrupt")
add("torch items on what is no dict", archive(pickled({"w": tensor() + storage() + b"Ns"})), "corrupt")
add(
    "torch sparse of no layout",
    archive(pickled({"w": b"ctorch._utils\n_rebuild_sparse_tensor\n" + string("torch.evil") + b")\x86R"})),
    "unsupported",
)
add(
    "torch sparse of short data",
    archive(pickled({"w": b"ctorch._utils\n_rebuild_sparse_tensor\n" + string("torch.sparse_csr") + b")\x86R"})),
    "corrupt",
)
add(
    "torch quantized by nothing",
    archive(pickled({"w": b"ctorch._utils\n_rebuild_qtensor\n(" + storage() + b"K\x00(K\x04t(K\x01tNtR"})),
    "corrupt",
)
add("torch key that is half a surrogate", archive(b"\x80\x02}X\x03\0\0\0\xed\xa0\x80" + tensor() + b"s."), "clean", "corrupt")
add("torch key with control characters", archive(b"\x80\x02}" + string("a\x1b[2J\n\u202e") + tensor() + b"s."), "clean")
add("torch key of nothing", archive(b"\x80\x02}" + string("") + tensor() + b"s."), "clean")
add("torch error of many lines", archive(pickled({"w\nx\ny": tensor(shape=(9,))})), "corrupt")
add(
    "torch numpy array of the wrong size",
    archive(
        pickled(
            {
                "w": b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01(K\x05tcnumpy\ndtype\n("
                + string("f4")
                + b"K\x00K\x01tR\x89C\x04abcdtb"
            }
        )
    ),
    "corrupt",
)
add(
    "torch numpy array of objects",
    archive(
        pickled(
            {
                "x": b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01(K\x01tcnumpy\ndtype\n("
                + string("O8")
                + b"K\x00K\x01tR\x89]cos\nsystem\natb",
                "w": tensor(),
            }
        )
    ),
    "dangerous",
)
add(
    "torch numpy shape of 2^62",
    archive(
        pickled(
            {
                "w": b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01("
                + integer(1 << 62)
                + integer(1 << 62)
                + b"tcnumpy\ndtype\n("
                + string("f4")
                + b"K\x00K\x01tR\x89C\x00tb"
            }
        )
    ),
    "corrupt",
)
add(
    "torch numpy dtype of itself",
    archive(
        pickled(
            {
                "x": b"cnumpy\ndtype\n(" + string("f4") + b"K\x00K\x01tRq\x01(K\x03h\x01h\x01h\x01h\x01h\x01h\x01tb",
                "w": tensor(),
            }
        )
    ),
    "clean",
    "corrupt",
)
add("torch nothing but a number", archive(b"\x80\x02K\x05."), "clean")

LEGACY = legacy(pickled({"w": tensor(stored=old_storage())}))
add("legacy true", LEGACY, "clean")
add("legacy storage missing", legacy(pickled({"w": tensor(stored=old_storage("7"))})), "corrupt")
add("legacy count differs", legacy(pickled({"w": tensor(stored=old_storage(count=5))})), "corrupt")
add("legacy count below 0", legacy(pickled({"w": tensor(stored=old_storage(count=-5))})), "corrupt")
add("legacy storage listed twice", legacy(pickled({"w": tensor(stored=old_storage())}))[:-24] + b"", "corrupt", "truncated")
add("legacy trailing bytes", LEGACY + b"x" * 100, "clean")
add("legacy trailing archive", LEGACY + archive(pickled({"w": tensor()})), "clean", "unsafe", "corrupt")
add("legacy protocol 9", LEGACY.replace(b"M\xe9\x03.", b"M\xe9\x09."), "unsupported")
add("legacy other magic", LEGACY.replace(b"\x8a\nl\xfc", b"\x8a\nl\xfd"), "unknown-format", "corrupt")
add("legacy gadget for the magic", b"\x80\x02cos\nsystem\nN\x85R." + LEGACY, "unknown-format")
add("legacy gadget in the header", LEGACY.replace(b"\x88s.", b"cos\nsystem\n" + string("x") + b"\x85Rs.", 1), "dangerous")
add("legacy gadget in the keys", LEGACY.replace(b"\x80\x02](", b"\x80\x02](cos\nsystem\n", 1), "corrupt", "dangerous")
add("legacy keys are no list", LEGACY.replace(b"\x80\x02](" + string("0") + b"e.", b"\x80\x02N."), "corrupt")
add(
    "legacy view beyond",
    legacy(pickled({"w": tensor(stored=old_storage()[:-3] + b"(" + string("v") + b"K\x02K\x03ttQ")})),
    "corrupt",
)
add(
    "legacy module with its source",
    legacy(
        pickled(
            {
                "w": tensor(stored=old_storage()),
                "m": b"(" + string("module") + b"cmine\nNet\n" + string("net.py") + string("import os") + b"tQ",
            }
        )
    ),
    "unknown",
)
add("legacy cut in its storage", LEGACY[:-3], "truncated")
add("legacy cut in its pickle", LEGACY[:60], "truncated")


def tar(members: list[tuple[str, bytes]], kinds: dict[str, bytes] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.type = (kinds or {}).get(name, tarfile.REGTYPE)
            if info.type == tarfile.SYMTYPE:
                info.linkname, info.size = "/etc/passwd", 0
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def dumped(value: object) -> bytes:
    return pickle.dumps(value, 2)


KIND = b"\x80\x02(K\x01" + string("cpu") + b"ctorch\nFloatStorage\nt."
STORAGES = dumped(1) + KIND + struct.pack("<q", 4) + VALUES + dumped([])
TENSORS = (
    dumped(1) + b"\x80\x02(K\x02K\x01ctorch\nFloatTensor\nt." + struct.pack("<i", 1) + bytes(4) + struct.pack("<3q", 4, 1, 0)
)
SYSTEM = dumped({"little_endian": True})
OBJECT = b"\x80\x02}" + string("w") + b"K\x02Qs."


def old_tar(**parts: bytes) -> bytes:
    given = {"sys_info": SYSTEM, "pickle": OBJECT, "tensors": TENSORS, "storages": STORAGES, **parts}
    return tar([*given.items()])


add("tar true", old_tar(), "clean")
add(
    "tar gadget in the object",
    old_tar(pickle=b"\x80\x02}(" + string("w") + b"K\x02Q" + string("x") + b"cos\nsystem\nN\x85Ru."),
    "dangerous",
)
add(
    "tar gadget in the storages",
    old_tar(storages=dumped(1) + KIND.replace(b"X\x03\0\0\0cpu", b"cos\nsystem\nN\x85R") + STORAGES[len(dumped(1) + KIND) :]),
    "dangerous",
)
add(
    "tar gadget in the tensors",
    old_tar(tensors=TENSORS.replace(b"ctorch\nFloatTensor\n", b"cos\nsystem\nN\x85R")),
    "dangerous",
)
add("tar count of 2^60", old_tar(storages=dumped(1 << 60)), "corrupt")
add("tar count below 0", old_tar(tensors=dumped(-1)), "corrupt")
add(
    "tar storage of 2^62",
    old_tar(storages=dumped(1) + KIND + struct.pack("<q", 1 << 62) + VALUES + dumped([])),
    "truncated",
    "corrupt",
)
add("tar rank of 2^31", old_tar(tensors=TENSORS[:-32] + struct.pack("<i", (1 << 31) - 1) + TENSORS[-28:]), "corrupt")
add("tar shape beyond", old_tar(tensors=TENSORS[:-24] + struct.pack("<3q", 40, 1, 0)), "corrupt")
add("tar stride below 0", old_tar(tensors=TENSORS[:-24] + struct.pack("<3q", 4, -1, 3)), "corrupt")
add("tar view of nothing", old_tar(storages=STORAGES[: -len(dumped([]))] + dumped([(5, 77, 0, 1)])), "corrupt")
add(
    "tar members twice",
    tar([("sys_info", SYSTEM), ("pickle", OBJECT), ("tensors", TENSORS), ("storages", STORAGES), ("pickle", OBJECT)]),
    "unsafe",
)
add(
    "tar link",
    tar(
        [("sys_info", SYSTEM), ("pickle", OBJECT), ("tensors", TENSORS), ("storages", STORAGES)], {"storages": tarfile.SYMTYPE}
    ),
    "unsafe",
)
add(
    "tar with a name that leads out",
    tar([("sys_info", SYSTEM), ("../pickle", OBJECT), ("tensors", TENSORS), ("storages", STORAGES)]),
    "corrupt",
)
add("tar without its pickle", tar([("sys_info", SYSTEM), ("tensors", TENSORS), ("storages", STORAGES)]), "corrupt")
add("tar with a wrong sum", old_tar().replace(b"0000644", b"0000645", 2), "corrupt", "unknown-format")
add("tar cut", old_tar()[:2000], "truncated", "corrupt")
add("tar of 1001 members", tar([("sys_info", SYSTEM), *((f"x{n}", b"") for n in range(1001))]), "limit")
