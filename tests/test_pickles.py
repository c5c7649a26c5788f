"""The closed pickle machine: what it reads equals what pickle.load makes, and what is hostile stays data."""

from __future__ import annotations

import contextlib
import pickle
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wtool.bytesource import MemoryBytes
from wtool.errors import CorruptError, LimitError, TruncatedError, UnsupportedError, WtoolError
from wtool.formats.pickle_names import verdict
from wtool.formats.pickle_objects import Bag, Inert, Name, Pairs
from wtool.formats.pickles import Pickled, read_pickle
from wtool.formats.torch.names import KNOWN
from wtool.formats.torch.rebuild import MEANINGS


def read(data: bytes, window: int = 1 << 16, **options: Any) -> Pickled:
    return read_pickle(MemoryBytes(data), 0, len(data), MEANINGS, window=window, **options)


def plain(value: Any) -> Any:
    if isinstance(value, Pairs):
        return {plain(key): plain(held) for key, held in zip(value.flat[::2], value.flat[1::2], strict=True)}
    if isinstance(value, Bag):
        return (frozenset if value.frozen else set)(map(plain, value.elements))
    if isinstance(value, list):
        return [plain(held) for held in value]
    return tuple(map(plain, value)) if isinstance(value, tuple) else value


LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats(allow_nan=False) | st.text() | st.binary()
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.tuples(inner, inner, inner)
    ),
    max_leaves=20,
)


@given(VALUES, st.integers(0, 5), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_same_as_pickle(value: Any, protocol: int, window: int) -> None:
    data = pickle.dumps(value, protocol)
    found = read(data + b"behind", window)
    assert plain(found.value) == value
    assert found.end == len(data)


@pytest.mark.parametrize("protocol", range(6))
def test_sets_and_complex(protocol: int) -> None:
    value = [{1, "a"}, frozenset([2]), 1 + 2j, bytearray(b"x"), b"\xff", 2**5000, -(2**5000)]
    assert plain(read(pickle.dumps(value, protocol)).value) == value


class Thing:
    def __init__(self) -> None:
        self.a = [1]


@pytest.mark.parametrize("protocol", range(6))
def test_unknown_class_is_inert(protocol: int) -> None:
    found = read(pickle.dumps([Thing(), 7], protocol))
    thing, seven = found.value
    assert seven == 7 and type(thing) is Inert and thing.text.endswith("test_pickles.Thing")
    assert plain(thing.state) == {"a": [1]}
    assert any(name.name == "Thing" for name in found.names)


INST = b"(K\x01ios\nsystem\n."
OBJ = b"(cos\nsystem\nK\x01o."


@pytest.mark.parametrize("data", [INST, OBJ, b"cos\nsystem\nK\x01\x85R.", b"cos\nsystem\nK\x01\x85\x81."])
def test_calls_are_inert(data: bytes) -> None:
    found = read(data)
    assert found.value.text == "os.system" and found.value.args == (1,)
    assert [name.text for name in found.names] == ["os.system"]


def test_extension_codes_and_persistent_ids() -> None:
    assert read(b"\x82\x05.").value.text == "copyreg.extension_5"
    assert read(b"\x84\x05\0\0\0.").value.name == "extension_5"
    assert read(b"K\x07Q.").value.args == (7,)
    assert read(b"Pabc\n.", persistent=lambda pid: pid * 2).value == "abcabc"


HOSTILE = {
    "memo far": (b"K\x01r\xff\xff\xff\xff.", LimitError),
    "memo text": (b"K\x01p99999999999999999999\n.", LimitError),
    "memo negative": (b"K\x01p-1\n.", LimitError),
    "no memo": (b"h\x05.", CorruptError),
    "marks": (b"(" * 5000 + b".", LimitError),
    "long": (b"\x8b" + struct.pack("<i", 1 << 20) + b"\1" * (1 << 20) + b".", LimitError),
    "long negative": (b"\x8b" + struct.pack("<i", -5) + b".", CorruptError),
    "digits": (b"L" + b"9" * 5000 + b"L\n.", LimitError),
    "string longer than file": (b"X\xff\xff\xff\xff.", TruncatedError),
    "bytes of 2^63": (b"\x8e" + struct.pack("<Q", 1 << 63) + b".", TruncatedError),
    "empty containers": (b"]" * 3_000_000 + b".", LimitError),
    "out of band": (b"\x97.", UnsupportedError),
    "protocol": (b"\x80\x63.", UnsupportedError),
    "opcode": (b"\xff.", CorruptError),
    "underflow": (b"\x86....................", CorruptError),
    "item of a number": (b"K\x01K\x02K\x03s.", CorruptError),
    "append to a number": (b"K\x01K\x02a.", CorruptError),
    "odd items": (b"}(K\x01u.", CorruptError),
    "call a number": (b"K\x01)R.", CorruptError),
    "arguments no tuple": (b"cos\nsystem\nK\x01R.", CorruptError),
    "rebuild from nothing": (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", CorruptError),
    "global no string": (b"K\x01K\x02\x93.", CorruptError),
    "nothing": (b"", TruncatedError),
    "no stop": (b"K\x01", TruncatedError),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("window", [3, 1 << 20])
def test_hostile(name: str, window: int) -> None:
    data, error = HOSTILE[name]
    if window == 3 and len(data) > 10000:
        window = 1 << 12
    with pytest.raises(error) as caught:
        read(data, window)
    assert "\n" not in caught.value.message


def test_colliding_and_deep_keys_cost_nothing() -> None:
    numbers = b"".join(b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N" for k in range(60_000))
    assert len(read(b"}(" + numbers + b"u.").value.flat) == 120_000
    deep = read(b"}N" + b"\x85" * 200_000 + b"Ns.").value
    assert len(deep.flat) == 2


@given(st.binary(max_size=60), st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_noise(noise: bytes, protocol: int) -> None:
    for data in (noise, pickle.dumps([{"a": (1, 2.5, "x")}, b"y", {3}], protocol)[:-1] + noise):
        with contextlib.suppress(WtoolError):
            read(data, 5)


DANGEROUS = """
os.system posix.system nt.system subprocess.Popen sys.exit builtins.eval __builtin__.exec builtins.getattr
importlib.import_module runpy.run_path pty.spawn socket.socket shutil.rmtree ctypes.CDLL pickle.loads _pickle.loads
dill.loads cloudpickle.loads marshal.loads operator.attrgetter operator.methodcaller functools.reduce webbrowser.open
pip.main pip._internal.main pkgutil.resolve_name io.FileIO io.open code.interact timeit.timeit cProfile.run pdb.run
bdb.Bdb asyncio.subprocess.create_subprocess_shell types.CodeType types.FunctionType torch.load torch.hub.load
torch.storage._load_from_bytes numpy.load numpy.fromfile numpy.memmap numpy.f2py.crackfortran
numpy.testing._private.utils.runstring tarfile.open zipfile.ZipFile urllib.request.urlopen http.client.HTTPConnection
smtplib.SMTP ftplib.FTP logging.config.listen _posixsubprocess.fork_exec multiprocessing.Process doctest.debug_script
idlelib.pyshell.ModifiedInterpreter lib2to3.pgen2.grammar.Grammar.loads torch.utils.bottleneck.__main__.run_cprofile
torch_evil.run numpy_evil.load collections_x.run builtins2.exec
""".split()  # noqa: SIM905
ORDINARY = """
collections.OrderedDict torch._utils._rebuild_tensor_v2 torch.FloatStorage torch.cuda.HalfStorage torch.float8_e4m3fn
torch.Size torch.device torch.nn.modules.linear.Linear torch.nn.modules.container.Sequential argparse.Namespace
pathlib.PosixPath numpy.core.multiarray._reconstruct numpy._core.multiarray.scalar numpy.dtype builtins.set
__builtin__.set datetime.datetime _codecs.encode copyreg._reconstructor ultralytics.nn.tasks.DetectionModel
omegaconf.dictconfig.DictConfig torch.optim.adam.Adam torch.nn.parameter.Parameter builtins.slice
fairseq.data.dictionary.Dictionary
""".split()  # noqa: SIM905
UNKNOWN = """
mypackage.models.Net torchvision_extra.Thing torch_ema.ExponentialMovingAverage __main__.Net open_lm.model.Params
models.codec.Codec torch_geometric2.nn.Conv lightning_thing.x.Module torch.nn.modules_evil.Linear
""".split()  # noqa: SIM905


@pytest.mark.parametrize("name", DANGEROUS)
def test_dangerous_names(name: str) -> None:
    assert judge(name) == "dangerous"


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_names(name: str) -> None:
    assert judge(name) == "known"


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_names(name: str) -> None:
    assert judge(name) == "unknown"


def judge(name: str) -> str:
    module, _, last = name.rpartition(".")
    spelled = Name(module, last, {})
    return verdict(spelled.module, spelled.name, KNOWN)


@pytest.mark.parametrize(
    "module, name",
    [
        ("torch", "serialization.os.system"),
        ("torch.serialization", "os.system"),
        ("collections", "OrderedDict.__init__.__globals__"),
        ("torch.nn.modules.linear", "torch.sys.exit"),
        ("numpy", "core.os.system"),
        ("collections", "_sys.modules"),
        ("builtins", "__import__"),
        ("builtins", "eval.__call__"),
        ("torch", "hub.load"),
        ("torch.nn", "modules.module.torch.load"),
    ],
)
def test_dotted_names(module: str, name: str) -> None:
    assert verdict(module, name, KNOWN) == "dangerous"
