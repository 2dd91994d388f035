"""The remote side fails: what becomes of the records, of the stage and of the run. By rows of the table of faults.

First on the virtual clock with errors that look like those of clients, for exact times; then over HTTP against a server
on this machine, with the standard library's clients and, where they are installed, httpx and aiohttp.
"""

from __future__ import annotations

import asyncio
import email.utils
import http.client
import inspect
import json
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from server import FaultServer, Reply, cut_chunked, early_close, ok, reset_mid_body, slow_loris, stall_until, status
from service import ApiError, Outcome, Service, most_in_any, records, run, run_here, silences

from stageflow import Batch, Pipeline, RateLimit, Retry

CLEAN = 0
STOPPED = 4


def calling(service: Service, **settings: Any) -> Pipeline:
    """A job of one stage, ``generate``, that calls the service once for each record."""
    pipeline = Pipeline("remote")

    async def generate(i: int) -> int:
        await service.call()
        return i

    pipeline.add_stage("generate", generate, **settings)
    return pipeline


def all_written(outcome: Outcome, count: int) -> bool:
    return sorted(record["i"] for record in outcome.written) == list(range(count))


# 81 to 83: Retry-After


def test_row_81_a_service_that_asks_for_seven_seconds_gets_them_and_it_is_told_once() -> None:
    service = Service(
        lambda number, now: ApiError(429, {"Retry-After": "7"}) if 10 <= now <= 13 else None,
        seconds=lambda number, now: 0.5 + number * 7 % 16 / 8,
    )
    outcome = run(calling(service, max_in_flight=16, retry=3), records(500))
    first, last = service.failures[0], service.failures[-1]
    assert len(service.failures) == 16  # whatever was in flight, and nothing after it
    assert last > first
    assert [start for start in service.starts if first < start < last + 7] == []
    assert silences(service.starts, 5.0) == [(max(s for s in service.starts if s <= first), last + 7)]
    assert outcome.warnings == ['stage "generate" waits 7 s: the service said so']
    assert outcome.report.exit_code == CLEAN
    assert all_written(outcome, 500)
    assert outcome.report.stages["generate"].retries == 16


def test_row_81_a_retried_record_comes_back_after_the_pause_and_never_before() -> None:
    service = Service(lambda number, now: ApiError(429, {"Retry-After": "7"}) if number == 1 else None)
    run(calling(service, max_in_flight=1, retry=2), records(1))
    _, second = service.starts
    assert 1.0 + 7.0 < second <= 1.0 + 7.7


@pytest.mark.parametrize("header", ["retry-after-ms", "Retry-After-Ms"])
def test_row_81_milliseconds_count_too(header: str) -> None:
    service = Service(lambda number, now: ApiError(503, {header: "7000"}) if number == 1 else None)
    run(calling(service, max_in_flight=1, retry=2), records(3))
    assert silences(service.starts, 5.0) == [(0.0, 8.0)]


def test_row_81_a_batch_that_is_refused_is_not_tried_singly_before_the_pause_ends() -> None:
    service = Service(lambda number, now: ApiError(429, {"Retry-After": "7"}) if number == 1 else None)
    pipeline = Pipeline("remote")

    @pipeline.stage(batch=Batch(4), max_in_flight=1, retry=2)
    async def generate(i: list[int]) -> list[int]:
        await service.call()
        return i

    outcome = run(pipeline, records(8))
    assert service.starts == [0.0, 8.0, 9.0, 10.0, 11.0, 12.0]
    assert outcome.warnings == ['stage "generate" waits 7 s: the service said so']
    assert all_written(outcome, 8)


def test_row_81_a_longer_pause_is_told_again_and_an_equal_one_is_not() -> None:
    asked = {3: "7", 6: "7", 9: "12", 12: "60"}
    service = Service(
        lambda number, now: ApiError(429, {"Retry-After": asked[number]}) if number in asked else None,
    )
    outcome = run(calling(service, max_in_flight=1, retry=2), records(20))
    assert outcome.warnings == [
        'stage "generate" waits 7 s: the service said so',
        'stage "generate" waits 60 s: the service said so',
    ]


def test_row_81_a_pause_of_one_stage_leaves_the_other_that_shares_its_limit_alone() -> None:
    limit = RateLimit(per_second=2, burst=1)
    refusing = Service(lambda number, now: ApiError(429, {"Retry-After": "100"}) if number == 5 else None, seconds=0.1)
    willing = Service(seconds=0.1)
    pipeline = Pipeline("remote")

    @pipeline.stage(rate_limit=limit, retry=2, max_in_flight=4)
    async def generate(i: int) -> None:
        await refusing.call()

    @pipeline.stage(rate_limit=limit, max_in_flight=4)
    async def judge(i: int) -> None:
        await willing.call()

    run(pipeline, records(30))
    ((began, ended),) = silences(refusing.starts, 50.0)
    assert ended - began >= 100
    assert len([start for start in willing.starts if began < start < ended]) >= 20
    assert silences(willing.starts, 1.5) == []


@pytest.mark.parametrize("hours", [-1, 1])
def test_row_82_a_date_is_taken_by_the_servers_own_clock(hours: int) -> None:
    theirs = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=hours)
    headers = {
        "Date": email.utils.format_datetime(theirs, usegmt=True),
        "Retry-After": email.utils.format_datetime(theirs + timedelta(seconds=7), usegmt=True),
    }
    service = Service(lambda number, now: ApiError(429, headers) if number == 4 else None)
    outcome = run(calling(service, max_in_flight=1, retry=2), records(8))
    assert silences(service.starts, 2.0) == [(3.0, 11.0)]
    assert outcome.warnings == ['stage "generate" waits 7 s: the service said so']
    assert outcome.report.exit_code == CLEAN


IGNORED = ["-1", "0", "abc", "", "inf", "nan", "Fri, 31 Dec 100000 23:59:59 GMT"]


@pytest.mark.parametrize("asked", IGNORED)
def test_row_83_what_is_no_time_to_wait_is_ignored(asked: str) -> None:
    date = email.utils.format_datetime(datetime.now(UTC), usegmt=True)
    service = Service(
        lambda number, now: ApiError(429, {"Retry-After": asked, "Date": date}) if number == 1 else None, seconds=0.25
    )
    outcome = run(calling(service, max_in_flight=1, retry=Retry(2, base=0.5)), records(8))
    assert silences(service.starts, 0.26) == []  # the others went on
    assert outcome.warnings == []
    assert outcome.report.exit_code == CLEAN
    assert all_written(outcome, 8)


def test_row_83_what_is_too_long_stops_the_run() -> None:
    service = Service(lambda number, now: ApiError(429, {"Retry-After": "1e9"}) if number == 7 else None)
    outcome = run(calling(service, max_in_flight=1, retry=2), records(300))
    assert outcome.report.stopped == "stage generate: server asked to wait 11574 days; nothing was dead-lettered"
    assert outcome.report.exit_code == STOPPED
    assert (outcome.report.written, outcome.report.dead) == (6, 0)
    assert len(service.starts) == 7


def test_row_83_a_date_in_the_year_9999_stops_the_run() -> None:
    headers = {"Date": "Fri, 01 Jan 9999 00:00:00 GMT", "Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}
    outcome = run(calling(Service(lambda number, now: ApiError(503, headers)), max_in_flight=1), records(3))
    assert outcome.report.stopped == "stage generate: server asked to wait 364 days; nothing was dead-lettered"
    assert outcome.report.exit_code == STOPPED


@pytest.mark.parametrize(("cap", "code"), [(7.0, CLEAN), (6.9, STOPPED)])
def test_row_83_how_long_is_too_long_is_an_option(cap: float, code: int) -> None:
    service = Service(lambda number, now: ApiError(429, {"Retry-After": "7"}) if number == 1 else None)
    outcome = run(calling(service, max_in_flight=1, retry=2), records(3), max_retry_after=cap)
    assert outcome.report.exit_code == code
    assert outcome.report.stopped == (
        None if code == CLEAN else "stage generate: server asked to wait 7 s; nothing was dead-lettered"
    )


# 84: who is refused altogether


REFUSALS = {
    "401": (ApiError(401), "401 from API"),
    "403": (ApiError(403), "403 from API"),
    "quota": (ApiError(429, code="insufficient_quota"), "429 from API: insufficient_quota"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("earlier", [0, 40], ids=["from the first call", "after successes"])
def test_row_84_a_refusal_stops_the_run_and_makes_no_dead_letter(refusal: str, earlier: int) -> None:
    error, said = REFUSALS[refusal]
    # After the earlier calls sixteen are in flight: four take five seconds and succeed, twelve are refused after one.
    service = Service(
        lambda number, now: error if number > earlier and (number - earlier) % 4 else None,
        seconds=lambda number, now: 5.0 if number > earlier and (number - earlier) % 4 == 0 else 1.0,
    )
    source = records(500)
    outcome = run(calling(service, max_in_flight=16 if not earlier else 8, retry=5), source)
    report, refused = outcome.report, len(service.failures)
    assert report.stopped == f"stage generate: {said} ({refused} in a row); nothing was dead-lettered"
    assert report.exit_code == STOPPED
    assert outcome.dead == []
    assert refused == (12 if not earlier else 6)
    assert len(service.starts) == earlier + (16 if not earlier else 8)  # nothing was started after the refusal
    assert report.written == earlier + (4 if not earlier else 2)  # what was in flight beside it has finished
    done = {record["i"] for record in outcome.written}
    again = run(calling(Service()), [record for record in source if record["i"] not in done])
    assert again.report.written == len(source) - len(done)


def test_row_84_one_in_flight_is_counted_as_one() -> None:
    outcome = run(calling(Service(lambda number, now: ApiError(401)), max_in_flight=1), records(50))
    assert outcome.report.stopped == "stage generate: 401 from API; nothing was dead-lettered"


def test_row_84_what_waits_at_a_rate_limit_or_for_its_next_attempt_is_not_started_either() -> None:
    service = Service(lambda number, now: ApiError(401) if number == 3 else ApiError(503), seconds=1.5)
    limit = RateLimit(per_second=1, burst=1)
    outcome = run(calling(service, max_in_flight=16, rate_limit=limit, retry=Retry(9, base=100, cap=100)), records(50))
    assert service.starts == [0.0, 1.0, 2.0, 3.0]  # the last one started before the third was answered
    assert outcome.report.exit_code == STOPPED
    assert outcome.report.not_done == outcome.report.read
    assert outcome.ended <= 3.0 + 20.0 + 1.0  # the time of grace for those that wait for another attempt


def test_row_84_records_in_other_stages_finish() -> None:
    service = Service(lambda number, now: ApiError(403) if number > 8 else None)
    pipeline = Pipeline("remote")

    @pipeline.stage(max_in_flight=4)
    async def generate(i: int) -> int:
        await service.call()
        return i

    @pipeline.stage(max_in_flight=2)
    async def validate(generate: int) -> bool:
        await asyncio.sleep(3.0)
        return True

    outcome = run(pipeline, records(100))
    assert outcome.report.stopped == "stage generate: 403 from API (4 in a row); nothing was dead-lettered"
    assert outcome.report.written == outcome.report.stages["validate"].passed == 8
    assert outcome.report.dead == 0


# 85: a service that is unwell


def test_row_85_a_service_that_fails_a_third_of_the_time_for_a_minute_costs_no_record() -> None:
    count, seed = 30_000, 85
    print(f"seed {seed}")
    draw = Random(seed)
    service = Service(
        lambda number, now: ApiError(draw.choice([500, 502, 503, 529])) if now < 60 and draw.random() < 0.3 else None,
        seconds=lambda number, now: draw.uniform(0.2, 0.8),
    )
    outcome = run(calling(service, max_in_flight=64, retry=Retry(10)), records(count))
    assert all_written(outcome, count)
    assert outcome.report.exit_code == CLEAN
    assert len(service.failures) > 1500
    assert len(service.starts) == count + len(service.failures)
    assert len(service.starts) <= 1.1 * count + 2
    per_second = Counter(int(start) for start in service.starts if 1 <= start < int(outcome.ended) - 1)
    assert max(per_second.values()) < 1.6 * min(per_second.values())


def test_row_85_calls_that_failed_together_do_not_come_back_together() -> None:
    service = Service(lambda number, now: ApiError(503) if now == 1.0 else None)
    outcome = run(calling(service, max_in_flight=2000, queue_size=2000, retry=Retry(2, base=8)), records(2000))
    back = [start for start in service.starts if start > 0]
    assert len(back) == 2000
    assert 1.0 <= min(back) < 1.1
    assert 8.9 < max(back) <= 9.0
    in_tenths = Counter(int((start - 1.0) / 0.8) for start in back)
    assert all(200 - 80 < in_tenths[tenth] < 200 + 80 for tenth in range(10))  # six standard deviations
    assert outcome.report.written == 2000


# 86: the connection breaks


BROKEN = [
    ConnectionResetError(104, "Connection reset by peer"),
    BrokenPipeError(32, "Broken pipe"),
    ConnectionRefusedError(111, "Connection refused"),
    http.client.IncompleteRead(b"{", 10),
    http.client.RemoteDisconnected("Remote end closed connection without response"),
    asyncio.IncompleteReadError(b"{", 10),
    EOFError(),
    TimeoutError("read timed out"),
]


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
def test_row_86_a_broken_connection_is_tried_again(error: Exception) -> None:
    service = Service(lambda number, now: error if number <= 2 else None)
    outcome = run(calling(service, max_in_flight=1, retry=3), records(3))
    assert all_written(outcome, 3)
    assert outcome.report.stages["generate"].retries == 2


# 87: an answer that trickles in


def test_row_87_the_time_of_an_attempt_ends_a_call_that_keeps_receiving() -> None:
    pipeline, ends = Pipeline("remote"), []

    @pipeline.stage(timeout=60, retry=Retry(2, base=0, cap=0))
    async def generate(i: int) -> None:
        try:
            for _ in range(3600):
                await asyncio.sleep(1.0)  # a byte, well before any read timeout
        finally:
            ends.append(asyncio.get_running_loop().time())

    outcome = run(pipeline, records(1))
    assert ends == [60.0, 120.0]
    assert outcome.report.exit_code == 3
    assert outcome.dead[0]["error"]["type"] == "AttemptTimeout"
    assert outcome.dead[0]["error"]["message"] == "Timeout after 60 s"
    assert outcome.dead[0]["attempts"] == 2


# 89: names


def unresolved(number: int, host: str = "api.example") -> Exception:
    """A connection error as httpx raises it for a name that a resolver gave this answer for."""
    error = ConnectionError(f"[Errno {number}] Name or service not known")
    error.__cause__ = socket.gaierror(number, "Name or service not known")
    error.request = SimpleNamespace(url=f"https://user:secret@{host}/v1")  # type: ignore[attr-defined]
    return error


def test_row_89_a_resolvers_bad_moment_is_tried_again() -> None:
    service = Service(lambda number, now: unresolved(socket.EAI_AGAIN) if now <= 2 else None)
    outcome = run(calling(service, max_in_flight=4, retry=Retry(9)), records(10))
    assert all_written(outcome, 10)
    assert outcome.report.exit_code == CLEAN


def test_row_89_a_name_that_does_not_exist_stops_the_run_at_the_first_request() -> None:
    service = Service(lambda number, now: unresolved(socket.EAI_NONAME))
    outcome = run(calling(service, max_in_flight=4, retry=Retry(9)), records(200))
    assert outcome.report.stopped == (
        "stage generate: cannot resolve host api.example (4 in a row); nothing was dead-lettered"
    )
    assert outcome.report.exit_code == STOPPED
    assert outcome.report.not_done == outcome.report.read
    assert len(service.starts) == 4


def test_row_89_a_name_that_was_resolved_before_is_a_bad_moment() -> None:
    service = Service(lambda number, now: unresolved(socket.EAI_NONAME) if 3 <= now <= 5 else None)
    outcome = run(calling(service, max_in_flight=4, retry=Retry(9)), records(100))
    assert len(service.failures) > 4
    assert all_written(outcome, 100)


# 91: everything stands still


@pytest.mark.parametrize("seed", [None, *range(5)])
def test_row_91_after_ten_minutes_of_silence_all_goes_on(seed: int | None) -> None:
    service = Service(seconds=lambda number, now: 2.0 if not 30 <= now < 630 else 632.0 - now)
    pipeline = Pipeline("remote")

    @pipeline.stage(max_in_flight=4)
    async def retrieve(i: int) -> int:
        await asyncio.sleep(0.1)
        return i

    @pipeline.stage(max_in_flight=16, timeout=60, retry=Retry(20), rate_limit=RateLimit(per_second=5))
    async def generate(retrieve: int) -> int:
        await service.call()
        return retrieve

    outcome = run(pipeline, records(1000), seed=seed)
    assert outcome.report.exit_code == CLEAN
    assert outcome.report.written == 1000
    assert service.in_progress == 0
    assert most_in_any(service.starts, 10.0) <= 5 * 10 + 5
    after = [start for start in service.starts if 640 <= start < outcome.ended - 5]
    assert len(after) / (outcome.ended - 5 - 640) == pytest.approx(5.0, rel=0.02)
    # Of each call that hung nothing is left: attempts are the records and the calls that were given up.
    assert len(service.starts) == 1000 + outcome.report.stages["generate"].retries


# Over HTTP: each client reads the answer to the end, and knows no timeout of under five seconds


READ_TIMEOUT = 5.0


class Clients:
    """For each client what calls a URL and gives what a JSON answer says: an async function, or a plain one."""

    @asynccontextmanager
    async def urllib(self) -> AsyncIterator[Callable[[str], Any]]:
        def get(url: str) -> Any:
            try:
                with urllib.request.urlopen(url, timeout=READ_TIMEOUT) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                error.close()
                raise

        yield get

    @asynccontextmanager
    async def streams(self) -> AsyncIterator[Callable[[str], Any]]:
        yield get_by_streams

    @asynccontextmanager
    async def httpx(self) -> AsyncIterator[Callable[[str], Any]]:
        httpx = pytest.importorskip("httpx")

        async def get(url: str) -> Any:
            response = await client.get(url)
            response.raise_for_status()
            return response.json()

        async with httpx.AsyncClient(timeout=READ_TIMEOUT) as client:
            yield get

    @asynccontextmanager
    async def aiohttp(self) -> AsyncIterator[Callable[[str], Any]]:
        aiohttp = pytest.importorskip("aiohttp")

        async def get(url: str) -> Any:
            async with client.get(url) as response:
                response.raise_for_status()
                return await response.json(content_type=None)

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=READ_TIMEOUT, sock_read=READ_TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout) as client:
            yield get


async def get_by_streams(url: str) -> Any:
    """A client of twenty lines, for bodies of a stated length or in chunks."""
    parts = urllib.parse.urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        if "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            body = await reader.readexactly(int(await reader.readline(), 16))
    finally:
        writer.close()
    code = int(first.split()[1])
    if code != 200:
        raise ApiError(code, headers)
    return json.loads(body)


CLIENTS = ["urllib", "streams", "httpx", "aiohttp", "streams on uvloop"]


@pytest.fixture(params=CLIENTS)
def over_http(request: pytest.FixtureRequest) -> Callable[..., tuple[FaultServer, Outcome]]:
    """Runs records against a server by script: one call for each record."""
    name, _, loop = request.param.partition(" on ")
    if name in ("httpx", "aiohttp"):
        pytest.importorskip(name)
    factory = pytest.importorskip("uvloop").new_event_loop if loop else None

    def over(
        script: Callable[[int], Reply],
        count: int,
        *,
        url: str | None = None,
        **settings: Any,
    ) -> tuple[FaultServer, Outcome]:
        async def main() -> tuple[FaultServer, Outcome]:
            async with FaultServer(script) as server, getattr(Clients(), name)() as get:
                pipeline = Pipeline("remote")

                async def on_loop(i: int) -> Any:
                    return await get(url or server.url)

                def in_thread(i: int) -> Any:
                    return get(url or server.url)

                handler = on_loop if inspect.iscoroutinefunction(get) else in_thread
                pipeline.add_stage("generate", handler, **settings)
                return server, await run_here(pipeline, records(count))

        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main())

    return over


@pytest.mark.real_clock
def test_row_81_over_http(over_http: Any) -> None:
    server, outcome = over_http(
        lambda number: status(429, {"Retry-After": "0.5"}) if number == 3 else ok(),
        40,
        max_in_flight=1,
        retry=2,
    )
    # The third call is told to wait; other silences may come of a busy machine.
    assert server.arrived[3] - server.arrived[2] >= 0.5
    assert len(server.arrived) == 41
    assert outcome.warnings == ['stage "generate" waits 0.5 s: the service said so']
    assert all_written(outcome, 40)


@pytest.mark.real_clock
def test_row_84_over_http(over_http: Any) -> None:
    server, outcome = over_http(lambda number: status(401) if number > 5 else ok(), 100, max_in_flight=1, retry=5)
    assert outcome.report.stopped == "stage generate: 401 from API; nothing was dead-lettered"
    assert outcome.report.exit_code == STOPPED
    assert (outcome.report.written, outcome.report.dead) == (5, 0)
    assert len(server.arrived) == 6


@pytest.mark.real_clock
@pytest.mark.parametrize("over_http", ["httpx"], indirect=True)
def test_row_84_a_quota_over_http(over_http: Any) -> None:
    body = {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}
    server, outcome = over_http(lambda number: status(429, body=body), 100, max_in_flight=1, retry=5)
    assert outcome.report.stopped == "stage generate: 429 from API: insufficient_quota; nothing was dead-lettered"
    assert outcome.report.dead == 0
    assert len(server.arrived) == 1


@pytest.mark.real_clock
@pytest.mark.parametrize("broken", [reset_mid_body, early_close, cut_chunked])
def test_row_86_over_http(broken: Callable[[], Reply], over_http: Any) -> None:
    server, outcome = over_http(
        lambda number: broken() if number % 3 == 1 else ok(), 20, max_in_flight=4, retry=Retry(9, base=0.01)
    )
    assert all_written(outcome, 20)
    assert outcome.report.exit_code == CLEAN
    assert outcome.report.stages["generate"].retries == len(server.arrived) - 20 > 0


@pytest.mark.real_clock
def test_row_87_over_http(over_http: Any) -> None:
    server, outcome = over_http(lambda number: slow_loris() if number == 1 else ok(), 3, max_in_flight=3, timeout=0.5)
    assert [letter["error"]["message"] for letter in outcome.dead] == ["Timeout after 0.5 s"]
    assert outcome.dead[0]["error"]["type"] == "AttemptTimeout"
    assert outcome.report.written == 2
    assert 0.5 <= outcome.report.seconds < READ_TIMEOUT
    assert len(server.arrived) == 3


@pytest.mark.real_clock
@pytest.mark.parametrize(
    "over_http", ["urllib", "streams", "httpx", "aiohttp"], indirect=True
)  # uvloop asks the C library
def test_row_89_over_http(over_http: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    resolve = socket.getaddrinfo

    def unknown(host: Any, *rest: Any, **named: Any) -> Any:
        if host in (b"api.example", "api.example"):
            asked.append(str(host))
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    _, outcome = over_http(lambda number: ok(), 50, url="http://api.example/v1", max_in_flight=1, retry=5)
    assert asked
    assert outcome.report.stopped is not None
    assert outcome.report.stopped.startswith("stage generate: cannot resolve host")
    assert outcome.report.exit_code == STOPPED
    assert outcome.report.not_done == outcome.report.read


@pytest.mark.real_clock
def test_row_91_over_http(over_http: Any) -> None:
    recovered = asyncio.Event()

    def script(number: int) -> Reply:
        if number == 24:  # eight calls in three rounds, of which the first half was answered
            recovered.set()
        return ok() if number <= 4 else stall_until(recovered)

    server, outcome = over_http(script, 60, max_in_flight=8, timeout=0.3, retry=Retry(20, base=0.05, cap=0.1))
    assert all_written(outcome, 60)
    assert outcome.report.exit_code == CLEAN
    assert outcome.report.stages["generate"].retries >= 12
    assert server.in_progress == 0
