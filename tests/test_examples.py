"""The examples run, and show what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from wtool.api import open_checkpoint

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.frameworks
def test_a_torch_cnn_in_keras(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(EXAMPLES.parent / "src")}
    command = [sys.executable, EXAMPLES / "torch_cnn_to_keras.py", tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    difference, scale = map(float, re.findall(r"outputs: (\S+), of (\S+)", done.stdout)[0])
    assert difference < 1e-5 * scale


@pytest.mark.frameworks
def test_a_winning_ticket(tmp_path: Path) -> None:
    """Three rounds of ten: what is left is better than the dense network, and than as many weights drawn at random."""
    pytest.importorskip("torch")
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, EXAMPLES / "lottery.py", tmp_path, "3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [[float(number) for number in re.findall(r"([0-9.]+)%", line)] for line in done.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == [100.0, 66.7, 44.4, 29.6]
    dense, (_, won, drawn) = rows[0][1], rows[-1]
    assert won > dense + 2 and won > drawn + 2
    masks = [open_checkpoint(tmp_path / f"mask-{number}.safetensors") for number in (1, 2, 3)]
    for earlier, later in pairwise(masks):  # rounds never revive a weight
        assert all(not (tensor.array() & ~earlier[key].array()).any() for key, tensor in later.items())
