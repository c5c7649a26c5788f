"""wtool average against `cat` of all inputs and `cp` of one, in turn, as whole processes. Run: make bench-average

    --gb 1          size of each input (a Llama shape, scaled by layers)
    --runs 5        counted runs of each, after one warm-up
    --only WORD     rows whose name holds the word
    --most 8        how many inputs there are at most; each is made
    --keep FOLDER   where the data lies (default benchmarks/data/average); made once

`cat` reads every input into nothing, `cp` writes one, both from the page cache, and `sync` brings it to the disk, as wtool
does. Ratios are medians of pairs; seconds on a shared machine mean little. Peak is the largest resident set as the kernel
counted it. The peers mergekit 0.1.5 (mergekit-yaml, linear) and sd-mecha 1.1.8 (n_average) are measured in the same run if
PEERS names the folder of a virtual environment that has them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from convert import WTOOL, measure

from wtool.api import save_checkpoint
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import dtype
from wtool.tensor import LazyTensor

MECHA = """
import sys, sd_mecha
names, out = sys.argv[2:], sys.argv[1]
recipe = sd_mecha.n_average(*(sd_mecha.model(name) for name in names))
sd_mecha.merge(recipe, output=out, output_dtype=None)
"""
CONFIG = '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": %d, "num_hidden_layers": %d, '
CONFIG += '"num_attention_heads": 16, "intermediate_size": %d, "vocab_size": 32000, "tie_word_embeddings": false}'
WIDE, INNER = 2048, 5504


def make(folder: Path, gb: float, name: str, count: int) -> list[Path]:
    """Inputs of independent normal values, each a folder that mergekit takes, too."""
    row = dtype(name)
    layer = 4 * WIDE * WIDE + 3 * WIDE * INNER + 2 * WIDE
    layers = max(round((gb * 1e9 / row.itemsize - 64000 * WIDE) / layer), 1)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32000, WIDE)}
    for number in range(layers):
        place = f"model.layers.{number}."
        shapes |= {f"{place}self_attn.{part}_proj.weight": (WIDE, WIDE) for part in "qkvo"}
        shapes |= {f"{place}mlp.{part}_proj.weight": (INNER, WIDE) for part in ("gate", "up")}
        shapes[f"{place}mlp.down_proj.weight"] = (WIDE, INNER)
        shapes |= {f"{place}{norm}.weight": (WIDE,) for norm in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {"model.norm.weight": (WIDE,), "lm_head.weight": (32000, WIDE)}
    paths = []
    for number in range(count):
        home = folder / f"{name}-{number}"
        paths.append(home / "model.safetensors")
        if (home / "config.json").exists():
            continue
        home.mkdir(parents=True, exist_ok=True)
        pool = (np.random.default_rng(number).standard_normal(1 << 22) * 0.02).astype(row.numpy())
        tensors = {}
        for key, shape in shapes.items():
            values = np.resize(np.roll(pool, len(tensors) * 1001 + number), shape)
            tensors[key] = LazyTensor.contiguous(key, row, shape, MemoryBytes(values.tobytes()), 0)
        source = Source("made", "torch", "zip", (("made", sum(tensor.nbytes for tensor in tensors.values())),))
        save_checkpoint(Checkpoint(tensors, source), paths[-1], force=True)
        (home / "config.json").write_text(CONFIG % (WIDE, layers, INNER))
    return paths


def peers(paths: list[Path], name: str, out: Path) -> dict[str, list[str | Path]]:
    """Command lines of the others."""
    home = os.environ.get("PEERS")
    if not home:
        return {}
    config = paths[0].parent.parent / f"{name}.yml"
    models = "".join(f"  - model: {path.parent}\n    parameters: {{weight: 1.0}}\n" for path in paths)
    config.write_text(f"merge_method: linear\nmodels:\n{models}dtype: {'float32' if name == 'f32' else 'bfloat16'}\n")
    found: dict[str, list[str | Path]] = {}
    if (Path(home) / "bin" / "mergekit-yaml").exists():
        found["mergekit-yaml linear"] = [Path(home) / "bin" / "mergekit-yaml", config, out / "merged", "--lazy-unpickle"]
    if list(Path(home).glob("lib/python3*/site-packages/sd_mecha")):
        found["sd-mecha n_average"] = [Path(home) / "bin" / "python", "-c", MECHA, out / "m.safetensors", *paths]
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--gb", type=float, default=1.0)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--only", default="")
    options.add_argument("--most", type=int, default=8)
    options.add_argument("--keep", type=Path, default=Path(__file__).parent / "data" / "average")
    options.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    out = given.keep / "out"
    if given.make:
        for name in ("f32", "bf16", "f16"):
            make(given.keep, given.gb, name, given.most if name == "bf16" else 3)
        return
    # In a process of its own: a child's peak counts what its parent held when it was forked.
    again = ["--make", "--gb", str(given.gb), "--most", str(given.most), "--keep", given.keep]
    subprocess.run([sys.executable, __file__, *again], check=True)
    out.mkdir(exist_ok=True)
    print(f"{'job':36} {'x cat+cp':>9} {'wall s':>8} {'cpu s':>7} {'peak MiB':>9}")

    def row(title: str, command: list[str | Path], paths: list[Path], runs: int) -> None:
        if given.only not in title:
            return
        limit: list[str | Path] = ["sh", "-c", 'o="$0"; cat "$@" > /dev/null; cp "$1" "$o" && sync "$o"', out / "copy", *paths]
        pairs = [(measure(command, out / "x"), measure(limit, out / "x")) for _ in range(runs + 1)][1:]
        ratio = statistics.median(ours[0] / copy[0] for ours, copy in pairs)
        wall, cpu, peak = (statistics.median(ours[place] for ours, _ in pairs) for place in range(3))
        print(f"{title:36} {ratio:9.2f} {wall:8.2f} {cpu:7.2f} {peak:9.1f}", flush=True)

    average = [*WTOOL, "average", "-q", "-o", out / "o.safetensors"]
    for name in ("f32", "bf16", "f16"):
        paths = make(given.keep, given.gb, name, 3)
        row(f"mean of 3, {name}", [*average, *paths], paths, given.runs)
        if name == "bf16":
            row("slerp, bf16", [*average, *paths[:2], "--method", "slerp", "--t", "0.5"], paths[:2], given.runs)
            row(
                "model-stock of 2, bf16",
                [*average, *paths[1:], "--method", "model-stock", "--base", paths[0]],
                paths,
                given.runs,
            )
        if name != "f16":
            for title, command in peers(paths, name, out).items():
                row(f"peer: {title}, {name}", command, paths, min(given.runs, 1))
    paths = make(given.keep, given.gb, "bf16", given.most)
    for count in range(2, given.most + 1, 2):
        row(f"mean of {count}, bf16, memory", [*average, *paths[:count]], paths[:count], given.runs)


if __name__ == "__main__":
    main()
