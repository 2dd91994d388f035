"""The result cache of a run: where it is, and that it is one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from typing import Final

from stageflow.cache import ResultCache, check
from stageflow.engine.cached import Cache
from stageflow.fingerprint import cache_digests
from stageflow.options import Options
from stageflow.plan import Plan

__all__ = ["FOLDER", "NAME", "cache_path", "check_cache", "opened_cache"]

FOLDER: Final = ".stageflow"
NAME: Final = "results.sqlite3"


def cache_path(plan: Plan, options: Options) -> str | None:
    """Where results are kept: as the option says, else beside the job file, so that all runs of the job share it.

    Returns:
        ``None`` where no stage has a cache, or the run is to do without.
    """
    if options.cache is False or not any(stage.cache for stage in plan.stages.values()):
        return None
    if options.cache is not None:
        return os.path.abspath(options.cache)
    return os.path.join(os.path.dirname(plan.file or ""), FOLDER, NAME)


def check_cache(plan: Plan, options: Options, warn: Callable[[str], None]) -> None:
    """Refuse a file that can't be a cache before anything is read. Blocks.

    Raises:
        RequestError: It can't be opened, or is something else.
    """
    path = cache_path(plan, options)
    if path is None:
        if options.cache:
            warn(f"no stage has cache=True: nothing is kept in {os.fspath(options.cache)}")
        return
    if options.cache is None:
        _make_folder(os.path.dirname(path))
    check(path)


def _make_folder(path: str) -> None:
    """Make our own folder beside a job; what is in it is not for those who share the job."""
    with contextlib.suppress(OSError):  # the file will say it
        os.mkdir(path, 0o700)
        with open(os.path.join(path, ".gitignore"), "x", encoding="utf-8") as file:
            file.write("*\n")


@contextlib.asynccontextmanager
async def opened_cache(plan: Plan, options: Options, warn: Callable[[str], None]) -> AsyncIterator[Cache | None]:
    """The cache of a run, open; ``None`` where it has none."""
    path = cache_path(plan, options)
    if path is None:
        yield None
        return
    results = ResultCache(path, warn=warn)
    results.open()
    try:
        yield Cache(results, cache_digests(plan))
    finally:
        await results.close()
