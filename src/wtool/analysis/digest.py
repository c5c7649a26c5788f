"""A fingerprint of weights that does not depend on how they are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

from wtool.analysis.parallel import ask
from wtool.checkpoint import Checkpoint
from wtool.tensor import BLOCK, LazyTensor


@dataclass(frozen=True, slots=True)
class Digests:
    """`tensors`: key -> hex digest, in the order of the checkpoint; `whole`: of all keys and values together."""

    tensors: Mapping[str, str]
    whole: str


def digest(checkpoint: Checkpoint, jobs: int = 1, progress: Callable[[int], None] | None = None) -> Digests:
    """Digests of every tensor and of all: equal for equal weights in any format, order, sharding or storage layout.

    All are BLAKE2b with 32 bytes (RFC 7693), shown in hex. A tensor's is over its head, in ASCII, and its values::

        "bf16 4096,11008\\n"     the dtype's short name, a space, the sizes with commas between (none for a scalar), a newline
        values                  little-endian, in C order, packed; bit for bit, so that -0 is not 0 and NaNs differ

    The key is not in it, so that a renamed tensor can be found. The whole is over all tensors, sorted by key (by code point),
    of each: the length of the key in UTF-8, as 8 bytes little-endian; the key; the 32 bytes of the tensor's digest. Metadata,
    extras and ties do not enter. `progress` is told of bytes that have been read, from any thread.
    """
    found = ask(checkpoint.tensors, lambda tensor: tensor_digest(tensor, progress), jobs)
    whole = blake2b(digest_size=32)
    for key in sorted(found):
        name = key.encode("utf-8", "surrogatepass")
        whole.update(len(name).to_bytes(8, "little") + name + found[key])
    return Digests({key: value.hex() for key, value in found.items()}, whole.hexdigest())


def tensor_digest(tensor: LazyTensor, progress: Callable[[int], None] | None = None) -> bytes:
    """The 32 bytes of one tensor's digest. A span is read without numpy."""
    state = blake2b(f"{tensor.dtype} {','.join(map(str, tensor.shape))}\n".encode("ascii"), digest_size=32)
    span = tensor.span
    if span is None:
        for block in tensor.blocks():
            state.update(block.view("u1").data)
            if progress is not None:
                progress(block.nbytes)
        return state.digest()
    buffer = memoryview(bytearray(min(BLOCK, span.nbytes)))
    for done in range(0, span.nbytes, BLOCK):
        piece = buffer[: min(BLOCK, span.nbytes - done)]
        span.source.readinto(span.offset + done, piece)
        state.update(piece)
        if progress is not None:
            progress(len(piece))
    return state.digest()
