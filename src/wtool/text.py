"""Text from files, made safe to show."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with characters that could drive a terminal or deceive the eye (control, bidirectional, invisible) escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
