"""Each way in which a call goes wrong: the class, what it says, and what the engine makes of it."""

from __future__ import annotations

import gzip
import json
import pickle
import socket
from typing import Any

import pytest
from scripted import CHOICE, answering, on, reply

from stageflow.llm import BadAnswer, Chat, Refused, SchemaMismatch, ServiceError, Unfinished, Unreachable
from stageflow.policies.breaker import Breaker
from stageflow.policies.http import host_of, quota_code, retry_after, status_of
from stageflow.policies.retry import retryable_by_default

pytest.importorskip("httptools")

BODY = json.dumps({"choices": [CHOICE]}).encode()


def failure(answer: bytes, **options: Any) -> ServiceError:
    """What a call raises that is answered so."""

    async def work() -> ServiceError:
        async with answering(answer) as asked, Chat(base_url=asked.url, model="m") as chat:
            with pytest.raises(ServiceError) as caught:
                await chat.complete("q", **options)
        error = caught.value
        assert error.__cause__ is None
        assert error.__context__ is None
        assert host_of(error) == "127.0.0.1"
        return error

    found: ServiceError = on("asyncio", work)
    return found


class TestErrorStatuses:
    @pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 415, 422])
    def test_what_no_retry_mends(self, status: int) -> None:
        error = failure(reply({"error": {"message": "bad", "code": "bad_request"}}, status))
        assert isinstance(error, Refused)
        assert status_of(error) == status
        assert not retryable_by_default(error)
        assert Breaker("s").failure(error, clean_input=True).trips == (status in (401, 403))

    @pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
    def test_what_may_be_better_the_next_time(self, status: int) -> None:
        error = failure(reply(b"<html>busy</html>", status, content_type="text/html"))
        assert isinstance(error, Refused)
        assert status_of(error) == status
        assert retryable_by_default(error)
        assert not Breaker("s").failure(error, clean_input=True).trips

    def test_the_message_is_the_services_own(self) -> None:
        error = failure(reply({"error": {"message": "Too fast, " + "x" * 1000, "code": "rate_limit"}}, 429))
        assert "429 from 127.0.0.1:" in str(error)
        assert "Too fast, xxx" in str(error)
        assert str(error).endswith(" (rate_limit)")
        assert len(str(error)) < 400
        assert error.body["error"]["code"] == "rate_limit"

    @pytest.mark.parametrize(
        "body",
        [{"error": "no model"}, {"message": "no model"}, {"detail": "no model"}, {"error": {"message": "no model"}}],
    )
    def test_where_services_put_their_message(self, body: Any) -> None:
        assert str(failure(reply(body, 500))).endswith(": no model")

    @pytest.mark.parametrize(
        "body", [b"", b"[]", b"null", b'{"error": null}', b'{"error": {"message": 7}}', b"\xff\xfe"]
    )
    def test_a_body_of_any_kind(self, body: bytes) -> None:
        error = failure(reply(body, 500))
        assert isinstance(error, Refused)
        assert error.status == 500

    def test_a_redirect_is_not_followed(self) -> None:
        error = failure(reply(b"", 307, location="http://127.0.0.1:1/elsewhere"))
        assert isinstance(error, Refused)
        assert error.status == 307
        assert "base_url" in str(error)

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({"retry_after": "7"}, 7.0),
            ({"retry_after": "0.5"}, 0.5),
            ({"retry_after_ms": "1500", "retry_after": "9"}, 1.5),
            ({"retry_after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 30.0),
            ({"retry_after": "0"}, None),
            ({"retry_after": "-3"}, None),
            ({"retry_after": "nan"}, None),
            ({"retry_after": "soon"}, None),
            ({"retry_after": "\xe9"}, None),
            ({}, None),
        ],
    )
    def test_how_long_the_service_wants_to_be_left_alone(self, headers: dict[str, str], seconds: float | None) -> None:
        assert retry_after(failure(reply({}, 429, **headers))) == seconds

    def test_a_wait_that_is_too_long_stops_the_run(self) -> None:
        error = failure(reply({}, 429, retry_after="86400"))
        assert Breaker("s").failure(error, clean_input=True).trips

    def test_what_is_left_of_the_limits_is_kept(self) -> None:
        error = failure(reply({}, 429, x_ratelimit_remaining_tokens="17", x_request_id="r-1", server="nginx"))
        assert error.headers["x-ratelimit-remaining-tokens"] == "17"
        assert error.headers["x-request-id"] == "r-1"
        assert "server" not in error.headers

    @pytest.mark.parametrize("status", [402, 403, 429])
    @pytest.mark.parametrize("where", ["code", "type"])
    def test_a_quota_that_is_used_up(self, status: int, where: str) -> None:
        error = failure(reply({"error": {"message": "pay", where: "insufficient_quota"}}, status))
        assert quota_code(error) == "insufficient_quota"
        assert not retryable_by_default(error)
        assert Breaker("s").failure(error, clean_input=True).trips

    def test_an_error_where_an_answer_should_be(self) -> None:
        plain = failure(reply({"error": {"message": "upstream", "code": 429}}, retry_after="3"))
        assert isinstance(plain, Refused)
        assert (status_of(plain), retry_after(plain)) == (429, 3.0)
        refused = failure(reply({"error": {"message": "upstream", "code": 401}}))
        assert not retryable_by_default(refused)
        quota = failure(reply({"error": {"code": "insufficient_quota"}}))
        assert quota_code(quota) == "insufficient_quota"
        text = failure(reply({"error": "loading"}))
        assert isinstance(text, Refused)
        assert retryable_by_default(text)


class TestAnswersThatAreNone:
    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (reply(BODY, content_type="text/html"), "but text/html: "),
            (reply(b"data: {}\n\n", content_type="text/event-stream"), "but text/event-stream: "),
            (reply(BODY[:20]), "but no JSON: "),
            (reply(gzip.compress(BODY), content_encoding="gzip"), "but no JSON: "),  # nobody asked for that
            (reply(b""), "but no JSON: "),
            (reply(b"[1]"), "but no object: "),
            (reply({"choices": []}), "but no choices"),
            (reply({}), "but no choices"),
            (reply({"choices": None}), "but no choices"),
            (reply({"choices": [{}]}), "but no choices"),
            (reply({"choices": [{"message": None}]}), "but no choices"),
            (reply({"choices": [{"message": {"content": 7}}]}), "content is no text"),
        ],
    )
    def test_they_are_told_and_tried_again(self, answer: bytes, said: str) -> None:
        error = failure(answer)
        assert isinstance(error, BadAnswer)
        assert isinstance(error, ValueError)
        assert said in str(error)
        assert len(str(error)) < 300
        assert status_of(error) == 200
        assert retryable_by_default(error)

    @pytest.mark.parametrize(
        "answer",
        [
            reply(BODY, content_length=str(len(BODY) + 1)),
            reply(BODY[:10], content_length=str(len(BODY))),
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n"
            % (len(BODY), BODY),  # whole by its looks, but the last chunk did not come
            b"HTTP/1.1 200 OK\r\nContent-Ty",
            b"SSH-2.0-OpenSSH\r\n\r\n",
            b"",
        ],
        ids=["a byte short", "cut", "chunks cut", "head cut", "another protocol", "nothing"],
    )
    def test_an_answer_that_is_not_whole_is_an_error_that_is_tried_again(self, answer: bytes) -> None:
        error = failure(answer)
        assert isinstance(error, Unreachable)
        assert "no answer from 127.0.0.1:" in str(error)
        assert "http://" not in str(error)
        assert retryable_by_default(error)


class TestNoService:
    @staticmethod
    def failure(base_url: str) -> Unreachable:
        async def work() -> Unreachable:
            async with Chat(base_url=base_url, model="m") as chat:
                with pytest.raises(Unreachable) as caught:
                    await chat.complete("q")
            return caught.value

        found: Unreachable = on("asyncio", work)
        return found

    def test_nobody_listens(self) -> None:
        with socket.socket() as taken:  # bound and not listening: nobody else takes the port meanwhile
            taken.bind(("127.0.0.1", 0))
            error = self.failure(f"http://127.0.0.1:{taken.getsockname()[1]}/v1?sig=do-not-show")
        assert "refused" in str(error)
        assert "do-not-show" not in repr(error)
        assert retryable_by_default(error)
        assert not Breaker("s").failure(error, clean_input=True).trips

    def test_a_name_that_does_not_exist_stops_a_run_that_had_no_success(self) -> None:
        error = self.failure("http://no-such-host.invalid/v1")
        if "Temporary failure" in str(error):
            pytest.skip("there is no name server to ask")
        verdict = Breaker("s").failure(error, clean_input=True)
        assert verdict.trips
        assert "cannot resolve host no-such-host.invalid" in verdict.reason


class TestTheErrorsThemselves:
    @pytest.mark.parametrize(
        "error",
        [
            Refused("m", status=429, headers={"retry-after": "1"}, body={"error": {}}, host="h"),
            Unreachable("m", host="h"),
            SchemaMismatch("m", host="h"),
            Unfinished("m"),
        ],
    )
    def test_they_go_from_process_to_process(self, error: Exception) -> None:
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == "m"
        assert vars(again) == vars(error)

    def test_what_is_paid_for_in_vain_is_not_tried_again(self) -> None:
        assert not retryable_by_default(Unfinished("m"))
        assert retryable_by_default(SchemaMismatch("m"))
