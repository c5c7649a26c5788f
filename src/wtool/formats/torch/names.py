"""Names that are ordinary in a torch checkpoint. A package with a dot behind it: its classes, by their plain names."""

from __future__ import annotations

from wtool.checkpoint import Global
from wtool.dtypes import BY_STORAGE, BY_TORCH
from wtool.formats.pickle_names import verdict
from wtool.formats.pickle_objects import Name
from wtool.formats.torch.rebuild import MEANINGS
from wtool.formats.torch.values import NUMPY_CODES

_PACKAGES = (
    "torch.nn.modules torch.nn.parameter torch.nn.quantized torch.nn.quantizable torch.nn.qat torch.ao torch.optim "
    "torch.distributed torch.jit torch.quantization torch.utils._device __torch__ torchvision.models torchvision.ops "
    "torchvision.transforms timm torchaudio.models torchaudio.transforms torchmetrics torchao transformers diffusers peft "
    "accelerate pytorch_lightning lightning lightning_fabric lightning_utilities fairseq omegaconf ultralytics "
    "models.yolo models.common models.experimental utils.autoanchor deepspeed megatron nemo detectron2 mmcv mmengine "
    "mmdet mmseg segmentation_models_pytorch sentence_transformers tokenizers datasets speechbrain espnet open_clip clip "
    "esm monai fastai e3nn dgl torch_geometric xformers bitsandbytes ml_dtypes numpy.dtypes "
)
_NAMES = (
    "torch.device torch.Generator torch.Tensor torch._C._TensorBase torch.storage.UntypedStorage "
    "torch.storage._UntypedStorage torch.storage.TypedStorage torch.UntypedStorage torch.QInt8Storage torch.QUInt8Storage "
    "torch.QInt32Storage torch.QUInt4x2Storage torch.QUInt2x4Storage torch.per_tensor_affine torch.per_tensor_symmetric "
    "torch.per_channel_affine torch.per_channel_symmetric torch.per_channel_affine_float_qparams torch.qint8 torch.quint8 "
    "torch.qint32 torch.contiguous_format torch.channels_last torch.preserve_format "
    "torch._utils._rebuild_wrapper_subclass torch.nn.parameter.UninitializedParameter torch.nn.functional.relu "
    "torch.nn.functional.gelu torch.nn.functional.silu torch._C._nn.gelu torch.nn.parameter.UninitializedBuffer "
    "torch.optim.lr_scheduler.LambdaLR torch.jit._pickle.build_tensor_from_id numpy.ndarray "
    "numpy.random.__RandomState_ctor numpy.random._pickle.__randomstate_ctor numpy.random._pickle.__generator_ctor "
    "numpy.random._pickle.__bit_generator_ctor numpy.random._mt19937.MT19937 numpy.random._pcg64.PCG64 numpy.float64 "
    "numpy.float32 numpy.float16 numpy.int64 numpy.int32 numpy.int16 numpy.int8 numpy.uint8 numpy.bool_ numpy.str_ "
    "builtins.object builtins.slice builtins.range builtins.int builtins.float builtins.str builtins.bool builtins.long "
    "builtins.unicode builtins.type builtins.Ellipsis builtins.NotImplemented copyreg._reconstructor copyreg.__newobj__ "
    "copyreg.__newobj_ex__ collections.deque datetime.datetime datetime.date datetime.time datetime.timedelta "
    "datetime.timezone pathlib.Path pathlib.PosixPath pathlib.WindowsPath pathlib.PurePath pathlib.PurePosixPath "
    "pathlib.PureWindowsPath pathlib._local.PosixPath pathlib._local.WindowsPath argparse.Namespace types.SimpleNamespace "
    "uuid.UUID decimal.Decimal fractions.Fraction enum.Enum string.Template re._compile random.Random easydict.EasyDict "
    "addict.addict.Dict yacs.config.CfgNode box.box.Box attrdict.dictionary.AttrDict ipaddress.IPv4Address "
    "numpy.random.bit_generator.SeedSequence numpy.random.bit_generator.__pyx_unpickle_SeedSequence "
)
KNOWN = frozenset(
    [f"{package}." for package in _PACKAGES.split()]
    + _NAMES.split()
    + list(MEANINGS)
    + [f"torch.{name}" for name in BY_TORCH]
    + [name for name in NUMPY_CODES if "." in name]
    + [f"torch.{cuda}{name.replace('Storage', 'Tensor')}" for name in BY_STORAGE for cuda in ("", "cuda.")]
    + [f"torch.{cuda}{name}" for name in BY_STORAGE for cuda in ("", "cuda.")]
)


def judge_names(names: list[Name]) -> tuple[Global, ...]:
    """Each name once, as the file spells it, in the order of the file."""
    seen = {name.spelling: name for name in names}
    return tuple(Global(spelling, verdict(name.module, name.name, KNOWN)) for spelling, name in seen.items())
