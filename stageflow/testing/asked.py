"""Requests for a completion or for embeddings: checked as the API checks them, and answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from stageflow.testing.answers import TOKEN_CHARS, answer_text, count_tokens, prompt_of
from stageflow.testing.faults import Fault
from stageflow.testing.replies import Reply, chat_reply, embeddings_reply, error_reply
from stageflow.testing.script import Script

__all__ = ["Asked", "AskedChat", "AskedEmbeddings", "Refused", "understood"]

_CHOICES: Final = 128
_TEXTS: Final = 2048


class Refused(Exception):
    """A call that is told what is wrong with it.

    Args:
        outcome: What it is counted as.
    """

    def __init__(self, outcome: str, reply: Reply) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.reply = reply


def understood(path: str, request: Any, script: Script, seed: int) -> Asked:
    """What a request asks for.

    Raises:
        Refused: It is not what the API takes, or asks for a model that is not there.
    """
    if not isinstance(request, dict):
        raise _wrong("We could not parse the JSON body of your request.")
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise _wrong("you must provide a model parameter")
    if script.models and model not in script.models:
        message = f"The model `{model}` does not exist or you do not have access to it."
        raise Refused("bad_request", error_reply(404, "invalid_request_error", "model_not_found", message))
    return (AskedChat if path == "chat/completions" else AskedEmbeddings)(request, script, seed)


def _wrong(message: str) -> Refused:
    return Refused("bad_request", error_reply(400, "invalid_request_error", None, message))


class Asked:
    """A request that is in order.

    Attributes:
        tokens_in, tokens_out: Of the prompt, and of what is answered.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.model = str(request["model"])
        self.tokens_in = 0
        self.tokens_out = 0

    def reply(self, number: int, created: int, fault: Fault | None) -> Reply:
        """The answer to the call of this number, with the fault in what it says."""
        raise NotImplementedError


class AskedChat(Asked):
    """A request for a chat completion."""

    def __init__(self, request: Mapping[str, Any], script: Script, seed: int) -> None:
        super().__init__(request)
        messages = request.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise _wrong("'messages' must be a list of at least one message")
        self._choices = request.get("n") or 1
        if not isinstance(self._choices, int) or not 1 <= self._choices <= _CHOICES:
            raise _wrong(f"'n' must be a number from 1 to {_CHOICES}")
        most = request.get("max_completion_tokens") or request.get("max_tokens")
        if most is not None and (not isinstance(most, int) or most < 1):
            raise _wrong("'max_tokens' must be a number of at least 1")
        form = request.get("response_format")
        if form is not None and not isinstance(form, dict):
            raise _wrong("'response_format' must be an object")
        options = request.get("stream_options")
        self._stream = (options if isinstance(options, dict) else {}) if request.get("stream") else None
        prompt = prompt_of(messages)
        try:
            self._text: str | None = answer_text(prompt, seed=seed, tokens=script.answer_tokens, form=form)
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError):
            raise _wrong("'response_format' has a schema that nothing can be made of") from None
        self._reason = "stop"
        if most is not None and count_tokens(self._text) > most:
            self._text, self._reason = self._text[: most * TOKEN_CHARS], "length"
        self.tokens_in = max(1, count_tokens(prompt))
        self.tokens_out = count_tokens(self._text) * self._choices

    def reply(self, number: int, created: int, fault: Fault | None) -> Reply:
        if fault is not None:
            self._struck(fault.do)
        usage = {
            "prompt_tokens": self.tokens_in,
            "completion_tokens": self.tokens_out,
            "total_tokens": self.tokens_in + self.tokens_out,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }
        contents, reasons = [self._text] * self._choices, [self._reason] * self._choices
        return chat_reply(number, created, self.model, contents, reasons, usage, self._stream)

    def _struck(self, do: str) -> None:
        if do == "empty_choices":
            self._choices = self.tokens_out = 0
        elif do == "content_filter":
            self._text, self._reason, self.tokens_out = None, do, 0
        elif do == "length":
            assert self._text is not None
            # Half of it, in whole tokens: what is left counts as what it is.
            self._text = self._text[: max(1, count_tokens(self._text) // 2) * TOKEN_CHARS]
            self._reason, self.tokens_out = do, count_tokens(self._text) * self._choices


class AskedEmbeddings(Asked):
    """A request for embeddings."""

    def __init__(self, request: Mapping[str, Any], script: Script, seed: int) -> None:
        super().__init__(request)
        self._texts = _texts_of(request.get("input"))
        self._seed = seed
        self._dimensions = request.get("dimensions") or script.dimensions
        if not isinstance(self._dimensions, int) or not 1 <= self._dimensions <= 8192:
            raise _wrong("'dimensions' must be a number from 1 to 8192")
        self._base64 = request.get("encoding_format") == "base64"
        self.tokens_in = sum([max(1, count_tokens(text)) for text in self._texts])

    def reply(self, number: int, created: int, fault: Fault | None) -> Reply:
        usage = {"prompt_tokens": self.tokens_in, "total_tokens": self.tokens_in}
        texts = [] if fault is not None and fault.do == "empty_choices" else self._texts
        return embeddings_reply(
            texts, self.model, usage, seed=self._seed, dimensions=self._dimensions, base64=self._base64
        )


def _texts_of(said: Any) -> list[str]:
    """The texts of ``input``: one, several, or lists of token numbers, which stand for a text each."""
    if isinstance(said, str) or (isinstance(said, list) and said and isinstance(said[0], int)):
        said = [said]
    if not isinstance(said, list) or not 1 <= len(said) <= _TEXTS:
        raise _wrong(f"'input' must be a text or a list of 1 to {_TEXTS} of them")
    if not all(text and isinstance(text, str | list) for text in said):
        raise _wrong("'input' cannot be an empty string")
    return [text if isinstance(text, str) else " ".join(map(str, text)) for text in said]
