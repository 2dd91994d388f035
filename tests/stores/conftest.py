"""Both kinds of store: a folder, and a bucket of a real S3 server on this machine, which is started once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3_server import Bucket, serving_s3

from stageflow.stores import Store, store_of


@pytest.fixture(scope="session")
def bucket() -> Iterator[Bucket]:
    pytest.importorskip("obstore")
    pytest.importorskip("moto.server")
    with serving_s3() as served:
        yield served


@pytest.fixture(params=["folder", "bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where nothing is yet."""
    if request.param == "folder":
        return str(tmp_path / "out")
    bucket = request.getfixturevalue("bucket")
    bucket.enter(request.getfixturevalue("monkeypatch"))
    return str(bucket.new_folder())


@pytest.fixture
def again(url: str) -> Callable[[], Store]:
    """The store, as another process has it."""
    return lambda: store_of(url)


@pytest.fixture
def store(again: Callable[[], Store]) -> Store:
    made = again()
    made.check()
    return made
