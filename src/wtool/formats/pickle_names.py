"""What a name in a pickle tells of the file: known (ordinary in checkpoints), dangerous (runs, reads, writes, sends), unknown.

Two lists, since either alone fails: that of the dangerous misses what is new, that of the known alone calls honest files bad.
Nothing depends on the verdict but what is said: no name is ever imported.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from wtool.checkpoint import Verdict

# Modules that no checkpoint needs and most of which can do harm, with all they hold.
_MODULES = frozenset(
    """
    os posix nt posixpath ntpath subprocess _posixsubprocess popen2 commands sys pty tty socket _socket ssl shutil
    importlib imp runpy zipimport pkgutil pydoc pydoc_data inspect code codeop bdb pdb idlelib trace cProfile profile
    pstats timeit doctest ctypes _ctypes cffi _cffi_backend mmap marshal pickle _pickle dill cloudpickle shelve dbm _dbm
    _gdbm sqlite3 _sqlite3 webbrowser antigravity pip setuptools pkg_resources distutils ensurepip venv site sysconfig
    asyncio multiprocessing _thread signal fcntl pwd grp crypt getpass http urllib urllib2 urllib3 requests httpx
    aiohttp httplib smtplib smtpd ftplib telnetlib nntplib poplib imaplib xmlrpc xmlrpclib SimpleHTTPServer socketserver
    SocketServer wsgiref paramiko fabric pexpect sh plumbum tarfile zipfile bz2file gzip lzma bz2 tempfile glob
    fileinput linecache ast symtable compileall py_compile dis opcode tracemalloc faulthandler atexit lib2to3 pytest
    IPython jupyter_client nbformat ipykernel torch.hub torch.package torch.utils.cpp_extension torch.utils.bottleneck
    torch.utils.collect_env torch.multiprocessing torch.fx.experimental torch.utils.model_dump torch.utils.tensorboard
    torch.utils.file_baton numpy.testing numpy.f2py numpy.distutils numpy.lib.npyio numpy.lib._npyio_impl
    numpy.ctypeslib numpy.lib.format scipy.weave cgitb logging.config logging.handlers rlcompleter readline turtledemo
    tkinter _osx_support _aix_support _pyrepl torch._inductor.codecache torch.distributed.elastic torch.distributed.run
    torch.distributed.rpc torch.distributed.launch torch.testing._internal.common_utils
    torch.testing._internal.distributed torch.utils.data.datapipes.utils unittest.mock _testcapi _xxsubinterpreters
    _interpreters torch.utils._config_module torch._dynamo.guards torch.jit.unsupported_tensor_ops test.support pyrepl
    nltk.data
    """.split()  # noqa: SIM905
)

# Single names in modules that are otherwise harmless. functools.partial is not among them: timm's modules hold it, and what
# it would call stands beside it under its own name.
_NAMES = frozenset(
    """
    builtins.eval builtins.exec builtins.execfile builtins.compile builtins.open builtins.file builtins.input
    builtins.raw_input builtins.getattr builtins.setattr builtins.delattr builtins.__import__ builtins.__build_class__
    builtins.globals builtins.locals builtins.vars builtins.dir builtins.breakpoint builtins.apply builtins.super
    builtins.memoryview builtins.help builtins.map builtins.filter builtins.reload builtins.exit builtins.quit
    builtins.classmethod builtins.staticmethod builtins.property io.open io.open_code io.FileIO
    io.OpenWrapper io.TextIOWrapper io.BufferedReader io.BufferedWriter io.BufferedRandom _io.open _io.open_code
    _io.FileIO _io.TextIOWrapper _pyio.open _pyio.FileIO codecs.open codecs.EncodedFile operator.attrgetter
    operator.methodcaller operator.itemgetter operator.call _operator.attrgetter _operator.methodcaller
    _operator.itemgetter _operator.call functools.reduce
    functools.cached_property functools.singledispatch _functools.reduce itertools.starmap
    itertools.accumulate logging.FileHandler logging.shutdown platform.popen platform._syscmd_ver platform._syscmd_file
    uuid._get_command_stdout uuid._popen sysconfig.get_config_vars copyreg.add_extension copyreg.pickle
    typing.get_type_hints collections._sys collections.namedtuple string.Formatter yaml.load yaml.unsafe_load
    yaml.full_load jsonpickle.decode jinja2.Template jinja2.Environment mako.template.Template pandas.eval
    pandas.read_pickle pandas.read_csv pandas.core.computation.eval numpy.load numpy.save numpy.savez numpy.loadtxt
    numpy.savetxt numpy.genfromtxt numpy.fromfile numpy.tofile numpy.lib.utils.safe_eval numpy.vectorize numpy.fromregex
    numpy.DataSource numpy.core.multiarray.fromfile numpy._core.multiarray.fromfile torch.load torch.save torch.compile
    torch.from_file torch._utils_internal torch.serialization.load torch.serialization.save torch.serialization._load
    torch.serialization._legacy_load torch.storage._load_from_bytes torch.jit.load torch.jit._script.CompilationUnit
    torch.jit.CompilationUnit torch.classes.load_library torch.ops.load_library torch.ops.load torch._ops.load_library
    torch._C._jit_load torch.UntypedStorage.from_file torch.storage.UntypedStorage.from_file
    torch.utils.model_zoo.load_url torch.nn.modules.module.register_module_forward_hook
    torch.fx.graph_module.reduce_graph_module torch.fx.graph_module.reduce_package_graph_module types.CodeType
    types.FunctionType types.LambdaType types.ModuleType types.MethodType types.new_class threading.Thread
    threading.Timer concurrent.futures.ProcessPoolExecutor concurrent.futures.ThreadPoolExecutor numpy.memmap
    joblib.load joblib.dump tensorflow.io.read_file tensorflow.io.write_file keras.models.load_model scipy.io.loadmat
    gc.get_objects gc.get_referrers torch.utils.data.datapipes.utils.decoder.basichandlers
    torch.testing._internal.common_utils.shell torch._inductor.codecache.compile_file torch.distributed.run
    torch.distributed.elastic.multiprocessing.api weakref.finalize
    """.split()  # noqa: SIM905
)

# Inside a dotted name (`torch` + `serialization.os.system`) these lead out of the module that is named first.
_WAYS_OUT = frozenset(
    """
    os sys subprocess builtins posix nt importlib shutil socket pickle _pickle ctypes runpy io code pty
    """.split()  # noqa: SIM905
)
_DUNDER = re.compile(r"__\w+__$")
_TRUSTED = ("torch", "numpy", "collections", "builtins", "__builtin__")
_ECOSYSTEM = re.compile(
    r"torch(vision|audio|text|data|metrics|ao|rl|tune|titan|rec|arrow|serve|sde|diffeq|ode|io|geo|gen|snapshot|tnt|x|sparse|chat"
    r"|optimizer|_[a-z]+)?$|numpy(_financial|_groupies|ro|_quaternion)?$|collections$"
)
_CALLABLE = re.compile(
    r"(system|exec|eval|run|popen|spawn\w*|call|load\w*|open|shell|cmd|command|execute|payload|evil|hack|exploit|import_module|main)$"
)


def verdict(module: str, name: str, known: Collection[str]) -> Verdict:
    """The verdict on `module.name`; `known` holds full names, and packages whose classes are known, with a dot behind."""
    full = f"{module}.{name}"
    parts = name.split(".")
    packages = module.split(".")
    if len(parts) > 1 and _leads_out(packages, parts):
        return "dangerous"
    if full in known:
        return "known"
    if full in _NAMES or (_DUNDER.match(parts[0]) and module != "copyreg" and parts[0] not in ("__newobj__", "__main__")):
        return "dangerous"
    if full in _MODULES or any(prefix in _MODULES for prefix in _prefixes(packages)):
        return "dangerous"
    if any(part in _WAYS_OUT and part not in ("io", "code") for part in packages[1:]):
        return "dangerous"
    if _disguised(packages[0], parts[-1]):
        return "dangerous"
    if len(parts) == 1 and name[:1].isupper() and any(f"{prefix}." in known for prefix in _prefixes(packages)):
        return "known"
    return "unknown"


def _leads_out(packages: list[str], parts: list[str]) -> bool:
    """Whether a dotted name goes through an object to something that the module named first does not own."""
    return (
        any(part.lstrip("_") in _WAYS_OUT or _DUNDER.match(part) for part in parts)
        or any(".".join(parts[start:]) in _NAMES for start in range(len(parts)))
        or any(prefix in _MODULES or prefix in _NAMES for prefix in _prefixes(packages + parts))
    )


def _prefixes(packages: list[str]) -> list[str]:
    return [".".join(packages[:count]) for count in range(1, len(packages) + 1)]


def _disguised(package: str, last: str) -> bool:
    """A package that borrows the look of a trusted one, in the place of a function that acts."""
    if package in _TRUSTED or not package.startswith(_TRUSTED) or last[:1].isupper():
        return False
    return not _ECOSYSTEM.match(package) or bool(_CALLABLE.match(last))
