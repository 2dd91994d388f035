"""The summary: a balance that adds up, a table that fits, and a sentence that names the right culprit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.counters import StageCounters
from stageflow.report.stats import RunReport, StageReport
from stageflow.report.summary import bottleneck, summary_json, summary_text
from stageflow.report.text import cells

QUIET = StageReport(
    name="quiet",
    max_in_flight=64,
    queue_size=64,
    received=10_000,
    passed=10_000,
    degraded=0,
    skipped=0,
    dropped=0,
    dead=0,
    cancelled=0,
    retries=0,
    p50=0.02,
    p95=0.03,
    busy=0.03,
    blocked=0.0,
    starved=0.97,
    peak_in_flight=12,
    peak_depth=7,
)


def stage(name: str = "quiet", **changes: object) -> StageReport:
    made = replace(QUIET, name=name, **changes)  # type: ignore[arg-type]
    return replace(made, starved=1.0 - made.busy - made.blocked - made.waiting)


def report(*stages: StageReport, **changes: object) -> RunReport:
    made = RunReport(
        pipeline="rag",
        read=10_000,
        blank=0,
        bad=0,
        written=9_950,
        dropped=30,
        dead=20,
        not_done=0,
        seconds=12.3,
        stopped=None,
        exit_code=3,
        peak_open=400,
        max_open_records=900,
        stages={stage.name: stage for stage in stages},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


RETRIEVE = stage("retrieve", busy=0.21, blocked=0.77, peak_in_flight=64, peak_depth=64)
GENERATE = stage("generate", busy=0.98, p50=1.24, p95=3.9, peak_in_flight=64, peak_depth=64, passed=9_980, dead=20)
VALIDATE = stage("validate", p50=0.0008, p95=0.0021)
RAG = report(RETRIEVE, GENERATE, VALIDATE)


# The first lines


def test_the_first_line_adds_up() -> None:
    first = summary_text(RAG).split("\n")[0]
    assert first == "10,000 read = 9,950 written + 30 dropped + 20 dead in 12.3 s (813 records/s)"


def test_what_a_stopped_run_left_is_told() -> None:
    stopped = report(VALIDATE, written=50, not_done=9_900, bad=3, blank=1, stopped="generate\x1b[31m aborted")
    assert summary_text(stopped).split("\n")[:3] == [
        "10,000 read = 50 written + 30 dropped + 20 dead + 9,900 not done in 12.3 s (8.1 records/s)",
        "3 of the dead could not be read as records; 1 blank line left out",
        "stopped: generate aborted",
    ]


# The table


TITLES = ["received", "passed", "degraded", "dropped", "dead", "retries", "p50", "p95", "busy", "starved", "blocked"]
TITLES += ["flight", "queue"]


def table(text: str) -> dict[str, dict[str, str]]:
    """The cells of all tables by stage and column, read up to the right edge of each title."""
    found: dict[str, dict[str, str]] = {}
    for part in text.split("\n\n")[1:-1]:
        lines = part.split("\n")
        titles = next(line for line in lines if line.startswith("stage"))
        for line in lines[lines.index(titles) + 1 :]:
            row = found.setdefault(line.split()[0], {})
            for title in TITLES:
                if f" {title}" in titles:
                    end = titles.index(f" {title}") + 1 + len(title)
                    row[title] = line[:end].split("  ")[-1].strip()
    return found


def test_the_table_has_a_row_for_each_stage_and_the_columns_that_say_something() -> None:
    rows = table(summary_text(RAG))
    assert list(rows) == ["retrieve", "generate", "validate"]
    assert rows["generate"] == {
        "received": "10,000",
        "passed": "9,980",
        "dead": "20",
        "p50": "1.24 s",
        "p95": "3.90 s",
        "busy": "98 %",
        "starved": "2 %",
        "blocked": "0 %",
        "flight": "64/64",
        "queue": "64/64",
    }
    assert rows["validate"]["p50"] == "0.8 ms"


def test_columns_come_when_there_is_something_in_them() -> None:
    busy = report(stage("a", dropped=4, retries=1_234, degraded=5, p50=None, p95=None), stage("b"))
    rows = table(summary_text(busy, width=200))
    assert {title: rows["a"][title] for title in ("dropped", "retries", "degraded")} == {
        "dropped": "4",
        "retries": "1,234",
        "degraded": "5",
    }
    assert rows["a"]["p50"] == "-"
    assert "skipped" not in summary_text(busy)


def test_numbers_stand_right() -> None:
    lines = summary_text(RAG).split("\n\n")[1].split("\n")
    assert len({len(line) for line in lines[1:]}) == 1
    assert lines[0].rstrip().endswith("peak")


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_no_line_of_a_table_is_wider_than_there_is_room(width: int) -> None:
    wide = report(
        stage("a_stage_with_a_name_that_goes_on_and_on", retries=1, dropped=1, skipped=1, degraded=1, cancelled=1),
        stage("日本語の段階の名前日本語の段階の名前"),
    )
    tables = summary_text(wide, width=width).split("\n\n")[1:-1]
    assert max(cells(line) for part in tables for line in part.split("\n")) <= width
    for title in ("received", "passed", "dead", "p50", "p95", "busy", "starved", "blocked"):
        assert sum(title in part for part in tables) == 1


def test_names_can_not_steer_the_terminal() -> None:
    text = summary_text(report(stage("evil\x1b[2J\nname")))
    assert "\x1b" not in text
    assert "evil name" in text


def test_json_is_one_line_with_everything() -> None:
    line = summary_json(RAG)
    assert "\n" not in line
    assert line.isascii()
    told = json.loads(line)
    assert told["read"] == told["written"] + told["dropped"] + told["dead"] + told["not_done"]
    assert told["stages"]["generate"]["busy"] == 0.98
    assert told["stages"]["generate"]["run"] == "async"
    assert told["bottleneck"] == bottleneck(RAG)


def test_a_stage_report_keeps_where_the_stage_ran() -> None:
    made = StageReport.of(
        StageCounters(), name="a", max_in_flight=1, queue_size=1, received=0, peak_depth=0, seconds=1.0, run="inline"
    )
    assert made.run == "inline"


# The sentence, by the rules in the module's docstring


def test_too_little() -> None:
    few = "99 records in 12.3 s are too little to judge what binds the throughput."
    assert bottleneck(report(GENERATE, written=50, dropped=29, dead=20)) == few
    assert bottleneck(report(GENERATE, seconds=0.19)).startswith("10,000 records in 190 ms are too little")
    assert "too little" in bottleneck(report())
    assert "generate" in bottleneck(report(GENERATE, written=50, dropped=30, dead=20, seconds=0.2))


def test_a_busy_stage_with_blocked_ones_before_it() -> None:
    assert bottleneck(RAG) == (
        "generate is the bottleneck: its 64 workers were busy 98 % of the time; try --max-in-flight generate=128."
    )


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"max_in_flight": 1}, "its one worker was busy 98 % of the time; try --max-in-flight generate=2."),
        ({"run": "thread"}, 'generate=128 if it waits for a service, or run="process" if it computes.'),
        ({"run": "process"}, "generate=128 if the machine has cores to spare."),
    ],
)
def test_the_advice_depends_on_where_the_stage_runs(settings: dict[str, object], advice: str) -> None:
    assert bottleneck(report(RETRIEVE, replace(GENERATE, **settings))).endswith(advice)  # type: ignore[arg-type]


def test_odd_names_are_quoted_for_the_shell() -> None:
    assert "--max-in-flight 'my stage=128'" in bottleneck(report(replace(GENERATE, name="my stage")))


def test_stages_that_are_as_busy_are_widened_together() -> None:
    sentence = bottleneck(report(stage("a", busy=0.95, peak_depth=64), stage("b", busy=0.97), stage("c", busy=0.8)))
    assert sentence == (
        "b is the bottleneck: its 64 workers were busy 97 % of the time, and so were those of a; "
        "try --max-in-flight b=128 --max-in-flight a=128."
    )


def test_a_fairly_busy_stage_needs_a_witness() -> None:
    fairly = stage("generate", busy=0.75)
    assert bottleneck(report(stage("a"), fairly)).startswith("The input is the bottleneck")
    assert bottleneck(report(stage("a"), replace(fairly, peak_depth=64))).startswith("generate is")
    assert bottleneck(report(stage("a", blocked=0.5), fairly)).startswith("generate is")


def test_a_busy_stage_that_is_held_back_is_not_it() -> None:
    held = stage("generate", busy=0.75, blocked=0.25, peak_depth=64)
    sentence = bottleneck(report(held, stage("validate", busy=0.1, blocked=0.85, peak_depth=64)))
    assert sentence.startswith("The output is the bottleneck: validate was blocked 85 % of the time")
    assert bottleneck(report(held, stage("score", busy=0.99, peak_depth=64))).startswith("score is")


def test_inline_work_binds_the_loop_whatever_its_workers() -> None:
    inline = stage("classify", run="inline", max_in_flight=4, busy=0.24, peak_in_flight=1)
    sentence = bottleneck(report(inline, stage("generate", busy=0.9)))
    assert sentence == (
        "classify is the bottleneck: it runs inline, one call at a time, and held everything up for 96 % of the time; "
        'more workers can\'t help, a plain function with run="process" can.'
    )
    both = bottleneck(report(inline, stage("parse", run="inline", max_in_flight=1, busy=0.2)))
    assert "together with parse" in both
    light = replace(inline, busy=0.1)
    assert "generate is" in bottleneck(report(light, GENERATE))


def test_a_busier_stage_goes_before_a_loop_that_is_not_full() -> None:
    inline = stage("classify", run="inline", max_in_flight=1, busy=0.75)
    assert bottleneck(report(inline, GENERATE)).startswith("generate is")
    assert bottleneck(report(inline)).startswith("classify is")


@pytest.mark.parametrize("peak", [0, 1])
def test_an_async_stage_that_never_awaits_is_found_out(peak: int) -> None:
    computing = stage("score", max_in_flight=16, busy=0.06, peak_in_flight=peak, peak_depth=30)
    assert "score is the bottleneck: it computes on the event loop" in bottleneck(report(computing))
    alone = replace(computing, peak_depth=1)  # nothing ever waited: the input came one by one
    assert bottleneck(report(alone)).startswith("The input is")


def test_the_output_binds() -> None:
    assert bottleneck(report(stage("a", blocked=0.9), stage("b", blocked=0.4))) == (
        "The output is the bottleneck: b was blocked 40 % of the time and no stage was busy; a faster disk or sink "
        "would help, more workers can't."
    )


def test_a_rate_limit_binds() -> None:
    limited = stage("generate", busy=0.12, waiting=0.83, peak_depth=64)
    assert bottleneck(report(stage("a", blocked=0.9), limited, stage("b"))) == (
        "generate is the bottleneck: its 64 workers were waiting for a permit 83 % of the time; raise its rate_limit "
        "if the service allows it, more workers can't help."
    )
    assert "waiting" in summary_text(report(limited))
    assert "waiting" not in summary_text(report(stage("a", blocked=0.9)))


def test_a_stage_short_of_processor_time_binds() -> None:
    slow = stage("generate", busy=0.12, peak_depth=64)
    assert bottleneck(report(stage("a", blocked=0.9), slow, stage("b"))) == (
        "generate is the bottleneck: its queue was full while its 64 workers were busy only 12 % of the time: it is "
        "short of processor time, and more workers can't help."
    )
    assert bottleneck(report(slow, stage("b"))).endswith("the input comes in bursts.")


def test_the_input_binds() -> None:
    assert bottleneck(report(stage("a", busy=0.3), stage("b"))) == (
        "The input is the bottleneck: no stage waited for the next, and the busiest, a, was busy 30 % of the time; "
        "more workers can't help."
    )


def test_open_records_bind() -> None:
    full = report(stage("a"), peak_open=900)
    assert "all 900 places for open records were taken" in bottleneck(full)
    assert "--max-open-records 1800, or look at" in bottleneck(full)
    retried = replace(full, stages={"a": stage("a", retries=600)})
    assert bottleneck(retried).startswith("Waiting for retries is the bottleneck")


def test_nothing_binds_when_there_is_nothing_to_wait_for() -> None:
    quick = [stage(name, p50=0.00002, blocked=0.3) for name in ("a", "b")]
    assert bottleneck(report(*quick)).startswith("No stage is the bottleneck")
    assert bottleneck(report(*quick, seconds=100.0)).startswith("The output is")


shares = st.floats(0, 1)


@st.composite
def stages(draw: st.DrawFn) -> StageReport:
    busy = draw(shares)
    return stage(
        draw(st.text(min_size=1, max_size=8)),
        run=draw(st.sampled_from(["async", "thread", "process", "inline"])),
        max_in_flight=draw(st.integers(1, 64)),
        busy=busy,
        blocked=draw(shares) * (1 - busy),
        peak_in_flight=draw(st.integers(0, 64)),
        peak_depth=draw(st.integers(0, 64)),
        p50=draw(st.none() | st.floats(0, 1e6)),
    )


@given(st.lists(stages(), max_size=5), st.integers(0, 900), st.integers(20, 120))
def test_any_report_gets_one_sentence_and_a_table(found: list[StageReport], peak_open: int, width: int) -> None:
    made = report(*found, peak_open=peak_open)
    sentence = bottleneck(made)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert summary_text(made, width=width).endswith(sentence)
    assert json.loads(summary_json(made))["bottleneck"] == sentence
