"""The client: one pool of connections to one service, shared by all stages that name it.

The rules of a call:

1. It is made once. What goes wrong is raised so that the stage's ``retry`` can tell what to do, and when.
2. It takes as long as it takes: the stage's ``timeout`` cancels it, and its connection is closed then.
3. As many are in progress as are made: the stages' ``max_in_flight`` is the limit, and nothing here is below it.
4. What it used is reported as soon as that is known, also where the answer is refused afterwards, or broke off behind
   an event that said so: it was paid for.
5. A stream is one answer that comes in parts. Nobody gets the parts; it may last as long as something comes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Protocol, Self
from urllib.parse import quote
from zlib import crc32

import orjson

from stageflow.errors import SettingError
from stageflow.llm.answers import Answer, Embeddings, answer_of, embeddings_of, finished, json_of, usage_of
from stageflow.llm.endpoint import Key, check_name, endpoint_of, headers_of, key_of
from stageflow.llm.http import Http
from stageflow.llm.limits import limits_of
from stageflow.llm.schema import schema_of
from stageflow.llm.streams import Gathered
from stageflow.llm.wire import MOST_BYTES, Reply

__all__ = ["Chat"]

_CHAT: Final = "chat/completions"
_EMBEDDINGS: Final = "embeddings"
_SILENT: Final = 16
"""A service that has said nothing of its limits with so many answers in a row is not looked at for that any more."""


class HandlersCall(Protocol):
    """What a handler has as its parameter ``call``."""

    @property
    def idempotency_key(self) -> str: ...

    def report(self, *, tokens: int, input_tokens: int, output_tokens: int) -> None: ...


class Chat:
    """A client for one service that speaks the OpenAI API: OpenAI, vLLM, llama.cpp, gateways.

    An async context manager; between entering and leaving any number of tasks may call it at once. Leaving closes the
    connections. Entering raises the process's own limit of open files as far as the system allows, up to 65,536, as
    each call in progress has a connection. Proxies and certificates are those of the environment: ``HTTPS_PROXY``,
    ``NO_PROXY``, ``SSL_CERT_FILE``.

    Args:
        base_url: Up to what comes before ``/chat/completions``; a query in it is sent with each call.
        model: What calls ask for that name no other.
        api_key_env: The environment variable that holds the key, read on entering. ``None``: no key is sent. There is
            no other way to give it, so that none gets into a file, a log or the text of an error.
        api_key_header: Where the key goes. In ``Authorization`` it comes after ``Bearer``, in any other by itself.
        headers: Sent with each call; none may hold a credential.
        heeds_limits: Report what the service says of its rate limits to the stage, which then starts no more calls than
            that. Only calls that are given ``call`` report.
        stream: Whether answers come as streams. They are put together to what they would be in one piece, and what
            breaks off is an error. The stage's ``timeout`` may be long then: a service that has gone silent is noticed
            by ``idle_timeout``, and gateways that cut off silent connections see that something comes.
        idle_timeout: So many seconds, > 0, may nothing come of a stream; from the request on, so that it is also the
            longest that a model may think before its first word.
        max_response_bytes: The longest answer, > 0, its head and, with a stream, the form of its events included. What
            is longer is given up. Answers are never compressed.

    Raises:
        SettingError: A setting is refused; on entering, the key.
        RequestError: On entering: the extra ``llm`` is not installed.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        api_key_header: str = "Authorization",
        headers: Mapping[str, str] | None = None,
        heeds_limits: bool = True,
        stream: bool = False,
        idle_timeout: float = 120.0,
        max_response_bytes: int = MOST_BYTES,
    ) -> None:
        self._endpoint = endpoint_of(base_url)
        self._model = model
        self._variable = api_key_env
        check_name(api_key_header)
        self._key_header = api_key_header
        self._headers = headers_of(headers)
        if not isinstance(idle_timeout, (int, float)) or not 0 < idle_timeout < float("inf"):
            raise SettingError(f"idle_timeout must be seconds, more than 0, not {idle_timeout!r}")
        if type(max_response_bytes) is not int or max_response_bytes < 1:
            raise SettingError(f"max_response_bytes must be a positive integer, not {max_response_bytes!r}")
        self._stream = stream
        self._idle_timeout = float(idle_timeout)
        self._most_bytes = max_response_bytes
        self._key = Key("")
        self._http: Http | None = None
        self._silent = 0 if heeds_limits else _SILENT

    def __repr__(self) -> str:
        return f"Chat(base_url={str(self._endpoint)!r}, model={self._model!r})"

    async def __aenter__(self) -> Self:
        if self._http is not None:
            raise TypeError("this Chat is open: use it as it is, it may be shared")
        self._key = key_of(self._variable)
        self._http = Http(
            self._endpoint,
            self._all_headers,
            (_CHAT, _EMBEDDINGS),
            most_bytes=self._most_bytes,
            idle_seconds=self._idle_timeout,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def complete(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        call: HandlersCall | Sequence[HandlersCall] | None = None,
        schema: Mapping[str, Any] | None = None,
        must_finish: bool = False,
        stream: bool | None = None,
        **options: Any,
    ) -> Answer:
        """Ask the model, once.

        Args:
            messages: As the API takes them; a text is one message of the user's.
            call: The handler's own ``call``, or the list of them in a batch. With it the tokens that were used are
                reported to the stage's ``tokens_per_minute``, and an ``Idempotency-Key`` is sent: the call's, and a
                checksum of the request, so that a repeated request bears the same key and another one does not.
            schema: A JSON schema. The service is asked for an answer that fits, which is checked and decoded as
                ``data``; ``must_finish`` is implied. Services that know another way to be asked are given a
                ``response_format`` of your own.
            must_finish: Raise :class:`Unfinished` where the answer is cut off by its length or by a filter, or is a
                refusal. Without it that stands in ``finish_reason``.
            stream: Instead of the client's. The service is asked for the usage, too (``stream_options``); one that
                does not know that may be asked with ``stream_options=None``.
            options: Sent as they are: ``temperature``, ``max_tokens``, ``tools``, ``seed``, another ``model``. With
                ``n`` the other answers are in ``raw``.

        Raises:
            Refused: The service answered with an error; ``status``, ``headers`` and ``body`` are its own.
            Unreachable: No whole answer came.
            BadAnswer: What came is no answer; :class:`SchemaMismatch` where it does not fit the schema.
            Unfinished: See ``must_finish``.
            TypeError: The request can't be made: it is no JSON, or the client is not open.
        """
        said = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        request = {"model": self._model, "messages": said}
        wanted = None
        if schema is not None:
            wanted = schema_of(schema)
            request["response_format"] = wanted.response_format
        if options:
            request |= options
        gathered = None
        if self._stream if stream is None else stream:
            gathered = _as_stream(request)
        raw = await self._exchange(_CHAT, request, call, gathered)
        answer = answer_of(raw, self._endpoint.netloc, self._endpoint.host)
        if wanted is not None:
            answer.data = wanted.check(finished(answer), self._endpoint.host)
        return finished(answer) if must_finish else answer

    async def embed(
        self,
        texts: str | Sequence[str],
        *,
        call: HandlersCall | Sequence[HandlersCall] | None = None,
        **options: Any,
    ) -> Embeddings:
        """Ask for the embeddings of one text or of several, in one call.

        Args:
            texts: One text gives one vector.
            call: As for :meth:`complete`.
            options: Sent as they are: ``dimensions``, another ``model``.

        Raises:
            Refused, Unreachable, BadAnswer, TypeError: As for :meth:`complete`.
        """
        given = [texts] if isinstance(texts, str) else list(texts)
        request = {"model": self._model, "input": given, **options}
        raw = await self._exchange(_EMBEDDINGS, request, call)
        return embeddings_of(raw, len(given), self._endpoint.netloc, self._endpoint.host)

    async def _exchange(
        self,
        path: str,
        request: Mapping[str, Any],
        call: HandlersCall | Sequence[HandlersCall] | None,
        gathered: Gathered | None = None,
    ) -> dict[str, Any]:
        """Send a request, decode its answer, and report what it used."""
        if self._http is None:
            raise TypeError("this Chat is not open: use it inside `async with`")
        body = orjson.dumps(request)
        key = None if call is None else _idempotency_key(call, body)
        whom = self._endpoint.netloc, self._endpoint.host, self._key.masked
        began = asyncio.get_running_loop().time()
        try:
            reply = await self._http.post(path, body, key, gathered)
            if call is not None and self._silent < _SILENT:
                self._tell_limits(_first(call), reply, request["model"], began)
            if gathered is not None and gathered.began:
                return gathered.whole(reply, *whom)
        finally:
            if gathered is not None:
                _report(call, gathered.raw)
        raw = json_of(reply, *whom)
        _report(call, raw)
        return raw

    def _tell_limits(self, call: HandlersCall, reply: Reply, model: Any, began: float) -> None:
        """Report what the service says of its rate limits; a stand-in for ``call`` need not care."""
        report = getattr(call, "report_limits", None)
        now = asyncio.get_running_loop().time()
        scope = f"{self._endpoint.netloc} {model}"
        told = limits_of(reply.header, began=began, ended=now, wall_clock=time.time(), scope=scope)
        self._silent = self._silent + 1 if told is None else 0
        if told is not None and report is not None:
            report(told)

    def _all_headers(self) -> dict[str, str]:
        headers = {**self._headers, "Content-Type": "application/json"}
        if key := self._key.reveal():
            headers[self._key_header] = f"Bearer {key}" if self._key_header.lower() == "authorization" else key
        return headers


def _as_stream(request: dict[str, Any]) -> Gathered:
    """Ask for a stream, and for what is to be known of it; what puts it together."""
    request["stream"] = True
    if request.setdefault("stream_options", {"include_usage": True}) is None:
        del request["stream_options"]
    choices = request.get("n")
    return Gathered(choices if type(choices) is int else 1)


def _report(call: HandlersCall | Sequence[HandlersCall] | None, raw: dict[str, Any]) -> None:
    """Tell the stage what was used, where that is known."""
    if call is not None and (usage := usage_of(raw)) is not None:
        _first(call).report(
            tokens=usage.total_tokens, input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens
        )


def _first(call: HandlersCall | Sequence[HandlersCall]) -> HandlersCall:
    """Of a batch the first one, which speaks for all."""
    return call[0] if isinstance(call, Sequence) else call


def _idempotency_key(call: HandlersCall | Sequence[HandlersCall], body: bytes) -> str:
    key = _first(call).idempotency_key
    # The name of a stage is in it, and may have letters that headers have not.
    plain = key.isascii() and key.isprintable()
    return f"{key if plain else quote(key)}-{crc32(body):08x}"
