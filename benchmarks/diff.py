"""wtool diff against `cmp` of the same bytes, in turn, as whole processes. Run: make bench

    --runs 5        counted runs of each, after one warm-up
    --only WORD     rows whose name holds the word
    --keep FOLDER   where the data lies (default benchmarks/data); made once, by convert.py

Both sides read files that the page cache holds. Ratios are medians of pairs. A peer is measured in the same run where it is
installed: PEERS=/folder/of/its/environment/bin names another place for `sft` (sft-cli) and for a python with diffai.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

WTOOL = [sys.executable, "-m", "wtool"]
NUMPY = """
import sys, json, numpy as np
def tensors(path):
    raw = np.memmap(path, np.uint8, "r")
    size = int(raw[:8].view("<u8")[0])
    head = json.loads(raw[8 : 8 + size].tobytes())
    return {k: raw[8 + size + v["data_offsets"][0] : 8 + size + v["data_offsets"][1]]
            for k, v in head.items() if k != "__metadata__"}
a, b = tensors(sys.argv[1]), tensors(sys.argv[2])
for key in a:
    for i in range(0, len(a[key]), 1 << 22):
        x, y = a[key][i : i + (1 << 22)], b[key][i : i + (1 << 22)]
        if not np.array_equal(x, y):
            x, y = x.view("<f4").astype(float), y.view("<f4").astype(float)
            print(key, abs(x - y).max(), ((x - y) ** 2).sum())
"""
DIFFAI = "import sys, diffai; print(len(diffai.diff_paths(sys.argv[1], sys.argv[2])))"


def make(folder: Path) -> None:
    """Neighbours of convert.py's f32.safetensors: a copy, some tensors moved, all moved, and the same in bf16."""
    if (folder / "diff-done").exists():
        return
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(1)
    state = load_file(folder / "f32.safetensors")
    shutil.copy(folder / "f32.safetensors", folder / "copy.safetensors")
    some = {k: v + 1e-4 * 0.02 * torch.randn_like(v) if i % 16 == 0 else v for i, (k, v) in enumerate(state.items())}
    save_file(some, folder / "some.safetensors", {"format": "pt"})
    save_file({k: v + 1e-4 * torch.randn_like(v) for k, v in state.items()}, folder / "all.safetensors", {"format": "pt"})
    (folder / "diff-done").touch()


def measure(command: list[str | Path]) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds, peak MiB) of one process, whatever it answers."""
    began = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(map(str, command))}: {said.decode()}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--only", default="")
    options.add_argument("--keep", type=Path, default=Path(__file__).parent / "data")
    options.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    data = given.keep
    if given.make:
        make(data)
        return
    subprocess.run([sys.executable, Path(__file__).with_name("convert.py"), "--make", "--keep", data], check=True)
    # In a process of its own: a child's peak counts what its parent held when it was forked.
    subprocess.run([sys.executable, __file__, "--make", "--keep", data], check=True)
    diff = [*WTOOL, "diff", "-q"]
    f32 = data / "f32.safetensors"
    rows: list[tuple[str, list[str | Path], Path]] = [
        ("equal", [*diff, f32, data / "copy.safetensors"], data / "copy.safetensors"),
        ("equal, .pth and safetensors", [*diff, data / "f32.pth", f32], data / "copy.safetensors"),
        ("equal, shards and TensorFlow", [*diff, data / "shards", data / "tf.ckpt"], data / "copy.safetensors"),
        ("24 of 388 tensors differ", [*diff, f32, data / "some.safetensors"], data / "copy.safetensors"),
        ("all differ", [*diff, f32, data / "all.safetensors"], data / "copy.safetensors"),
        ("f32 and bf16", [*diff, f32, data / "bf16.safetensors"], data / "copy.safetensors"),
        ("transposed views, equal", [*diff, data / "f32.pth", data / "transposed.pth"], data / "copy.safetensors"),
        ("structure only", [*diff, "--structure", f32, data / "all.safetensors"], data / "copy.safetensors"),
        ("by numpy, mapped (some)", [sys.executable, "-c", NUMPY, f32, data / "some.safetensors"], data / "copy.safetensors"),
    ]
    peers = Path(os.environ.get("PEERS", Path(sys.executable).parent))
    if (peers / "sft").exists():
        command: list[str | Path] = [peers / "sft", "diff", "--delta", f32, data / "some.safetensors"]
        rows.append(("peer: sft diff --delta (some)", command, data / "copy.safetensors"))
    if subprocess.run([peers / "python", "-c", "import diffai"], capture_output=True).returncode == 0:
        command = [peers / "python", "-c", DIFFAI, f32, data / "some.safetensors"]
        rows.append(("peer: diffai.diff_paths (some)", command, data / "copy.safetensors"))
    print(f"{'diff':36} {'x cmp':>10} {'wall s':>8} {'cpu s':>7} {'peak MiB':>9}")
    for name, command, other in rows:
        if given.only not in name:
            continue
        cmp: list[str | Path] = ["cmp", f32, other]
        pairs = [(measure(command), measure(cmp)) for _ in range(given.runs + 1)][1:]
        ratio = statistics.median(ours[0] / theirs[0] for ours, theirs in pairs)
        wall, cpu, peak = (statistics.median(ours[number] for ours, _ in pairs) for number in range(3))
        print(f"{name:36} {ratio:10.2f} {wall:8.2f} {cpu:7.2f} {peak:9.1f}", flush=True)


if __name__ == "__main__":
    main()
