"""Honest files that look odd. A scanner that calls these bad is wrong, and a reader that refuses them is worse."""

from __future__ import annotations

import io
import struct
import zipfile

from hostile_torch import VALUES, archive, legacy, old_storage, pickled, string, tensor

from hostile import add

W = {"w": tensor()}
GOOD = pickled(W)


def thing(name: str) -> bytes:
    """An object of a class, with a state, as pickle writes it."""
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode() + b")\x81}" + string("x") + b"K\x01sb"


KNOWN = """
torch.nn.modules.linear.Linear torch.nn.modules.container.Sequential torch.nn.parameter.Parameter torch.optim.adam.Adam
torch.optim.lr_scheduler.StepLR argparse.Namespace pathlib.PosixPath omegaconf.dictconfig.DictConfig
omegaconf.base.ContainerMetadata pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint
ultralytics.nn.tasks.DetectionModel
transformers.training_args.TrainingArguments fairseq.data.dictionary.Dictionary numpy.random._pickle.__randomstate_ctor
collections.deque datetime.datetime torch.device torch.Size types.SimpleNamespace easydict.EasyDict yacs.config.CfgNode
torchvision.models.resnet.ResNet timm.models.resnet.ResNet peft.tuners.lora.LoraConfig torch.Generator uuid.UUID
""".split()  # noqa: SIM905
for name in KNOWN:
    body = (
        thing(name)
        if name not in ("torch.device", "torch.Size", "torch.nn.parameter.Parameter", "collections.deque", "datetime.datetime")
        else f"c{'.'.join(name.split('.')[:-1])}\n{name.split('.')[-1]}\n".encode()
    )
    add(f"benign {name}", archive(pickled({"x": body, **W})), "clean")
# Strangers whose names contain a frightening word.
for name in (
    "mymodel.system.SystemModel", "operating_system.Config", "evaluator.EvalResult", "project.evaluation.Evaluator",
    "codec_models.Codec", "models.codes.Codebook", "myos.Net", "socket_net.SocketNet", "importance.Importer",
    "subprocessors.Pre", "pickled_cucumber.Pickle", "__main__.Net", "model.Model", "requests_model.Request",
    "execution.Executor",
    "open_lm.Params", "platformer.Agent", "commandnet.Command", "inspection.Inspector", "torch_ema.ExponentialMovingAverage",
):  # fmt: skip
    add(f"benign stranger {name}", archive(pickled({"x": thing(name), **W})), "unknown")
for root in ("archive/", "model/", "", "my model/", "ünï/", "os.system/", "data/", "a" * 200 + "/", "x.y-z_1/", ".hidden/"):
    add(f"benign root {root!r}", archive(GOOD, root=root), "clean")
add("benign deflated", archive(GOOD, deflate=True), "clean")
add("benign deflated under any root", archive(GOOD, root="x/", deflate=True), "clean")
add("benign byteorder", archive(GOOD, extra={"archive/byteorder": b"little"}), "clean")
add("benign serialization id", archive(GOOD, extra={"archive/.data/serialization_id": b"1" * 40}), "clean")
add("benign folder entries", archive(GOOD, extra={"archive/data/": b""}), "clean")
add("benign further files", archive(GOOD, extra={"archive/README.md": b"hello", "archive/code/x.py": b"import os"}), "clean")
add(
    "benign keys of danger", archive(pickled({"os.system": tensor(), "eval.weight": tensor(), "__class__": tensor()})), "clean"
)
add("benign texts of danger", archive(pickled({"x": string("__import__('os').system('id')"), **W})), "clean")
add("benign keys of Unicode", archive(pickled({"层.权重": tensor(), "é": tensor()})), "clean")
add("benign legacy", legacy(pickled({"w": tensor(stored=old_storage())})), "clean")
add("benign frames", archive(b"\x80\x04\x95" + struct.pack("<Q", len(GOOD) - 2) + GOOD[2:]), "clean")
add("benign name of an archive in a storage", archive(GOOD, {"0": VALUES[:12] + b"PK\5\6"}), "clean")
add("benign keys that are integers", archive(b"\x80\x02}(K\x00" + tensor() + b"K\x01" + tensor() + b"u."), "clean")
add("benign ordered dict with metadata", archive(
    b"\x80\x02ccollections\nOrderedDict\n)R" + string("w") + tensor() + b"s}" + string("_metadata")
    + b"ccollections\nOrderedDict\n)R" + string("") + b"}" + string("version") + b"K\x01sssb."), "clean")  # fmt: skip
add("benign tied", archive(b"\x80\x02}(" + string("a") + tensor() + b"q\x01" + string("b") + b"h\x01u."), "clean")
add("benign expanded", archive(pickled({"w": tensor(shape=(1000, 4), strides=(0, 1))})), "clean")


def zip64() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, data in (("archive/data.pkl", GOOD), ("archive/data/0", VALUES)):
            with file.open(name, "w", force_zip64=True) as entry:
                entry.write(data)
    return out.getvalue()


class NoSeek(io.BytesIO):
    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise io.UnsupportedOperation

    def tell(self) -> int:
        raise io.UnsupportedOperation


def streamed(method: int) -> bytes:
    """Sizes and sums behind the data, as a zip written to a pipe has them."""
    out = NoSeek()
    with zipfile.ZipFile(out, "w", method) as file:
        file.writestr("archive/data.pkl", GOOD)
        file.writestr("archive/data/0", VALUES)
    return out.getvalue()


add("benign zip64", zip64(), "clean")
add("benign streamed", streamed(zipfile.ZIP_STORED), "clean")
add("benign streamed and deflated", streamed(zipfile.ZIP_DEFLATED), "clean")
