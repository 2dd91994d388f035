"""The file of results: what is kept is found, by others too, after a kill, and never at the cost of a run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stageflow.cache import ResultCache, check
from stageflow.errors import RequestError

ROOT = Path(__file__).resolve().parents[1]


def opened(path: Path, warnings: list[str] | None = None) -> ResultCache:
    cache = ResultCache(str(path), warn=(warnings if warnings is not None else []).append)
    cache.open()
    return cache


def test_what_is_kept_is_found_by_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "cache"

    async def first() -> None:
        cache = opened(path)
        assert await cache.find(b"k") is None
        await cache.keep(b"k", "stage", b"value")
        assert await cache.find(b"k") == b"value"
        await cache.close()

    async def second() -> None:
        cache = opened(path)
        assert await cache.find(b"k") == b"value"
        await cache.close()

    asyncio.run(first())
    asyncio.run(second())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_many_at_once_share_a_transaction(tmp_path: Path) -> None:
    async def run() -> None:
        cache = opened(tmp_path / "cache")
        keys = [n.to_bytes(4) for n in range(3000)]
        await asyncio.gather(*(cache.keep(key, "s", key * 2) for key in keys))
        assert await asyncio.gather(*map(cache.find, keys)) == [key * 2 for key in keys]
        await cache.close()

    asyncio.run(run())


def test_whoever_stops_waiting_has_kept_all_the_same(tmp_path: Path) -> None:
    async def run() -> None:
        cache = opened(tmp_path / "cache")
        keeping = asyncio.create_task(cache.keep(b"k", "s", b"v"))
        finding = asyncio.create_task(cache.find(b"other"))
        await asyncio.sleep(0)
        keeping.cancel()
        finding.cancel()
        await asyncio.gather(keeping, finding, return_exceptions=True)
        assert await cache.find(b"k") == b"v"
        await cache.close()

    asyncio.run(run())


def test_two_at_the_same_file(tmp_path: Path) -> None:
    async def run() -> None:
        one, other = opened(tmp_path / "cache"), opened(tmp_path / "cache")
        await asyncio.gather(*(each.keep(bytes([n]), "s", b"v") for n in range(50) for each in (one, other)))
        assert await other.find(b"\7") == b"v"
        await one.close()
        await other.close()

    asyncio.run(run())


KEEPER = """
import asyncio, sys
from stageflow.cache import ResultCache

async def main():
    cache = ResultCache(sys.argv[1], warn=print)
    cache.open()
    for n in range(10_000):
        await cache.keep(str(n).encode(), "s", b"v")
        print(n, flush=True)

asyncio.run(main())
"""


def test_what_was_kept_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    child = subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert child.stdout is not None
    with child:
        told = [int(child.stdout.readline()) for _ in range(200)]
        child.send_signal(signal.SIGKILL)
        told += [int(line) for line in child.stdout.read().splitlines() if line]

    async def run() -> None:
        cache = opened(path)
        found = await asyncio.gather(*(cache.find(str(n).encode()) for n in told))
        assert all(found)
        await cache.close()

    asyncio.run(run())


@pytest.mark.parametrize("content", [b"these are not the bytes of a database" * 100, b"\0" * 5000])
def test_another_file_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cache"
    path.write_bytes(content)
    with pytest.raises(RequestError, match="is no cache of results"):
        check(str(path))
    assert path.read_bytes() == content


def test_the_database_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE mine (x)")
    content = path.read_bytes()
    with pytest.raises(RequestError, match="it is a database of something else"):
        check(str(path))
    assert path.read_bytes() == content


def test_the_file_of_another_version_is_refused(tmp_path: Path) -> None:
    check(str(tmp_path / "cache"))
    with contextlib.closing(sqlite3.connect(tmp_path / "cache")) as database, database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(RequestError, match="another version"):
        check(str(tmp_path / "cache"))


def test_many_may_make_the_file_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        for turn in range(20):
            assert list(threads.map(check, [str(tmp_path / f"cache{turn}")] * 8)) == [None] * 8


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot open the cache"):
        opened(tmp_path / "file" / "cache")


def test_a_python_without_sqlite_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    with pytest.raises(RequestError, match="this Python was built without SQLite"):
        check(str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_file_that_fails_is_told_of_once_and_the_run_goes_on(tmp_path: Path) -> None:
    warnings: list[str] = []

    async def run() -> None:
        cache = opened(tmp_path / "cache", warnings)
        with contextlib.closing(sqlite3.connect(tmp_path / "cache")) as database, database:
            database.execute("DROP TABLE results")
        await asyncio.gather(*(cache.keep(bytes([n]), "s", b"v") for n in range(5)))
        assert await cache.find(b"\1") is None
        await cache.close()

    asyncio.run(run())
    assert len(warnings) == 1
    assert "goes on without it" in warnings[0]
