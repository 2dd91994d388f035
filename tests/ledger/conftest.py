"""A ledger that looks the same each time, byte for byte: so a seed that failed fails again."""

from __future__ import annotations

import gc
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_files import Place

from stageflow.ledger import opening, store


@pytest.fixture(autouse=True)
def _reproducible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (opening, store):
        monkeypatch.setattr(module, "now", lambda: "2026-01-01T00:00:00.000+00:00")
    monkeypatch.setattr(store, "_peak_memory", lambda: 100 << 20)
    monkeypatch.setattr(opening.uuid, "uuid4", lambda: uuid.UUID(int=1))
    monkeypatch.setattr(opening.os, "getpid", lambda: 4242)
    monkeypatch.setattr(opening.socket, "gethostname", lambda: "here")
    monkeypatch.setattr("stageflow.ledger.form.secrets.token_hex", lambda size: "0" * 2 * size)
    monkeypatch.chdir(tmp_path)  # for an input's name that does not depend on the run


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(autouse=True)
def _nothing_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """An error of a thread or a task that nobody took would be logged by the loop."""
    yield
    gc.collect()
    assert not caplog.records
