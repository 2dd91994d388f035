"""What all tests share."""

from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Generator

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where uvloop is not installed, skip the cases that ask for it by name, visibly."""
    if importlib.util.find_spec("uvloop") is not None:
        return
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and "uvloop" in callspec.params.values():
            item.add_marker(pytest.mark.skip(reason="uvloop is not installed"))


def pytest_collection_finish() -> None:
    """Keep thousands of tests and the libraries out of all later collections, which take a tenth of a second with them.

    They stay as long as the process does anyway.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """A job that is loaded puts its folder on the path, where a file of the name of a module hides that from others."""
    before = list(sys.path)
    try:
        return (yield)
    finally:
        sys.path[:] = before
