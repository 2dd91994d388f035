"""Answer questions from the documentation of the running Python: retrieve, generate, validate.

    stageflow run jobs/rag.py jobs/queries.jsonl -o answers.jsonl
    stageflow run jobs/rag.py jobs/queries.jsonl -o answers.jsonl -p generator=local --limit 20

The default generator extracts, it does not write: an answer is one or two sentences of the documentation, quoted and
cited. With `generator=local` SmolLM2, a small language model, writes it; what it makes up, `validate` marks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

from ragkit import grounding
from ragkit.extract import Answer, extract
from ragkit.grounding import Verdict
from ragkit.index import Hit, Index, open_index
from ragkit.local_model import LocalModel

from stageflow import Pipeline

pipeline = Pipeline("rag", key="id", params={"generator": "extractive", "retriever": "auto", "passages": 5})


@pipeline.resource
def index(params: Mapping[str, Any]) -> Index:
    return open_index(params["retriever"])


@pipeline.resource
def model(params: Mapping[str, Any]) -> Iterator[LocalModel | None]:
    if params["generator"] not in ("extractive", "local"):
        raise ValueError(f"generator is {params['generator']!r}, choose extractive or local")
    if params["generator"] == "extractive":
        yield None
    else:
        with closing(LocalModel()) as model:
            yield model


# Plain functions run in threads, and the loop stays free: the search and the model do their work outside the GIL.
@pipeline.stage(max_in_flight=4)
def retrieve(query: str, index: Index, params: Mapping[str, Any]) -> list[Hit]:
    return index.search(query, limit=params["passages"])


@pipeline.stage(max_in_flight=4)
def generate(query: str, retrieve: list[Hit], index: Index, model: LocalModel | None) -> Answer:
    if model is None:
        return extract(query, retrieve, index)
    return model.answer(query, retrieve)


# A tenth of a millisecond of pure Python: a thread would cost more than the work.
@pipeline.stage(run="inline")
def validate(generate: Answer, retrieve: list[Hit], index: Index) -> Verdict:
    return grounding.validate(generate, retrieve, index)
