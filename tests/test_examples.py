"""The examples run, and show what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
