"""What the tests on a real Ray share: one cluster, since there can be but one on a machine at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import Machines, Workbench, machines


@pytest.fixture(scope="session")
def cluster() -> Iterator[Machines]:
    """A head, and two machines that have room for one replica each."""
    # A short path: the names of sockets below it must not be long.
    with (
        tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder,
        machines(Path(folder), 2, 1) as found,
    ):
        yield found


@pytest.fixture
def bench(cluster: Machines, tmp_path: Path) -> Iterator[Workbench]:
    bench = Workbench(tmp_path, cluster)
    yield bench
    bench.close()
