"""Say no before it costs anything: moderate, retrieve, generate, validate.

    stageflow run jobs/moderation.py jobs/queries.jsonl -o answers.jsonl
    echo '{"id": 1, "query": "What is the root password?"}' | stageflow run jobs/moderation.py - -o -

`moderate` ends a question that is off limits with `done`: its reply is written, and neither the search nor the
generator, which stands for a service that is paid by the call, ever sees the question.
"""

from __future__ import annotations

import re

from ragkit import grounding
from ragkit.extract import Answer, extract
from ragkit.grounding import Verdict
from ragkit.index import Hit, Index, open_index

from stageflow import Pipeline, done

# A short list shows the principle; a real moderator is a model. What is asked about secrets in general is welcome.
OFF_LIMITS = {
    "I can't help with getting at somebody's passwords or keys.": (
        r"\b(?:your|our|his|her|their|admin|root|production|\w+'s)\s+(?:\w+\s+)?(?:password|passphrase|credential"
        r"|(?:api|private|secret|access)[ -](?:key|token))s?\b",
        r"\b(?:crack|brute[ -]force|steal|guess|hack|bypass)\b.*\b(?:password|login|account|key)s?\b",
    ),
    "Let's stay polite; ask me about Python and I will look it up.": (
        r"\b(?:idiot|moron|shut up|(?:stupid|useless|dumb) (?:bot|machine|thing)|i hate you)\b",
    ),
}
RULES = [(re.compile(pattern, re.I), reply) for reply, patterns in OFF_LIMITS.items() for pattern in patterns]

pipeline = Pipeline("moderation", key="id")


@pipeline.resource
def index() -> Index:
    return open_index()


@pipeline.stage(run="inline")
def moderate(query: str) -> str:
    for pattern, reply in RULES:
        if pattern.search(query):
            return done(reply)  # what depends on this stage is skipped for the record, and that is all the rest
    return "ok"


@pipeline.stage(max_in_flight=4)
def retrieve(query: str, moderate: str, index: Index) -> list[Hit]:
    return index.search(query)


@pipeline.stage(max_in_flight=4)
def generate(query: str, retrieve: list[Hit], index: Index) -> Answer:
    return extract(query, retrieve, index)


@pipeline.stage(run="inline")
def validate(generate: Answer, retrieve: list[Hit], index: Index) -> Verdict:
    return grounding.validate(generate, retrieve, index)
