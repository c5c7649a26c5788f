"""Coverage-guided fuzzing of everything that opens a file.

    pip install atheris
    python fuzz/fuzz_open.py -max_total_time=600 fuzz/corpus     # a folder for what it finds interesting; may be empty

Each input is written to a file (and, for TensorFlow, beside a data file), opened and read to the end. Anything but an answer
or a WtoolError is a crash. Seeds are the fixtures. A crash becomes a case in tests/hostile.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["wtool"]):
    from wtool.api import open_checkpoint
    from wtool.errors import WtoolError
    from wtool.formats import registry  # noqa: F401
    from wtool.formats import pickles, safetensors, zips  # noqa: F401  isort: skip

FIXTURES = Path(__file__).parent.parent / "fixtures"
FOLDER = Path(tempfile.mkdtemp(prefix="wtool-fuzz-"))
(FOLDER / "x.data-00000-of-00001").write_bytes(bytes(4096))


def read(data: bytes) -> None:
    path = FOLDER / "x.index"
    path.write_bytes(data)
    try:
        checkpoint = open_checkpoint(path, section="all")
        if checkpoint.nbytes < 1 << 24:
            for tensor in checkpoint.values():
                for _ in tensor.blocks():
                    pass
    except WtoolError as error:
        assert "\n" not in error.message, error.message


def main() -> None:
    seeds = Path(tempfile.mkdtemp(prefix="wtool-seeds-"))
    for number, path in enumerate(sorted(FIXTURES.glob("*/*/**/*"))):
        if path.is_file() and path.name != "expected.json" and path.stat().st_size < 1 << 16:
            (seeds / str(number)).write_bytes(path.read_bytes())
    atheris.Setup([*sys.argv, str(seeds), "-max_len=65536", "-timeout=20", "-rss_limit_mb=1024"], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
