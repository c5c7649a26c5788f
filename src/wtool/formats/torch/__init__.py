"""PyTorch's files: the zip of today, the stream and the tar of before, TorchScript archives, whole modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from wtool.adapter import Capabilities, Judged, Match, Probe, SaveRequest, TensorSink
from wtool.dtypes import BY_TORCH

if TYPE_CHECKING:
    from wtool.checkpoint import Checkpoint


class _Torch:
    name = "torch"
    suffixes = (".pth", ".pt", ".bin", ".ckpt")
    capabilities = Capabilities(
        read=True,
        write=True,
        dtypes=frozenset(row.name for row in BY_TORCH.values()),
        ties=True,
        extras=True,
        sharded=True,
        sparse=True,
    )

    def sniff(self, probe: Probe) -> Match | None:
        from wtool.formats.torch.sniff import sniff

        return sniff(probe)

    def open(self, probe: Probe) -> Checkpoint:
        from wtool.formats.torch.read import open_torch

        return open_torch(probe)

    def create(self, request: SaveRequest) -> TensorSink:
        from wtool.formats.torch.write import create

        return create(request)

    def judge(self, path: str) -> Iterator[Judged]:
        from wtool.formats.torch.judge import judge

        return judge(path)


ADAPTER = _Torch()
