"""The public API as a typed program uses it. It is never run: type checkers read it, and must find nothing wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_type

import stageflow.testing
from stageflow import (
    DefinitionError,
    ItemError,
    Params,
    Pipeline,
    RunFailed,
    RunReport,
    RunStopped,
    SettingError,
    StageflowError,
    StageReport,
    StorageError,
    degrade,
)

pipeline = Pipeline("typed", key="id", params={"model": "local", "top": 5})


# Decorators keep what a function is


@pipeline.resource
async def index(params: Params) -> AsyncIterator[dict[str, str]]:
    assert_type(params["model"], Any)
    assert_type(params.model, Any)
    yield {}


@pipeline.resource(name="files", scope="process")
def open_files() -> Iterator[list[Path]]:
    yield []


@pipeline.stage
async def retrieve(query: str, index: dict[str, str]) -> list[str]:
    return [index[query]]


@pipeline.stage(max_in_flight=4, queue_size=8, on_error=degrade("none"), emit=False, version="2")
def classify(retrieve: list[str]) -> str:
    return retrieve[0]


@pipeline.stage(name="answer", on_error="skip")
async def generate(query: str, classify: str, *, lang: str = "en") -> str:
    return query + classify + lang


async def direct_calls() -> None:
    assert_type(await retrieve("q", {}), list[str])
    assert_type(classify(["a"]), str)
    assert_type(await generate("q", "c", lang="de"), str)
    assert_type(open_files(), Iterator[list[Path]])
    coroutine: Callable[[str, dict[str, str]], Coroutine[Any, Any, list[str]]] = retrieve
    print(coroutine)


# Other ways to say a job


@dataclass
class Context:
    query: str
    hits: list[str] = field(default_factory=list)


async def fill(ctx: Context) -> None:
    ctx.hits = [ctx.query]


def judge(ctx: Context) -> Context:
    return ctx


assert_type(Pipeline.linear(fill, judge, name="linear", context=Context), Pipeline)
built = Pipeline(context=Context)
built.add_stage("fill", fill, max_in_flight=2)
built.add_stage("judge", judge, depends_on=["fill"])
built.add_stage("last", lambda record, results: results, depends_on=("fill", "judge"), run="inline")
built.emit("query", "hits")


# Running it


async def records() -> AsyncIterator[dict[str, int]]:
    yield {"x": 1}


async def asynchronous_sink(record: dict[str, Any]) -> None:
    print(record)


async def runs() -> None:
    assert_type(await pipeline.execute({"query": "q"}, params={"top": 1}), dict[str, Any])
    output: list[dict[str, Any]] = []
    report = await pipeline.run(records(), output, dead=print, limit=3, max_in_flight={"retrieve": 2})
    assert_type(report, RunReport)
    assert_type(report.written, int)
    assert_type(report.stopped, str | None)
    assert_type(report.stages["retrieve"], StageReport)
    assert_type(report.stages["retrieve"].p95, float | None)
    assert_type(report.as_dict(), dict[str, Any])
    await pipeline.run(Path("in.jsonl"), asynchronous_sink)
    async for record in pipeline.stream([{"query": "q"}], max_open_records=4):
        assert_type(record, dict[str, Any])
    piped = pipeline.pipe(max_open_records=4)
    print(piped)


assert_type(pipeline.run_sync("in.jsonl", "out.jsonl", loop="asyncio", fresh=True), RunReport)
assert_type(pipeline.name, str)
assert_type(pipeline.plan().order, tuple[str, ...])
assert_type(stageflow.testing.run_virtual(pipeline.execute({}), seed=1), dict[str, Any])


# Errors


def told(error: StageflowError) -> tuple[str, str | None, int]:
    return error.message, error.hint, error.exit_code


def handled() -> None:
    try:
        pipeline.run_sync([], [])
    except SettingError as refused:
        wrong: DefinitionError = refused
        value: ValueError = refused
        print(wrong, value)
    except (DefinitionError, ItemError, RunStopped, StorageError) as error:
        print(told(error), error.where)
    except RunFailed as bug:
        print(bug.exceptions, bug.exit_code)
