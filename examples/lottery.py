"""A lottery ticket in torch: python examples/lottery.py [FOLDER [ROUNDS]]

Iterative magnitude pruning with rewinding (Frankle and Carbin, The Lottery Ticket Hypothesis, 2019). A network is trained; of
the weights that are left `wtool prune` takes the smallest third away and gives the others their initial values back, and what
it wrote, the ticket, is trained again, round after round. Beside every ticket stands one of the same sparsity, drawn at random
from the same initial values. Needs torch; takes half a minute on one core.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

INPUTS, TELLING, HIDDEN, CLASSES = 40, 8, (100, 50), 5
POINTS = {"train": 8000, "test": 4000}
EPOCHS, BATCH, RATE = 8, 80, 0.1
SHARE = 1 / 3  # of the weights that are left, in every round


def data(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Points, and the class that a fixed random network gives them. It looks at a few of the inputs; the rest is noise."""
    teacher = torch.Generator().manual_seed(0)
    first, second = torch.randn(TELLING, 16, generator=teacher), torch.randn(16, CLASSES, generator=teacher)
    points = torch.randn(POINTS[part], INPUTS, generator=torch.Generator().manual_seed(POINTS[part]))
    return points, (torch.tanh(points[:, :TELLING] @ first) @ second).argmax(1)


def network() -> nn.Sequential:
    one, two = HIDDEN
    layers = [nn.Linear(INPUTS, one), nn.ReLU(), nn.Linear(one, two), nn.ReLU(), nn.Linear(two, CLASSES)]
    return nn.Sequential(*layers)


def train(start: Path, end: Path) -> float:
    """Train what is in a file, its zeros kept zero, into another; the accuracy on points that were not trained on."""
    net = network()
    net.load_state_dict(torch.load(start, weights_only=True))
    masks = {one: one != 0 for one in net.parameters() if one.dim() > 1}
    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    (points, classes), order = data("train"), torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(points), generator=order).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(points[batch]), classes[batch]).backward()
            optimizer.step()
            with torch.no_grad():
                for weight, mask in masks.items():
                    weight *= mask
        schedule.step()
    torch.save(net.state_dict(), end)
    points, classes = data("test")
    with torch.no_grad():
        return float((net(points).argmax(1) == classes).float().mean())


def prune(folder: Path, *argv: object) -> float:
    """Run `wtool prune`; the sparsity it reports."""
    command = [sys.executable, "-m", "wtool", "prune", *map(str, argv), "--force", "--json"]
    return float(json.loads(subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE).stdout)["sparsity"])


def main(folder: Path, rounds: int = 10) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.save(network().state_dict(), folder / "init.pth")
    dense = train(folder / "init.pth", folder / "trained-0.pth")
    print(f"{'weights left':>12}  {'winning ticket':>14}  {'random ticket':>13}")
    print(f"{1:>12.1%}  {dense:>14.1%}  {'':>13}  the dense network", flush=True)
    for number in range(1, rounds + 1):
        ticket = ["--sparsity", SHARE, "--rewind", "init.pth", "--mask-out", f"mask-{number}.safetensors"]
        if number > 1:
            ticket += ["--mask", f"mask-{number - 1}.safetensors", "--of-remaining"]
        sparsity = prune(folder, f"trained-{number - 1}.pth", f"ticket-{number}.pth", *ticket)
        prune(folder, "init.pth", f"random-{number}.pth", "--sparsity", sparsity, "--method", "random", "--seed", number)
        won = train(folder / f"ticket-{number}.pth", folder / f"trained-{number}.pth")
        drawn = train(folder / f"random-{number}.pth", folder / f"drawn-{number}.pth")
        print(f"{1 - sparsity:>12.1%}  {won:>14.1%}  {drawn:>13.1%}", flush=True)


if __name__ == "__main__":
    turns = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]), turns)
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made), turns)
