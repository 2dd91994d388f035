"""What can go wrong with a call of a service.

::

    ItemError
      ServiceError              the service, not the record, is what went wrong; tried again if the stage retries, but
        Refused                   an answer with an error status: by that status, Retry-After and code
        Unreachable               no whole answer came: refused, reset, cut off, silent, too long
        BadAnswer                 an answer that is none: another content type, no JSON, no choices
          SchemaMismatch            the model's text is not what ``schema=`` asked for
      ResultError
        Unfinished              the model stopped early or refused; not tried again, as it would be paid for once more

No message, attribute or chained exception holds the key, or the address with its query.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stageflow.errors import ItemError, ResultError

if TYPE_CHECKING:
    from stageflow.llm.answers import Answer

__all__ = ["BadAnswer", "Refused", "SchemaMismatch", "ServiceError", "Unfinished", "Unreachable"]


class ServiceError(ItemError):
    """A call of a service went wrong.

    Attributes:
        status: Of the answer, where one came.
        headers: Those of the answer that say when to come back, how much is left, and which request it was; their names
            in lower case.
        body: What the answer held, where that was JSON.
        host: Whom was asked.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        host: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body = body
        self.host = host


class Refused(ServiceError):
    """The service answered with an error status, or with an error where an answer should be."""


class Unreachable(ServiceError):
    """No whole answer came: the name is unknown, no connection, or one that broke before the end of the answer.

    So it is with a stream that lacks its end, or in which nothing came for too long, and with an answer that is longer
    than it may be.

    What the service did is not known; it may have done all of the work.
    """


class BadAnswer(ServiceError, ValueError):
    """The service said that all is well, and what it sent is no answer."""


class SchemaMismatch(BadAnswer):
    """The model's text is no JSON, or not what the schema asks for.

    Attributes:
        answer: What it was; it was paid for.
    """

    def __init__(self, message: str, *, answer: Answer | None = None, host: str | None = None) -> None:
        super().__init__(message, host=host)
        self.answer = answer


class Unfinished(ResultError):
    """The model did not come to its end: ``finish_reason`` is ``"length"`` or ``"content_filter"``, or it refused.

    Attributes:
        answer: What there is of it; it was paid for.
    """

    def __init__(self, message: str, *, answer: Answer | None = None) -> None:
        super().__init__(message)
        self.answer = answer
