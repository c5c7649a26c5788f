"""Every checkpoint in fixtures/ is what was committed, and is read, without its framework, as its framework reads it."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent.parent / "fixtures"
MANIFEST = json.loads((FIXTURES / "MANIFEST.json").read_text())
CASES = sorted(path.parent for path in FIXTURES.glob("*/*/expected.json"))
NEEDS_FRAMEWORK = {"tensorflow/version_1": "tensorflow"}


def name(path: Path) -> str:
    return path.relative_to(FIXTURES).as_posix()


def test_manifest_lists_every_file_with_its_hash() -> None:
    folders = {name(case).split("/")[0] for case in CASES}
    files = (path for folder in folders for path in (FIXTURES / folder).rglob("*") if path.is_file())
    assert {name(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files} == MANIFEST["files"]


def test_fixtures_stay_small() -> None:
    assert sum((FIXTURES / file).stat().st_size for file in MANIFEST["files"]) < 1_500_000


@pytest.mark.parametrize("case", CASES, ids=name)
def test_read_as_the_framework_reads(case: Path) -> None:
    from wtool.api import open_checkpoint

    if name(case) in NEEDS_FRAMEWORK:
        pytest.importorskip(NEEDS_FRAMEWORK[name(case)])
    expected = json.loads((case / "expected.json").read_text())
    before = set(sys.modules)
    checkpoint = open_checkpoint(case / expected["source"], section="all")
    found = {}
    for key, tensor in checkpoint.items():
        digest = hashlib.sha256()
        for block in tensor.blocks():
            digest.update(block.tobytes())
        found[key] = {"dtype": tensor.dtype.name, "shape": list(tensor.shape), "sha256": digest.hexdigest()}
    assert found == expected["tensors"]
    if name(case) not in NEEDS_FRAMEWORK:
        assert not {"torch", "tensorflow"} & (set(sys.modules) - before)


def test_a_prefix_and_its_index_are_the_same_checkpoint() -> None:
    from wtool.api import open_checkpoint

    prefix = FIXTURES / "tensorflow" / "name_based" / "model.ckpt"
    assert list(open_checkpoint(prefix)) == list(open_checkpoint(f"{prefix}.index"))
