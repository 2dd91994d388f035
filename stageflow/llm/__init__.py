"""Models behind HTTP: a client for services that speak the OpenAI API, made for very many calls at once.

Needs the extra: ``pip install 'stageflow[llm]'``. Opened as a resource, it is shared by all stages that name it::

    @pipeline.resource
    async def chat(params):
        async with Chat(base_url=params.base_url, model=params.model, api_key_env="OPENAI_API_KEY") as chat:
            yield chat

    @pipeline.stage(max_in_flight=256, timeout=60, retry=5)
    async def generate(question, chat, call):
        return (await chat.complete(question, call=call)).text

What it leaves to the stage: how many calls are in progress, how long one may take, whether it is made again and after
what wait. It makes each call once, and says what went wrong so that the stage can tell.
"""

from __future__ import annotations

from stageflow.llm.answers import Answer, Embeddings, Usage
from stageflow.llm.chat import Chat
from stageflow.llm.errors import BadAnswer, Refused, SchemaMismatch, ServiceError, Unfinished, Unreachable
from stageflow.llm.limits import ProviderLimit, limits_of

__all__ = [
    "Answer",
    "BadAnswer",
    "Chat",
    "Embeddings",
    "ProviderLimit",
    "Refused",
    "SchemaMismatch",
    "ServiceError",
    "Unfinished",
    "Unreachable",
    "Usage",
    "limits_of",
]
