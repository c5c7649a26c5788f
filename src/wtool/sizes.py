"""Numbers of bytes as people write them: `5GB` is 5,000,000,000, as Hugging Face's max_shard_size counts."""

from __future__ import annotations

from math import isfinite

from wtool.errors import UsageError

_UNITS = {
    "": 1, "B": 1,
    "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


def parse_size(text: str) -> int:
    """Bytes, at least 1, of `5GB`, `512 MiB`, `1.5G` or `1000000`; units of 1000 unless they say `i`. Else UsageError."""
    word = text.strip()
    number = word.rstrip("BbKkMmGgTtIi ")
    unit = word[len(number) :].strip().upper()
    try:
        value = float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        value = -1.0
    if not isfinite(value) or value < 1:
        raise UsageError(f"'{text}' is no size", hint="write it as 5GB, 512MB, 1.5GiB or a number of bytes")
    return int(value)


def format_size(nbytes: int) -> str:
    """`1.44 GB`, `512 B`: three figures, units of 1000."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            break
        value /= 1000
    if unit == "B":
        return f"{nbytes} B"
    return (
        f"{value:.2f} {unit}" if abs(value) < 9.995 else f"{value:.1f} {unit}" if abs(value) < 99.95 else f"{value:.0f} {unit}"
    )


def format_count(count: int) -> str:
    """`812`, `25.6 M`, `6.74 B`: three figures, as numbers of parameters are told."""
    if count < 1000:
        return str(count)
    value = float(count)
    for unit in ("K", "M", "B", "T"):  # noqa: B007 - the last one tried is the answer
        value /= 1000
        if value < 999.5:
            break
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
