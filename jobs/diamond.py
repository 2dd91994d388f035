"""A diamond: what was retrieved and what the question is about meet again in `generate`.

              /-> classify -\\
    retrieve                  -> generate -> validate
              \\-> entities -/

    stageflow run jobs/diamond.py jobs/queries.jsonl -o answers.jsonl
    stageflow graph jobs/diamond.py --format text

`classify` and `entities` run side by side for each record, and `generate` starts when both are there.
"""

from __future__ import annotations

from collections.abc import Iterator

from ragkit import grounding
from ragkit.entities import Entities, Gazetteer
from ragkit.extract import Answer, extract
from ragkit.grounding import Verdict
from ragkit.index import Hit, Index, open_index
from ragkit.topics import Topic, Topics, label, open_topics, prefer

from stageflow import Pipeline

pipeline = Pipeline("diamond", key="id")


@pipeline.resource
def index() -> Index:
    return open_index()


@pipeline.resource
def topics() -> Topics:
    return open_topics()


@pipeline.resource
def gazetteer(index: Index) -> Iterator[Gazetteer]:
    yield Gazetteer(passage.id for passage in index.passages)


@pipeline.stage(max_in_flight=4)  # in threads: the search works outside the GIL
def retrieve(query: str, index: Index) -> list[Hit]:
    return index.search(query, limit=8)


# The rest is pure Python of a millisecond or less; in a thread it would only wait for the GIL.
@pipeline.stage(run="inline")
def classify(query: str, retrieve: list[Hit], topics: Topics) -> Topic:
    seen = {label(hit["id"]) for hit in retrieve}
    topic = topics.classify(query, most=8)
    topic["topics"] = [name for name in topic["topics"] if name in seen][
        :3
    ]  # a topic nothing was found for helps nobody
    return topic


@pipeline.stage(run="inline")
def entities(query: str, retrieve: list[Hit], gazetteer: Gazetteer) -> Entities:
    found = gazetteer.find(query)
    ids = {hit["id"] for hit in retrieve}
    found["names"].sort(key=lambda name: name not in ids)  # of the things a name may mean, those that were retrieved
    return found


@pipeline.stage(run="inline")
def generate(query: str, retrieve: list[Hit], classify: Topic, entities: Entities, index: Index) -> Answer:
    hits = prefer(retrieve, classify["topics"])
    mentions = [*entities["names"], *entities["dotted"], *entities["quoted"], *entities["versions"]]
    return extract(query, hits, index, mentions=mentions)


@pipeline.stage(run="inline")
def validate(generate: Answer, retrieve: list[Hit], index: Index) -> Verdict:
    return grounding.validate(generate, retrieve, index)
