"""A bit of the ledger changes between two runs: the next refuses, or ends with exact files. Never silently wrong."""

from __future__ import annotations

import pytest
from bit_flips import count_flips


def test_row_28_a_flipped_bit_is_refused_or_harmless() -> None:
    results = count_flips(150, 0)
    print(dict(results))
    assert results["refused"] > 75
    assert results["exact"] > 0  # behind the last marker it is a torn tail


@pytest.mark.slow  # 1,500 flips: 15 seconds
def test_row_28_1500_flipped_bits_are_refused_or_harmless() -> None:
    results = count_flips(1500, 10_000)
    print(dict(results))
    assert results["refused"] > 750
