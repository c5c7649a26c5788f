"""wtool against `cp` and `sync` of the same bytes, in turn, as whole processes. Run: make bench

    --gb 1.4        size of the f32 checkpoint that is made (a GPT-2-medium shape, 388 tensors, scaled by layers)
    --runs 5        counted runs of each, after one warm-up
    --only WORD     rows whose name holds the word
    --keep FOLDER   where the data lies (default benchmarks/data); made once

Both sides end with their bytes on the disk. Ratios are medians of pairs; seconds on a shared machine mean little. Peak is the
largest resident set of the process as the kernel counted it. Peers are measured in the same run when they are installed.
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
PEER = """
import sys, torch
from safetensors.torch import save_file
save_file({k: v.contiguous() for k, v in torch.load(sys.argv[1], mmap=True, weights_only=True).items()}, sys.argv[2])
"""
LIST = """
import sys, torch
for key, value in torch.load(sys.argv[1], mmap=True, weights_only=True).items(): print(key, value.dtype, tuple(value.shape))
"""
# Every matrix transposed; and nothing but other names.
TURNED = """
schema = "wtool.map/1"
[sides]
torch = "torch"
keras = "keras"
[[tensor]]
torch = "{name:wte|wpe}.weight"
keras = "{name:wte|wpe}/kernel"
ops = ["t"]
[[tensor]]
torch = "h.{i}.{part:attn|mlp}.{name}.weight"
keras = "h/{i}/{part:attn|mlp}/{name}/kernel"
ops = ["t"]
[[tensor]]
torch = "{path*}"
keras = "{path*}"
"""
NAMED = """
schema = "wtool.map/1"
[sides]
torch = "torch"
mlx = "mlx"
[[tensor]]
torch = "{path*}"
mlx = "model.{path*}"
"""


def make(folder: Path, gb: float) -> None:
    """The checkpoints that are converted, by the frameworks and by wtool itself."""
    if (folder / "done").exists():
        return
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    layers, wide = max(round(24 * gb / 1.42), 1), 1024
    torch.manual_seed(0)
    state = {"wte.weight": torch.randn(50257, wide), "wpe.weight": torch.randn(1024, wide)}
    for layer in range(layers):
        name = f"h.{layer}."
        for norm in ("ln_1", "ln_2"):
            state[f"{name}{norm}.weight"], state[f"{name}{norm}.bias"] = torch.randn(wide), torch.randn(wide)
        for part, rows, columns in (("attn.c_attn", 1, 3), ("attn.c_proj", 1, 1), ("mlp.c_fc", 1, 4), ("mlp.c_proj", 4, 1)):
            state[f"{name}{part}.weight"] = torch.randn(rows * wide, columns * wide)
            state[f"{name}{part}.bias"] = torch.randn(columns * wide)
        state |= {f"{name}scale.{number}": torch.randn(4) for number in range(4)}
    state["ln_f.weight"], state["ln_f.bias"] = torch.randn(wide), torch.randn(wide)
    torch.save(state, folder / "f32.pth")
    save_file(state, folder / "f32.safetensors", {"format": "pt"})
    save_file({key: value.bfloat16() for key, value in state.items()}, folder / "bf16.safetensors")
    save_file({key: value.half() for key, value in state.items()}, folder / "f16.safetensors")
    turned = {key: value.t().contiguous().t() if value.ndim == 2 else value for key, value in state.items()}
    torch.save(turned, folder / "transposed.pth")
    wide_ints = {key: value.to(torch.complex64)[..., : max(value.shape[-1] // 2, 1)].clone() for key, value in state.items()}
    torch.save({key: value.t() if value.ndim == 2 else value for key, value in wide_ints.items()}, folder / "complex.pth")
    optimizer = {
        "state": {i: {"exp_avg": v, "exp_avg_sq": v, "step": torch.tensor(1.0)} for i, v in enumerate(state.values())}
    }
    lightning = {"state_dict": state, "epoch": 3, "global_step": 100, "pytorch-lightning_version": "2.5.0"}
    torch.save(lightning | {"optimizer_states": [optimizer | {"param_groups": []}]}, folder / "lightning.ckpt")
    subprocess.run([*WTOOL, "convert", folder / "f32.safetensors", folder / "tf.ckpt", "-q"], check=True)
    subprocess.run(
        [*WTOOL, "convert", folder / "f32.safetensors", folder / "shards", "--max-shard", "300MB", "-q"], check=True
    )
    (folder / "done").touch()


def measure(command: list[str | Path], out: Path) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds, peak MiB) of one process whose output did not exist before."""
    for old in out.parent.glob("*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    os.sync()
    began = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {said.decode()}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def cp(source: Path, out: Path) -> list[str | Path]:
    return ["sh", "-c", 'cp -r "$0" "$1" && sync "$1"', source, out]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--gb", type=float, default=1.42)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--only", default="")
    options.add_argument("--keep", type=Path, default=Path(__file__).parent / "data")
    options.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    data, out = given.keep, given.keep / "out"
    if given.make:
        make(data, given.gb)
        return
    # In a process of its own: a child's peak counts what its parent held when it was forked.
    subprocess.run([sys.executable, __file__, "--make", "--gb", str(given.gb), "--keep", data], check=True)
    out.mkdir(exist_ok=True)
    (data / "turned.toml").write_text(TURNED)
    (data / "named.toml").write_text(NAMED)
    convert = [*WTOOL, "convert", "-q"]
    tf = data / "tf.ckpt.data-00000-of-00001"
    rows: list[tuple[str, list[str | Path], Path]] = [
        ("safetensors -> safetensors", [*convert, data / "f32.safetensors", out / "o.safetensors"], data / "f32.safetensors"),
        ("pth -> safetensors", [*convert, data / "f32.pth", out / "o.safetensors"], data / "f32.pth"),
        ("safetensors -> pth", [*convert, data / "f32.safetensors", out / "o.pth"], data / "f32.safetensors"),
        ("tensorflow -> safetensors", [*convert, data / "tf.ckpt", out / "o.safetensors"], tf),
        ("safetensors -> tensorflow", [*convert, data / "f32.safetensors", out / "o.ckpt"], data / "f32.safetensors"),
        ("pth -> shards", [*convert, data / "f32.pth", out / "o", "--max-shard", "300MB"], data / "f32.pth"),
        ("shards -> pth", [*convert, data / "shards", out / "o.pth"], data / "f32.pth"),
        ("lightning -> safetensors (a third)", [*convert, data / "lightning.ckpt", out / "o.safetensors"], data / "f32.pth"),
        (
            "f32 -> bf16",
            [*convert, data / "f32.safetensors", out / "o.safetensors", "--dtype", "bf16"],
            data / "f32.safetensors",
        ),
        (
            "f32 -> f16",
            [*convert, data / "f32.safetensors", out / "o.safetensors", "--dtype", "f16"],
            data / "f32.safetensors",
        ),
        ("f32 -> f8_e4m3", [*convert, data / "f32.pth", out / "o.safetensors", "--dtype", "f8_e4m3"], data / "f32.pth"),
        (
            "bf16 -> f32",
            [*convert, data / "bf16.safetensors", out / "o.safetensors", "--dtype", "f32"],
            data / "f32.safetensors",
        ),
        (
            "f16 -> f32",
            [*convert, data / "f16.safetensors", out / "o.safetensors", "--dtype", "f32"],
            data / "f32.safetensors",
        ),
        ("transposed pth -> safetensors", [*convert, data / "transposed.pth", out / "o.safetensors"], data / "transposed.pth"),
        (
            "map, every matrix transposed",
            [*convert, data / "f32.safetensors", out / "o.safetensors", "--map", data / "turned.toml"],
            data / "f32.safetensors",
        ),
        (
            "map, every matrix transposed, to TensorFlow",
            [*convert, data / "f32.safetensors", out / "o.ckpt", "--map", data / "turned.toml"],
            data / "f32.safetensors",
        ),
        (
            "map, other names",
            [*convert, data / "f32.safetensors", out / "o.safetensors", "--map", data / "named.toml"],
            data / "f32.safetensors",
        ),
        ("transposed c64 pth -> safetensors", [*convert, data / "complex.pth", out / "o.safetensors"], data / "complex.pth"),
        (
            "peer: torch.load(mmap) + save_file",
            [sys.executable, "-c", PEER, data / "f32.pth", out / "o.safetensors"],
            data / "f32.pth",
        ),
    ]
    print(f"{'job':36} {'x cp+sync':>10} {'wall s':>8} {'cpu s':>7} {'peak MiB':>9}")
    for name, command, source in rows:
        if given.only in name:
            pairs = [
                (measure(command, out / "x"), measure(cp(source, out / "copy"), out / "x")) for _ in range(given.runs + 1)
            ][1:]
            ratio = statistics.median(ours[0] / copy[0] for ours, copy in pairs)
            wall, cpu, peak = (statistics.median(ours[number] for ours, _ in pairs) for number in range(3))
            print(f"{name:36} {ratio:10.2f} {wall:8.2f} {cpu:7.2f} {peak:9.1f}", flush=True)
    print(f"\n{'inspect':36} {'':>10} {'wall s':>8} {'cpu s':>7} {'peak MiB':>9}")
    for path in (data / "f32.pth", data / "lightning.ckpt", data / "f32.safetensors", data / "tf.ckpt", data / "shards"):
        if "inspect".startswith(given.only) or given.only in path.name:
            runs = [measure([*WTOOL, "inspect", path], out / "x") for _ in range(given.runs + 1)][1:]
            print(
                f"{path.name:36} {'':>10} "
                + "{:8.3f} {:7.3f} {:9.1f}".format(*map(statistics.median, zip(*runs, strict=True)))
            )
    if "inspect".startswith(given.only):
        runs = [measure([sys.executable, "-c", LIST, data / "f32.pth"], out / "x") for _ in range(given.runs + 1)][1:]
        print(
            f"{'peer: torch.load(mmap), f32.pth':36} {'':>10} "
            + "{:8.3f} {:7.3f} {:9.1f}".format(*map(statistics.median, zip(*runs, strict=True)))
        )


if __name__ == "__main__":
    main()
