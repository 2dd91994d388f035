"""The jobs' folder on the path, as `stageflow run` puts it, and the corpus and indexes, made once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

JOBS = Path(__file__).resolve().parents[2] / "jobs"
sys.path.insert(0, str(JOBS))

from ragkit.engines import ENGINES  # noqa: E402 - the path comes first
from ragkit.index import Index, open_index  # noqa: E402


@pytest.fixture(scope="session")
def jobs() -> Path:
    return JOBS


@pytest.fixture(scope="session", params=sorted(ENGINES))
def index(request: pytest.FixtureRequest) -> Index:
    """Each installed retriever over the whole corpus."""
    return open_index(request.param)


@pytest.fixture(scope="session")
def default_index() -> Index:
    return open_index()


@pytest.fixture(scope="session")
def questions() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (JOBS / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
