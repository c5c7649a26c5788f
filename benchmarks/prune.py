"""wtool prune against `cp` of the input, in turn, as whole processes. Run: make bench-prune

    --gb 1          size of the input, a Llama shape
    --runs 3        counted runs of each, after one warm-up; peers run once
    --only WORD     rows whose name holds the word
    --keep FOLDER   where the data lies (default benchmarks/data/prune); made once
    --peers         torch and numpy in the same run: nn.utils.prune.global_unstructured, topk, kthvalue and numpy's partition
                    over the concatenation, each with the loading of the file and the writing of its outcome by
                    safetensors.torch

`cp` reads from the page cache and `sync` brings its copy to the disk, as wtool does. Ratios are medians of pairs; seconds on a
shared machine mean little, CPU seconds more. Peak is the largest resident set as the kernel counted it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from average import make
from convert import WTOOL, measure

PEER = """
import sys
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils import prune
how, source, target = sys.argv[1:]
torch.set_num_threads(2)
tensors = load_file(source)
keys = [key for key, value in tensors.items() if value.dim() > 1 and "embed" not in key]
if how == "global_unstructured":
    modules = {key: torch.nn.Module() for key in keys}
    for key, module in modules.items():
        module.register_parameter("weight", torch.nn.Parameter(tensors[key], requires_grad=False))
    prune.global_unstructured([(module, "weight") for module in modules.values()], prune.L1Unstructured, amount=0.9)
    for key, module in modules.items():
        tensors[key] = module.weight
else:
    flat = torch.cat([tensors[key].reshape(-1).abs() for key in keys])
    count = round(0.9 * flat.numel())
    if how == "kthvalue":
        threshold = flat.kthvalue(count).values
    elif how == "numpy partition":
        import numpy
        whole = flat.float().numpy()
        whole.partition(count - 1)
        threshold = torch.tensor(whole[count - 1])
        del whole
    else:
        threshold = torch.topk(flat, count, largest=False).values[-1]
    del flat
    for key in keys:
        tensors[key] = torch.where(tensors[key].abs() > threshold, tensors[key], 0)
save_file(tensors, target)
"""


STORES = "--store" in subprocess.run([*WTOOL, "prune", "--help"], check=True, capture_output=True, text=True).stdout


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--gb", type=float, default=1.0)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--only", default="")
    options.add_argument("--keep", type=Path, default=Path(__file__).parent / "data" / "prune")
    options.add_argument("--peers", action="store_true")
    options.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    dtypes = ("f32", "bf16")
    if given.make:
        for name in dtypes:
            make(given.keep, given.gb, name, 1)
        return
    # In a process of its own: a child's peak counts what its parent held when it was forked.
    subprocess.run([sys.executable, __file__, "--make", "--gb", str(given.gb), "--keep", given.keep], check=True)
    out = given.keep / "out"
    out.mkdir(exist_ok=True)
    print(f"{'job':40} {'x cp':>7} {'wall s':>8} {'cpu s':>7} {'peak MiB':>9}")

    def row(title: str, command: list[str | Path], path: Path, runs: int, *, warm: bool = True) -> None:
        if given.only not in title:
            return
        copy: list[str | Path] = ["sh", "-c", 'cp "$1" "$0" && sync "$0"', out / "copy", path]
        pairs = [(measure(command, out / "x"), measure(copy, out / "x")) for _ in range(runs + warm)][int(warm) :]
        ratio = statistics.median(ours[0] / theirs[0] for ours, theirs in pairs)
        wall, cpu, peak = (statistics.median(ours[place] for ours, _ in pairs) for place in range(3))
        print(f"{title:40} {ratio:7.2f} {wall:8.2f} {cpu:7.2f} {peak:9.1f}", flush=True)

    target = out / "o.safetensors"
    for name in dtypes:
        path = given.keep / f"{name}-0" / "model.safetensors"
        prune: list[str | Path] = [*WTOOL, "prune", "-q", "--force", "--sparsity", "0.9", path, target]
        made = given.keep / f"{name}.mask.safetensors"
        subprocess.run([*map(str, prune), "--mask-out", str(made)], check=True)
        row(f"{name} convert", [*WTOOL, "convert", "-q", "--force", path, target], path, given.runs)
        row(f"{name} global magnitude", prune, path, given.runs)
        row(f"{name} global magnitude --mask-out", [*prune, "--mask-out", out / "mask.safetensors"], path, given.runs)
        row(f"{name} layer magnitude", [*prune, "--scope", "layer"], path, given.runs)
        row(f"{name} tensor magnitude", [*prune, "--scope", "tensor"], path, given.runs)
        row(f"{name} global random", [*prune, "--method", "random"], path, given.runs)
        bare: list[str | Path] = [*WTOOL, "prune", "-q", "--force", path, target]
        row(f"{name} 2:4", [*bare, "--pattern", "2:4"], path, given.runs)
        row(f"{name} 4:8", [*bare, "--pattern", "4:8"], path, given.runs)
        for structure in ("row", "column", "block:16x16"):
            row(f"{name} {structure}", [*prune, "--structure", structure], path, given.runs)
        if STORES:
            row(f"{name} global magnitude --store bitmask", [*prune, "--store", "bitmask"], path, given.runs)
        again: list[str | Path] = [*prune, "--mask", made, "--of-remaining"]
        row(f"{name} global magnitude --mask", again, path, given.runs)
        row(f"{name} apply-mask", [*WTOOL, "apply-mask", "-q", "--force", path, made, target], path, given.runs)
        for peer in ("global_unstructured", "topk", "kthvalue", "numpy partition") if given.peers else ():
            row(f"{name} peer: {peer}", [sys.executable, "-c", PEER, peer, path, target], path, 1, warm=False)


if __name__ == "__main__":
    main()
