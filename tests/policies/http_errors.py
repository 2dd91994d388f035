"""Errors of HTTP clients, made by hand and by the libraries themselves where these are installed."""

from __future__ import annotations

import email.message
import importlib
import json
import urllib.error
from types import SimpleNamespace

import pytest


class LikeHttpx(Exception):
    """Status and headers on a response; the body is decoded when asked for."""

    def __init__(self, status, headers=None, body=None):
        super().__init__(f"status {status}")
        content = json.dumps(body).encode() if body is not None else b"<html>"
        self.response = SimpleNamespace(
            status_code=status, headers=headers or {}, content=content, json=lambda: json.loads(content)
        )


class LikeAiohttp(Exception):
    """Status and headers on the error itself."""

    def __init__(self, status, headers=None, body=None):
        super().__init__(f"status {status}")
        self.status = status
        self.headers = headers or {}


class LikeOpenAI(LikeHttpx):
    """As httpx, and the error object of the body beside it."""

    def __init__(self, status, headers=None, body=None):
        super().__init__(status, headers, body)
        self.status_code = status
        self.body = (body or {}).get("error")
        self.code = self.body.get("code") if isinstance(self.body, dict) else None


def of_httpx(status, headers=None, body=None, module="httpx"):
    httpx = importlib.import_module(module)
    request = httpx.Request("POST", "https://user:pass@api.example.com/v1")
    response = httpx.Response(status, headers=headers, json=body, request=request)
    return httpx.HTTPStatusError("failed", request=request, response=response)


def of_requests(status, headers=None, body=None):
    import requests

    response = requests.Response()
    response.status_code = status
    response.headers.update(headers or {})
    response._content = json.dumps(body).encode()
    response.request = requests.Request("GET", "https://api.example.com/v1").prepare()
    with pytest.raises(requests.HTTPError) as caught:
        response.raise_for_status()
    return caught.value


def of_aiohttp(status, headers=None, body=None):
    import aiohttp
    from multidict import CIMultiDict, CIMultiDictProxy
    from yarl import URL

    url = URL("https://api.example.com/v1")
    info = aiohttp.RequestInfo(url, "GET", CIMultiDictProxy(CIMultiDict()), url)
    return aiohttp.ClientResponseError(info, (), status=status, message="failed", headers=CIMultiDict(headers or {}))


def of_openai(status, headers=None, body=None):
    import openai

    httpx = importlib.import_module(openai.APIStatusError.__init__.__annotations__["response"].partition(".")[0])
    request = httpx.Request("POST", "https://api.example.com/v1/chat/completions")
    response = httpx.Response(status, headers=headers, json=body, request=request)
    client = openai.OpenAI(api_key="none", base_url="https://api.example.com/v1")
    return client._make_status_error("failed", body=(body or {}).get("error", body), response=response)


def of_urllib(status, headers=None, body=None):
    message = email.message.Message()
    for name, value in (headers or {}).items():
        message[name] = value
    return urllib.error.HTTPError("https://api.example.com/v1", status, "failed", message, None)


BY_HAND = {"like httpx": LikeHttpx, "like aiohttp": LikeAiohttp, "like openai": LikeOpenAI, "urllib": of_urllib}
FROM_LIBRARIES = {"httpx": of_httpx, "requests": of_requests, "aiohttp": of_aiohttp, "openai": of_openai}


def makers(*, with_body=False):
    """Each maker of an error; those of libraries that are not installed are skipped when they are called."""
    without = {"like aiohttp", "aiohttp", "urllib"} if with_body else set()
    by_hand = [pytest.param(maker, id=name) for name, maker in BY_HAND.items() if name not in without]
    real = [
        pytest.param(_needing(name, maker), id=name) for name, maker in FROM_LIBRARIES.items() if name not in without
    ]
    return by_hand + real


def _needing(library, maker):
    def make(*given, **named):
        pytest.importorskip(library)
        return maker(*given, **named)

    return make
