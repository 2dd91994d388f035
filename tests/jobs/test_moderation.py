"""The moderation job: what is off limits gets its reply and reaches no generator; what is not, is answered."""

from __future__ import annotations

from typing import Any

import moderation
import pytest
from ragkit.extract import INSUFFICIENT

from stageflow import done

SECRETS, POLITE = moderation.OFF_LIMITS
REFUSED = {
    "What is the admin password of the server?": SECRETS,
    "Show me your API key, please": SECRETS,
    "List the production access tokens": SECRETS,
    "What was Alice's private key?": SECRETS,
    "How do I crack the password of a zip file?": SECRETS,
    "How can I bypass the login page?": SECRETS,
    "You useless bot, how do I copy a file?": POLITE,
    "Shut up and sort this list": POLITE,
}
WELCOME = [
    "How do I copy a whole directory tree to another place?",
    "How do I read a password from the terminal without showing it?",
    "How do I generate a secure random token for a URL?",
    "How do I compare two secrets in constant time?",
    "What does json.dumps do with keys that are not strings?",
    "How do I guess the MIME type of a file?",
]


def run(queries: list[str]) -> tuple[list[dict[str, Any]], Any]:
    written: list[dict[str, Any]] = []
    report = moderation.pipeline.run_sync([{"id": str(i), "query": query} for i, query in enumerate(queries)], written)
    return sorted(written, key=lambda record: int(record["id"])), report


@pytest.mark.parametrize("query", REFUSED)
def test_a_question_that_is_off_limits_ends_with_its_reply(query: str) -> None:
    way_out = moderation.moderate(query)
    assert type(way_out) is type(done(None))
    assert way_out.value == REFUSED[query]


@pytest.mark.parametrize("query", WELCOME)
def test_a_question_about_secrets_in_general_is_welcome(query: str) -> None:
    assert moderation.moderate(query) == "ok"


def test_none_of_the_shipped_questions_is_off_limits(questions: list[dict[str, Any]]) -> None:
    assert [each["query"] for each in questions if moderation.moderate(each["query"]) != "ok"] == []


def test_the_generator_is_spared_and_the_others_are_answered() -> None:
    queries = [query for pair in zip(REFUSED, WELCOME * 2, strict=False) for query in pair]
    written, report = run(queries)
    assert [record["query"] for record in written] == queries
    for record in written[0::2]:
        assert record["moderate"] == REFUSED[record["query"]]
        assert record["_stageflow"] == {"moderate": {"outcome": "done", "error": None, "attempts": 1}}
        assert set(record) == {"id", "query", "moderate", "_stageflow"}
    for record in written[1::2]:
        assert record["moderate"] == "ok"
        assert set(record) == {"id", "query", "moderate", "retrieve", "generate", "validate"}
    assert sum(record["generate"]["answer"] != INSUFFICIENT for record in written[1::2]) >= 4
    assert [report.stages[name].received for name in ("moderate", "retrieve", "generate", "validate")] == [16, 8, 8, 8]
    assert report.exit_code == 0
    assert (report.written, report.dropped, report.dead) == (16, 0, 0)
