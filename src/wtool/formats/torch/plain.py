"""What is no tensor, as plain values: once for writers (Node keeps order and keys), once to be shown (text keys)."""

from __future__ import annotations

import struct
from typing import Any

from wtool.checkpoint import Node, Opaque
from wtool.formats.pickle_objects import Bag, Inert, Name, Pairs
from wtool.formats.torch.survey import Survey, key_text, pairs
from wtool.formats.torch.values import attributes

_DEEPEST = 100  # levels shown: more than people nest, less than makes json or repr fail
_LARGEST = 500_000  # things shown, each counted as often as it is reached
_FREE = 200_000  # of them, besides one for every 2 bytes of pickle
_SCALARS = frozenset((str, int, float, bool, bytes, complex, type(None)))
_PATHS = frozenset(("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"))
_OPEN = object()


class Plain:
    """Converts parts of a pickle that hold no tensors; a part that is shared is converted once."""

    def __init__(self, survey: Survey, nbytes: int) -> None:
        self.survey = survey
        self.most = min(_LARGEST, _FREE + nbytes // 2)
        self._kept: dict[int, Any] = {}
        self._seen: dict[int, Any] = {}

    def too_much(self, thing: Any) -> Opaque | None:
        measure = self.survey.of(thing)
        if measure.depth > _DEEPEST:
            return Opaque(f"{measure.depth} levels of nested objects")
        if measure.nodes > self.most:
            return Opaque(f"{measure.nodes if measure.nodes < 1 << 60 else 'countless'} objects")
        return None

    def keep(self, thing: Any) -> Any:
        """For `structure`: Node, list, tuple, plain values, Opaque."""
        return self.too_much(thing) or self._keep(thing)

    def show(self, thing: Any) -> Any:
        """For `extras`: dict with text keys, list, plain values, Opaque."""
        return self.too_much(thing) or self._show(thing)

    def _keep(self, thing: Any) -> Any:
        kind = type(thing)
        if kind in _SCALARS:
            return thing
        if kind is bytearray:
            return bytes(thing)
        known = self._kept.get(id(thing))
        if known is not None:
            return Opaque("an object that holds itself") if known is _OPEN else known
        self._kept[id(thing)] = _OPEN
        made: Any
        if kind is Pairs:
            items = tuple([(plain_key(key), self._keep(value)) for key, value in pairs(thing)])
            made = Node(items, thing.ordered, self.attributes(thing))
        elif kind is list:
            made = [self._keep(value) for value in thing]
        elif kind is tuple:
            made = tuple([self._keep(value) for value in thing])
        else:
            made = opaque(thing)
        self._kept[id(thing)] = made
        return made

    def attributes(self, thing: Pairs) -> dict[str, Any]:
        """What torch put on an OrderedDict (`_metadata`)."""
        if not isinstance(thing.state, Pairs):
            return {}
        if self.survey.of(thing.state).nodes == 1:
            # States of dicts are not among what the survey walked.
            self.survey.adopt(Survey(thing.state))
        return {key: self.keep(value) for key, value in pairs(thing.state) if type(key) is str}

    def _show(self, thing: Any) -> Any:
        kind = type(thing)
        if kind in _SCALARS:
            return thing
        if kind is bytearray:
            return bytes(thing)
        known = self._seen.get(id(thing))
        if known is not None:
            return Opaque("an object that holds itself") if known is _OPEN else known
        self._seen[id(thing)] = _OPEN
        made: Any
        if kind is Pairs:
            made = {key_text(key): self._show(value) for key, value in pairs(thing)}
        elif kind is list or kind is tuple:
            made = [self._show(value) for value in thing]
        elif kind is Bag:
            made = [self._show(value) for value in thing.elements]
        elif kind is Inert:
            made = self._object(thing)
        else:
            made = opaque(thing)
        self._seen[id(thing)] = made
        return made

    def _object(self, thing: Inert) -> Any:
        module, _, name = thing.text.rpartition(".")
        if module in ("argparse", "types") and name in ("Namespace", "SimpleNamespace"):
            return {key: self._show(value) for key, value in attributes(thing)}
        if module in ("pathlib", "pathlib._local") and name in _PATHS and all(type(part) is str for part in thing.args):
            return "/".join(thing.args).replace("//", "/")
        if thing.text == "datetime.datetime" and thing.args and type(thing.args[0]) is bytes and len(thing.args[0]) == 10:
            year, month, day, hour, minute, second = struct.unpack(">H5B", thing.args[0][:7])
            return f"{year:04}-{month % 128:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        return opaque(thing)


def plain_key(key: Any) -> Any:
    """A dict's key as it is, if it is a plain value or a short tuple of them; nothing deeper was counted."""
    if type(key) in _SCALARS or (type(key) is tuple and len(key) <= 8 and all(type(part) in _SCALARS for part in key)):
        return key
    return opaque(key)


def opaque(thing: Any) -> Opaque:
    if isinstance(thing, (Name, Inert)):
        return Opaque(thing.text)
    if isinstance(thing, Bag):
        return Opaque("builtins.frozenset" if thing.frozen else "builtins.set")
    return Opaque(type(thing).__name__)
