"""`stageflow check`, `graph` and `bench`."""

from __future__ import annotations

import json

import pytest
from workbench import Folder


def test_check_tells_the_resolved_settings_and_where_each_came_from(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write(
        "shown.py",
        """
        from stageflow import Pipeline
        pipeline = Pipeline("shown", params={"n": 1})

        @pipeline.resource
        def index(): ...

        @pipeline.stage(max_in_flight=3, queue_size=9)
        async def retrieve(query, index): ...

        @pipeline.stage
        def generate(retrieve): ...
        """,
    )
    folder.write("stageflow.toml", "[stages.retrieve]\nmax_in_flight = 4\nqueue_size = 8\n")
    monkeypatch.setenv("STAGEFLOW_MAX_IN_FLIGHT", "retrieve=5")
    told = folder.stageflow("check", "shown.py", "--set", "generate.on_error=skip", "-p", "n=7")
    assert (told.code, told.err) == (0, "")
    assert told.out.splitlines() == [
        "shown: 2 stages, at most 93 records open",
        "  params: n=7",
        "  resources: index",
        "  required fields: query",
        "retrieve(query, index)  [shown.py:7]",
        "    max_in_flight = 5  (STAGEFLOW_MAX_IN_FLIGHT)",
        "    queue_size = 8  (stageflow.toml)",
        "    run = async",
        "    timeout = 600.0",
        "    on_error = dead_letter",
        "generate(retrieve) after retrieve  [shown.py:10]",
        "    max_in_flight = 16",
        "    queue_size = 64",
        "    run = thread",
        "    timeout = 600.0",
        "    on_error = skip  (--set)",
    ]


def test_check_names_the_line_of_a_setting_in_the_job(folder: Folder) -> None:
    folder.write(
        "shown.py",
        'from stageflow import Pipeline\np = Pipeline("p")\n@p.stage(queue_size=9)\nasync def s(x): ...\n',
    )
    assert "    queue_size = 9  (shown.py:3)" in folder.stageflow("check", "shown.py").out.splitlines()


def test_check_looks_into_the_input_and_runs_no_stage(folder: Folder) -> None:
    folder.write(
        "careful.py",
        """
        from stageflow import Pipeline
        pipeline = Pipeline("careful")

        @pipeline.resource
        def index():
            open("opened", "w").close()

        @pipeline.stage
        def s(x, index):
            open("called", "w").close()
        """,
    )
    before = folder.names()
    told = folder.stageflow("check", "careful.py", "in.jsonl")
    assert told.code == 0
    assert told.out.splitlines()[-1] == "input in.jsonl: each required field is in some of its first 3 records"
    assert folder.names() == before


def test_check_refuses_an_input_without_the_fields(folder: Folder) -> None:
    folder.write("other.jsonl", '{"xx": 1}\n')
    told = folder.stageflow("check", "job.py", "other.jsonl")
    assert told.code == 2
    assert told.error == [
        'stageflow: error: stage "double" takes "x", which none of the first 1 records has',
        '  hint: did you mean "xx"?',
    ]


@pytest.mark.parametrize(
    ("form", "begins", "edge"),
    [("text", "", "inverse"), ("mermaid", "", "-->"), ("dot", "digraph", "->"), ("svg", "<svg", "inverse")],
)
def test_graph_draws(folder: Folder, form: str, begins: str, edge: str) -> None:
    told = folder.stageflow("graph", "job.py", "--format", form)
    assert (told.code, told.err) == (0, "")
    assert told.out.startswith(begins)
    assert "double" in told.out
    assert edge in told.out


def test_graph_is_text_by_default(folder: Folder) -> None:
    assert folder.stageflow("graph", "job.py").out == folder.stageflow("graph", "job.py", "--format", "text").out


def test_bench_wants_to_be_told_that_the_calls_are_wanted(folder: Folder) -> None:
    folder.write(
        "called.py", 'from stageflow import Pipeline\np = Pipeline("p")\n@p.stage\ndef s(x): open("called", "w")\n'
    )
    before = folder.names()
    told = folder.stageflow("bench", "called.py", "in.jsonl", "--sweep", "s=1,2")
    assert told.code == 2
    assert told.error == [
        "stageflow: 6 runs of 3 records through 1 stages: up to 18 calls",
        "stageflow: error: a benchmark makes real calls",
        "  hint: pass --limit N for a part of the input, or --yes for all of it",
    ]
    assert folder.names() == before


def test_bench_has_a_row_for_each_combination(folder: Folder) -> None:
    before = folder.names()
    told = folder.stageflow(
        "bench", "job.py", "good.jsonl", "--sweep", "double=1,2", "--sweep-queue", "inverse=4,5", "--limit", "2"
    )
    assert told.code == 0
    rows = [line.split("  ")[0] for line in told.out.splitlines()]
    assert rows[1:5] == [f"double={workers} inverse queue={queue}" for workers in (1, 2) for queue in (4, 5)]
    assert "12 runs of 2 records through 2 stages: up to 48 calls" in told.err
    assert folder.names() == before


def test_bench_as_json(folder: Folder) -> None:
    arguments = ["--sweep", "double=1,2", "--yes", "--json", "--repeat", "1", "-p", "factor=3"]
    told = folder.stageflow("bench", "job.py", "in.jsonl", *arguments)
    (line,) = told.out.splitlines()
    document = json.loads(line)
    assert document["pipeline"] == "job"
    assert [row["setting"] for row in document["rows"]] == [
        [{"stage": "double", "max_in_flight": 1}],
        [{"stage": "double", "max_in_flight": 2}],
    ]
    for row in document["rows"]:
        assert row["slowest"] <= row["per_second"] <= row["fastest"]
        assert row["dead"] == 1


def test_bench_without_a_sweep_measures_the_job_as_it_stands(folder: Folder) -> None:
    told = folder.stageflow("bench", "job.py", "good.jsonl", "--yes", "--repeat", "1")
    assert told.code == 0
    assert "as it stands" in told.out


@pytest.mark.parametrize(
    "arguments",
    [[], ["--limit", "5"]],
)
def test_bench_can_not_read_stdin_several_times(folder: Folder, arguments: list[str]) -> None:
    done = folder.process("bench", "job.py", "-", "--yes", *arguments, input=folder.read("good.jsonl"))
    assert done.returncode == 2
    assert "a benchmark reads its input several times" in done.stderr
