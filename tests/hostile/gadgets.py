"""Pickles that would run something, and names that look as if they would not.

Ideas: the advisories of picklescan (GHSA and CVE-2025-1716, -1889, -1944, -10155, -10156, -10157, issues 22 and 23),
fickling's bypass tests (GHSA-mxhj-88fx-4pcv, GHSA-5j3x, GHSA-r7v6 and their kin), modelscan issues 263 and 338,
CVE-2025-32434.
"""

from __future__ import annotations

from hostile_torch import archive, legacy, old_storage, pickled, string, tensor

from hostile import add

COMMAND = string("touch /tmp/wtool-was-here")


def both(name: str, evil: bytes, *expect: str) -> None:
    """The object beside a tensor, in the zip and in the old stream."""
    add(f"{name} (zip)", archive(pickled({"evil": evil, "w": tensor()})), *expect)
    add(f"{name} (legacy)", legacy(pickled({"evil": evil, "w": tensor(stored=old_storage())})), *expect)


def called(name: str) -> bytes:
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode() + COMMAND + b"\x85R"


# Each is a published way to act with one call, or a step of one.
DANGEROUS = """
os.system posix.system nt.system os.popen os.execv os.execvp os.spawnlp os.spawnv os.posix_spawn os.remove os.rename
posix.execve subprocess.Popen subprocess.run subprocess.call subprocess.check_output subprocess.getoutput commands.getoutput
_posixsubprocess.fork_exec builtins.eval builtins.exec builtins.compile builtins.open builtins.getattr builtins.__import__
builtins.apply builtins.breakpoint builtins.help builtins.map builtins.input __builtin__.eval __builtin__.execfile
__builtin__.file importlib.import_module importlib.__import__ importlib.machinery.SourceFileLoader runpy.run_path
runpy._run_code pty.spawn socket.socket socket.create_connection shutil.rmtree shutil.copyfile sys.exit sys.settrace
ctypes.CDLL ctypes.cdll.LoadLibrary cffi.FFI pickle.loads pickle.load _pickle.loads dill.loads cloudpickle.loads shelve.open
marshal.loads marshal.load types.FunctionType types.CodeType functools.reduce operator.attrgetter
operator.methodcaller operator.itemgetter itertools.starmap webbrowser.open pip.main pip._internal.main
pip._internal.cli.main.main setuptools.sandbox.run_setup pkgutil.resolve_name pkgutil.get_loader pydoc.locate
pydoc.pipepager code.interact code.InteractiveInterpreter codeop.compile_command timeit.timeit timeit.main cProfile.run
cProfile.runctx profile.run profile.Profile.run trace.Trace.run pdb.run bdb.Bdb.run doctest.debug_script
asyncio.unix_events._UnixSubprocessTransport._start asyncio.create_subprocess_shell multiprocessing.Process
multiprocessing.util.spawnv_passfds idlelib.pyshell.ModifiedInterpreter.runcode idlelib.run.Executive.runcode
idlelib.autocomplete.AutoComplete.get_entity idlelib.calltip.get_entity idlelib.debugobj.ObjectTreeItem.SetText
lib2to3.pgen2.pgen.ParserGenerator.make_label lib2to3.pgen2.grammar.Grammar.loads ensurepip._run_pip venv.create
distutils.spawn.spawn distutils.file_util.write_file io.FileIO io.open _io.FileIO _io.open _pyio.open codecs.open
tempfile.mktemp zipfile.ZipFile tarfile.open gzip.open bz2.open lzma.open fileinput.FileInput linecache.getlines
urllib.request.urlopen urllib.request.urlretrieve http.client.HTTPSConnection requests.get requests.api.get httpx.get
aiohttp.client.ClientSession smtplib.SMTP ftplib.FTP telnetlib.Telnet xmlrpc.client.ServerProxy ssl.get_server_certificate
logging.config.listen logging.config._resolve logging.FileHandler sqlite3.connect uuid._get_command_stdout uuid._popen
_osx_support._read_output _aix_support._read_cmd_output sysconfig.get_platform cgitb.lookup imaplib.IMAP4_stream
test.support.script_helper.assert_python_ok pyrepl.pager.pipe_pager _pyrepl.pager.pipe_pager turtledemo.__main__.main
numpy.load numpy.fromfile numpy.memmap numpy.f2py.crackfortran.getlincoef numpy.f2py.crackfortran.param_eval
numpy.f2py.crackfortran.myeval numpy.f2py.crackfortran._eval_length numpy.testing._private.utils.runstring
numpy.testing._private.utils.rundocs numpy.testing._private.utils.measure numpy.distutils.exec_command.exec_command
torch.load torch.hub.load torch.serialization.load torch.storage._load_from_bytes torch.jit.load torch.ops.load_library
torch.utils.bottleneck.__main__.run_cprofile torch.utils.bottleneck.__main__.run_autograd_prof
torch.utils.collect_env.run torch.utils.cpp_extension.load torch.utils.cpp_extension.load_inline
torch.utils._config_module.ConfigModule.load_config torch._dynamo.guards.GuardBuilder.get
torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression
torch.utils.data.datapipes.utils.decoder.basichandlers
torch.jit.unsupported_tensor_ops.execWrapper torch.jit.unsupported_tensor_ops._gen_unsupported_methods_properties
torch._inductor.codecache.compile_file torch.distributed.run.main torch.utils.model_zoo.load_url torch.UntypedStorage.from_file
torch.package.PackageImporter torch.multiprocessing.spawn pandas.read_pickle joblib.load yaml.unsafe_load jsonpickle.decode
jinja2.Template ast.literal_eval inspect.getsource site.addpackage rlcompleter.Completer readline.read_history_file
threading.Thread threading.Timer signal.signal fcntl.fcntl mmap.mmap faulthandler.dump_traceback atexit.register gc.get_objects
unittest.mock._importer nltk.data.load keras.models.load_model concurrent.futures.ProcessPoolExecutor weakref.finalize
typing.get_type_hints collections.namedtuple string.Formatter
""".split()  # noqa: SIM905
for one in DANGEROUS:
    add(f"gadget {one}", archive(pickled({"evil": called(one), "w": tensor()})), "dangerous")

# The way in which the call is written, not whom it calls.
both("REDUCE", called("os.system"), "dangerous")
both("INST", b"(" + COMMAND + b"ios\nsystem\n", "dangerous")
both("OBJ", b"(cos\nsystem\n" + COMMAND + b"o", "dangerous")
both("OBJ and POP", b"(cos\nsystem\n" + COMMAND + b"o0N", "dangerous")
both("INST and POP_MARK", b"((" + COMMAND + b"ios\nsystem\n1N", "dangerous")
both("NEWOBJ", b"cos\nsystem\n" + COMMAND + b"\x85\x81", "dangerous")
both("NEWOBJ_EX", b"cos\nsystem\n" + COMMAND + b"\x85}\x92", "dangerous")
both("BUILD", b"cos\nsystem\n)\x81}" + string("__setstate__") + b"cos\nsystem\nsb", "dangerous")
both("STACK_GLOBAL", string("os") + string("system") + b"\x93" + COMMAND + b"\x85R", "dangerous")
both("SHORT names", b"\x8c\x02os\x8c\x06system\x93" + COMMAND + b"\x85R", "dangerous")
both(
    "names from memo", string("os") + b"q\x63" + string("system") + b"q\x6400h\x63h\x64\x93" + COMMAND + b"\x85R", "dangerous"
)
both("names by DUP", string("os") + b"2\x93", "dangerous")
both(
    "module from memo over a decoy",
    string("os") + b"q\x63" + string("math") + b"q\x6400h\x63" + string("system") + b"\x93",
    "dangerous",
)
both("memo set twice", string("math") + b"q\x63" + string("os") + b"q\x6300h\x63" + string("system") + b"\x93", "dangerous")
both("name with a trailing space", b"cos\nsystem \n" + COMMAND + b"\x85R", "dangerous", "unknown")
both("name in other letters", string("ＯＳ") + string("system") + b"\x93" + COMMAND + b"\x85R", "dangerous", "unknown")
both("name never called", b"cos\nsystem\n0N", "dangerous")
both("name as a dict key", b"}cos\nsystem\nNs", "dangerous")
both("name after STOP is not run", b"N", "clean")
both("names by extension code", b"\x82\x01" + COMMAND + b"\x85R", "unknown", "dangerous")
both("names by a wide extension code", b"\x84\xff\xff\xff\x7f" + COMMAND + b"\x85R", "unknown", "dangerous")
both(
    "subclass of a tensor",
    b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncos\nsystem\n" + COMMAND + b"\x85NtR",
    "dangerous",
)
both(
    "parameter with a dangerous state",
    b"ctorch._utils\n_rebuild_parameter_with_state\n(N\x89Ncos\nsystem\n" + COMMAND + b"\x85RtR",
    "dangerous",
)
both("nested pickle", b"ctorch.storage\n_load_from_bytes\nC\x05\x80\x02N.x\x85R", "dangerous")
both("default factory", b"ccollections\ndefaultdict\ncos\nsystem\n\x85R", "dangerous")
both("frame that lies", b"\x95\x01\0\0\0\0\0\0\0" + called("os.system"), "dangerous")
both("frame of 2^64", b"\x95" + b"\xff" * 8 + called("os.system"), "dangerous")
both("frame in a frame", b"\x95\x20\0\0\0\0\0\0\0\x95\x10\0\0\0\0\0\0\0" + called("os.system"), "dangerous")
both("protocol again", b"\x80\x05" + called("os.system"), "dangerous")
both("persistent id with a call", b"(" + string("storage") + called("os.system") + b"tQ", "corrupt")
both("text newline in a name", string("os") + string("sys\ntem") + b"\x93", "dangerous", "unknown")

# Dotted names: the module is trusted, the way through it is not (GHSA-5j3x and picklescan's sub-module CVE).
for number, (module, name) in enumerate(
    (
        ("torch", "serialization.os.system"), ("torch.serialization", "os.system"), ("torch", "hub.load"),
        ("torch", "os.system"), ("torch.nn.modules.linear", "torch.sys.exit"), ("torch.nn", "modules.module.torch.load"),
        ("numpy", "core.os.system"), ("numpy", "load.__globals__"), ("collections", "_sys.modules"),
        ("collections", "OrderedDict.__init__.__globals__"), ("collections", "OrderedDict.__reduce__.__self__"),
        ("builtins", "eval.__call__"), ("builtins", "object.__subclasses__"), ("argparse", "_sys.modules"),
        ("pathlib", "os.system"), ("datetime", "sys.modules"), ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("transformers", "os.system"), ("omegaconf", "yaml.unsafe_load"),
    )
):  # fmt: skip
    add(f"dotted {number} {module}+{name}",
        archive(pickled({"evil": string(module) + string(name) + b"\x93" + COMMAND + b"\x85R", "w": tensor()})),
        "dangerous")  # fmt: skip

# Modules that borrow a name: a list of prefixes would let them pass.
for name in ("torch_evil.run", "numpy_evil.load", "builtins2.exec", "collections_x.run"):
    add(f"look-alike {name}", archive(pickled({"evil": called(name), "w": tensor()})), "dangerous")
for name in ("torch.nn.modules_evil.Linear", "mypackage.Net", "os_tools.Settings", "evaluation.Result"):
    add(f"stranger {name}", archive(pickled({"evil": called(name), "w": tensor()})), "unknown")
