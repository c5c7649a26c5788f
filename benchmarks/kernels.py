"""How fast the casts are, beside numpy's and ml_dtypes' own, on blocks of 1 MiB: `python benchmarks/kernels.py`.

GB/s of input on one core; the best of many runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from wtool.dtypes import dtype
from wtool.kernels.cast import Cast
from wtool.kernels.moments import Moments
from wtool.tensor import BLOCK

CASTS = (
    "f32:bf16 bf16:f32 f32:f16 f16:f32 bf16:f16 f16:bf16 f32:f8_e4m3 f32:f8_e5m2 bf16:f8_e4m3 f16:f8_e5m2 "
    "f8_e4m3:f32 f8_e5m2:bf16 f64:f32 f64:bf16 f32:f64 f32:f8_e4m3fnuz"
)


def rate(work: Callable[[], object], nbytes: int, seconds: float = 0.2) -> float:
    work()
    best, stop = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < stop:
        work()
        best = min(best, time.perf_counter() - start)
    return nbytes / best / 1e9


def main() -> None:
    random = np.random.default_rng(0).standard_normal(BLOCK) * 0.02
    print(f"{'GB/s of input':24}{'wtool':>8}{'astype':>8}")
    with np.errstate(all="ignore"):
        for pair in CASTS.split():
            source, target = map(dtype, pair.split(":"))
            block = random[: BLOCK // source.itemsize].astype(source.numpy())
            out = np.empty(block.size, target.numpy())
            cast = Cast(source, target)
            ours = rate(partial(cast, block, {}), BLOCK)
            theirs = rate(partial(np.copyto, out, block, casting="unsafe"), BLOCK)
            print(f"{pair.replace(':', ' -> '):24}{ours:8.1f}{theirs:8.1f}")
        for name in ("f32", "bf16", "f16", "f64", "i64"):
            block = (random[: BLOCK // dtype(name).itemsize] * 5000).astype(dtype(name).numpy())
            moments = Moments(dtype(name))
            print(f"{'moments of ' + name:24}{rate(partial(moments.add, block), BLOCK):8.1f}")


if __name__ == "__main__":
    main()
