"""What all tests share."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where uvloop is not installed, skip the cases that ask for it by name, visibly."""
    if importlib.util.find_spec("uvloop") is not None:
        return
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and "uvloop" in callspec.params.values():
            item.add_marker(pytest.mark.skip(reason="uvloop is not installed"))


@pytest.fixture(autouse=True)
def _own_path() -> Iterator[None]:
    """Folders of jobs that a test has loaded are importable for that test only: one may hold a ``json.py``."""
    before = sys.path[:]
    yield
    sys.path[:] = before
