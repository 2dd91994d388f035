"""Every job file, run from end to end through the public interface."""

import asyncio
import importlib
import subprocess
import sys

import orjson
import pytest
from ragkit.extract import INSUFFICIENT

RAG_JOBS = ["rag", "diamond", "dag"]


def pipeline_of(name):
    return importlib.import_module(name).pipeline


def run(name, records, **options):
    written = []
    report = pipeline_of(name).run_sync(records, written, **options)
    return sorted(written, key=lambda record: record["id"]), report


def python(jobs, *command):
    done = subprocess.run([sys.executable, *command], cwd=jobs.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", RAG_JOBS)
def test_answers_are_cited_and_judged(name, questions, default_index):
    asked = questions[:30]
    written, _ = run(name, asked)
    assert [record["id"] for record in written] == [question["id"] for question in asked]
    for record in written:
        answer, verdict = record["generate"], record["validate"]
        assert verdict["grounded"] == (answer["answer"] != INSUFFICIENT)
        for cited in answer["citations"]:
            assert default_index.text[cited["doc"]][cited["start"] : cited["end"]] == cited["quote"]
    assert sum(record["validate"]["grounded"] for record in written) >= 25


def test_rag_emits_what_it_retrieved(questions):
    written, report = run("rag", questions[:60])
    found = sum(
        any(hit["id"] in question["expect"] for hit in record["retrieve"])
        for question, record in zip(questions, written, strict=False)
    )
    assert found >= 48
    assert all(len(record["retrieve"]) == 5 for record in written)
    assert set(report.stages) == {"retrieve", "generate", "validate"}


@pytest.mark.parametrize("name", RAG_JOBS)
def test_a_run_gives_the_same_lines_again(name, questions):
    assert run(name, questions[:20])[0] == run(name, questions[:20])[0]


def test_an_unanswerable_question_is_said_to_be_one():
    written, _ = run("rag", [{"id": "1", "query": "Who won the football world cup in 1998?"}])
    assert written[0]["generate"] == {"answer": INSUFFICIENT, "citations": []}
    assert written[0]["validate"]["problems"] == [INSUFFICIENT]


def test_the_diamond_uses_both_branches(questions):
    written, _ = run("diamond", [{"id": "1", "query": "What does json.dumps return?"}])
    assert "json" in written[0]["classify"]["topics"]
    assert written[0]["entities"]["names"] == ["json.dumps"]
    assert written[0]["generate"]["citations"][0]["doc"] == "json.dumps"


def test_linear_fills_in_one_context(questions):
    written, _ = run("linear", questions[:20])
    for record in written:
        assert record["intent"]
        assert record["text"].startswith(record["answer"] if record["grounded"] else "No answer")
        assert len(record["hits"]) == 5
    assert sum(record["grounded"] for record in written) >= 15


@pytest.mark.parametrize("name", RAG_JOBS)
def test_one_record_can_be_executed_alone(name):
    results = asyncio.run(pipeline_of(name).execute({"id": "1", "query": "How do I copy a directory tree?"}))
    assert "shutil.copytree" in [cited["doc"] for cited in results["generate"]["citations"]]
    assert results["validate"]["grounded"] is True


def test_dag_prints_one_answer(jobs):
    printed = python(jobs, "jobs/dag.py", "How do I copy a directory tree?")
    assert "Recursively copy a directory tree" in printed
    assert "shutil.copytree, characters 0 to" in printed
    assert "grounded: True" in printed


def test_backpressure_holds_the_producer_back():
    job = importlib.import_module("backpressure")
    lead = job.Lead()
    report = job.pipeline.run_sync(lead.source(), lead.sink)
    assert lead.done == job.RECORDS
    consume = report.stages["consume"]
    assert consume.peak_depth == consume.queue_size == 8
    assert consume.peak_in_flight == consume.max_in_flight == 4
    assert all(stage.peak_depth <= stage.queue_size for stage in report.stages.values())
    assert lead.most <= sum(stage.queue_size + stage.max_in_flight for stage in report.stages.values()) + 1


def test_backpressure_prints_a_line_per_channel(jobs):
    printed = python(jobs, "jobs/backpressure.py").splitlines()
    assert [line.split()[0] for line in printed[1:3]] == ["produce", "consume"]
    assert "400 records" in printed[-1]


# The other jobs run in this process, above: a new process reads the corpus again, which takes two seconds.
@pytest.mark.parametrize("name", ["rag", "backpressure"])
def test_the_command_runs_a_job(name, jobs, questions, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"".join(orjson.dumps(question) + b"\n" for question in questions[:10]))
    python(jobs, "-m", "stageflow", "run", f"jobs/{name}.py", str(source), "-o", str(target), "--progress", "off")
    written = [orjson.loads(line) for line in target.read_bytes().splitlines()]
    assert [record["id"] for record in written] == [question["id"] for question in questions[:10]]


def test_a_retriever_can_be_chosen(questions):
    written, _ = run("rag", questions[:10], params={"retriever": "sqlite", "passages": 3})
    assert all(len(record["retrieve"]) == 3 for record in written)
