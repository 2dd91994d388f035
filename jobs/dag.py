"""A graph built by a program: stages added one by one, each with the names of those it depends on.

    python jobs/dag.py
    stageflow run jobs/dag.py jobs/queries.jsonl -o answers.jsonl

Every function takes the input record, a mapping of the results it depends on, and the resources it names.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

from ragkit import grounding
from ragkit.entities import Entities, Gazetteer
from ragkit.extract import Answer, extract
from ragkit.grounding import Verdict
from ragkit.index import Hit, Index, open_index
from ragkit.topics import Topic, Topics, open_topics, prefer

from stageflow import Pipeline

Record = Mapping[str, Any]
Results = Mapping[str, Any]

pipeline = Pipeline("dag", key="id")


@pipeline.resource
def index() -> Index:
    return open_index()


@pipeline.resource
def topics() -> Topics:
    return open_topics()


@pipeline.resource
def gazetteer(index: Index) -> Gazetteer:
    return Gazetteer(passage.id for passage in index.passages)


def retrieve(record: Record, results: Results, index: Index) -> list[Hit]:
    return index.search(record["query"])


def classify(record: Record, results: Results, topics: Topics) -> Topic:
    return topics.classify(record["query"])


def entities(record: Record, results: Results, gazetteer: Gazetteer) -> Entities:
    return gazetteer.find(record["query"])


def generate(record: Record, results: Results, index: Index) -> Answer:
    hits = prefer(results["retrieve"], results["classify"]["topics"])
    return extract(record["query"], hits, index, mentions=results["entities"]["names"])


def validate(record: Record, results: Results, index: Index) -> Verdict:
    return grounding.validate(results["generate"], results["retrieve"], index)


# `retrieve` goes to threads, since the search works outside the GIL; the rest is short and pure Python: inline.
pipeline.add_stage("retrieve", retrieve, max_in_flight=4)
pipeline.add_stage("classify", classify, depends_on=["retrieve"], run="inline")
pipeline.add_stage("entities", entities, depends_on=["retrieve"], run="inline")
pipeline.add_stage("generate", generate, depends_on=["retrieve", "classify", "entities"], run="inline")
pipeline.add_stage("validate", validate, depends_on=["retrieve", "generate"], run="inline")


async def main(question: str) -> None:
    results = await pipeline.execute({"id": "1", "query": question})
    answer = results["generate"]
    print(answer["answer"])
    for citation in answer["citations"]:
        print(f"  {citation['doc']}, characters {citation['start']} to {citation['end']}")
    print(f"  grounded: {results['validate']['grounded']}")


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "How do I copy a whole directory tree?"))
