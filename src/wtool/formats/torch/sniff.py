"""Whether a file is one of torch's, from its two ends."""

from __future__ import annotations

import re

from wtool.adapter import Match, Probe

# The magic number 0x1950a86a20f9469cfc6c as pickles of protocol 0, 1 and 2 and later write it.
_MAGIC = re.compile(
    rb"(\x80[\x02-\x05](\x95.{8})?)?"
    rb"(\x8a\n\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19|L119547037146038801333356L?\n)\.",
    re.S,
)
_NOT_TORCH = re.compile(
    rb"\.npy|config\.json|model\.weights\.h5|\[Content_Types\]\.xml|META-INF/|AndroidManifest|word/|xl/workbook|\.npz|\.class"
)
_TORCH = re.compile(rb"(^|/|[^\w.])(data\.pkl|constants\.pkl|\.data/serialization_id|\.format_version|byteorder)", re.M)


def sniff(probe: Probe) -> Match | None:
    if probe.kind != "file" or probe.source is None:
        return None
    head, tail = probe.head, probe.tail
    if _MAGIC.match(head):
        return Match(100, "legacy")
    if head[257:262] == b"ustar" or _old_tar(head):
        return _sniff_tar(probe)
    if head.startswith((b"PK\3\4", b"PK\5\6")) or b"PK\5\6" in tail[-1024:]:
        return _sniff_zip(head, tail)
    return None


def _sniff_zip(head: bytes, tail: bytes) -> Match | None:
    both = head + b"\n" + tail
    variant = "torchscript" if b"constants.pkl" in both else "zip"
    if b"data.pkl" in both:
        return Match(100, variant)
    if b".data/serialization_id" in tail or b".format_version" in both:
        return Match(95, variant)
    # In a large archive the directory's end shows storages only.
    if re.search(rb"PK\x01\x02[\s\S]{42}[^\0/]{0,200}/?data/\d+(PK\x01\x02|PK\x06\x06|PK\x05\x06|/|[^\w/])", tail):
        return Match(80, variant)
    if _NOT_TORCH.search(both):
        return None
    return None if not head.startswith(b"PK\3\4") else Match(10, "zip")


def _old_tar(head: bytes) -> bool:
    """A tar from before POSIX has no signature: a name, and a sum that is right."""
    block = head[:512]
    if len(block) < 512 or not re.match(rb"(\./)?(sys_info|storages|tensors|pickle)\0", block):
        return False
    try:
        return int(block[148:156].strip(b"\0 ") or b"0", 8) == sum(block) - sum(block[148:156]) + 256
    except ValueError:
        return False


def _sniff_tar(probe: Probe) -> Match | None:
    assert probe.source is not None
    head = probe.head
    if re.search(rb"(^|\0|/)(sys_info|storages|tensors)\0", head) or re.match(
        rb"(\./)?(sys_info|storages|tensors|pickle)\0", head
    ):
        return Match(100, "tar")
    return None
