"""A torch CNN in Keras, from files: python examples/torch_cnn_to_keras.py [FOLDER]

Both models are built with random weights; wtool converts the one's file for the other; the outputs are compared. Needs torch,
tensorflow and keras.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

RECIPE = """\
schema = "wtool.map/1"
extends = ["torch-to-keras"]
[sides]
torch = "torch"
keras = "keras"
[[module]]
torch = "head.fc1"
keras = "fc1"
flatten = "16 6 6"
[[module]]
torch = "head.fc2"
keras = "fc2"
[[module]]
torch = "features.{layer:conv1|norm|conv2}"
keras = "{layer}"
"""


def build_torch():
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.ModuleDict(
                {"conv1": nn.Conv2d(3, 8, 3), "norm": nn.BatchNorm2d(8), "conv2": nn.Conv2d(8, 16, 3)},
            )
            self.head = nn.ModuleDict({"fc1": nn.Linear(16 * 6 * 6, 32), "fc2": nn.Linear(32, 10)})

        def forward(self, x):
            x = torch.relu(self.features["norm"](self.features["conv1"](x)))
            x = torch.relu(self.features["conv2"](x)).flatten(1)
            return self.head["fc2"](torch.relu(self.head["fc1"](x)))

    torch.manual_seed(0)
    net = Net()
    net.features["norm"].running_mean.normal_()
    net.features["norm"].running_var.uniform_(0.5, 2)
    return net.eval()


def build_keras():
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((10, 10, 3)),
            layers.Conv2D(8, 3, name="conv1"),
            layers.BatchNormalization(epsilon=1e-5, name="norm"),  # torch's epsilon
            layers.ReLU(),
            layers.Conv2D(16, 3, activation="relu", name="conv2"),
            layers.Flatten(),
            layers.Dense(32, activation="relu", name="fc1"),
            layers.Dense(10, name="fc2"),
        ],
        name="net",
    )


def main(folder: Path) -> float:
    """Convert there and back in `folder`; the largest difference of the outputs."""
    import numpy as np
    import tensorflow as tf
    import torch

    net, model = build_torch(), build_keras()
    torch.save(net.state_dict(), folder / "cnn.pth")
    tf.train.Checkpoint(model).write(str(folder / "fresh.ckpt"))
    (folder / "cnn.toml").write_text(RECIPE)
    wtool = [sys.executable, "-m", "wtool"]
    there = ["--map", "cnn.toml", "--like", "fresh.ckpt"]
    subprocess.run([*wtool, "convert", "cnn.pth", "cnn.ckpt", *there], cwd=folder, check=True)
    tf.train.Checkpoint(model).read(str(folder / "cnn.ckpt")).assert_existing_objects_matched()
    images = np.random.default_rng(0).normal(size=(4, 3, 10, 10)).astype(np.float32)
    with torch.no_grad():
        theirs = net(torch.from_numpy(images)).numpy()
    difference = float(abs(model(images.transpose(0, 2, 3, 1)).numpy() - theirs).max())
    subprocess.run([*wtool, "convert", "cnn.ckpt", "back.pth", "--map", "cnn.toml", "--reverse", "-q"], cwd=folder, check=True)
    subprocess.run([*wtool, "diff", "cnn.pth", "back.pth"], cwd=folder, check=True)
    net.load_state_dict(torch.load(folder / "back.pth", weights_only=True))
    print(f"largest difference of the outputs: {difference:.1e}, of {abs(theirs).max():.1f}")
    return difference


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made))
