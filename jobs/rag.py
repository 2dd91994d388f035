"""Answer questions from the documentation of the running Python: retrieve, generate, validate.

    stageflow run jobs/rag.py jobs/queries.jsonl -o answers.jsonl
    stageflow run jobs/rag.py jobs/queries.jsonl -o answers.jsonl -p generator=local --limit 20
    stageflow run jobs/rag.py jobs/queries.jsonl -o answers.jsonl \\
        -p base_url=https://api.openai.com/v1 -p model=gpt-4o-mini

The default generator extracts, it does not write: an answer is one or two sentences of the documentation, quoted and
cited. With `base_url` and `model` a service that speaks OpenAI's API writes it (needs the extra `llm`), with
`generator=local` SmolLM2, a small language model in this process; what they make up, `validate` marks.

The key is read from the environment variable OPENAI_API_KEY, or the one that `api_key_env` names; a service that asks
for none is called with `-p api_key_env=`. `max_tokens` is the longest answer that a model may write.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import closing
from typing import Any

from ragkit import grounding, prompt
from ragkit.extract import Answer, extract
from ragkit.grounding import Verdict
from ragkit.index import Hit, Index, open_index
from ragkit.local_model import LocalModel

from stageflow import Pipeline, SettingError
from stageflow.llm import Chat

pipeline = Pipeline(
    "rag",
    key="id",
    params={
        "generator": "auto",  # endpoint where there is a base_url, else extractive
        "retriever": "auto",
        "passages": 5,
        "base_url": "",
        "model": "",
        "api_key_env": "OPENAI_API_KEY",
        "max_tokens": 128,
    },
)


@pipeline.resource
def generator(params: Mapping[str, Any]) -> str:
    """Who answers: extractive, local or endpoint. Parameters that contradict each other are refused."""
    named, base_url, model = (params[name] for name in ("generator", "base_url", "model"))
    if named not in ("auto", "extractive", "local", "endpoint"):
        raise SettingError(f"generator is {named!r}", hint="auto, extractive, local or endpoint")
    if base_url and named in ("extractive", "local"):
        raise SettingError(f"generator={named} calls no service, but there is a base_url", hint="leave out one of them")
    if not base_url and named == "endpoint":
        raise SettingError("generator=endpoint needs a base_url", hint="-p base_url=https://api.openai.com/v1")
    if base_url and not model:
        raise SettingError("the service at base_url is to be told a model", hint="-p model=NAME")
    if model and not base_url:
        raise SettingError("model is given, but no base_url that has it", hint="-p base_url=https://api.openai.com/v1")
    return "endpoint" if base_url else str(named).replace("auto", "extractive")


@pipeline.resource
def local(generator: str, params: Mapping[str, Any]) -> Iterator[LocalModel | None]:
    if generator != "local":
        yield None
    else:
        with closing(LocalModel(max_tokens=params["max_tokens"])) as model:
            yield model


@pipeline.resource
async def chat(generator: str, params: Mapping[str, Any]) -> AsyncIterator[Chat | None]:
    if generator != "endpoint":
        yield None
    else:
        key = params["api_key_env"] or None
        async with Chat(base_url=params["base_url"], model=params["model"], api_key_env=key) as chat:
            yield chat


@pipeline.resource
def index(params: Mapping[str, Any]) -> Index:
    return open_index(params["retriever"])


# Plain functions run in threads, and the loop stays free: the search does its work outside the GIL.
@pipeline.stage(max_in_flight=4)
def retrieve(query: str, index: Index, params: Mapping[str, Any]) -> list[Hit]:
    return index.search(query, limit=params["passages"])


# Wide enough for a service that takes a second; `--max-in-flight generate=256` for one that bears more.
@pipeline.stage(max_in_flight=32, timeout=120, retry=5)
async def generate(
    query: str,
    retrieve: list[Hit],
    index: Index,
    local: LocalModel | None,
    chat: Chat | None,
    params: Mapping[str, Any],
    call: Any,
) -> Answer:
    if chat is not None:
        shown = prompt.shown(retrieve)
        asked = prompt.messages(query, shown)
        answer = await chat.complete(asked, call=call, max_tokens=params["max_tokens"], **prompt.OPTIONS)
        return prompt.answer_of(answer.text, shown)
    if local is not None:
        return await asyncio.to_thread(local.answer, query, retrieve)
    return await asyncio.to_thread(extract, query, retrieve, index)


# A tenth of a millisecond of pure Python: a thread would cost more than the work.
@pipeline.stage(run="inline")
def validate(generate: Answer, retrieve: list[Hit], index: Index) -> Verdict:
    return grounding.validate(generate, retrieve, index)
