"""A greedy soup of small torch models: python examples/soup.py [FOLDER]

One network is trained a little, then fine-tuned six times with different learning rates, weight decays and orders of the data.
`wtool average --greedy` finds out which of the six to average; the command that it scores them with is this file again:
`python examples/soup.py eval FILE` prints the accuracy on data that was not trained on. Needs torch; takes seconds on a CPU.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

INPUTS, HIDDEN, CLASSES = 16, 32, 6
# Learning rate, weight decay, seed of the order of the data. The last learns too fast.
TUNINGS = [(0.03, 0.0, 1), (0.03, 1e-3, 2), (0.04, 0.0, 3), (0.04, 1e-3, 4), (0.03, 1e-4, 5), (1.5, 0.0, 6)]


def data(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Points, and the class that a fixed random network gives them; in the training set every fifth class is a wrong one."""
    teacher = np.random.default_rng(0)
    first, second = teacher.normal(size=(INPUTS, 12)), teacher.normal(size=(12, CLASSES))
    rng = np.random.default_rng({"train": 1, "validation": 2, "test": 3}[part])
    points = rng.normal(size=(3000 if part == "train" else 4000, INPUTS)).astype(np.float32)
    classes = (np.tanh(points @ first) @ second).argmax(1)
    if part == "train":
        wrong = rng.random(len(classes)) < 0.2
        classes = np.where(wrong, rng.integers(0, CLASSES, len(classes)), classes)
    return points, classes


def train(folder: Path) -> list[str]:
    """Files of six models that were fine-tuned from one."""
    import torch
    from safetensors.torch import save_file
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    points, classes = map(torch.from_numpy, data("train"))

    def network() -> nn.Sequential:
        return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))

    def fit(net: nn.Sequential, rate: float, decay: float, epochs: int, seed: int) -> nn.Sequential:
        order = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=decay)
        for _ in range(epochs):
            for batch in torch.randperm(len(points), generator=order).split(32):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(points[batch]), classes[batch]).backward()
                optimizer.step()
        return net

    start = fit(network(), 0.03, 0.0, 5, 0).state_dict()
    names = []
    for number, (rate, decay, seed) in enumerate(TUNINGS, 1):
        net = network()
        net.load_state_dict(start)
        names.append(f"tuned-{number}.safetensors")
        save_file(fit(net, rate, decay, 2, seed).state_dict(), folder / names[-1])
    return names


def accuracy(path: Path, part: str) -> float:
    """By numpy alone: wtool runs this once for every model and every soup, and numpy starts ten times as fast as torch."""
    net = load_file(path)
    points, classes = data(part)
    hidden = np.maximum(points @ net["0.weight"].T + net["0.bias"], 0)
    return float(((hidden @ net["2.weight"].T + net["2.bias"]).argmax(1) == classes).mean())


def main(folder: Path) -> None:
    names = train(folder)
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(Path(__file__).resolve()))} eval {{}}"
    wtool = [sys.executable, "-m", "wtool", "average", *names, "-o", "soup.safetensors"]
    subprocess.run([*wtool, "--greedy", "--eval", command, "--maximize", "--field", "accuracy"], cwd=folder, check=True)
    scores = {name: (accuracy(folder / name, "validation"), accuracy(folder / name, "test")) for name in names}
    best = max(names, key=lambda name: scores[name])
    soup = accuracy(folder / "soup.safetensors", "validation"), accuracy(folder / "soup.safetensors", "test")
    print(f"\nbest of the models: {best}, validation {scores[best][0]:.4f}, test {scores[best][1]:.4f}")
    print(f"the greedy soup: validation {soup[0]:.4f}, test {soup[1]:.4f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["eval"]:
        print(json.dumps({"accuracy": accuracy(Path(sys.argv[2]), "validation")}))
    elif len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made))
