"""inspect: the JSON contract, the tree, the guess, and extras of every sort."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import checkpoint_on

from wtool.analysis.inspect import View, inspect
from wtool.analysis.looks import looks_like
from wtool.analysis.plain import Plain, lines
from wtool.analysis.tree import Branch, collapse, parts, tree
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Global, Node, Opaque, Section, TensorRef, Warning
from wtool.dtypes import dtype
from wtool.render import render
from wtool.tensor import TensorSpec

F32 = dtype("f32")


def made(**tensors: tuple[str, tuple[int, ...]]) -> Checkpoint:
    return checkpoint_on(MemoryBytes(b""), tensors)


def gpt2(layers: int = 3) -> dict[str, tuple[str, tuple[int, ...]]]:
    found: dict[str, tuple[str, tuple[int, ...]]] = {"wte.weight": ("f32", (100, 8)), "wpe.weight": ("f32", (16, 8))}
    for layer in range(layers):
        found |= {
            f"h.{layer}.ln_1.weight": ("f32", (8,)),
            f"h.{layer}.attn.c_attn.weight": ("f32", (8, 24)),
            f"h.{layer}.attn.c_attn.bias": ("f32", (24,)),
        }
    return found | {"ln_f.weight": ("f16", (8,)), "steps": ("i64", ())}


def specs(*keys: str) -> list[TensorSpec]:
    return [TensorSpec(key, F32, (2,)) for key in keys]


def names(branches: list[Branch]) -> list[Any]:
    return [(branch.name, names(branch.children)) if branch.children else branch.name for branch in branches]


def test_json_is_the_contract() -> None:
    whole = replace(
        checkpoint_on(MemoryBytes(b""), gpt2(11)),
        metadata={"format": "pt"},
        extras={"epoch": 3},
        globals=(Global("a.B", "unknown"),),
        warnings=(Warning("odd", "is odd"),),
    )
    data = json.loads(render([inspect(whole)], "json"))
    assert list(data)[:3] == ["schema", "path", "format"]
    assert data["schema"] == "wtool.inspect/1"
    assert data["files"] == [{"path": "memory", "bytes": 0}]
    assert data["sections"] == [{"name": "model", "kind": "model", "tensors": 37, "elements": 3401, "bytes": 13592}]
    keys = [tensor["key"] for tensor in data["tensors"]]
    assert keys.index("h.2.ln_1.weight") < keys.index("h.10.ln_1.weight"), "natural order"
    assert data["tensors"][keys.index("wte.weight")] == {
        "key": "wte.weight",
        "section": "model",
        "dtype": "f32",
        "shape": [100, 8],
        "elements": 800,
        "bytes": 3200,
        "tied_to": None,
    }
    assert data["totals"] == {"tensors": 37, "elements": 3401, "bytes": 13592, "parameters": 3400}
    assert data["dtypes"]["i64"] == {"tensors": 1, "bytes": 8}
    assert data["sizes"]["f16"] == 3400 * 2 + 8 and data["sizes"]["int4"] == 3400 // 2 + 8
    assert data["globals"] == [{"name": "a.B", "verdict": "unknown"}]
    assert data["warnings"] == [{"code": "odd", "message": "is odd"}]
    assert data["looks_like"] == "GPT-2, 11 layers"
    assert data["metadata"] == {"format": "pt"} and data["extras"] == {"epoch": 3}


def test_ties_name_the_first_key_in_natural_order() -> None:
    base = made(**{"z.10": ("f32", (4,)), "a": ("f32", (2,))})
    tensor = base["z.10"]
    whole = replace(base, tensors={**base.tensors, "z.9": tensor.renamed("z.9"), "z.11": tensor.renamed("z.11")}, sections=())
    data = inspect(whole).data
    assert data["tied"] == [["z.9", "z.10", "z.11"]]
    assert {row["key"]: row["tied_to"] for row in data["tensors"]} == {"a": None, "z.9": None, "z.10": "z.9", "z.11": "z.9"}
    assert data["totals"]["bytes"] == 56 and data["sizes"]["unique"] == 24
    assert data["totals"]["parameters"] == 6


def test_every_section_is_listed_and_one_is_shown() -> None:
    base = made(**{"state_dict.w": ("f32", (4,)), "optimizer.0.exp_avg": ("f32", (4,)), "optimizer.0.step": ("f32", ())})
    sections = (
        Section("optimizer", "optimizer", ("optimizer.0.exp_avg", "optimizer.0.step"), "optimizer."),
        Section("state_dict", "model", ("state_dict.w",), "state_dict."),
    )
    whole = replace(base, sections=sections)
    data = inspect(whole).data
    assert [section["name"] for section in data["sections"]] == ["optimizer", "state_dict"]
    assert [(row["key"], row["section"]) for row in data["tensors"]] == [("w", "state_dict")]
    data = inspect(whole, whole.section("all")).data
    assert [(row["key"], row["section"]) for row in data["tensors"]] == [
        ("optimizer.0.exp_avg", "optimizer"),
        ("optimizer.0.step", "optimizer"),
        ("state_dict.w", "state_dict"),
    ]


def test_a_dangerous_name_is_the_answer_no() -> None:
    whole = replace(made(w=("f32", (1,))), globals=(Global("posix.system", "dangerous"),))
    report = inspect(whole)
    assert report.exit_code == 1
    assert "danger: " in render([report], "text") and "posix.system" in render([report], "text")
    assert inspect(made(w=("f32", (1,)))).exit_code == 0


def test_people_read_the_tree() -> None:
    text = render([inspect(checkpoint_on(MemoryBytes(b"", "m.pth"), gpt2()))], "text")
    assert text.startswith("m.pth: PyTorch (zip), looks like GPT-2, 3 layers, 1.61 K parameters\n")
    table = text[text.index("  tensor  ", text.index("would be")) :]
    assert table == (
        "  tensor          dtype  shape           size\n"
        "  wte.weight      f32    [100, 8]     3.20 kB\n"
        "  wpe.weight      f32    [16, 8]        512 B\n"
        "  h.{0-2}                9 tensors    2.69 kB\n"
        "  ├─ ln_1.weight  f32    [8]         3 × 32 B\n"
        "  └─ attn.c_attn         6 tensors    2.59 kB\n"
        "     ├─ weight    f32    [8, 24]    3 × 768 B\n"
        "     └─ bias      f32    [24]        3 × 96 B\n"
        "  ln_f.weight     f16    [8]             16 B\n"
        "  steps           i64    []               8 B\n"
    )


def test_flat_sort_and_depth() -> None:
    whole = checkpoint_on(MemoryBytes(b""), gpt2())
    flat = [row.cells[0] for row in inspect(whole, view=View(flat=True)).blocks[1].rows]  # type: ignore[union-attr]
    assert flat == list(whole)
    by_size = inspect(whole, view=View(flat=True, sort="size")).blocks[1].rows  # type: ignore[union-attr]
    assert by_size[0].cells[0] == "wte.weight" and by_size[-1].cells[0] == "steps"  # type: ignore[union-attr]
    by_key = [row.cells[0] for row in inspect(whole, view=View(sort="key")).blocks[1].rows]  # type: ignore[union-attr]
    assert by_key[0] == "h.{0-2}" and by_key[-1] == "wte.weight"
    one = inspect(whole, view=View(depth=1)).blocks[1].rows  # type: ignore[union-attr]
    assert [row.cells[0] for row in one] == ["wte.weight", "wpe.weight", "h.{0-2}", "ln_f.weight", "steps"]  # type: ignore[union-attr]


def test_tensorflow_keys_are_short_for_people_only() -> None:
    key = "model/layer-0/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    report = inspect(made(**{key: ("f32", (2, 2))}))
    assert report.data["tensors"][0]["key"] == key
    assert "ATTRIBUTES" not in render([report], "text")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["a.0.w", "a.1.w", "a.2.w"], [("a.{0-2}", ["w"])]),
        (["a.0.w", "a.1.w", "a.3.w", "a.10.w"], [("a.{0-1,3,10}", ["w"])]),
        (["a.0.w", "a.1.w", "a.1.b"], [("a", ["0.w", ("1", ["w", "b"])])]),
        (["e/layer_0/k", "e/layer_1/k", "e/top"], [("e", [("layer_{0-1}", ["k"]), "top"])]),
        (["l.0.x.0.w", "l.0.x.1.w", "l.1.x.0.w", "l.1.x.1.w"], [("l.{0-1}", [("x.{0-1}", ["w"])])]),
        (["w", "w.a", "w.b"], [("w", ["a", "b"])]),
        (["b.00.w", "b.01.w"], [("b.{00-01}", ["w"])]),
        (["a..b", ".c", "d."], ["a..b", "c", "d."]),
        (["", "x"], ["", "x"]),
        (["block_2_expand.w", "block_1_expand.w"], [("block_{1-2}_expand", ["w"])]),
    ],
)
def test_repeated_layers_are_shown_once(keys: list[str], expected: list[Any]) -> None:
    found = names(tree(specs(*keys)))
    # A group with one row reads as one name.
    assert _flattened(found) == _flattened(expected)


def _flattened(found: list[Any], prefix: str = "") -> list[str]:
    flat = []
    for item in found:
        name, inner = item if isinstance(item, tuple) else (item, [])
        flat += _flattened(inner, prefix + name + ">") if inner else [prefix + name]
    return flat


@pytest.mark.parametrize("other", [("b", F32, (2,)), ("w", dtype("f16"), (2,)), ("w", F32, (3,)), ("w", F32, (2, 1))])
def test_layers_that_differ_stay_apart(other: tuple[str, Any, tuple[int, ...]]) -> None:
    name, kind, shape = other
    found = tree([TensorSpec("l.0.w", F32, (2,)), TensorSpec(f"l.1.{name}", kind, shape)])
    assert "{" not in str(names(found))


def test_a_long_list_of_numbers_is_cut_into_rows() -> None:
    labels = list(collapse([f"l.{number}" for number in range(0, 100, 2)]))
    assert sum(count for _, count in labels) == 50
    assert all(label.count(",") < 12 for label, _ in labels)
    assert labels[0][0] == "l.{0,2,4,6,8,10,12,14,16,18,20,22}"


def test_hostile_keys_are_only_keys() -> None:
    deep = "a." * 50_000 + "w"
    digits = "n" + "9" * 10_000
    found = tree(specs(deep, digits, digits + "0", "." * 3000))
    assert sum(branch.tensors for branch in found) == 4


PART = st.sampled_from(["a", "b", "0", "1", "2", "10", "x1", "x2", ""])


@given(st.lists(st.lists(PART, min_size=1, max_size=4).map(".".join), unique=True, max_size=12))
def test_a_tree_counts_every_tensor_once(keys: list[str]) -> None:
    assert all("".join(parts(key)) == key for key in keys)
    found = tree(specs(*keys))
    assert sum(branch.tensors for branch in found) == len(keys)
    assert sum(branch.nbytes for branch in found) == 8 * len(keys)

    def leaves(branches: list[Branch]) -> int:
        return sum((branch.repeats if branch.spec else 0) + leaves(branch.children) for branch in branches)

    assert leaves(found) == len(keys)


KINDS = [
    (["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.attention.self.query.weight"], "BERT"),
    (["bert/embeddings/word_embeddings", "bert/encoder/layer_0/attention/self/query/kernel"], "BERT"),
    (["transformer.h.0.attn.c_attn.weight", "transformer.h.1.attn.c_attn.weight"], "GPT-2, 2 layers"),
    (["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.gate_proj.weight"], "a LLaMA-like transformer"),
    (["layers.0.attention.wq.weight", "layers.0.feed_forward.w1.weight"], "LLaMA"),
    (["vit.embeddings.patch_embeddings.projection.weight", "vit.encoder.layer.0.attention.attention.query.weight"], "ViT"),
    (["patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight"], "ViT, 2 layers"),
    (
        [
            "conv1.weight",
            *(f"layer{i}.{j}.conv{k}.weight" for i, n in enumerate((2, 2, 2, 2), 1) for j in range(n) for k in (1, 2)),
        ],
        "ResNet-18",
    ),
    (
        [
            "conv1.weight",
            *(f"layer{i}.{j}.conv{k}.weight" for i, n in enumerate((3, 4, 6, 3), 1) for j in range(n) for k in (1, 2, 3)),
        ],
        "ResNet-50",
    ),
    (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x"], "a Stable Diffusion checkpoint"),
    (["down_blocks.0.attentions.0.x", "up_blocks.1.resnets.0.x"], "a Stable Diffusion UNet"),
    (["base.layers.0.q_proj.lora_A.weight", "base.layers.0.q_proj.lora_B.weight"], "a LoRA adapter"),
    (["model.encoder.conv1.weight", "model.decoder.layers.0.encoder_attn.q_proj.weight"], "Whisper"),
    (["encoder.block.0.layer.0.SelfAttention.q.weight"], "T5"),
    (["text_model.encoder.layers.0.x", "vision_model.encoder.layers.0.x"], "CLIP"),
    (["features.1.conv.0.0.weight", "classifier.1.weight"], "MobileNet"),
    (["w", "b"], None),
    ([], None),
]


@pytest.mark.parametrize(("keys", "expected"), KINDS, ids=[str(expected) for _, expected in KINDS])
def test_what_it_looks_like(keys: list[str], expected: str | None) -> None:
    assert looks_like(keys) == expected


def test_extras_become_json() -> None:
    plain = Plain()
    value = {
        "epoch": 3,
        "nan": math.nan,
        "config": Opaque("my.Config"),
        "where": TensorRef("w"),
        "node": Node(((1, "a"), ("b", (1, 2)))),
        "raw": b"\x00" * 500,
        "huge": 1 << 100_000,
        "complex": 1 + 2j,
        "set": {1},
        ("a", 1): True,
    }
    found = plain(value)
    assert found["config"] == {"class": "my.Config"}
    assert found["where"] == {"tensor": "w"}
    assert found["node"] == {"1": "a", "b": [1, 2]}
    assert found["raw"] == {"bytes": 500, "head": "00" * 40}
    assert found["huge"] == "an integer of 100001 bits"
    assert found["complex"] == [1.0, 2.0] and found["set"] == [1]
    assert found["['a', 1]"] is True
    assert not plain.cut
    json.dumps(found)
    assert ("raw", "<500 bytes>") in list(lines(found)) and ("node.b", "[1, 2]") in list(lines(found))


def test_extras_that_are_too_much_are_cut_and_said() -> None:
    laughs: Any = ["ha"] * 10
    for _ in range(40):
        laughs = [laughs] * 10
    endless: list[Any] = []
    endless.append(endless)
    for value in (laughs, endless, list(range(100_000)), "x" * 100_000, {i: i for i in range(100_000)}):
        whole = replace(made(w=("f32", (1,))), extras={"x": value})
        report = inspect(whole)
        assert [warning["code"] for warning in report.data["warnings"]] == ["extras-cut"]
        assert len(render([report], "json")) < 2_000_000
        assert len(render([report], "text")) < 10_000


def test_more_than_a_screen_is_cut_unless_asked_for() -> None:
    whole = replace(made(w=("f32", (1,))), extras={f"k{i}": i for i in range(100)})
    assert "k99" not in render([inspect(whole)], "text") and "76 more" in render([inspect(whole)], "text")
    assert "k99" in render([inspect(whole, view=View(verbose=True))], "text")
    assert len(inspect(whole).data["extras"]) == 100
