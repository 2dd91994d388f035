"""Where the service is, and the key to it. Neither a key nor what may hold one is ever shown."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Final, NoReturn
from urllib.parse import SplitResult, urlsplit

from stageflow.errors import SettingError

__all__ = ["Endpoint", "Key", "check_name", "endpoint_of", "headers_of", "key_of"]

_MASK: Final = "***"
_SHORTEST: Final = 8
"""A key that is shorter is a stand-in for a server that asks for none; it would mask ordinary words."""
_VARIABLE: Final = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_CREDENTIALS: Final = re.compile(r"authorization|cookie|key|token|secret", re.IGNORECASE)
_OWN: Final = frozenset({"content-type", "content-length", "host", "idempotency-key", "transfer-encoding"})


class Endpoint:
    """The base URL of a service.

    Attributes:
        host: Its name or address alone.
        port: ``None``: that of the scheme.
        netloc: With the port, as messages have it.
    """

    __slots__ = ("_parts", "_path", "host", "is_https", "netloc", "port")

    def __init__(self, parts: SplitResult) -> None:
        self._parts = parts
        self._path = parts.path.rstrip("/")
        self.host = parts.hostname or ""
        self.port = parts.port
        self.netloc = parts.netloc
        self.is_https = parts.scheme == "https"

    def target(self, path: str) -> str:
        """What a request for one of its calls names, where it goes to the service itself."""
        return f"{self._path}/{path}" + (f"?{self._parts.query}" if self._parts.query else "")

    def url(self, path: str) -> str:
        """The whole address of one of its calls."""
        return self._parts._replace(path=f"{self._path}/{path}").geturl()

    def __str__(self) -> str:
        return f"{self._parts.scheme}://{self.netloc}{self._path}"


def endpoint_of(base_url: str) -> Endpoint:
    """Check a base URL.

    Raises:
        SettingError: It is none, or holds what does not belong there.
    """
    if not isinstance(base_url, str):
        raise SettingError(f"base_url must be a text, not {type(base_url).__name__}")
    try:
        parts = urlsplit(base_url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good or not base_url.isascii() or not base_url.isprintable() or " " in base_url:
        # Not shown: what is no URL may be a key that stands in the wrong place.
        raise SettingError("base_url is no URL", hint='it looks like "https://api.openai.com/v1"')
    if "@" in parts.netloc:
        raise SettingError("base_url holds a user or a password", hint="name an environment variable in api_key_env")
    if parts.fragment:
        raise SettingError("base_url has a fragment, which is sent to nobody", hint='leave out "#" and what follows')
    if parts.path.rstrip("/").endswith(("/chat/completions", "/embeddings")):
        raise SettingError(
            f'base_url goes too far: "{parts.path}"', hint='it ends before "/chat/completions", mostly in "/v1"'
        )
    return Endpoint(parts)


def check_name(name: str) -> None:
    """Check the name of a header that is not set for each call anyway.

    Raises:
        SettingError: It is none, or one of those.
    """
    if not isinstance(name, str) or not _HEADER.fullmatch(name):
        raise SettingError("the name of a header is none", hint="letters, digits and dashes")
    if name.lower() in _OWN:
        raise SettingError(f'header "{name}" is set for each call', hint="leave it out")


def headers_of(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Check the headers that go with each call.

    Raises:
        SettingError: They can't be sent, are set for each call, or may hold a credential.
    """
    for name, value in (headers or {}).items():
        check_name(name)
        if _CREDENTIALS.search(name):
            raise SettingError(f'header "{name}" looks like a credential', hint="those come by api_key_env alone")
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise SettingError(f'header "{name}" has a value that can\'t be sent', hint="printable ASCII")
    return dict(headers or {})


class Key:
    """A key that shows itself to nobody but who asks for it by name."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The key itself."""
        return self._text

    def masked(self, text: str) -> str:
        """A text without the key: services quote it back when they refuse it."""
        if len(self._text) < _SHORTEST:
            return text
        return text.replace(self._text, _MASK).replace(json.dumps(self._text)[1:-1], _MASK)

    def __repr__(self) -> str:
        return f"Key({_MASK})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not pickled")


def key_of(variable: str | None) -> Key:
    """Read the key from the environment; an empty one where no variable is named.

    Raises:
        SettingError: The variable is not set, or holds what can't be sent.
    """
    if variable is None:
        return Key("")
    if not isinstance(variable, str) or not variable.isidentifier():
        raise SettingError("api_key_env is no name", hint="it names an environment variable; it is not the key itself")
    # A key that was given in place of a name may look like one, too; those of variables are in capitals by custom.
    named = variable if _VARIABLE.fullmatch(variable) else "that api_key_env names"
    text = os.environ.get(variable, "").strip()
    if not text:
        raise SettingError(f"the environment variable {named} is not set", hint="it holds the service's key")
    if not text.isascii() or not text.isprintable():
        raise SettingError(f"the environment variable {named} holds characters that no key has", hint="set it again")
    return Key(text)
