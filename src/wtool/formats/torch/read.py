"""Opens a file of torch, of whatever age, as a Checkpoint."""

from __future__ import annotations

import gc
from typing import Any

from wtool.adapter import Probe
from wtool.bytesource import ByteSource
from wtool.checkpoint import Checkpoint, Global, Node, Section, Source, Warning
from wtool.errors import LimitError, WtoolError
from wtool.formats.pickle_objects import Inert, Pairs
from wtool.formats.torch import archive, legacy, tar
from wtool.formats.torch.flatten import Flat, flatten
from wtool.formats.torch.names import judge_names
from wtool.formats.torch.sniff import sniff
from wtool.formats.torch.survey import is_module


def open_torch(probe: Probe) -> Checkpoint:
    """Headers and pickles only. Raises errors of the file, its path filled in."""
    source = probe.source
    assert source is not None, "sniff claims files only"
    # Half the time of a large file would go to the collector, which looks through all that has been made again and again.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _open(probe, source)
    except WtoolError as error:
        raise error.at(probe.path) from None
    except RecursionError:
        raise LimitError("its objects are nested too deeply", path=probe.path) from None
    finally:
        if collecting:
            gc.enable()


def _open(probe: Probe, source: ByteSource) -> Checkpoint:
    match = sniff(probe)
    reader = {"legacy": legacy.load, "tar": tar.load}.get(match.variant if match else "", archive.load)
    loaded = reader(source)
    flat = flatten(loaded.value, probe.path, loaded.nbytes)
    sections, tensors, structure = flat.sections, flat.tensors, flat.structure
    warnings = loaded.warnings + flat.warnings
    if "constants" in loaded.others:
        constants = flatten(loaded.others["constants"], probe.path, loaded.nbytes)
        fresh = _constants(constants, tensors)
        if fresh:
            tensors.update(fresh)
            sections = (*sections, Section("other", "other", tuple(fresh)))
            structure = None
    variant = "module" if is_module(loaded.value) and loaded.variant != "torchscript" else loaded.variant
    globals_ = judge_names(loaded.names)
    warnings += _dangers(globals_)
    return Checkpoint(
        tensors=tensors,
        source=Source(probe.path, "torch", variant, ((probe.path, source.size),), _framework(loaded.value, variant, globals_)),
        extras=flat.extras,
        structure=structure if isinstance(structure, Node) or structure is None else None,
        sections=sections,
        globals=globals_,
        warnings=tuple(warnings),
        sparse=flat.sparse,
    )


def _constants(constants: Flat, tensors: dict[str, Any]) -> dict[str, Any]:
    """TorchScript's constants that are not among the parameters already, under `constants.`."""
    known = {tensor.identity for tensor in tensors.values()}
    fresh = {}
    for key, tensor in constants.tensors.items():
        name = f"constants.{key}"
        if tensor.identity not in known and name not in tensors:
            fresh[name] = tensor.renamed(name)
    return fresh


def _dangers(globals_: tuple[Global, ...]) -> list[Warning]:
    names = [found.name for found in globals_ if found.verdict == "dangerous"]
    if not names:
        return []
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return [Warning("dangerous-globals", f"loading it with torch could run: {shown}; wtool ran nothing")]


def _framework(root: Any, variant: str, globals_: tuple[Global, ...]) -> str:
    """A guess for people."""
    if variant == "torchscript":
        return "TorchScript"
    keys = {key for key in root.flat[::2] if type(key) is str} if isinstance(root, Pairs) else set()
    if "pytorch-lightning_version" in keys:
        return "PyTorch Lightning"
    if keys & {"ds_version", "ds_config"}:
        return "DeepSpeed"
    if "last_optimizer_state" in keys or {"model", "optimizer_history"} <= keys:
        return "fairseq"
    packages = {found.name.split(".")[0] for found in globals_}
    if "ultralytics" in packages or {"model", "ema", "updates", "train_args"} <= keys:
        return "Ultralytics"
    if {"arch", "state_dict", "version"} <= keys or "timm" in packages:
        return "timm"
    for package, name in (("fairseq", "fairseq"), ("transformers", "Transformers"), ("mmengine", "MMEngine")):
        if package in packages:
            return name
    if isinstance(root, Inert) and root.text.startswith("fastai."):
        return "fastai"
    return "PyTorch"
