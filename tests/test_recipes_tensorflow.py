"""BERT, GPT-2 and T5 as TensorFlow saved them, and Hugging Face's: names and values as transformers 4's loaders have them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from wtool import views
from wtool.api import open_checkpoint, save_checkpoint
from wtool.between import map_checkpoint
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import dtype
from wtool.errors import MapError, RecipeError
from wtool.maps.catalog import load
from wtool.maps.recipe import parse_recipe
from wtool.maps.resolve import Resolved, resolve

Shapes = dict[str, tuple[int, ...]]
Rows = Iterator[tuple[str, tuple[int, ...]]]
JUDGES = Path(sys.prefix) / "judges"


def dense(name: str, into: int, out: int) -> Rows:
    yield f"{name}/kernel", (into, out)
    yield f"{name}/bias", (out,)


def norm(name: str, width: int) -> Rows:
    yield f"{name}/beta", (width,)
    yield f"{name}/gamma", (width,)


def bert(layers: int, width: int, words: int = 30522, heads: str = "cls", places: int = 512) -> Shapes:
    """Google's names. `heads`: cls, none, classifier (run_classifier.py) or squad (run_squad.py)."""

    def rows() -> Rows:
        for name, count in (("word", words), ("position", places), ("token_type", 2)):
            yield f"bert/embeddings/{name}_embeddings", (count, width)
        yield from norm("bert/embeddings/LayerNorm", width)
        for layer in (f"bert/encoder/layer_{i}" for i in range(layers)):
            for part in ("self/query", "self/key", "self/value", "output/dense"):
                yield from dense(f"{layer}/attention/{part}", width, width)
            yield from norm(f"{layer}/attention/output/LayerNorm", width)
            yield from dense(f"{layer}/intermediate/dense", width, 4 * width)
            yield from dense(f"{layer}/output/dense", 4 * width, width)
            yield from norm(f"{layer}/output/LayerNorm", width)
        yield from dense("bert/pooler/dense", width, width)
        if heads == "cls":
            yield "cls/predictions/output_bias", (words,)
            yield from dense("cls/predictions/transform/dense", width, width)
            yield from norm("cls/predictions/transform/LayerNorm", width)
        prefix = {"cls": "cls/seq_relationship/", "classifier": "", "squad": "cls/squad/"}.get(heads)
        if prefix is not None:
            labels = 3 if heads == "classifier" else 2
            yield f"{prefix}output_weights", (labels, width)
            yield f"{prefix}output_bias", (labels,)

    return dict(rows())


def gpt2(layers: int, width: int, words: int = 50257, places: int = 1024) -> Shapes:
    """OpenAI's names."""

    def rows() -> Rows:
        yield "model/wpe", (places, width)
        yield "model/wte", (words, width)
        for layer in (f"model/h{i}" for i in range(layers)):
            for part, into, out in (("attn/c_attn", 1, 3), ("attn/c_proj", 1, 1), ("mlp/c_fc", 1, 4), ("mlp/c_proj", 4, 1)):
                yield f"{layer}/{part}/w", (1, into * width, out * width)
                yield f"{layer}/{part}/b", (out * width,)
            for part in ("ln_1", "ln_2"):
                yield f"{layer}/{part}/g", (width,)
                yield f"{layer}/{part}/b", (width,)
        yield "model/ln_f/g", (width,)
        yield "model/ln_f/b", (width,)

    return dict(rows())


# Mesh TensorFlow's names of the sub-layers and norms, by its age: T5 of 2019 and 1.1, mT5, and the middle of 2020.
DIALECTS = {
    "t5": {"norm": "layer_norm", "last": "final_layer_norm"},
    "mt5": {"norm": "rms_norm", "last": "rms_norm"},
    "2020": {
        "norm": "rms_norm",
        "last": "rms_norm",
        "SelfAttention": "self_attention",
        "EncDecAttention": "enc_dec_attention",
        "DenseReluDense": "dense_relu_dense",
    },
}


def t5(
    layers: int, width: int, wide: int, inner: int, heads: int, words: int = 32128, gated: bool = False, dialect: str = "t5"
) -> Shapes:
    """Google's names. `inner`: heads times the width of one; `gated`: T5 1.1."""
    said = DIALECTS[dialect]

    def rows() -> Rows:
        yield "shared/embedding", (words, width)
        for stack, parts in (("encoder", ("SelfAttention",)), ("decoder", ("SelfAttention", "EncDecAttention"))):
            for i in range(layers):
                for j, part in enumerate((*parts, "DenseReluDense")):
                    layer = f"{stack}/block_{i:03}/{said.get(part, f'layer_{j:03}')}"
                    yield f"{layer}/{said['norm']}/scale", (width,)
                    if part == "DenseReluDense":
                        for name in ("wi_0", "wi_1") if gated else ("wi",):
                            yield f"{layer}/{part}/{name}/kernel", (width, wide)
                        yield f"{layer}/{part}/wo/kernel", (wide, width)
                        continue
                    for name in "qkv":
                        yield f"{layer}/{part}/{name}", (width, inner)
                    yield f"{layer}/{part}/o", (inner, width)
                    if i == j == 0:
                        yield f"{layer}/{part}/relative_attention_bias", (heads, 32)
            yield f"{stack}/{said['last']}/scale", (width,)
        if gated:
            yield "decoder/logits/kernel", (width, words)

    return dict(rows())


def adam(names: Shapes, *ends: str) -> Shapes:
    """An optimizer's slots, and its step."""
    return {**{f"{name}{end}": shape for name, shape in names.items() for end in ends}, "global_step": ()}


def adafactor(names: Shapes) -> Shapes:
    found: Shapes = {"global_step": ()}
    for name, shape in names.items():
        small = len(shape) < 2 or name.endswith("relative_attention_bias")
        found |= {f"{name}_slot_v": shape} if small else {f"{name}_slot_vr": shape[:1], f"{name}_slot_vc": shape[1:]}
    return found


BERT = {
    "vocab_size": 31,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}
GPT2 = {"vocab_size": 31, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3}
T5 = {"vocab_size": 31, "d_model": 12, "d_kv": 4, "d_ff": 20, "num_layers": 2, "num_heads": 2}
T5_11 = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def case(
    family: str, model: str, config: dict[str, Any], original: Shapes, extra: Shapes, back: str, sections: bool = True
) -> dict[str, Any]:
    recipe = {"bert": "bert-tf1-to-hf", "gpt2": "gpt2-tf1-to-hf", "t5": "t5-tf-to-hf"}[family]
    return {
        "family": family,
        "model": model,
        "config": config,
        "original": original,
        "extra": extra,
        "recipe": recipe,
        # --strict is for files without an optimizer; --section all is what shows it to the recipe.
        "options": ["--tied", "duplicate", *(["--section", "all"] if sections and extra else [] if extra else ["--strict"])],
        "back": back.split(),
    }


def cases() -> dict[str, Any]:
    small = bert(2, 12, 31, places=16)
    classifier, squad = (bert(2, 12, 31, heads, 16) for heads in ("classifier", "squad"))
    texts = gpt2(2, 12, 31, 16)
    old, new = t5(2, 12, 20, 8, 2, 31), t5(2, 12, 20, 8, 2, 31, gated=True)
    return {
        "bert": case("bert", "BertForPreTraining", BERT, small, adam(small, "/adam_m", "/adam_v"), "pretrained state old"),
        "bert-classifier": case(
            "bert",
            "BertForSequenceClassification",
            {**BERT, "num_labels": 3},
            classifier,
            adam(classifier, "/adam_m", "/adam_v"),
            "pretrained state",
            sections=False,
        ),
        "bert-squad": case("bert", "BertForQuestionAnswering", BERT, squad, {}, "pretrained state"),
        "gpt2": case("gpt2", "GPT2LMHeadModel", GPT2, texts, {}, "pretrained state old"),
        "t5": case("t5", "T5ForConditionalGeneration", T5, old, adafactor(old), "pretrained state"),
        "t5-1.1": case("t5", "T5ForConditionalGeneration", T5_11, new, adafactor(new), "pretrained state"),
        "mt5": case("t5", "T5ForConditionalGeneration", T5_11, t5(2, 12, 20, 8, 2, 31, gated=True, dialect="mt5"), {}, ""),
    }


@pytest.mark.frameworks
def test_as_transformers_loads_them(tmp_path: Path) -> None:
    lacking = [name for name in ("torch", "tensorflow") if find_spec(name) is None]
    if lacking or not (JUDGES / "transformers").is_dir():
        pytest.skip(f"the judge is not here: {lacking or 'transformers 4 in the folder judges'}")
    (tmp_path / "cases.json").write_text(json.dumps(cases()))
    path = os.pathsep.join(filter(None, [str(JUDGES), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("judge_transformers4.py")), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name, given in cases().items():
        verdict = found[name]
        print(name, verdict["keys"], verdict["diff"], verdict["scale"], list(verdict["back"]))
        assert not verdict["wrong"], name
        assert not verdict["loaded"], name
        assert not verdict["warnings"] or "warning" not in verdict["warnings"], name
        assert sorted(verdict["dropped"]) == (sorted(given["extra"]) if "--section" in given["options"] else []), name
        assert verdict["diff"] <= 1e-6 * verdict["scale"], name
        for way in given["back"]:
            assert not verdict["back"][way]["wrong"], (name, way)


def empty(shapes: Mapping[str, tuple[int, ...]], format: str = "torch") -> Checkpoint:
    tensors = {name: views.filled(name, dtype("f32"), tuple(shape), 0) for name, shape in shapes.items()}
    return Checkpoint(tensors, Source("x", format, "", ()))


def shapes_of(resolved: Resolved) -> Shapes:
    return {tensor.key: tensor.shape for tensor in resolved.tensors}


def there_and_back(recipe: str, original: Shapes, model: Mapping[str, tuple[int, ...]], tied: set[str], extra: Shapes) -> None:
    """The keys and shapes of a real model, both ways; back also from a file without the tied copies."""
    turned = "-to-".join(reversed(recipe.split("-to-")))
    there = resolve(load(recipe), empty({**original, **extra}, "tensorflow"))
    assert shapes_of(there) == dict(model)
    assert set(there.dropped) == set(extra)
    for left_out in (set(), tied):
        back = resolve(load(turned), empty({key: shape for key, shape in model.items() if key not in left_out}))
        assert shapes_of(back) == original
        assert not (there.unused or there.warnings or back.unused or back.warnings or back.dropped)


@pytest.mark.frameworks
def test_at_full_depth() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def model(name: str, **config: Any) -> Shapes:
        kind = getattr(transformers, name)
        with torch.device("meta"):
            return {key: tuple(value.shape) for key, value in kind(kind.config_class(**config)).state_dict().items()}

    words, place, copy = "cls.predictions.decoder", "embed_tokens.weight", "lm_head.weight"
    for layers, width in ((12, 768), (24, 1024)):
        original = bert(layers, width)
        sizes = {
            "num_hidden_layers": layers,
            "hidden_size": width,
            "num_attention_heads": width // 64,
            "intermediate_size": 4 * width,
        }
        tied = {f"{words}.weight", f"{words}.bias"}
        there_and_back(
            "bert-tf1-to-hf", original, model("BertForPreTraining", **sizes), tied, adam(original, "/adam_m", "/adam_v")
        )
        encoder = bert(layers, width, heads="none")
        bare = {f"bert.{key}": shape for key, shape in model("BertModel", **sizes).items()}
        there_and_back("bert-tf1-to-hf", encoder, bare, set(), {})
    for layers, width in ((12, 768), (48, 1600)):
        original = gpt2(layers, width)
        there_and_back(
            "gpt2-tf1-to-hf",
            original,
            model("GPT2LMHeadModel", n_layer=layers, n_embd=width, n_head=width // 64),
            {copy},
            adam(original, "/Adam", "/Adam_1"),
        )
    tied = {f"encoder.{place}", f"decoder.{place}"}
    for layers, width, wide, heads, each, said in (
        (6, 512, 2048, 8, 64, "t5"),
        (24, 1024, 65536, 128, 128, "t5"),
        (24, 2048, 5120, 32, 64, "t5 1.1"),
        (8, 512, 1024, 6, 64, "mt5"),
    ):
        new = said != "t5"
        sizes = {"num_layers": layers, "d_model": width, "d_ff": wide, "num_heads": heads, "d_kv": each}
        kind = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if new else {}
        words_count = 250112 if said == "mt5" else 32128
        original = t5(layers, width, wide, heads * each, heads, words_count, gated=new)
        made = model("T5ForConditionalGeneration", vocab_size=words_count, **sizes, **kind)
        there_and_back("t5-tf-to-hf", original, made, tied if new else {*tied, copy}, adafactor(original))


def noise(shapes: Shapes) -> dict[str, Any]:
    generator = np.random.default_rng(5)
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.frameworks
def test_from_pretrained(tmp_path: Path) -> None:
    """What is written without further options is what from_pretrained of any of the family's classes wants."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    head = {"classifier.weight", "classifier.bias"}
    cls = {f"cls.predictions.{name}" for name in ("bias", "decoder.bias", "transform.dense.weight", "transform.dense.bias")}
    cls |= {f"cls.predictions.transform.LayerNorm.{leaf}" for leaf in ("weight", "bias")}
    small = BERT
    for recipe, original, config, classes in (
        (
            "bert-tf1-to-hf",
            bert(2, 12, 31, places=16),
            small,
            {"BertForPreTraining": set(), "BertForMaskedLM": set(), "BertModel": set()},
        ),
        ("bert-tf1-to-hf", bert(2, 12, 31, "none", 16), small, {"BertModel": set(), "BertForMaskedLM": cls}),
        ("bert-tf1-to-hf", bert(2, 12, 31, "classifier", 16), small, {"BertForSequenceClassification": set()}),
        ("bert-tf1-to-hf", bert(2, 12, 31, "squad", 16), small, {"BertForQuestionAnswering": set()}),
        ("bert-tf1-to-hf", bert(2, 12, 31, "none", 16), small, {"BertForSequenceClassification": head}),
        ("gpt2-tf1-to-hf", gpt2(2, 12, 31, 16), GPT2, {"GPT2LMHeadModel": set(), "GPT2Model": set()}),
        (
            "t5-tf-to-hf",
            t5(2, 12, 20, 8, 2, 31),
            T5,
            {"T5ForConditionalGeneration": set(), "T5EncoderModel": set()},
        ),
        (
            "t5-tf-to-hf",
            t5(2, 12, 20, 8, 2, 31, gated=True),
            T5_11,
            {"T5ForConditionalGeneration": set(), "T5EncoderModel": set()},
        ),
    ):
        for name, lacking in classes.items():
            save_file(noise(original), tmp_path / "original.safetensors")
            kind = getattr(transformers, name)
            more = {"num_labels": 3} if "classifier" in recipe or "output_weights" in original else {}
            kind.config_class(**config, **more).save_pretrained(tmp_path)
            mapped, _ = map_checkpoint(open_checkpoint(tmp_path / "original.safetensors"), [recipe], strict=True)
            save_checkpoint(mapped, tmp_path / "model.safetensors", force=True)
            (tmp_path / "original.safetensors").unlink()
            model, info = kind.from_pretrained(tmp_path, output_loading_info=True)
            assert set(info["missing_keys"]) == lacking, name
            assert not info["mismatched_keys"], name
            written = {tensor.key: tensor for tensor in mapped.values()}
            for key, value in model.state_dict().items():
                found = written.get(key) or written.get(f"{model.base_model_prefix}.{key}")
                if key not in lacking and found is not None:
                    assert value.numpy().tobytes() == found.array().tobytes(), (name, key)
                else:
                    assert key in lacking or key.startswith("cls.predictions.decoder"), (name, key)


def mapped(folder: Path, arrays: dict[str, Any], recipe: str, **options: Any) -> dict[str, Any]:
    """Through a file and the recipe, without a word of warning."""
    save_file(arrays, folder / "source.safetensors")
    made, _ = map_checkpoint(open_checkpoint(folder / "source.safetensors"), [recipe], strict=True, **options)
    return {key: tensor.array() for key, tensor in made.items()}


def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("gated", [False, True])
def test_mesh_tensorflow_names_by_age(tmp_path: Path, dialect: str, gated: bool) -> None:
    now, then = (noise(t5(11, 12, 20, 8, 2, 31, gated=gated, dialect=name)) for name in ("t5", dialect))
    there = mapped(tmp_path, then, "t5-tf-to-hf")
    assert len(there) == len(then) + (2 if gated else 3)
    assert same(mapped(tmp_path, there, "hf-to-t5-tf"), dict(zip(now, then.values(), strict=True)))
    save_file(then, tmp_path / "like.safetensors")
    assert same(mapped(tmp_path, there, "hf-to-t5-tf", like=str(tmp_path / "like.safetensors")), then)


def test_t5_output_matrix(tmp_path: Path) -> None:
    old, new = noise(t5(1, 12, 20, 8, 2, 31)), noise(t5(1, 12, 20, 8, 2, 31, gated=True))
    tied, own = mapped(tmp_path, old, "t5-tf-to-hf"), mapped(tmp_path, new, "t5-tf-to-hf")
    assert np.array_equal(tied["lm_head.weight"], old["shared/embedding"])
    assert np.array_equal(own["lm_head.weight"], new["decoder/logits/kernel"].T)
    # T5 of 2019 with a matrix of its own cannot be told from it by names.
    tied["lm_head.weight"] = tied["lm_head.weight"] + 1
    with pytest.raises(MapError, match="different values"):
        mapped(tmp_path, tied, "hf-to-t5-tf")
    with pytest.raises(MapError, match="does not lead back"):
        mapped(tmp_path, {**old, "decoder/logits/kernel": new["decoder/logits/kernel"]}, "t5-tf-to-hf")
    encoder = {key: value for key, value in own.items() if key.startswith(("shared", "encoder"))}
    back = mapped(tmp_path, encoder, "hf-to-t5-tf")
    assert same(back, {key: value for key, value in new.items() if key.startswith(("shared", "encoder"))})


def test_bert_parts(tmp_path: Path) -> None:
    whole = noise(bert(1, 12, 31, places=16))
    encoder = {key: value for key, value in whole.items() if key.startswith("bert/")}
    there = mapped(tmp_path, encoder, "bert-tf1-to-hf")
    assert len(there) == len(encoder) and all(key.startswith("bert.") for key in there)
    assert same(mapped(tmp_path, there, "hf-to-bert-tf1"), encoder)
    bare = {key.removeprefix("bert."): value for key, value in there.items()}
    assert same(mapped(tmp_path, bare, "hf-to-bert-tf1"), encoder)
    save_file(bare, tmp_path / "like.safetensors")
    assert same(mapped(tmp_path, encoder, "bert-tf1-to-hf", like=str(tmp_path / "like.safetensors")), bare)
    masked = {key: value for key, value in mapped(tmp_path, whole, "bert-tf1-to-hf").items() if "pooler" not in key}
    masked = {key: value for key, value in masked.items() if "seq_relationship" not in key}
    left_out = ("bert/pooler", "cls/seq_relationship")
    wanted = {key: value for key, value in whole.items() if not key.startswith(left_out)}
    assert same(mapped(tmp_path, masked, "hf-to-bert-tf1"), wanted)
    masked["cls.predictions.decoder.weight"] = masked["cls.predictions.decoder.weight"] * 2
    with pytest.raises(MapError, match="different values"):
        mapped(tmp_path, masked, "hf-to-bert-tf1")


def test_an_unknown_variable_is_an_error(tmp_path: Path) -> None:
    for recipe, arrays in (
        ("bert-tf1-to-hf", noise(bert(1, 12, 31, places=16))),
        ("gpt2-tf1-to-hf", noise(gpt2(1, 12, 31, 16))),
        ("t5-tf-to-hf", noise(t5(1, 12, 20, 8, 2, 31))),
    ):
        with pytest.raises(MapError, match="'bert/encoder/adapter/kernel'"):
            mapped(tmp_path, {**arrays, "bert/encoder/adapter/kernel": np.zeros((2, 2), np.float32)}, recipe)


def test_the_embedding_is_what_is_stored(tmp_path: Path) -> None:
    for recipe, original, embedding in (
        ("bert-tf1-to-hf", bert(1, 12, 31, places=16), "bert.embeddings.word_embeddings.weight"),
        ("gpt2-tf1-to-hf", gpt2(1, 12, 31, 16), "transformer.wte.weight"),
        ("t5-tf-to-hf", t5(1, 12, 20, 8, 2, 31), "shared.weight"),
    ):
        save_file(noise(original), tmp_path / "source.safetensors")
        made, _ = map_checkpoint(open_checkpoint(tmp_path / "source.safetensors"), [recipe])
        save_checkpoint(made, tmp_path / "made.safetensors", force=True)
        stored = load_file(tmp_path / "made.safetensors")
        assert embedding in stored and not stored.keys() & {"lm_head.weight", "cls.predictions.decoder.weight"}
        turned = "-to-".join(reversed(recipe.split("-to-")))
        back, _ = map_checkpoint(open_checkpoint(tmp_path / "made.safetensors"), [turned], strict=True)
        assert same({key: tensor.array() for key, tensor in back.items()}, noise(original))


def test_tensorflow_1_knows_no_objects(tmp_path: Path) -> None:
    save_file(noise(gpt2(1, 12, 31, 16)), tmp_path / "source.safetensors")
    there, _ = map_checkpoint(open_checkpoint(tmp_path / "source.safetensors"), ["gpt2-tf1-to-hf"])
    back, _ = map_checkpoint(there, ["hf-to-gpt2-tf1"])
    save_checkpoint(back, tmp_path / "model.ckpt")
    written = open_checkpoint(tmp_path / "model.ckpt")
    assert same({key: tensor.array() for key, tensor in written.items()}, noise(gpt2(1, 12, 31, 16)))
    assert not written.extras
    index = (tmp_path / "model.ckpt.index").read_bytes()
    assert b"OBJECT_GRAPH" not in index and b".ATTRIBUTES" not in index


RULES = """
schema = "wtool.map/1"
[sides]
a = "torch"
b = "torch"
[[tensor]]
a = "{p*}.x"
b = "{p*}.y"
"""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('[[alias]]\na = "{p*}.z"', "needs one side and 'as'"),
        ('[[alias]]\na = "{p*}.z"\nb = "{p*}.z"\nas = "{p*}.x"', "needs one side and 'as'"),
        ('[[alias]]\na = "z"\nas = "{p*}.x"', "the slot '{p}' is not in 'z'"),
        ('[[alias]]\na = "{p*}.z"\nas = "{p*}.x"\nto = 1', "no entry 'to'"),
        ('[[tensor]]\na = "v"\nb = "v"\nwhen = { c = "w" }', "when names a side 'c'"),
        ('[[tensor]]\na = "v"\nb = "v"\nwhen = { a = "{" }', "a brace that is no slot"),
    ],
)
def test_faults_of_aliases_and_conditions(more: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_recipe(RULES + more, "mine")


def test_an_alias_is_read_and_never_written() -> None:
    recipe = parse_recipe(RULES + '[[alias]]\na = "{p*}.z"\nas = "{p*}.x"', "mine")
    found = resolve(recipe, empty({"m.z": (2,), "n.x": (3,)}))
    assert shapes_of(found) == {"m.y": (2,), "n.y": (3,)}
    assert found.rows[0].sources == ("m.z",)
    assert shapes_of(resolve(recipe.reverse(), empty({"m.y": (2,)}))) == {"m.x": (2,)}
    with pytest.raises(MapError, match="two keys of it have one name"):
        resolve(recipe, empty({"m.z": (2,), "m.x": (2,)}))
