"""transformers 4's TensorFlow loaders as the judge, in a process of its own: `judge_transformers4.py FOLDER`.

FOLDER/cases.json: name -> {family, model: a class of transformers, config, original: variable -> shape, extra: more of them
that are no weights, recipe, options of the way there, back: the ways that Hugging Face's side is saved for the way back}.
For each, a TensorFlow 1 checkpoint with random values is made; transformers reads it into its model, wtool converts it and the
same class loads that. Then that model is saved, converted back and read by TensorFlow.

Answers as one line of JSON: name -> {keys, wrong: keys unlike those that transformers loaded, dropped, warnings, loaded: what
loading complained of, diff and scale: of the outputs, back: way -> {wrong: variables unlike the original's}}.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import torch
import transformers
from safetensors.torch import load_file
from transformers.models.bert.modeling_bert import BertModel, load_tf_weights_in_bert
from transformers.models.gpt2.modeling_gpt2 import load_tf_weights_in_gpt2
from transformers.models.t5.modeling_t5 import load_tf_weights_in_t5

from wtool.cli.app import run

Arrays = dict[str, Any]


def wtool(*args: str) -> dict[str, Any]:
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = run(["convert", *args, "--json"])
    if code:
        raise SystemExit(f"wtool convert {' '.join(args)}: {code}\n{out.getvalue()}{err.getvalue()}")
    return {**json.loads(out.getvalue()), "stderr": err.getvalue()}


def random(shapes: dict[str, list[int]]) -> Arrays:
    generator = np.random.default_rng(7)
    found = {}
    for name, shape in shapes.items():
        about = 1.0 if name.rpartition("/")[2] in ("gamma", "g", "scale") else 0.0
        found[name] = np.float32(about + 0.2 * generator.standard_normal(shape))
    return found


def save(prefix: Path, arrays: Arrays) -> None:
    prefix.parent.mkdir(parents=True, exist_ok=True)
    names = list(arrays)
    tf.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=[arrays[name] for name in names]
    )


def built(case: dict[str, Any]) -> Any:
    torch.manual_seed(3)
    kind = getattr(transformers, case["model"])
    model = kind(kind.config_class(**case["config"])).eval()
    if case["model"] == "BertForQuestionAnswering":
        model.bert = BertModel(model.config).eval()  # Google's had a pooler, which the class leaves out
    return model


def load(model: Any, case: dict[str, Any], prefix: Path) -> None:
    if case["family"] == "gpt2":
        load_tf_weights_in_gpt2(model.transformer, model.config, str(prefix))
    elif case["family"] == "t5":
        load_tf_weights_in_t5(model, model.config, str(prefix))
    elif case["model"] == "BertForQuestionAnswering":
        model.classifier = model.qa_outputs  # the loader's name for SQuAD's head
        load_tf_weights_in_bert(model, model.config, str(prefix))
        del model.classifier
    elif case["model"] == "BertForSequenceClassification":
        model.weight, model.bias = model.classifier.weight, model.classifier.bias  # the loader knows no name for this head
        load_tf_weights_in_bert(model, model.config, str(prefix))
        del model.weight, model.bias
    else:
        load_tf_weights_in_bert(model, model.config, str(prefix))
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # transposed ones multiply in another order


def outputs(model: Any, family: str) -> list[Any]:
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
    more = {"decoder_input_ids": ids.flip(1)} if family == "t5" else {}
    with torch.no_grad():
        return [one for one in model(input_ids=ids, **more).to_tuple() if isinstance(one, torch.Tensor)]


def unlike(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Keys of one alone, and those with other bits."""
    both = left.keys() & right.keys()
    return sorted(left.keys() ^ right.keys()) + sorted(
        key
        for key in both
        if np.asarray(left[key]).dtype != np.asarray(right[key]).dtype
        or np.asarray(left[key]).shape != np.asarray(right[key]).shape
        or np.asarray(left[key]).tobytes() != np.asarray(right[key]).tobytes()
    )


def saved(model: Any, way: str, folder: Path) -> Path:
    """The model as Hugging Face saves it (without tied copies), with them, or as its files of 2018: bare and with gamma."""
    if way == "pretrained":
        model.save_pretrained(folder)
        return folder / "model.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    if way == "old":
        prefix = model.base_model_prefix + "."
        state = {
            key.removeprefix(prefix)
            .replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta"): value
            for key, value in state.items()
        }
        if prefix == "bert.":
            state["embeddings.position_ids"] = torch.arange(16).unsqueeze(0)
        else:
            state["h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
            state["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def restored(prefix: Path, arrays: Arrays) -> Arrays:
    """What a TensorFlow 1 graph with these variables restores."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        made = {name: tf.compat.v1.get_variable(name, value.shape, tf.float32) for name, value in arrays.items()}
        tf.compat.v1.train.Saver().restore(session, str(prefix))
        return dict(session.run(made))


def judged(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    arrays = random(case["original"])
    extra = {
        name: np.int64(3) if name == "global_step" else np.float32(np.ones(shape)) for name, shape in case["extra"].items()
    }
    save(folder / "model.ckpt", {**arrays, **extra})
    theirs = built(case)
    load(theirs, case, folder / "model.ckpt")
    wanted = theirs.state_dict()

    out = folder / "model.safetensors"
    report = wtool(str(folder / "model.ckpt"), str(out), "--map", case["recipe"], *case["options"])
    mine = load_file(out)
    ours = built(case)
    try:
        ours.load_state_dict(mine, strict=True)
        loaded = ""
    except RuntimeError as error:
        loaded = str(error)
    hub = folder / "hub"
    theirs.config.save_pretrained(hub)
    wtool(str(folder / "model.ckpt"), str(hub / "model.safetensors"), "--map", case["recipe"])
    hubs, info = type(theirs).from_pretrained(hub, output_loading_info=True)
    pairs = [
        pair
        for model in (ours, hubs.eval())
        for pair in zip(outputs(theirs, case["family"]), outputs(model, case["family"]), strict=True)
    ]

    back = {}
    turned = "-to-".join(reversed(case["recipe"].split("-to-")))
    for way in case["back"]:
        prefix = folder / f"back-{way}.ckpt"
        wtool(str(saved(theirs, way, folder / way)), str(prefix), "--map", turned, "--strict")
        reader = tf.train.load_checkpoint(str(prefix))
        read = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
        back[way] = {"wrong": unlike(arrays, read) + unlike(arrays, restored(prefix, arrays))}
    return {
        "keys": len(mine),
        "wrong": unlike(wanted, mine),
        "dropped": report["dropped"],
        "warnings": report["stderr"],
        "loaded": loaded + "".join(map(str, (*info["missing_keys"], *info["mismatched_keys"]))),
        "diff": max(float((one - two).abs().max()) for one, two in pairs),
        "scale": max(float(one.abs().max()) for one, _ in pairs),
        "back": back,
    }


def main(folder: Path) -> None:
    cases = json.loads((folder / "cases.json").read_text())
    print(json.dumps({name: judged(case, folder / name) for name, case in cases.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
