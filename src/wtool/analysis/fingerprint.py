"""Whether a checkpoint is the one that was meant, at the cost of its header and a little more."""

from __future__ import annotations

from hashlib import blake2b

from wtool.checkpoint import Checkpoint

_BYTES = 4096  # of each tensor that is looked into
_TENSORS = 1000  # that are looked into, evenly spread over the keys


def fingerprint(checkpoint: Checkpoint) -> str:
    """32 hex digits over all keys, dtypes and shapes and the first 4 KiB of each tensor (of 1,000 of them, if there are more).

    The same for the same weights in any format, order and sharding. Two states of one training differ in it; a change that
    spares the beginning of every tensor does not show: `analysis.digest` sees everything, and reads everything.
    """
    state = blake2b(digest_size=16)
    keys = sorted(checkpoint)
    state.update("".join(f"{k} {checkpoint[k].dtype} {checkpoint[k].shape}\n" for k in keys).encode("utf-8", "surrogatepass"))
    step = -(-len(keys) // _TENSORS) or 1
    for key in keys[::step]:
        tensor = checkpoint[key]
        item = tensor.dtype.itemsize
        count = min(tensor.elements, _BYTES // item) if item else min(tensor.nbytes, _BYTES)
        if count:
            state.update(tensor.flat(0, count).view("u1").data)
    return state.hexdigest()
