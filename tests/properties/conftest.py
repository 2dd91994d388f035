"""What the tests of a file keep of their runs goes with the last of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _runs_are_forgotten(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hundreds of runs would be looked through by every later collection of garbage."""
    yield
    for each in vars(request.module).values():
        if hasattr(each, "cache_clear"):
            each.cache_clear()
