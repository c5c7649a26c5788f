"""What layouts share that are only read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wtool.errors import UsageError
from wtool.layout import Scheme, Seen, Wanted
from wtool.tensor import LazyTensor


class Reading:
    """The half of a Layout that writes, saying no."""

    name = ""
    formats: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()

    def settle(self, scheme: Scheme) -> Scheme:
        raise UsageError(f"the layout '{self.name}' is only read", hint="compressed-tensors and plain are written, too")

    def wants(self, scheme: Scheme) -> Wanted | None:
        return None

    def refuses(self, scheme: Scheme, tensor: LazyTensor) -> str | None:
        return "only read"

    def parts(self, tensor: LazyTensor, scheme: Scheme, seen: Seen | None) -> list[LazyTensor]:
        raise NotImplementedError

    def config(self, chosen: Mapping[str, Scheme], kept: Sequence[str]) -> dict[str, Any]:
        return {}

    def metadata(self, chosen: Mapping[str, Scheme]) -> dict[str, str]:
        return {}
