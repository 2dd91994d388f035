from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from accounts import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """A folder for jobs that are run by ``stageflow run``; what is still running at the end is killed."""
    made = Folder(tmp_path)
    yield made
    made.close()
