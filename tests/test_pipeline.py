"""What a job may rely on, from Python: every way to run it, what handlers are given, and what becomes of failures."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stageflow import (
    DefinitionError,
    HandlerFailed,
    Pipeline,
    RecordError,
    RequestError,
    RunFailed,
    RunReport,
    RunStopped,
    SettingError,
    SourceFailed,
    StorageError,
    degrade,
)
from stageflow.events import Event, Warned
from stageflow.loader import load
from stageflow.testing import run_virtual


@dataclass
class Done:
    """A run, its output in the order of the input, its dead letters, and the virtual seconds it took."""

    report: RunReport
    output: list[dict[str, Any]]
    dead: list[dict[str, Any]]
    seconds: float

    @property
    def error(self) -> dict[str, Any]:
        (letter,) = self.dead
        return letter["error"]  # type: ignore[no-any-return]


class Warnings:
    """A listener that keeps what is warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_event(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.said.append(event.message)


def run(pipeline: Pipeline, source: Any, **options: Any) -> Done:
    async def main() -> Done:
        output: list[dict[str, Any]] = []
        dead: list[dict[str, Any]] = []
        report = await pipeline.run(source, output, dead=dead, **options)
        return Done(report, output, dead, asyncio.get_running_loop().time())

    return run_virtual(main())


def one_stage(function: Callable[..., Any], **settings: Any) -> Pipeline:
    pipeline = Pipeline("one")
    pipeline.add_stage("s", function, **settings)
    return pipeline


def numbers(count: int) -> list[dict[str, int]]:
    return [{"x": number} for number in range(count)]


async def same(x: Any) -> Any:
    return x


# The ways to run a job


def doubling(seconds: float = 1.0) -> Pipeline:
    pipeline = Pipeline("doubling")

    @pipeline.stage
    async def double(x: int) -> int:
        await asyncio.sleep(seconds)
        return 2 * x

    @pipeline.stage
    def plus_one(double: int) -> int:
        return double + 1

    return pipeline


def test_execute_gives_the_results_by_stage() -> None:
    results = run_virtual(doubling().execute({"x": 4, "id": "a"}))
    assert results == {"double": 8, "plus_one": 9}
    assert list(results) == ["double", "plus_one"]


def test_execute_raises_what_a_stage_raised() -> None:
    pipeline = one_stage(same)

    @pipeline.stage
    async def fails(s: int) -> None:
        raise LookupError("not there")

    with pytest.raises(LookupError, match="not there") as caught:
        run_virtual(pipeline.execute({"x": 1}))
    assert 'raised in stage "fails" of pipeline "one"' in caught.value.__notes__


def test_execute_applies_on_error_and_params() -> None:
    pipeline = Pipeline(params={"n": 1})

    @pipeline.stage(on_error="skip")
    async def fails(x: int) -> None:
        raise LookupError

    @pipeline.stage
    async def after(fails: None, params: Any) -> list[Any]:
        return [fails, params.n]

    assert run_virtual(pipeline.execute({"x": 1}, params={"n": 5})) == {"fails": None, "after": [None, 5]}


def test_execute_names_a_missing_field() -> None:
    with pytest.raises(RecordError, match='the record has no field "x", which stage "s" requires'):
        run_virtual(one_stage(same).execute({"y": 1}))


def test_execute_takes_any_value() -> None:
    async def handle(record: Any) -> Any:
        return record + 1

    assert run_virtual(one_stage(handle).execute(41)) == {"s": 42}


def test_run_accounts_for_every_record() -> None:
    done = run(doubling(), numbers(3))
    assert done.output == [{"x": n, "double": 2 * n, "plus_one": 2 * n + 1} for n in range(3)]
    assert (done.report.read, done.report.written, done.report.dead, done.report.exit_code) == (3, 3, 0, 0)
    assert done.seconds == 1.0


async def slowly(count: int) -> AsyncIterator[dict[str, int]]:
    for record in numbers(count):
        await asyncio.sleep(1)
        yield record


@pytest.mark.parametrize(
    "source",
    [lambda: numbers(3), lambda: tuple(numbers(3)), lambda: iter(numbers(3)), lambda: slowly(3)],
    ids=["list", "tuple", "iterator", "async iterator"],
)
def test_a_source_is_any_iterable(source: Callable[[], Any]) -> None:
    assert [record["s"] for record in run(one_stage(same), source()).output] == [0, 1, 2]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "auto"])
def test_run_sync_from_path_to_path(loop: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"x": 1}\n{"x": 2}\n')
    report = doubling(0.0).run_sync(source, target, loop=loop)
    assert report.written == 2
    assert [json.loads(line)["plus_one"] for line in target.read_text().splitlines()] == [3, 5]
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl", "out.jsonl.ledger"]


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_sink_may_be_a_function(kind: str) -> None:
    taken: list[Any] = []

    async def take(record: Any) -> None:
        await asyncio.sleep(1)
        taken.append(record)

    async def main() -> RunReport:
        return await one_stage(same).run(numbers(3), taken.append if kind == "plain" else take)

    assert run_virtual(main()).written == 3
    assert taken == [{"x": n, "s": n} for n in range(3)]


def test_a_sink_that_fails_ends_the_run_with_a_storage_error() -> None:
    def refuse(record: Any) -> None:
        raise OSError("full")

    with pytest.raises(StorageError, match="the sink failed on record 0: OSError: full") as caught:
        run_virtual(one_stage(same).run(numbers(3), refuse))
    assert caught.value.exit_code == 5


def test_dead_letters_go_to_a_list_a_function_or_a_path(tmp_path: Path) -> None:
    async def fails(x: int) -> None:
        raise LookupError(str(x))

    letters: list[Any] = []
    one_stage(fails).run_sync(numbers(2), [], dead=letters.append)
    one_stage(fails).run_sync(numbers(2), [], dead=str(tmp_path / "dead.jsonl"))
    written = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_text().splitlines()]
    assert [letter["error"]["message"] for letter in letters] == ["0", "1"]
    assert [letter["error"]["message"] for letter in written] == ["0", "1"]


def as_path(path: Path) -> Any:
    return path


@pytest.mark.parametrize(
    "form",
    [str, as_path],
)
def test_dead_letters_of_a_file_go_beside_it(form: Callable[[Path], Any], tmp_path: Path) -> None:
    def fails(x: int) -> None:
        raise LookupError

    target = form(tmp_path / "out.jsonl")
    assert one_stage(fails).run_sync(numbers(1), target).exit_code == 3
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "out.jsonl.dead.jsonl", "out.jsonl.ledger"]


def test_dead_letters_with_nowhere_to_go_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(x: int) -> None:
        raise LookupError("gone")

    with caplog.at_level(logging.WARNING, logger="stageflow"):
        run_virtual(one_stage(fails).run(numbers(1), []))
    assert [record.getMessage() for record in caplog.records] == ["record 0 failed at s: LookupError: gone"]


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"max_in_fligt": 3}, 'unknown option "max_in_fligt"', 'did you mean "max_in_flight"?'),
        ({"limit": 0}, "limit must be a positive integer, not 0", None),
        ({"max_open_records": -1}, "max_open_records must be a positive integer, not -1", None),
        ({"order": "random"}, 'order must be "input" or "completion", not \'random\'', None),
        ({"max_input_bytes": 0}, "max_input_bytes must be a positive integer, not 0", None),
        ({"disk_full_wait": -1}, "disk_full_wait must be a number of seconds, not -1", None),
        ({"fsync": "often"}, "fsync often: expected interval=SECONDS, group or off", "for instance interval=1s"),
        (
            {"fsync": "interval=0s"},
            "fsync interval=0s: expected interval=SECONDS, group or off",
            "for instance interval=1s",
        ),
        ({"on_bad_input": "skip"}, 'on_bad_input must be "dead" or "stop", not \'skip\'', None),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str, hint: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        run_virtual(one_stage(same).run([], [], **options))
    assert (str(caught.value), caught.value.hint) == (message, hint)


@pytest.mark.parametrize(("source", "sink"), [(5, []), ([], 5)])
def test_what_is_no_source_and_no_sink_is_refused(source: Any, sink: Any) -> None:
    with pytest.raises(RequestError):
        run_virtual(one_stage(same).run(source, sink))


def test_settings_are_options_spelt_as_on_the_command_line() -> None:
    pipeline = doubling()
    options = {"max_in_flight": {"double": 2}, "queue_size": 3, "settings": {"plus_one": {"emit": False}}}
    done = run(pipeline, numbers(6), **options)
    assert done.report.stages["double"].max_in_flight == 2
    assert [stage.queue_size for stage in done.report.stages.values()] == [3, 3]
    assert done.seconds == 3.0
    assert done.output[0] == {"x": 0, "double": 0}
    with pytest.raises(SettingError, match='max_in_flight=: unknown stage "doubl"'):
        run(pipeline, [], max_in_flight={"doubl": 2})


def test_a_limit_takes_no_more_than_it_reads() -> None:
    taken: list[int] = []

    def source() -> Iterator[dict[str, int]]:
        for number in range(100):
            taken.append(number)
            yield {"x": number}

    done = run(one_stage(same), source(), limit=3)
    assert (done.report.read, len(done.output), taken) == (3, 3, [0, 1, 2])


def test_records_come_as_they_finish() -> None:
    async def handle(x: int) -> int:
        await asyncio.sleep(5 - x)
        return x

    assert [record["x"] for record in run(one_stage(handle), numbers(4)).output] == [3, 2, 1, 0]


def test_the_order_of_the_input_can_be_asked_for() -> None:
    async def handle(x: int) -> int:
        await asyncio.sleep(5 - x)
        return x

    assert [record["x"] for record in run(one_stage(handle), numbers(4), order="input").output] == [0, 1, 2, 3]


def test_stages_run_side_by_side_for_one_record() -> None:
    pipeline = Pipeline()

    async def second(record: Any) -> int:
        await asyncio.sleep(1)
        return 1

    for name in ("a", "b", "c"):
        pipeline.add_stage(name, second)
    pipeline.add_stage("join", same_results, depends_on=["a", "b", "c"])
    assert run(pipeline, [{}]).seconds == 1.0


async def same_results(record: Any, results: Mapping[str, Any]) -> dict[str, Any]:
    return dict(results)


# stream() and pipe()


def test_stream_gives_records_as_they_finish() -> None:
    async def handle(x: int) -> int:
        await asyncio.sleep(5 - x)
        return x

    async def main() -> list[tuple[float, int]]:
        loop = asyncio.get_running_loop()
        return [(loop.time(), record["s"]) async for record in one_stage(handle).stream(numbers(3))]

    assert run_virtual(main()) == [(3.0, 2), (4.0, 1), (5.0, 0)]


def test_stream_raises_what_refuses_the_run() -> None:
    async def main() -> None:
        async for _ in one_stage(same).stream([{"y": 1}]):
            pass

    with pytest.raises(RequestError, match='takes "x"'):
        run_virtual(main())


def test_stream_takes_dead_letters_to_where_it_is_told() -> None:
    async def handle(x: int) -> int:
        return 1 // x

    async def main() -> tuple[list[Any], list[Any]]:
        dead: list[Any] = []
        return [record async for record in one_stage(handle).stream(numbers(3), dead=dead)], dead

    records, dead = run_virtual(main())
    assert ([record["x"] for record in records], [letter["index"] for letter in dead]) == ([1, 2], [0])


def test_a_stream_that_is_stopped_says_so() -> None:
    async def handle(x: int) -> int:
        return 1 // x

    async def main() -> None:
        async for _ in one_stage(handle, on_error="abort").stream(numbers(3)):
            pass

    with pytest.raises(RunStopped):
        run_virtual(main())


class Source:
    """Counts what was taken from it."""

    def __init__(self, count: int) -> None:
        self.taken = 0
        self._count = count

    def __iter__(self) -> Iterator[dict[str, int]]:
        for number in range(self._count):
            self.taken += 1
            yield {"x": number}


@pytest.mark.parametrize(
    ("options", "bound"), [({}, 2 + 3), ({"max_open_records": 2}, 2), ({"max_open_records": 9}, 9)]
)
def test_a_slow_consumer_holds_back_the_source(options: dict[str, int], bound: int) -> None:
    source = Source(100)

    async def main() -> list[int]:
        taken = []
        pipeline = one_stage(same, max_in_flight=2, queue_size=3)
        async with aclosing(pipeline.stream(source, **options)) as records:  # type: ignore[type-var]
            async for _ in records:
                await asyncio.sleep(1000)
                taken.append(source.taken)
                break
        return taken

    # Those that are open, and the one in the hand of who reads.
    assert run_virtual(main()) == [bound + 1]


def test_a_slow_sink_holds_back_the_source() -> None:
    source, seen = Source(50), list[int]()

    async def main() -> RunReport:
        async def take(record: Any) -> None:
            seen.append(source.taken)
            await asyncio.sleep(1)

        return await one_stage(same, max_in_flight=2, queue_size=3).run(source, take)

    report = run_virtual(main())
    assert seen[0] <= 6
    # At no moment are more than the five open ones and the one in hand ahead of what was written.
    assert all(taken - written <= 6 for written, taken in enumerate(seen))
    assert max(taken - written for written, taken in enumerate(seen)) == 6
    assert (report.peak_open, report.max_open_records, report.written) == (5, 5, 50)
    assert report.seconds == 50.0


def test_a_slow_stage_holds_back_the_source_through_full_channels() -> None:
    source = Source(100)

    async def slow(first: int) -> int:
        await asyncio.sleep(1)
        return source.taken

    pipeline = Pipeline()
    pipeline.add_stage("first", lambda x: x, run="inline", max_in_flight=1, queue_size=2)
    pipeline.add_stage("slow", slow, max_in_flight=1, queue_size=3)
    done = run(pipeline, source, max_open_records=1000)
    # One is in the slow stage, three wait before it, one is in the hand of the first, two wait before that, and one is
    # in the hand of who reads.
    assert [record["slow"] - record["x"] for record in done.output[:50]] == [8] * 50
    assert done.seconds == 100.0


def test_open_records_are_bounded_whatever_the_stages_hold() -> None:
    async def slow(x: int) -> int:
        await asyncio.sleep(1)
        return x

    done = run(one_stage(slow, max_in_flight=50), numbers(20), max_open_records=4)
    assert (done.report.peak_open, done.report.max_open_records, done.seconds) == (4, 4, 5.0)
    assert done.report.stages["s"].peak_in_flight == 4


def test_a_join_keeps_to_the_bound_too() -> None:
    """One branch is fast: without a bound on records it would run ahead of the slow one without end."""
    pipeline = Pipeline()

    async def slow(x: int) -> int:
        await asyncio.sleep(1)
        return x

    pipeline.add_stage("slow", slow, max_in_flight=1, queue_size=1)
    pipeline.add_stage("fast", same, max_in_flight=8, queue_size=8)
    pipeline.add_stage("join", same_results, depends_on=["slow", "fast"], max_in_flight=1, queue_size=1)
    report = run(pipeline, numbers(60)).report
    assert report.peak_open <= report.max_open_records == 20
    assert report.written == 60


def test_pipe_composes_with_aiostream() -> None:
    from aiostream import pipe, stream

    source = Source(1000)

    async def main() -> list[Any]:
        outputs = stream.iterate(source) | doubling().pipe(max_open_records=4, order="input") | pipe.take(5)
        return await stream.list(outputs)

    records = run_virtual(main())
    assert [record["plus_one"] for record in records] == [1, 3, 5, 7, 9]
    assert source.taken < 20


def test_pipe_takes_what_comes_from_other_operators() -> None:
    from aiostream import pipe, stream

    async def main() -> list[Any]:
        numbered = stream.count(interval=0.5) | pipe.take(3) | pipe.map(lambda x: {"x": x})
        return await stream.list(numbered | doubling().pipe() | pipe.map(lambda record: record["double"]))

    assert run_virtual(main()) == [0, 2, 4]


# What a handler is given


def test_the_record_is_read_only() -> None:
    async def handle(record: Any) -> int:
        refused = 0
        for change in (
            lambda: record.__setitem__("x", 5),
            lambda: record.__delitem__("x"),
            lambda: record.update(x=5),
            lambda: record.pop("x"),
            lambda: record.popitem(),
            lambda: record.clear(),
            lambda: record.setdefault("y", 1),
            lambda: record.__ior__({"x": 5}),
        ):
            try:
                change()
            except TypeError:
                refused += 1
        assert isinstance(record, dict)
        assert json.dumps(record) == '{"x": 1}'
        assert {**record, "y": 2} == {"x": 1, "y": 2}
        return refused

    assert run(one_stage(handle), [{"x": 1}]).output == [{"x": 1, "s": 8}]


def test_results_are_those_the_stage_depends_on() -> None:
    pipeline = Pipeline()
    for name in ("a", "b", "unrelated"):
        pipeline.add_stage(name, same)

    @pipeline.stage
    async def both(a: int, results: Mapping[str, Any]) -> dict[str, Any]:
        return dict(results)

    pipeline.add_stage("built", lambda ctx, results: dict(results), depends_on=["b", "a"])
    (record,) = run(pipeline, [{"x": 1}]).output
    assert record["both"] == {"a": 1}
    assert record["built"] == {"b": 1, "a": 1}


def test_ctx_is_the_record_where_there_is_no_context() -> None:
    def handle(ctx: Any) -> str:
        with pytest.raises(TypeError):
            ctx["x"] = 2
        return str(ctx["x"])

    assert run(one_stage(handle), [{"x": 1}]).output == [{"x": 1, "s": "1"}]


def test_params_are_given_to_stages_and_resources() -> None:
    pipeline = Pipeline(params={"model": "local", "n": 2})

    @pipeline.resource
    def client(params: Any) -> str:
        return f"client of {params['model']}"

    @pipeline.stage
    async def s(client: str, params: Any) -> list[Any]:
        return [client, params.model, params["n"]]

    assert run(pipeline, [{}], params={"model": "big"}).output == [{"s": ["client of big", "big", 2]}]


def test_a_call_knows_itself() -> None:
    pipeline = Pipeline(key="id")
    keys: list[str] = []

    @pipeline.stage(on_error=degrade(0))
    async def shaky(x: int) -> int:
        return 1 // x

    @pipeline.stage(on_error="skip")
    async def skipped(x: int) -> int:
        return 1 // x

    @pipeline.stage
    async def middle(shaky: int, skipped: None) -> None: ...

    @pipeline.stage
    async def unrelated(x: int) -> None: ...

    @pipeline.stage
    async def last(middle: None, call: Any) -> list[Any]:
        call.report(tokens=5)
        keys.append(call.idempotency_key)
        return [call.attempt, call.index, call.key, dict(call.outcomes)]

    output = run(pipeline, [{"x": 1, "id": "a"}, {"x": 0, "id": "b"}, {"x": 1}]).output
    assert [record["last"] for record in output] == [
        [1, 0, "a", {"shaky": "ok", "skipped": "ok", "middle": "ok"}],
        [1, 1, "b", {"shaky": "degraded", "skipped": "skipped", "middle": "ok"}],
        [1, 2, 2, {"shaky": "ok", "skipped": "ok", "middle": "ok"}],
    ]
    assert len(set(keys)) == 3


def test_idempotency_keys_differ_between_stages_and_runs() -> None:
    pipeline = Pipeline()
    for name in ("a", "b"):
        pipeline.add_stage(name, lambda call: call.idempotency_key)
    keys = [key for _ in range(2) for key in run(pipeline, [{}]).output[0].values()]
    assert len(set(keys)) == 4


def test_optional_fields_have_their_default() -> None:
    async def handle(x: int, lang: str = "en", *, top: int = 5) -> list[Any]:
        return [x, lang, top]

    output = run(one_stage(handle), [{"x": 1}, {"x": 2, "lang": "de", "top": None}]).output
    assert [record["s"] for record in output] == [[1, "en", 5], [2, "de", None]]


def test_parameters_of_every_kind() -> None:
    async def handle(a: int, /, b: int, *, item: int, target: int) -> list[int]:
        return [a, b, item, target]

    assert run(one_stage(handle), [{"a": 1, "b": 2, "item": 3, "target": 4}]).output[0]["s"] == [1, 2, 3, 4]


def test_methods_partials_and_objects_are_functions_too() -> None:
    import functools

    class Greeter:
        def __init__(self, word: str) -> None:
            self.word = word

        def greet(self, x: int) -> str:
            return f"{self.word} {x}"

        async def __call__(self, x: int) -> str:
            return f"{self.word}, {x}"

    async def add(y: int, x: int) -> int:
        return x + y

    pipeline = Pipeline()
    pipeline.add_stage("method", Greeter("hi").greet)
    pipeline.add_stage("instance", Greeter("ho"))
    pipeline.add_stage("partial", functools.partial(add, 10))
    assert run(pipeline, [{"x": 1}]).output == [{"x": 1, "method": "hi 1", "instance": "ho, 1", "partial": 11}]


def test_none_is_an_ordinary_value() -> None:
    pipeline = Pipeline()

    @pipeline.stage
    async def nothing(x: int) -> None:
        return None

    @pipeline.stage
    async def after(nothing: None) -> str:
        return repr(nothing)

    assert run(pipeline, [{"x": None}]).output == [{"x": None, "nothing": None, "after": "None"}]


def test_a_record_may_be_any_value() -> None:
    async def handle(record: Any) -> str:
        return repr(record)

    done = run(one_stage(handle), [1, "text", None, [2], (3,)])
    assert [(record["record"], record["s"]) for record in done.output] == [
        (1, "1"),
        ("text", "'text'"),
        (None, "None"),
        ([2], "[2]"),
        ((3,), "(3,)"),
    ]


def test_a_field_of_what_is_no_object_is_a_dead_letter() -> None:
    done = run(one_stage(same), [{"x": 1}, 7, "text", [1], None])
    assert [letter["record"] for letter in done.dead] == [7, "text", [1], None]
    assert {letter["error"]["message"] for letter in done.dead} == {
        'stage "s" takes the field "x", but the record is no object'
    }


def test_an_optional_field_of_what_is_no_object_has_its_default() -> None:
    async def handle(record: int, factor: int = 3) -> int:
        return record * factor

    done = run(one_stage(handle), [1, 2])
    assert [record["s"] for record in done.output] == [3, 6]


# The first records


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"quary": 1, "id": 2}, 'did you mean "quary"?'),
        ({"retrieve_it": 1}, "fields are: retrieve_it"),
    ],
)
def test_a_field_that_no_record_has_is_refused_before_anything_runs(fields: dict[str, int], hint: str) -> None:
    opened: list[int] = []
    pipeline = Pipeline()

    @pipeline.resource
    def index() -> None:
        opened.append(1)

    @pipeline.stage
    async def retrieve(query: str, index: None) -> None: ...

    with pytest.raises(RequestError) as caught:
        run(pipeline, [fields] * 150)
    assert str(caught.value) == 'stage "retrieve" takes "query", which none of the first 100 records has'
    assert (caught.value.hint, caught.value.exit_code, opened) == (hint, 2, [])


@pytest.mark.parametrize(("parameter", "near"), [("retrive", "retrieve"), ("indx", "index")])
def test_a_misspelt_stage_or_resource_is_named(parameter: str, near: str) -> None:
    pipeline = Pipeline()
    pipeline.resource(lambda: None, name="index")
    pipeline.add_stage("retrieve", lambda x, index: x)
    pipeline.add_stage("generate", eval(f"lambda {parameter}: 0"))
    with pytest.raises(RequestError) as caught:
        run(pipeline, [{"x": 1}])
    assert caught.value.hint == f'did you mean "{near}"?'


def test_one_that_some_record_has_is_a_dead_letter_where_it_is_missing() -> None:
    done = run(one_stage(same), [{"y": 1}, {"x": 2}, {"x": 3}])
    assert [record["x"] for record in done.output] == [2, 3]
    assert done.error == {
        "type": "RecordError",
        "message": 'the record has no field "x", which stage "s" requires',
        "trace": "",
    }


def test_only_the_first_hundred_are_looked_at() -> None:
    with pytest.raises(RequestError):
        run(one_stage(same), [{"y": 1}] * 100 + [{"x": 1}])
    assert run(one_stage(same), [{"y": 1}] * 99 + [{"x": 1}]).report.dead == 99


def test_the_fields_of_a_context_are_looked_for(tmp_path: Path) -> None:
    pipeline = Pipeline(context=Context)
    pipeline.add_stage("s", lambda ctx: None)
    with pytest.raises(RequestError, match='the context Context takes "query", which none of the first 1 records has'):
        run(pipeline, [{"x": 1}])


def test_an_iterator_is_not_looked_into() -> None:
    """To look would be to take: backpressure reaches into it, to the last record."""
    assert run(one_stage(same), iter([{"y": 1}] * 3)).report.dead == 3


def test_a_field_that_a_result_overwrites_is_warned_of_once() -> None:
    warnings = Warnings()
    done = run(one_stage(same), [{"x": n, "s": "old"} for n in range(5)], listeners=[warnings])
    assert done.output[1] == {"x": 1, "s": 1}
    assert warnings.said == ['the input field "s" is overwritten by the result of stage "s"']


def test_a_field_that_nothing_overwrites_is_not_warned_of() -> None:
    warnings = Warnings()
    done = run(one_stage(same, emit=False), [{"x": 1, "s": "old"}], listeners=[warnings])
    assert (done.output, warnings.said) == ([{"x": 1, "s": "old"}], [])


def test_warnings_are_logged_where_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="stageflow"):
        run(one_stage(same), [{"x": 1, "s": 2}])
    assert [record.getMessage() for record in caplog.records] == [
        'the input field "s" is overwritten by the result of stage "s"'
    ]


def test_a_field_that_comes_late_is_warned_of_too() -> None:
    warnings = Warnings()
    run(one_stage(same), [*numbers(150), {"x": 1, "s": "old"}], listeners=[warnings])
    assert len(warnings.said) == 1


# The output


def test_an_output_record_is_the_input_and_the_results_in_the_order_of_definition() -> None:
    pipeline = Pipeline()
    pipeline.add_stage("late", lambda early: early + 1)
    pipeline.add_stage("early", same)
    (record,) = run(pipeline, [{"z": 0, "x": 1}]).output
    assert list(record) == ["z", "x", "late", "early"]


def test_emit_leaves_out_and_selects() -> None:
    pipeline = Pipeline()
    pipeline.add_stage("hidden", same, emit=False)
    pipeline.add_stage("shown", lambda hidden: hidden)
    assert run(pipeline, [{"x": 1}]).output == [{"x": 1, "shown": 1}]
    pipeline.emit("shown", "x", "z")
    assert list(run(pipeline, [{"x": 1, "y": 2}, {"x": 1, "z": 3}]).output[0]) == ["shown", "x"]
    pipeline.emit("shwn", "x")
    with pytest.raises(RequestError, match='the job emits "shwn"') as caught:
        run(pipeline, [{"x": 1}])
    assert caught.value.hint == 'did you mean "shown"?'
    pipeline.emit("hidden")
    assert run(pipeline, [{"x": 1}]).output == [{"hidden": 1}]


def test_what_was_out_of_the_ordinary_is_marked() -> None:
    pipeline = Pipeline()

    @pipeline.stage(on_error="skip")
    async def a(x: int) -> int:
        return 1 // x

    @pipeline.stage(on_error=degrade("none"))
    async def b(x: int) -> int:
        return 1 // x

    pipeline.emit("x", "a", "b")
    assert run(pipeline, [{"x": 1}, {"x": 0}]).output == [
        {"x": 1, "a": 1, "b": 1},
        {
            "x": 0,
            "a": None,
            "b": "none",
            "_stageflow": {
                "a": {
                    "outcome": "skipped",
                    "error": "ZeroDivisionError: integer division or modulo by zero",
                    "attempts": 1,
                },
                "b": {
                    "outcome": "degraded",
                    "error": "ZeroDivisionError: integer division or modulo by zero",
                    "attempts": 1,
                },
            },
        },
    ]


def test_the_error_of_a_degraded_record_is_cut() -> None:
    async def fails(x: int) -> None:
        raise LookupError("a" * 1_000_000)

    (record,) = run(one_stage(fails, on_error="skip"), numbers(1)).output
    assert len(record["_stageflow"]["s"]["error"]) < 10_000


# on_error


def failing(**settings: Any) -> Pipeline:
    """Divides by x, in its second stage."""
    pipeline = Pipeline()
    pipeline.add_stage("first", same)

    async def divide(first: int, x: int) -> float:
        return 1 / first

    pipeline.add_stage("divide", divide, **settings)
    pipeline.add_stage("after", lambda divide: [divide])
    return pipeline


def test_a_dead_letter_ends_the_record_and_nothing_else() -> None:
    done = run(failing(), [{"x": 1}, {"x": 0}, {"x": 2}])
    assert [record["after"] for record in done.output] == [[1.0], [0.5]]
    assert (done.report.written, done.report.dead, done.report.exit_code) == (2, 1, 3)
    assert (done.report.stages["divide"].dead, done.report.stages["after"].received) == (1, 2)


def test_the_fields_of_a_dead_letter() -> None:
    before = datetime.datetime.now(datetime.UTC)
    (letter,) = run(failing(), [{"x": 1}, {"x": 0, "id": "b"}]).dead
    assert list(letter)[-2:] == ["at", "retry"]
    del letter["retry"]  # where a later run can go on: see tests/engine/test_reentry.py
    at = datetime.datetime.fromisoformat(letter.pop("at"))
    assert abs(at - before) < datetime.timedelta(minutes=1)
    trace = letter["error"].pop("trace")
    assert trace.startswith("Traceback (most recent call last):\n")
    assert trace.endswith("ZeroDivisionError: division by zero\n")
    assert "return 1 / first" in trace
    assert "stageflow/engine" not in trace
    assert letter == {
        "index": 1,
        "line": None,
        "path": None,
        "stage": "divide",
        "record": {"x": 0, "id": "b"},
        "results": {"first": 0},
        "error": {"type": "ZeroDivisionError", "message": "division by zero"},
        "attempts": 1,
        "retryable": True,
    }
    assert list(letter) == ["index", "line", "path", "stage", "record", "results", "error", "attempts", "retryable"]


def test_dead_letters_of_a_file_have_its_lines(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"x": 1}\n\nnot json\n{"x": 0}\n{"x": "\xff"}\n')
    done = Done(doubling_file := failing().run_sync(str(source), [], dead=(dead := [])), [], dead, 0.0)
    assert (doubling_file.read, doubling_file.bad, doubling_file.blank, doubling_file.exit_code) == (4, 2, 1, 3)
    letters = sorted(done.dead, key=lambda letter: letter["index"])
    assert [(letter["index"], letter["line"], letter["path"], letter["stage"]) for letter in letters] == [
        (2, 3, str(source), None),
        (3, 4, str(source), "divide"),
        (4, 5, str(source), None),
    ]
    assert letters[0]["record"] == "not json"
    assert letters[0]["attempts"] == 0
    assert "record" not in letters[2]
    assert letters[2]["raw_b64"] == "eyJ4IjogIv8ifQ=="
    assert letters[0]["error"]["message"].startswith("InvalidJSON: ")


@pytest.mark.parametrize("kind", [TypeError, NameError, AttributeError, ImportError, NotImplementedError])
def test_a_programming_error_is_not_retryable(kind: type[Exception]) -> None:
    async def fails(x: int) -> None:
        raise kind("mistake")

    (letter,) = run(one_stage(fails), numbers(1)).dead
    assert (letter["error"]["type"], letter["error"]["message"]) == (kind.__name__, "mistake")
    assert letter["retryable"] is False


def test_a_record_that_fails_twice_has_one_dead_letter() -> None:
    pipeline = Pipeline()
    for name in ("a", "b"):
        pipeline.add_stage(name, lambda x: 1 // x, run="inline")
    pipeline.add_stage("join", same_results, depends_on=["a", "b"])
    done = run(pipeline, [{"x": 0}, {"x": 1}])
    assert [letter["index"] for letter in done.dead] == [0]
    assert len(done.output) == 1


def test_a_failure_starts_nothing_more_but_what_runs_is_finished() -> None:
    pipeline, log = Pipeline(), list[str]()

    @pipeline.stage
    async def fails(x: int) -> None:
        await asyncio.sleep(1)
        raise LookupError

    @pipeline.stage
    async def slow(x: int) -> int:
        await asyncio.sleep(5)
        log.append("slow finished")
        return x

    @pipeline.stage
    async def after(slow: int) -> None:
        log.append("after started")

    done = run(pipeline, numbers(1))
    assert log == ["slow finished"]
    assert done.seconds == 5.0
    assert [letter["stage"] for letter in done.dead] == ["fails"]


def test_skip_goes_on_with_none() -> None:
    done = run(failing(on_error="skip"), [{"x": 0}])
    assert done.output[0]["after"] == [None]
    assert (done.report.exit_code, done.report.stages["divide"].skipped) == (0, 1)


async def later(error: BaseException, first: int) -> str:
    await asyncio.sleep(1)
    return f"{type(error).__name__} on {first}"


@pytest.mark.parametrize(
    ("stand_in", "value"),
    [
        (7, 7),
        (None, None),
        (lambda: "nothing", "nothing"),
        (lambda error: str(error), "division by zero"),
        (lambda error, first: [type(error).__name__, first], ["ZeroDivisionError", 0]),
        (lambda error, *given: list(given), [0, 0]),
        (later, "ZeroDivisionError on 0"),
    ],
)
def test_degrade_goes_on_with_a_value_or_what_a_function_makes(stand_in: Any, value: Any) -> None:
    done = run(failing(on_error=degrade(stand_in)), [{"x": 0}])
    assert done.output[0]["after"] == [value]
    assert done.output[0]["_stageflow"]["divide"]["outcome"] == "degraded"
    assert (done.report.exit_code, done.report.stages["divide"].degraded) == (0, 1)


def test_each_record_gets_a_fresh_copy_of_the_value() -> None:
    nested: list[Any] = [[]]
    pipeline = Pipeline()

    @pipeline.stage(on_error=degrade(nested))
    async def fails(x: int) -> list[Any]:
        raise LookupError

    @pipeline.stage
    async def spoils(fails: list[Any], x: int) -> None:
        fails[0].append(x)

    assert [record["fails"] for record in run(pipeline, numbers(3)).output] == [[[0]], [[1]], [[2]]]
    assert nested == [[]]


@pytest.mark.parametrize("kind", [LookupError, SystemExit, asyncio.CancelledError])
def test_a_stand_in_that_fails_is_a_dead_letter(kind: type[BaseException]) -> None:
    def worse(error: BaseException) -> None:
        raise kind("worse")

    done = run(failing(on_error=degrade(worse)), [{"x": 0}, {"x": 1}])
    assert (done.report.dead, done.report.written) == (1, 1)
    assert done.error["type"] == ("LookupError" if kind is LookupError else "HandlerFailed")


def test_a_missing_field_is_degraded_too() -> None:
    done = run(one_stage(same, on_error=degrade(lambda error: str(error))), [{"x": 1}, {}])
    assert done.output[1]["s"] == 'the record has no field "x", which stage "s" requires'


def test_abort_stops_the_run_and_leaves_the_record_undone() -> None:
    async def handle(x: int) -> int:
        await asyncio.sleep(1 if x == 2 else 3)
        if x == 2:
            raise LookupError("down")
        return x

    done = run(one_stage(handle, on_error="abort", max_in_flight=4, queue_size=1), slowly_then(numbers(50)))
    assert done.report.exit_code == 4
    assert done.report.stopped == 'stage "s": record 2 failed: LookupError: down'
    assert done.dead == []
    assert [record["x"] for record in done.output] == [0, 1, 3]  # what was accepted is finished
    assert (done.report.read, done.report.written, done.report.not_done) == (4, 3, 1)


async def slowly_then(records: list[Any]) -> AsyncIterator[Any]:
    for number, record in enumerate(records):
        if number == 4:
            await asyncio.sleep(100)
        yield record


# Whatever user code raises


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


RAISED = [
    pytest.param(lambda: LookupError("m"), "LookupError", "m", id="Exception"),
    pytest.param(lambda: SystemExit(7), "HandlerFailed", 'SystemExit(7) raised in stage "s"', id="SystemExit"),
    pytest.param(KeyboardInterrupt, "HandlerFailed", 'KeyboardInterrupt() raised in stage "s"', id="KeyboardInterrupt"),
    pytest.param(asyncio.CancelledError, "HandlerFailed", 'cancelled inside stage "s"', id="CancelledError"),
    pytest.param(GeneratorExit, "HandlerFailed", 'GeneratorExit() raised in stage "s"', id="GeneratorExit"),
    pytest.param(StopIteration, None, None, id="StopIteration"),
    pytest.param(StopAsyncIteration, None, None, id="StopAsyncIteration"),
    pytest.param(
        lambda: ExceptionGroup("all of them", [ValueError("a"), TypeError("b")]),
        "HandlerFailed",
        "ExceptionGroup(ValueError('a'), TypeError('b')) raised in stage \"s\"",
        id="ExceptionGroup",
    ),
    pytest.param(
        lambda: BaseExceptionGroup("all of them", [ValueError("a"), BaseExceptionGroup("in", [SystemExit(1)])]),
        "HandlerFailed",
        "BaseExceptionGroup(ValueError('a'), SystemExit(1)) raised in stage \"s\"",
        id="BaseExceptionGroup",
    ),
    pytest.param(Unspeakable, "Unspeakable", "(its message can't be read)", id="unreadable"),
    pytest.param(lambda: ValueError("a" * 10_000_000), "ValueError", "a" * 2048, id="long"),
    pytest.param(RecursionError, "RecursionError", "", id="RecursionError"),
]


@pytest.mark.parametrize("where", ["async", "thread", "inline"])
@pytest.mark.parametrize(("error", "kind", "message"), RAISED)
def test_whatever_is_raised_is_a_dead_letter_and_the_run_goes_on(
    error: Callable[[], BaseException], kind: str | None, message: str | None, where: str
) -> None:
    def plain(x: int) -> int:
        if x % 3 == 1:
            raise error()
        return x

    async def coroutine(x: int) -> int:
        await asyncio.sleep(0)
        return plain(x)

    pipeline = one_stage(coroutine if where == "async" else plain, max_in_flight=2, run=where)
    pipeline.add_stage("after", lambda s: s, run="inline")
    done = run(pipeline, numbers(9))
    assert sorted(record["after"] for record in done.output) == [0, 2, 3, 5, 6, 8]
    assert sorted(letter["index"] for letter in done.dead) == [1, 4, 7]
    assert (done.report.read, done.report.not_done, done.report.exit_code) == (9, 0, 3)
    for letter in done.dead:
        assert letter["stage"] == "s"
        assert kind is None or (letter["error"]["type"], letter["error"]["message"]) == (kind, message)
        assert len(letter["error"]["trace"]) <= 8192 + 4


def test_all_leaves_of_a_group_are_told() -> None:
    async def handle(x: int) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails_with(ValueError("first leaf")))
            group.create_task(fails_with(TypeError("second leaf")))

    trace = run(one_stage(handle), numbers(1)).error["trace"]
    assert "ValueError: first leaf" in trace
    assert "TypeError: second leaf" in trace


async def fails_with(error: Exception) -> None:
    raise error


class Nameless(BaseException):
    def __repr__(self) -> str:
        raise RuntimeError("no name")


def test_an_error_that_can_not_be_told_is_no_second_failure() -> None:
    def fails(x: int) -> None:
        raise Nameless

    try:
        done = run(one_stage(fails, run="inline"), numbers(1))
    except RunFailed as error:
        pytest.fail(repr(error))
    assert len(done.dead) == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_a_handler_that_cancels_its_own_task_is_a_dead_letter(workers: int) -> None:
    async def handle(x: int) -> int:
        if x % 3 == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(1)
        return x

    done = run(one_stage(handle, max_in_flight=workers), numbers(9))
    assert (done.report.written, done.report.dead, done.report.not_done) == (6, 3, 0)
    assert {letter["error"]["message"] for letter in done.dead} == {'cancelled inside stage "s"'}


def test_a_source_that_fails_is_not_called_a_bug() -> None:
    def source() -> Iterator[dict[str, int]]:
        yield {"x": 1}
        raise LookupError("mine")

    with pytest.raises(SourceFailed) as caught:
        run(one_stage(same), source())
    assert isinstance(caught.value.__cause__, LookupError)


def test_a_listener_that_fails_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Bad:
        def on_event(self, event: Event) -> None:
            raise LookupError

    assert run(one_stage(same), numbers(3), listeners=[Bad()]).report.written == 3
    assert caplog.records


# The context style


@dataclass
class Context:
    query: str
    hits: list[str] = field(default_factory=list)
    answer: str | None = None
    score: float = 0.0


def test_a_context_is_filled_in_stage_by_stage() -> None:
    async def retrieve(ctx: Context) -> None:
        ctx.hits = [ctx.query.upper()]

    def generate(ctx: Context) -> Context:
        ctx.answer = f"because {ctx.hits[0]}"
        return ctx

    async def judge(ctx: Context, answer: str = "no field of the record") -> Context:
        return dataclasses.replace(ctx, score=len(ctx.answer or ""))

    pipeline = Pipeline.linear(retrieve, generate, judge, context=Context)
    done = run(pipeline, [{"id": 1, "query": "a"}, {"id": 2, "query": "b", "score": 9.0}])
    assert done.output == [
        {"id": 1, "query": "a", "hits": ["A"], "answer": "because A", "score": 9},
        {"id": 2, "query": "b", "hits": ["B"], "answer": "because B", "score": 9},
    ]


def test_execute_in_the_context_style() -> None:
    async def fill(ctx: Context) -> None:
        ctx.answer = "yes"

    results = run_virtual(Pipeline.linear(fill, context=Context).execute({"id": 1, "query": "a"}))
    assert {"answer": "yes", "hits": [], "score": 0.0}.items() <= results.items()
    assert "id" not in results


def test_a_failed_attempt_leaves_no_trace() -> None:
    pipeline = Pipeline(context=Context)

    @pipeline.stage(on_error="skip")
    async def fails(ctx: Context) -> None:
        ctx.answer = "half done"
        ctx.hits = ["half"]
        raise LookupError

    @pipeline.stage
    async def after(ctx: Context, fails: None) -> None:
        ctx.score = 1.0 if ctx.answer is None else 0.0

    (record,) = run(pipeline, [{"query": "a"}]).output
    assert (record["answer"], record["hits"], record["score"]) == (None, [], 1.0)


def test_parallel_branches_meet() -> None:
    pipeline = Pipeline(context=Context)

    @pipeline.stage
    async def left(ctx: Context) -> None:
        await asyncio.sleep(2)
        assert ctx.score == 0.0  # whatever the other branch has done by now
        ctx.answer = "left"

    @pipeline.stage
    async def right(ctx: Context) -> None:
        ctx.score = 1.0

    @pipeline.stage
    async def join(ctx: Context, left: None, right: None) -> None:
        ctx.hits = [str(ctx.answer), str(ctx.score)]

    (record,) = run(pipeline, [{"query": "a"}]).output
    assert record == {"query": "a", "hits": ["left", "1.0"], "answer": "left", "score": 1.0}


def test_branches_that_end_apart_meet_in_the_output() -> None:
    pipeline = Pipeline(context=Context)

    @pipeline.stage
    async def left(ctx: Context) -> None:
        ctx.answer = "left"

    @pipeline.stage
    async def right(ctx: Context) -> None:
        ctx.score = 1.0

    (record,) = run(pipeline, [{"query": "a"}]).output
    assert (record["answer"], record["score"]) == ("left", 1.0)


@pytest.mark.parametrize("joined", [True, False])
def test_two_branches_that_differ_are_a_dead_letter(joined: bool) -> None:
    pipeline = Pipeline(context=Context)

    async def write(ctx: Context, word: str) -> None:
        ctx.answer = ctx.query if ctx.query == "same" else word

    async def left(ctx: Context) -> None:
        await write(ctx, "left")

    async def right(ctx: Context) -> None:
        await write(ctx, "right")

    pipeline.stage(left)
    pipeline.stage(right)
    if joined:
        pipeline.add_stage("join", lambda ctx, left, right: None, run="inline")
    done = run(pipeline, [{"query": "other"}, {"query": "same"}])
    assert [record["answer"] for record in done.output] == ["same"]
    assert done.error["type"] == "ContextConflict"
    assert '"answer"' in done.error["message"]
    assert (done.report.read, done.report.written, done.report.dead) == (2, 1, 1)
    assert done.dead[0]["results"] == {"left": {"answer": "left"}, "right": {"answer": "right"}}


def test_a_context_that_lacks_a_field_or_refuses_is_a_dead_letter() -> None:
    @dataclass
    class Strict:
        x: int

        def __post_init__(self) -> None:
            if self.x < 0:
                raise ValueError("below zero")

    pipeline = Pipeline(context=Strict)
    pipeline.add_stage("s", lambda ctx: None)
    done = run(pipeline, [{"x": 1}, {"y": 1}, {"x": -1}, 5])
    assert len(done.output) == 1
    assert [letter["error"]["message"] for letter in done.dead] == [
        'the record has no field "x"',
        "below zero",
        "Strict can't be built from a int: the record is no object",
    ]


def test_results_and_contexts_go_together() -> None:
    pipeline = Pipeline(context=Context)

    @pipeline.stage
    async def count(ctx: Context) -> int:
        ctx.answer = "counted"
        return 7

    @pipeline.stage
    async def after(ctx: Context, count: int) -> None:
        ctx.score = float(count)

    (record,) = run(pipeline, [{"query": "a"}]).output
    assert record == {"query": "a", "hits": [], "answer": "counted", "score": 7.0, "count": 7}


def test_emit_selects_fields_of_the_context() -> None:
    pipeline = Pipeline(context=Context)
    pipeline.add_stage("s", lambda ctx: setattr(ctx, "answer", "yes"))
    pipeline.emit("answer", "id")
    assert run(pipeline, [{"query": "a", "id": 1}]).output == [{"answer": "yes", "id": 1}]


def test_a_frozen_context_is_returned_as_a_copy() -> None:
    @dataclass(frozen=True)
    class Frozen:
        x: int
        a: int = 0
        b: int = 0

    pipeline = Pipeline(context=Frozen)
    pipeline.add_stage("left", lambda ctx: dataclasses.replace(ctx, a=1))
    pipeline.add_stage("right", lambda ctx: dataclasses.replace(ctx, b=2))
    assert run(pipeline, [{"x": 1}]).output == [{"x": 1, "a": 1, "b": 2}]


# Resources


def test_resources_are_opened_once_in_order_and_closed_in_reverse() -> None:
    pipeline, log = Pipeline(), list[str]()

    @pipeline.resource
    async def top(middle: str, base: str) -> AsyncIterator[str]:
        log.append("open top")
        yield f"top of {middle}"
        log.append("close top")

    @pipeline.resource
    def middle(base: str) -> Iterator[str]:
        log.append("open middle")
        yield f"middle of {base}"
        log.append("close middle")

    @pipeline.resource
    async def base() -> str:
        log.append("open base")
        return "base"

    @pipeline.resource(name="plain")
    def some_function() -> str:
        return "plain"

    @pipeline.stage
    async def s(top: str, plain: str, x: int) -> str:
        log.append(f"call {x}")
        return f"{top}, {plain}"

    assert run(pipeline, numbers(2)).output[0]["s"] == "top of middle of base, plain"
    assert log == ["open base", "open middle", "open top", "call 0", "call 1", "close top", "close middle"]


def test_resources_are_closed_after_the_last_record_was_written() -> None:
    pipeline, log = Pipeline(), list[Any]()

    @pipeline.resource
    def r() -> Iterator[None]:
        yield
        log.append("closed")

    @pipeline.stage
    async def s(r: None, x: int) -> int:
        await asyncio.sleep(1)
        return x

    run_virtual(pipeline.run(numbers(2), lambda record: log.append(record["x"])))
    assert log == [0, 1, "closed"]


@pytest.mark.parametrize("failure", ["sink", "abort", "cancelled"])
def test_resources_are_closed_when_the_run_fails(failure: str) -> None:
    pipeline, log = Pipeline(), list[str]()

    @pipeline.resource
    async def r() -> AsyncIterator[None]:
        yield
        log.append("closed")

    @pipeline.stage(on_error="abort")
    async def s(r: None, x: int) -> int:
        if failure == "abort":
            raise LookupError
        await asyncio.sleep(5 if failure == "cancelled" else 0)
        return x

    def sink(record: Any) -> None:
        raise OSError

    async def main() -> None:
        if failure == "cancelled":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await pipeline.run(numbers(2), [])
        elif failure == "abort":
            assert (await pipeline.run(numbers(2), [])).exit_code == 4
        else:
            with pytest.raises(StorageError):
                await pipeline.run(numbers(2), sink)

    run_virtual(main())
    assert log == ["closed"]


def test_a_resource_that_can_not_be_opened_refuses_the_job() -> None:
    pipeline, log = Pipeline(), list[str]()

    @pipeline.resource
    def first() -> Iterator[None]:
        yield
        log.append("closed")

    @pipeline.resource
    def second(first: None) -> None:
        raise OSError("no such server")

    line = pipeline._draft.resources[-1].where

    @pipeline.stage
    async def s(second: None, x: int) -> None:
        log.append("called")

    source = Source(3)
    with pytest.raises(DefinitionError) as caught:
        run(pipeline, source)
    assert str(caught.value) == f'{line}: resource "second" could not be opened: OSError: no such server'
    assert caught.value.exit_code == 2
    assert (log, source.taken) == (["closed"], 0)


def test_a_resource_that_can_not_be_opened_leaves_no_file(tmp_path: Path) -> None:
    pipeline = one_stage(same)

    @pipeline.resource
    def r() -> None:
        raise OSError("no such server")

    with pytest.raises(DefinitionError):
        pipeline.run_sync(numbers(1), str(tmp_path / "out.jsonl"))
    assert os.listdir(tmp_path) == []


def test_dead_letters_that_are_there_already_are_refused_with_no_file_made(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.dead.jsonl").write_text("")
    with pytest.raises(RequestError, match=r"out.jsonl.dead.jsonl exists"):
        one_stage(same).run_sync(numbers(1), str(tmp_path / "out.jsonl"))
    assert os.listdir(tmp_path) == ["out.jsonl.dead.jsonl"]


@pytest.mark.parametrize("times", [0, 2])
def test_a_resource_yields_once(times: int) -> None:
    pipeline, warnings = Pipeline(), Warnings()

    @pipeline.resource
    def r() -> Iterator[int]:
        yield from range(times)

    pipeline.add_stage("s", lambda r: r)
    if times == 0:
        with pytest.raises(DefinitionError, match="could not be opened"):
            run(pipeline, [{}])
    else:
        assert run(pipeline, [{}], listeners=[warnings]).report.exit_code == 0
        assert len(warnings.said) == 1


def test_a_resource_that_can_not_be_closed_is_a_warning() -> None:
    pipeline, warnings, log = Pipeline(), Warnings(), list[str]()

    @pipeline.resource
    def first() -> Iterator[None]:
        yield
        log.append("closed")

    @pipeline.resource
    def second(first: None) -> Iterator[None]:
        yield
        raise OSError("lost")

    pipeline.add_stage("s", lambda second, x: x)
    done = run(pipeline, numbers(2), listeners=[warnings])
    assert (done.report.written, done.report.exit_code) == (2, 0)
    assert warnings.said == ['resource "second" could not be closed: OSError: lost']
    assert log == ["closed"]


# Threads and the loop


def test_plain_functions_run_in_threads_as_many_as_allowed() -> None:
    meeting = threading.Barrier(20)

    def meet(x: int) -> bool:
        meeting.wait(timeout=10)
        return threading.current_thread() is threading.main_thread()

    done = run(one_stage(meet, max_in_flight=20), numbers(40))
    assert [record["s"] for record in done.output] == [False] * 40
    assert done.report.stages["s"].peak_in_flight == 20


def test_inline_runs_on_the_loop() -> None:
    def handle(x: int) -> bool:
        return threading.current_thread() is threading.main_thread() and asyncio.get_running_loop().is_running()

    assert run(one_stage(handle, run="inline"), numbers(1)).output == [{"x": 0, "s": True}]


@pytest.mark.parametrize("where", ["thread", "inline"])
def test_a_plain_function_may_return_a_coroutine(where: str) -> None:
    async def wait(x: int) -> int:
        await asyncio.sleep(2)
        return x + 1

    done = run(one_stage(lambda x: wait(x), run=where), numbers(1))
    assert (done.output, done.seconds) == ([{"x": 0, "s": 1}], 2.0)


# Processes

PROCESS_JOB = """
import os, signal
from dataclasses import dataclass
from stageflow import Pipeline

pipeline = Pipeline("processes", key="x", params={"n": 3})

class Plain(Exception):
    pass

class Wordy(Exception):
    def __init__(self, status, reason):
        super().__init__(f"{status} {reason}")

@pipeline.resource(scope="process")
def base(params):
    yield params.n

@pipeline.resource(scope="process")
async def index(base):
    yield [base, os.getpid()]

@pipeline.stage(run="process", max_in_flight=2)
def work(x, kind, index, call, params, record, more="default"):
    if kind == "exit":
        os._exit(3)
    if kind == "signal":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "raise":
        raise Plain("from the child")
    if kind == "wordy":
        raise Wordy(503, "busy")
    if kind == "lambda":
        return lambda: 0
    if kind == "sys.exit":
        raise SystemExit(9)
    if kind == "stop":
        raise StopIteration
    return [index[0], index[1] == os.getpid() != %d, call.key, call.index, params.n, record["x"], more]

@pipeline.stage
async def after(work):
    return "after"
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run over every kind of record, and what came of each, by kind."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "job.py").write_text(PROCESS_JOB % os.getpid())
    kinds = ["ok", "exit", "ok", "signal", "ok", "raise", "wordy", "lambda", "sys.exit", "stop", "ok", "ok"]
    records = [{"x": number, "kind": kind} for number, kind in enumerate(kinds)]
    output: list[Any] = []
    dead: list[Any] = []
    report = load(str(folder / "job.py")).pipeline.run_sync(records, output, dead=dead)
    return {
        "report": report,
        "output": output,
        **{letter["record"]["kind"]: letter for letter in dead},
    }


def test_a_process_stage_is_given_what_any_stage_is(processes: dict[str, Any]) -> None:
    assert sorted(record["work"] for record in processes["output"]) == [
        [3, True, x, x, 3, x, "default"] for x in (0, 2, 4, 10, 11)
    ]
    assert {record["after"] for record in processes["output"]} == {"after"}


def test_a_child_that_dies_takes_one_record_with_it(processes: dict[str, Any]) -> None:
    assert processes["exit"]["error"]["message"] == "worker died: exit code 3"
    assert processes["signal"]["error"]["message"] == f"worker died: signal {signal.SIGKILL.value}"
    report = processes["report"]
    assert (report.read, report.written, report.dead, report.exit_code) == (12, 5, 7, 3)


def test_what_a_child_raises_comes_back(processes: dict[str, Any]) -> None:
    error = processes["raise"]["error"]
    assert (error["type"], error["message"]) == ("Plain", "from the child")
    assert 'raise Plain("from the child")' in error["trace"]
    assert processes["raise"]["retryable"] is True


def test_a_result_that_can_not_leave_its_process_is_a_dead_letter(processes: dict[str, Any]) -> None:
    error = processes["lambda"]["error"]
    assert error["type"] == "ResultError"
    assert "can't leave its process" in error["message"]


def test_an_exit_in_a_child_is_a_dead_letter(processes: dict[str, Any]) -> None:
    assert processes["sys.exit"]["error"]["message"] == 'SystemExit(9) raised in stage "work"'
    assert processes["stop"]["error"]["type"] == "HandlerFailed"


def test_an_exception_that_can_not_be_made_again_comes_back_by_name(processes: dict[str, Any]) -> None:
    error = processes["wordy"]["error"]
    assert "Wordy" in error["type"] + error["message"]
    assert "503 busy" in error["message"]


def test_a_process_stage_runs_in_execute(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(PROCESS_JOB % os.getpid())
    results = asyncio.run(load(str(tmp_path / "job.py")).pipeline.execute({"x": 5, "kind": "ok"}))
    assert results == {"work": [3, True, 5, 0, 3, 5, "default"], "after": "after"}


def test_a_function_that_other_processes_can_not_find_is_refused() -> None:
    pipeline = one_stage(lambda x: x, run="process")
    with pytest.raises(DefinitionError, match='stage "s" runs in processes') as caught:
        pipeline.run_sync(numbers(1), [])
    assert caught.value.hint == "define it at the top level of the job file"


def in_processes(tmp_path: Path, text: str, records: list[Any]) -> Done:
    (tmp_path / "job.py").write_text("from dataclasses import dataclass\nfrom stageflow import Pipeline\n" + text)
    output: list[Any] = []
    dead: list[Any] = []
    report = load(str(tmp_path / "job.py")).pipeline.run_sync(records, output, dead=dead)
    return Done(report, output, dead, 0.0)


def test_positional_only_parameters_in_a_process(tmp_path: Path) -> None:
    text = 'pipeline = Pipeline()\n@pipeline.stage(run="process", max_in_flight=1)\ndef s(x, /): return x\n'
    assert in_processes(tmp_path, text, numbers(1)).output == [{"x": 0, "s": 0}]


CLOSING_JOB = """
import os, time
pipeline = Pipeline()

@pipeline.resource(scope="process")
def folder():
    yield os.path.dirname(__file__)
    time.sleep(0.2)  # it takes a moment to close
    open(os.path.join(os.path.dirname(__file__), "closed"), "w").close()

@pipeline.stage(run="process", max_in_flight=1)
def s(x, folder): return x
"""


def test_a_resource_of_a_child_is_closed(tmp_path: Path) -> None:
    assert in_processes(tmp_path, CLOSING_JOB, numbers(1)).report.written == 1
    assert (tmp_path / "closed").exists()


CONTEXT_JOB = """
@dataclass
class Context:
    x: int
    a: int = 0
    b: int = 0

pipeline = Pipeline(context=Context)
"""


def test_a_context_is_not_taken_to_a_process(tmp_path: Path) -> None:
    """What is written into a copy over there would be lost."""
    stage = '@pipeline.stage(run="process", max_in_flight=1)\ndef s(ctx): ctx.a = 5\n'
    with pytest.raises(DefinitionError, match='stage "s" runs in processes and can\'t fill in the context'):
        in_processes(tmp_path, CONTEXT_JOB + stage, numbers(1))


def test_a_process_resource_that_can_not_be_opened_refuses_the_job(tmp_path: Path) -> None:
    text = (
        'pipeline = Pipeline()\n@pipeline.resource(scope="process")\ndef r(): raise OSError("no model")\n'
        '@pipeline.stage(run="process", max_in_flight=1)\ndef s(x, r): return x\n'
    )
    with pytest.raises(DefinitionError, match="no model"):
        in_processes(tmp_path, text, numbers(2))


# What a job is, to look at


def test_a_pipeline_shows_itself() -> None:
    assert repr(one_stage(same)) == "<Pipeline one: s>"
    assert repr(Pipeline("none")) == "<Pipeline none: no stages>"
    assert Pipeline("p", params={"n": 1}).parameters == {"n": 1}


def test_handler_failed_is_an_item_error() -> None:
    assert HandlerFailed("x").exit_code == 3
