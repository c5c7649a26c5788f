"""wtool quantize against `cp` of its input, in turn, as whole processes. Run: make bench-quantize

    --gb 1          size of the input (a Llama shape, scaled by layers)
    --runs 5        counted runs of each, after one warm-up
    --only WORD     rows whose name holds the word
    --keep FOLDER   where the data lies (default benchmarks/data/quantize); made once

The input is in the page cache; `cp` is followed by `sync` of its output, as wtool brings its own to the disk. "written" is
without reading the output back (--no-measure); the other rows also decode it and tell the error of every tensor. Ratios are
medians of pairs. Peak is the largest resident set as the kernel counted it. The peers are measured in the same run if PEERS
names the folder of a virtual environment that has them: llm-compressor 0.14 (model_free_ptq), compressed-tensors
(BaseCompressor, weights of one file, in memory), gguf 0.19 (gguf.quants and GGUFWriter).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from average import make
from convert import WTOOL, measure

PTQ = """
import sys
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import model_free_ptq
source, out, bits = sys.argv[1], sys.argv[2], int(sys.argv[3])
weights = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy="group" if bits == 4 else "channel",
                           group_size=128 if bits == 4 else None, observer="memoryless_minmax")
model_free_ptq(source, out, scheme=QuantizationScheme(targets=["Linear"], weights=weights),
               ignore=["re:.*embed.*", "lm_head"], max_workers=2, device="cpu")
"""
GGUF = """
import sys, gguf, numpy as np
from safetensors import safe_open
writer = gguf.GGUFWriter(sys.argv[2], "llama")
kind = getattr(gguf.GGMLQuantizationType, sys.argv[3])
with safe_open(sys.argv[1], "np") as file:
    for key in file.keys():
        values = file.get_tensor(key)
        if values.ndim == 2 and "embed" not in key and "lm_head" not in key:
            writer.add_tensor(key, gguf.quants.quantize(values.astype(np.float32), kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, values.astype(np.float16))
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
"""


def peers(source: Path, name: str, out: Path) -> dict[str, list[str | Path]]:
    """Command lines of the others."""
    home = os.environ.get("PEERS")
    if not home:
        return {}
    python, found = Path(home) / "bin" / "python", {}
    packages = {path.name for path in Path(home).glob("lib/python3*/site-packages/*")}
    if "llmcompressor" in packages:
        for bits in (4, 8):
            title = f"peer: llm-compressor int{bits}, {name}"
            found[title] = [python, "-c", PTQ, source, out / f"ptq{bits}", str(bits)]
    if "gguf" in packages and name == "f32":
        for kind in ("Q8_0", "Q4_0"):
            found[f"peer: gguf {kind}, {name}"] = [python, "-c", GGUF, source / "model.safetensors", out / "peer.gguf", kind]
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--gb", type=float, default=1.0)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--only", default="")
    options.add_argument("--keep", type=Path, default=Path(__file__).parent / "data" / "quantize")
    options.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.make:
        for name in ("f32", "bf16"):
            make(given.keep, given.gb, name, 1)
        return
    # In a process of its own: a child's peak counts what its parent held when it was forked.
    again = ["--make", "--gb", str(given.gb), "--keep", given.keep]
    subprocess.run([sys.executable, __file__, *again], check=True)
    out = given.keep / "out"
    out.mkdir(exist_ok=True)
    print(f"{'job':36} {'x cp':>9} {'wall s':>8} {'cpu s':>7} {'peak MiB':>9} {'out MB':>8}")

    def row(title: str, command: list[str | Path], source: Path, target: Path, runs: int) -> None:
        if given.only not in title:
            return
        limit: list[str | Path] = ["sh", "-c", 'cp "$0" "$1" && sync "$1"', source, out / "copy"]
        pairs, size = [], 0.0
        for _ in range(runs + 1):
            ours = measure(command, target)
            size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
            pairs.append((ours, measure(limit, out / "copy")))
        pairs = pairs[1:]
        ratio = statistics.median(ours[0] / copy[0] for ours, copy in pairs)
        wall, cpu, peak = (statistics.median(ours[place] for ours, _ in pairs) for place in range(3))
        print(f"{title:36} {ratio:9.2f} {wall:8.2f} {cpu:7.2f} {peak:9.1f} {size:8.0f}", flush=True)

    quantize = [*WTOOL, "quantize", "-q", "--force"]
    for name in ("f32", "bf16"):
        home = make(given.keep, given.gb, name, 1)[0].parent
        source, folder, file = home / "model.safetensors", out / "folder", out / "o.gguf"
        for scheme in ("int8:rtn", "int4:rtn", "int4:mse", "f8-e4m3", "nvfp4:rtn", "nf4:rtn"):
            command = [*quantize, home, folder, "--scheme", scheme]
            row(f"{scheme}, {name}, written", [*command, "--no-measure"], source, folder, given.runs)
            row(f"{scheme}, {name}", command, source, folder, given.runs)
        for scheme in ("q8_0", "q4_0:rtn", "q4_k:mse"):
            row(
                f"{scheme}, {name}, written",
                [*quantize, home, file, "--scheme", scheme, "--no-measure"],
                source,
                file,
                given.runs,
            )
        row(
            f"--fit, {name}, written",
            [*quantize, home, folder, "--bits", "12", "--rest", "bf16", "--no-measure"],
            source,
            folder,
            2,
        )
        coded = given.keep / f"coded-{name}"
        subprocess.run([*quantize, home, coded, "--scheme", "int4:rtn", "--no-measure"], check=True)
        dense = [*WTOOL, "convert", "-q", "--force", "--dequantize", coded, out / "dense.safetensors"]
        row(f"int4 dequantized, {name}", dense, source, out / "dense.safetensors", given.runs)
        for title, command in peers(home, name, out).items():
            row(title, command, source, out / "none", min(given.runs, 1))


if __name__ == "__main__":
    main()
