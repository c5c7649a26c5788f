"""What adversarial use of maps and comparisons has found."""

from __future__ import annotations

from wtool.keys import merged


def test_a_merged_key_stays_short() -> None:
    """Every seventh of ten thousand layers made a line of eight thousand characters."""
    assert merged([f"layers.{number}.w" for number in range(0, 9997, 7)]) == "layers.{0,7,14,21,28,35,42,49,56,63,...,9996}.w"
    assert merged([f"a.{number}" for number in range(0, 24, 2)]) == "a.{0,2,4,6,8,10,12,14,16,18,20,22}"
