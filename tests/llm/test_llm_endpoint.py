"""Settings of the client that are refused, and what is never shown."""

from __future__ import annotations

import asyncio
import logging
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from scripted import KEY, VARIABLE, answering, on, reply

import stageflow
from stageflow import SettingError
from stageflow.llm import BadAnswer, Chat, Refused, ServiceError
from stageflow.llm.endpoint import Key, endpoint_of, key_of

PACKAGE = Path(stageflow.__file__).parent
BASE = "http://127.0.0.1:1/v1"


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "api.openai.com/v1",
        "ftp://h/v1",
        "http://",
        "http://h:0x/v1",
        "http://h:99999/v1",
        "http://h/v1 ",
        "http://h/\nv1",
        "http://h\u00f6/v1",
        "http://user:hidden-word@h/v1",
        "http://h/v1#part",
        "http://h/v1/chat/completions",
        "http://h/v1/embeddings/",
        "hidden-word",
        7,
    ],
)
def test_a_base_url_that_is_none(base_url: Any) -> None:
    with pytest.raises(SettingError) as caught:
        Chat(base_url=base_url, model="m")
    assert caught.value.hint or isinstance(base_url, int)
    assert "hidden-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("base_url", "address"),
    [
        ("http://h/v1", "http://h/v1/embeddings"),
        ("http://h/v1/", "http://h/v1/embeddings"),
        ("http://[::1]:8000", "http://[::1]:8000/embeddings"),
        ("https://h/d/x?api-version=2", "https://h/d/x/embeddings?api-version=2"),
    ],
)
def test_where_calls_go(base_url: str, address: str) -> None:
    assert endpoint_of(base_url).url("embeddings") == address


def test_the_host_is_told_apart_from_its_port() -> None:
    assert (endpoint_of("http://[::1]:8000").host, endpoint_of("http://[::1]:8000").netloc) == ("::1", "[::1]:8000")


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer hidden-word"},
        {"X-API-Key": "hidden-word"},
        {"Cookie": "hidden-word"},
        {"Content-Type": "hidden-word"},
        {"idempotency-key": "hidden-word"},
        {"X": "hidden-word\r\n"},
        {"X": "hidden-word \u2713"},
        {"X": 7},
        {"bad name": "hidden-word"},
        {7: "hidden-word"},
    ],
)
def test_headers_that_do_not_go(headers: Any) -> None:
    with pytest.raises(SettingError) as caught:
        Chat(base_url=BASE, model="m", headers=headers)
    assert "hidden-word" not in str(caught.value)


def test_the_header_of_the_key_is_checked_before_there_is_one() -> None:
    with pytest.raises(SettingError):
        Chat(base_url=BASE, model="m", api_key_header="api key")
    with pytest.raises(SettingError, match="each call"):
        Chat(base_url=BASE, model="m", api_key_header="Host")


class TestTheVariable:
    def test_it_is_read_on_entering(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(VARIABLE, raising=False)
        chat = Chat(base_url=BASE, model="m", api_key_env=VARIABLE)
        with pytest.raises(SettingError, match=f"{VARIABLE} is not set"):
            asyncio.run(chat.__aenter__())

    @pytest.mark.parametrize("value", ["", "  ", "hidden-word\nx", "hidden-word\x00", "hidden-wörd"])
    def test_what_no_key_is(self, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.environ", {VARIABLE: value})
        with pytest.raises(SettingError) as caught:
            key_of(VARIABLE)
        assert "hidden-w" not in str(caught.value)

    def test_blanks_around_it_are_no_part_of_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(VARIABLE, f" {KEY}\n")
        assert key_of(VARIABLE).reveal() == KEY

    @pytest.mark.parametrize("given", ["sk-live-1234567890", "sk_live_1234567890", "abcdef1234567890", 7, ""])
    def test_a_key_in_place_of_a_name_is_not_shown(self, given: Any) -> None:
        with pytest.raises(SettingError) as caught:
            key_of(given)
        assert not given or str(given) not in str(caught.value)

    def test_without_a_name_there_is_no_key(self) -> None:
        assert key_of(None).reveal() == ""


class TestTheKeyIsNotShown:
    def test_by_itself(self) -> None:
        key = Key(KEY)
        assert KEY not in f"{key!r} {key!s} {vars(Chat(base_url=BASE, model='m'))}"
        with pytest.raises(TypeError):
            pickle.dumps(key)

    def test_by_the_client(self) -> None:
        assert repr(Chat(base_url=f"{BASE}?sig=abc", model="m", api_key_env=VARIABLE)) == (
            f"Chat(base_url='{BASE}', model='m')"
        )

    def test_a_stand_in_for_a_key_does_not_mask_words(self) -> None:
        assert Key("none").masked("none of it") == "none of it"
        assert Key("").masked("none of it") == "none of it"

    @pytest.mark.parametrize(
        "answer",
        [
            reply({"error": {"message": f"Incorrect API key provided: {KEY}.", "code": "invalid_api_key"}}, 401),
            reply(f"<html>{KEY}</html>".encode(), 500, content_type="text/html"),
            reply(f"you sent {KEY}".encode()),
            reply({"error": {"message": KEY}}),
            reply({"error": KEY}),
            reply([KEY]),
            reply(KEY.encode(), content_length="999"),
        ],
    )
    def test_by_what_a_service_quotes(
        self, answer: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        pytest.importorskip("httptools")
        monkeypatch.setenv(VARIABLE, KEY)
        caplog.set_level(logging.DEBUG)

        async def work() -> ServiceError:
            async with (
                answering(answer) as asked,
                Chat(base_url=asked.url, model="m", api_key_env=VARIABLE) as chat,
            ):
                with pytest.raises(ServiceError) as caught:
                    await chat.complete("q")
                assert asked.heads[0]["authorization"] == f"Bearer {KEY}", "it was sent"
            return caught.value

        error = on("asyncio", work)
        # As loggers and debuggers do that show the variables of each frame, by their repr.
        frames = traceback.TracebackException.from_exception(error, capture_locals=True)
        ours = [frame for frame in frames.stack if Path(frame.filename).is_relative_to(PACKAGE)]
        assert ours
        for frame in ours:
            assert_hidden(f"{frame.locals}")
        assert_hidden(f"{error!r} {error!s} {vars(error)} {caplog.text}")
        assert_hidden("".join(traceback.format_exception(error)))


def assert_hidden(text: str) -> None:
    for spelling in (KEY, repr(KEY)[1:-1], KEY[:12]):
        assert spelling not in text


def test_the_library_is_asked_for_where_it_is_needed() -> None:
    code = """
import asyncio, sys
sys.modules["httptools"] = None
from stageflow import RequestError
from stageflow.llm import Chat
try:
    asyncio.run(Chat(base_url="http://h/v1", model="m").__aenter__())
except RequestError as error:
    print(error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "pip install 'stageflow[llm]'"


def test_errors_of_the_service_are_no_others() -> None:
    assert issubclass(Refused, ServiceError)
    assert issubclass(BadAnswer, ServiceError)
