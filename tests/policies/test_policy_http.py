import asyncio
import datetime
import socket
import time
import urllib.error
from email.utils import format_datetime
from types import SimpleNamespace
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest
from http_errors import LikeHttpx, LikeOpenAI, makers, of_aiohttp, of_requests
from hypothesis import example, given
from hypothesis import strategies as st

from stageflow.policies.http import (
    headers_of,
    host_of,
    is_quota,
    is_unknown_host,
    quota_code,
    retry_after,
    status_of,
)

QUESTIONS = (status_of, headers_of, retry_after, is_quota, quota_code, is_unknown_host, host_of)


def raised(outer, *, cause=None, context=None):
    """An error as a handler raises it: from another, or while handling another."""
    try:
        if context is None:
            raise outer from cause
        try:
            raise context
        except type(context):
            raise outer  # noqa: B904 - the context is the point
    except type(outer) as error:
        return error


@pytest.mark.parametrize("make", makers())
@pytest.mark.parametrize("status", [401, 429, 503])
def test_the_status_is_found_on_every_librarys_error(make, status):
    assert status_of(make(status)) == status


@pytest.mark.parametrize("make", makers())
def test_headers_are_found_on_every_librarys_error(make):
    headers = headers_of(make(429, {"Retry-After": "7", "X-Other": "a"}))
    assert headers["retry-after"] == "7"
    assert headers["x-other"] == "a"


@pytest.mark.parametrize("make", makers())
def test_the_wait_is_found_on_every_librarys_error(make):
    assert retry_after(make(429, {"Retry-After": "7"})) == 7.0
    assert retry_after(make(429)) is None


def test_an_error_that_is_no_http_error_has_no_status():
    assert status_of(ValueError("429")) is None
    assert headers_of(ValueError("429")) == {}
    assert retry_after(ValueError("Retry-After: 7")) is None


@pytest.mark.parametrize("value", [True, "429", 42, 1006, 4.29, None])
def test_what_is_no_status_is_none(value):
    error = ValueError()
    error.status_code = value
    assert status_of(error) is None


def test_a_code_is_a_status_only_where_there_are_headers_or_a_response():
    error = ValueError()
    error.code = 404
    assert status_of(error) is None
    error.headers = {}
    assert status_of(error) == 404


@pytest.mark.parametrize("how", ["cause", "context"])
def test_a_wrapped_error_is_asked_where_the_outer_one_says_nothing(how):
    error = raised(RuntimeError("wrapped"), **{how: LikeHttpx(503, {"retry-after": "3"})})
    assert status_of(error) == 503
    assert retry_after(error) == 3.0


def test_a_context_that_was_hidden_is_asked_too():
    error = raised(RuntimeError("wrapped"), context=LikeHttpx(503))
    error.__suppress_context__ = True
    assert status_of(error) == 503


def test_the_outer_error_outranks_what_it_came_from():
    assert status_of(raised(LikeHttpx(404), cause=LikeHttpx(503))) == 404


def test_the_errors_of_a_group_are_asked():
    assert status_of(ExceptionGroup("tasks", [ValueError(), LikeHttpx(429)])) == 429


def test_a_chain_that_is_a_ring_or_very_long_ends():
    one, two = ValueError(), ValueError()
    one.__context__, two.__context__ = two, one
    assert status_of(one) is None
    error = LikeHttpx(503)
    for _ in range(100):
        outer = ValueError()
        outer.__cause__ = error
        error = outer
    assert status_of(error) is None


class Hostile(Exception):
    """Every attribute raises, what the class itself has excepted."""

    def __getattribute__(self, name):
        if name.startswith("__"):
            return super().__getattribute__(name)
        raise RuntimeError(name)


class HostileResponse(Exception):
    @property
    def response(self):
        raise KeyError("response")

    headers = property(lambda self: 1 / 0)


def with_response(response):
    error = ValueError("x")
    error.response = response
    error.body = response
    error.request = response
    error.headers = response
    return error


@pytest.mark.parametrize(
    "error",
    [
        Hostile(),
        HostileResponse(),
        urllib.error.HTTPError("http://x", 500, "m", None, None),
        *(with_response(kind()) for kind in (Mock, MagicMock, dict, list, int, object)),
        with_response(SimpleNamespace(status_code=429, headers=[("a", 1)], json=None)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("question", QUESTIONS)
def test_no_attribute_makes_a_second_failure(question, error):
    assert question(error) in (None, False, {}, 429, 500)


def test_a_body_that_has_to_be_awaited_is_left_alone():
    error = ValueError()
    error.response = SimpleNamespace(status_code=429, json=AsyncMock(return_value={"code": "insufficient_quota"}))
    assert not is_quota(error)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"RETRY-AFTER": " 0.25 "}, 0.25),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after-ms": "-5", "retry-after": "2"}, 2.0),
        ({"retry-after": 7}, 7.0),
        ({"retry-after": "1e9"}, 1e9),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "0"}, None),
        ({"retry-after": "abc"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "9" * 5000}, 1e128),
        ({"retry-after": "Fri, 31 Dec 100000 23:59:59 GMT", "date": "Fri, 31 Dec 1999 23:59:59 GMT"}, None),
    ],
)
def test_retry_after_is_read_or_ignored(headers, seconds):
    assert retry_after(LikeHttpx(429, headers), wall_clock=0.0) == pytest.approx(seconds)


def test_an_exception_of_ones_own_may_say_how_long_to_wait():
    error = RuntimeError("busy")
    error.retry_after = 2
    assert retry_after(error) == 2.0
    error.retry_after = 10**400
    assert retry_after(error) is None


DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize(
    "until", ["Sun, 06 Nov 1994 08:49:44 GMT", "Sunday, 06-Nov-94 08:49:44 GMT", "Sun Nov  6 08:49:44 1994"]
)
def test_a_date_is_taken_against_the_responses_own_date(until):
    error = LikeHttpx(429, {"retry-after": until, "date": DATE})
    assert retry_after(error) == 7.0
    assert retry_after(error, wall_clock=time.time()) == 7.0, "the local clock was asked"


def test_without_a_date_the_wall_clock_that_was_handed_in_counts():
    error = LikeHttpx(429, {"retry-after": DATE})
    assert retry_after(error) is None
    assert retry_after(error, wall_clock=784111777.0 - 5) == 5.0
    assert retry_after(error, wall_clock=784111777.0 + 5) is None, "a date that has passed"


@given(st.integers(0, 2**33), st.integers(1, 10**6))
def test_any_two_dates_give_their_difference(now, seconds):
    def date(stamp):
        return format_datetime(datetime.datetime.fromtimestamp(stamp, datetime.UTC), usegmt=True)

    assert retry_after(LikeHttpx(429, {"retry-after": date(now + seconds), "date": date(now)})) == seconds


@given(st.text(max_size=200), st.text(max_size=200), st.floats())
@example("1 jan 99999999999999999999 1:1:1 +9999", DATE, 0.0)
@example("Mon, 31 Feb 2020 99:99:99 -9999", "Mon, 0 Foo", 0.0)
def test_no_header_crashes_it(text, date, wall_clock):
    seconds = retry_after(LikeHttpx(429, {"retry-after": text, "retry-after-ms": date, "date": date}), wall_clock=0.0)
    assert seconds is None or 0 < seconds < float("inf")
    assert retry_after(LikeHttpx(429, {"retry-after": DATE}), wall_clock=wall_clock) != float("inf")


@pytest.mark.parametrize("make", makers(with_body=True))
@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached", "billing_not_active"])
@pytest.mark.parametrize("status", [402, 403, 429])
def test_a_quota_is_known_by_the_answers_code(make, code, status):
    assert quota_code(make(status, {}, {"error": {"message": "You exceeded", "type": "x", "code": code}})) == code


@pytest.mark.parametrize("make", makers(with_body=True))
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (429, {"error": {"message": "Rate limit: insufficient_quota?", "type": "requests", "code": "rate_limit"}}),
        (500, {"error": {"code": "insufficient_quota"}}),
        (429, {"error": "insufficient_quota"}),
        (429, {"error": {"code": 429}}),
        (429, {"error": None}),
    ],
)
def test_what_a_message_says_is_no_quota(make, status, body):
    assert not is_quota(make(status, {}, body))


@pytest.mark.parametrize(
    "body", [{"type": "quota exceeded"}, {"detail": {"code": "quotaExceeded"}}, {"error": {"type": "Quota-Exceeded"}}]
)
def test_a_code_may_be_spelt_in_several_ways_and_stand_in_several_places(body):
    assert quota_code(LikeHttpx(429, {}, body)) == "quota_exceeded"


def test_an_error_inside_a_stream_has_a_code_and_no_status():
    error = LikeOpenAI(None, {}, {"error": {"code": "insufficient_quota"}})
    assert status_of(error) is None
    assert is_quota(error)


def test_a_wrapped_quota_is_one():
    assert is_quota(raised(RuntimeError(), context=LikeOpenAI(429, {}, {"error": {"type": "insufficient_quota"}})))


def test_a_body_of_a_megabyte_is_not_parsed():
    assert not is_quota(LikeHttpx(429, {}, {"code": "insufficient_quota", "padding": "x" * 2**20}))


def test_a_streamed_body_is_not_read_from_the_network():
    pytest.importorskip("requests")
    error = of_requests(429)
    error.response._content = False
    error.response.raw = Mock(side_effect=AssertionError, stream=Mock(side_effect=AssertionError))
    assert not is_quota(error)
    error.response.raw.stream.assert_not_called()


def test_a_code_that_is_computed_is_not_asked():
    pytest.importorskip("aiohttp")
    assert not is_quota(of_aiohttp(429))  # reading its `code` warns, and a warning fails the tests


@pytest.mark.parametrize(
    ("number", "unknown"),
    [("EAI_NONAME", True), ("EAI_NODATA", True), ("EAI_AGAIN", False), ("EAI_FAIL", False)],
)
def test_a_name_that_does_not_exist_is_told_from_one_that_cannot_be_resolved_now(number, unknown):
    error = socket.gaierror(getattr(socket, number), "…")
    assert is_unknown_host(error) is unknown
    assert is_unknown_host(raised(ConnectionError(), cause=error)) is unknown
    assert is_unknown_host(raised(ConnectionError(), context=error)) is unknown
    assert not is_unknown_host(OSError(getattr(socket, number), "…"))


def no_such_host(*_, **__):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


URL = "http://user:hunter2@no-such-host.example/v1"


def through_httpx(module):
    import importlib

    importlib.import_module(module).get(URL, trust_env=False)


def through_requests():
    import requests

    with requests.Session() as session:
        session.trust_env = False
        session.get(URL)


def through_openai():
    import openai

    with openai.OpenAI(api_key="none", base_url=URL, max_retries=0) as client:
        client.models.list()


def through_aiohttp():
    import aiohttp

    async def get():
        resolver = aiohttp.ThreadedResolver()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=resolver)) as session:
            await session.get(URL)

    asyncio.run(get())


@pytest.mark.parametrize(
    ("library", "call"),
    [
        ("httpx", lambda: through_httpx("httpx")),
        ("httpx2", lambda: through_httpx("httpx2")),
        ("requests", through_requests),
        ("openai", through_openai),
        ("aiohttp", through_aiohttp),
    ],
)
def test_each_librarys_own_error_for_an_unknown_host_is_seen_through(library, call, monkeypatch):
    pytest.importorskip(library)
    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each library has its own
        call()
    assert is_unknown_host(caught.value)
    assert host_of(caught.value) == "no-such-host.example"
    assert status_of(caught.value) is None
