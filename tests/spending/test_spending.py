"""What calls cost, what a budget refuses, and what is told of it."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from stageflow import Pipeline, Price, RateLimit, RequestError, RunReport, SettingError
from stageflow.events import Event, Warned
from stageflow.report.summary import summary_json, summary_text
from stageflow.testing import run_virtual

PRICES = {"small": Price(input=1.0, output=2.0), "large": Price(input=10.0, output=20.0)}
MILLION = 1_000_000


class Told:
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def on_event(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.warnings.append(event.message)


def job(handle: Any, *, prices: dict[str, Price] | None = None, **settings: Any) -> Pipeline:
    pipeline = Pipeline("paid", prices=PRICES if prices is None else prices)
    pipeline.add_stage("answer", handle, **settings)
    return pipeline


def run(pipeline: Pipeline, count: int = 10, **options: Any) -> tuple[RunReport, list[str]]:
    told = Told()
    records = [{"x": n} for n in range(count)]
    report = run_virtual(pipeline.run(records, [], dead=[], listeners=[told], **options))
    return report, told.warnings


# The account


def test_failed_attempts_are_in_the_account() -> None:
    async def answer(x: int, call: Any) -> int:
        call.report(input_tokens=3 * MILLION, output_tokens=MILLION)
        if call.attempt < 3:
            raise ValueError("not yet")
        return x

    report, _ = run(job(answer, model="small", retry=3))
    stage = report.stages["answer"]
    assert (stage.retries, stage.input_tokens, stage.output_tokens) == (20, 90 * MILLION, 30 * MILLION)
    assert (stage.tokens, stage.cost, stage.cost_unsure) == (120 * MILLION, 150.0, 0.0)
    assert report.cost == 150.0


def test_a_call_may_tell_of_several_models() -> None:
    async def answer(x: int, call: Any) -> int:
        call.report(input_tokens=MILLION, model="large")
        call.report(output_tokens=MILLION)
        return x

    report, _ = run(job(answer, model="small"))
    assert report.cost == 10 * (10.0 + 2.0)


def test_tokens_of_either_kind_cost_something_in_between() -> None:
    async def answer(x: int, call: Any) -> int:
        call.report(tokens=3 * MILLION, input_tokens=MILLION)
        return x

    report, _ = run(job(answer, model="small"), 1)
    stage = report.stages["answer"]
    assert (stage.tokens, stage.input_tokens, stage.cost, stage.cost_unsure) == (3 * MILLION, MILLION, 3.0, 2.0)


def test_a_model_without_a_price_is_told_once_and_not_counted() -> None:
    async def answer(x: int, call: Any) -> int:
        call.report(tokens=7, model="huge")
        return x

    report, warnings = run(job(answer, model="small"))
    assert warnings == [
        'stage "answer" reports calls of the model "huge", which has no price: what they cost is not in the account'
    ]
    assert (report.stages["answer"].unpriced, report.cost) == (70, 0.0)
    assert run(job(answer, prices={}))[1] == []


@pytest.mark.parametrize("tokens", [-1, 1.5, None])
def test_a_report_that_is_no_number_of_tokens_is_the_records_failure(tokens: Any) -> None:
    async def answer(x: int, call: Any) -> int:
        call.report(input_tokens=tokens)
        return x

    report, _ = run(job(answer, model="small"), 3)
    assert (report.dead, report.stages["answer"].tokens) == (3, 0)


# The summary


def test_the_summary_shows_tokens_and_cost_where_there_are_any() -> None:
    async def answer(x: int, call: Any) -> int:
        call.report(input_tokens=1_500, output_tokens=200)
        return x

    report, _ = run(job(answer, model="small"), 100)
    text = summary_text(report)
    assert "150,000  20,000  0.19" in text
    assert "\ncost: 0.19\n" in text
    assert '"cost": 0.19' in summary_json(report)

    async def free(x: int) -> int:
        return x

    assert "cost" not in summary_text(run(job(free, model="small"))[0])


def test_the_summary_says_what_is_not_known() -> None:
    async def answer(x: int, call: Any) -> int:
        await asyncio.sleep(1.0)
        if x % 2:
            call.report(input_tokens=MILLION // 2)
        return x

    report, _ = run(job(answer, model="small", max_tokens=(MILLION, 0)), budget=100)
    assert "cost: 2.50, at most 7.50 (5 calls did not report), of a budget of 100.00" in summary_text(report)


def test_a_limit_says_what_the_whole_input_would_come_to() -> None:
    """500 records, 4 at a time, a second each: two of them show it."""

    async def answer(x: int, call: Any) -> int:
        await asyncio.sleep(1.0)
        call.report(output_tokens=MILLION)
        return x

    report, _ = run(job(answer, model="small", max_in_flight=4), 500, limit=2)
    assert report.forecast is not None
    assert (report.forecast.records, report.forecast.cost, report.forecast.seconds) == (500, 1000.0, 125.0)
    said = "the whole input (about 500 records) would cost about 1,000.00 and take about 2 min 05 s at this rate"
    assert said in summary_text(report)
    assert run(job(answer, model="small"), 5, limit=5)[0].forecast is None
    assert run(job(answer, model="small"), 5)[0].forecast is None


def test_a_rate_limit_bounds_the_forecast() -> None:
    async def answer(x: int, call: Any) -> int:
        await asyncio.sleep(0.1)
        call.report(tokens=100)
        return x

    def seconds(**limits: Any) -> float:
        limited = job(answer, prices={}, max_in_flight=50, rate_limit=RateLimit(**limits))
        report, _ = run(limited, 1000, limit=10)
        assert report.forecast is not None
        return report.forecast.seconds

    assert seconds(per_second=10, burst=10) == pytest.approx(100.0)
    assert seconds(per_second=10_000, tokens_per_minute=60_000, burst=10) == pytest.approx(100.0)
    assert seconds(per_second=10_000) == pytest.approx(2.0)


# A budget


def test_a_call_that_says_nothing_counts_in_full() -> None:
    async def answer(x: int, call: Any) -> int:
        await asyncio.sleep(0.1)
        return x

    report, _ = run(job(answer, model="small", max_tokens=MILLION, max_in_flight=1), budget=7)
    stage = report.stages["answer"]
    assert (report.written, stage.cost, stage.cost_unsure, stage.untold) == (3, 0.0, 6.0, 3)


def test_a_call_that_is_cut_off_counts_in_full_whatever_it_told() -> None:
    async def answer(x: int, call: Any) -> int:
        call.report(input_tokens=MILLION // 10)
        await asyncio.sleep(5.0)
        return x

    stage = job(answer, model="small", max_tokens=(MILLION, 0), timeout=1.0)
    report, _ = run(stage, 3, budget=100)
    assert report.cost == pytest.approx(0.3)
    assert report.cost + report.cost_unsure == pytest.approx(3.0)


def test_calls_that_a_stop_cuts_off_count_in_full() -> None:
    """The second lasts longer than a stopped run may: what it told so far is known, the rest is not."""

    async def answer(x: int, call: Any) -> int:
        call.report(input_tokens=MILLION // 4)
        await asyncio.sleep(1.0 if x == 0 else 100.0)
        raise ValueError("no")

    settings: dict[str, Any] = {"model": "small", "max_tokens": (MILLION, 0), "on_error": "abort"}
    report, _ = run(job(answer, **settings), 2, budget=100, grace=5.0)
    assert (report.not_done, report.exit_code, report.seconds) == (2, 4, 6.0)
    assert (report.stages["answer"].tokens, report.cost, report.cost_unsure) == (MILLION // 2, 0.5, 0.75)


def test_a_report_that_comes_late_is_not_taken_for_the_next_attempts() -> None:
    """The first attempt is left behind, and tells what it used while the second one is made, which tells nothing."""

    async def answer(x: int, call: Any) -> int:
        if call.attempt > 1:
            await asyncio.sleep(3.5)
            return x
        try:
            await asyncio.sleep(100.0)
        except asyncio.CancelledError:
            await asyncio.sleep(8.0)  # longer than it is waited for
            call.report(input_tokens=MILLION // 10)
        return x

    settings: dict[str, Any] = {"model": "small", "max_tokens": (MILLION, 0), "timeout": 4.0, "retry": 2}
    report, _ = run(job(answer, **settings), 1, budget=100)
    stage = report.stages["answer"]
    assert (stage.abandoned, report.written, stage.untold) == (1, 1, 2)
    assert (stage.cost, stage.cost_unsure, stage.tokens) == (0.0, 2.0, MILLION // 10)


def test_who_did_not_call_the_service_pays_nothing() -> None:
    async def answer(x: int, call: Any) -> int:
        call.report(tokens=0)
        return x

    async def missing(y: int, call: Any) -> int:
        return y

    settings: dict[str, Any] = {"model": "small", "max_tokens": MILLION, "max_in_flight": 1}
    assert run(job(answer, **settings), budget=2)[0].exit_code == 0
    skipped, _ = run(job(answer, when=lambda record: False, **settings), budget=2)
    assert (skipped.written, skipped.cost_unsure) == (10, 0.0)
    records = [{"x": 1}] * 9 + [{"y": 1}]
    lacking = run_virtual(job(missing, **settings).run(records, [], dead=[], budget=2))
    assert (lacking.dead, lacking.written, lacking.cost_unsure) == (9, 1, 2.0)


def test_a_stage_without_a_model_is_reserved_for_at_the_dearest_price() -> None:
    async def answer(x: int, call: Any) -> int:
        await asyncio.sleep(0.1)
        call.report(input_tokens=MILLION, model="small")
        return x

    report, _ = run(job(answer, max_tokens=(MILLION, 0), max_in_flight=1), budget=12)
    assert (report.cost, report.stopped) == (
        3.0,
        'the budget of 12.00 is spent but for 9.00, and a call of "answer" may cost 10.00',
    )


def test_a_model_without_a_price_stops_a_run_that_has_a_budget() -> None:
    async def answer(x: int, call: Any) -> int:
        call.report(tokens=5, model="huge")
        return x

    report, _ = run(job(answer, model="small", max_tokens=MILLION, max_in_flight=1), budget=100)
    assert report.exit_code == 4
    assert report.stopped == (
        'stage "answer" reports calls of the model "huge", which has no price: a budget can\'t be kept'
    )
    assert (report.stages["answer"].passed, report.cost_unsure) == (1, 2.0)


def test_a_stage_that_reports_a_cost_nobody_reserved_for_stops_the_run() -> None:
    pipeline = Pipeline("two", prices={"small": PRICES["small"]})

    async def cheap(x: int, call: Any) -> int:
        call.report(tokens=5)
        return x

    async def dear(cheap: int, call: Any) -> int:
        call.report(tokens=5)
        return cheap

    pipeline.add_stage("cheap", cheap)
    pipeline.add_stage("dear", dear, max_tokens=10)
    report, _ = run(pipeline, budget=100)
    assert report.exit_code == 4
    assert report.stopped == (
        'stage "cheap" reports calls that cost money, and has no max_tokens: a budget can\'t be kept'
    )


def test_a_generator_that_waits_for_its_children_does_not_hold_up_the_end() -> None:
    """The parent's call goes on while it waits for room; its children wait for the money that it holds."""
    pipeline = Pipeline("children", prices=PRICES)

    async def parts(x: int, call: Any) -> Any:
        call.report(input_tokens=MILLION)
        for part in range(50):
            yield part

    async def answer(parts: int, call: Any) -> int:
        await asyncio.sleep(0.1)
        call.report(input_tokens=MILLION)
        return parts

    settings: dict[str, Any] = {"model": "small", "max_tokens": (MILLION, 0), "max_in_flight": 1, "queue_size": 1}
    pipeline.add_stage("parts", parts, **settings)
    pipeline.add_stage("answer", answer, **settings)
    report, _ = run(pipeline, 2, budget=10)
    assert report.exit_code == 4
    assert report.stages["answer"].cost == 9.0
    assert report.stopped is not None
    assert report.stopped.startswith("the budget of 10.00 is spent")


def test_no_permit_is_used_up_by_waiting_for_money() -> None:
    """Two stages share ten calls a second. The dear one waits for money; the other has all the permits meanwhile."""
    pipeline = Pipeline("two", prices=PRICES)
    quota = RateLimit(per_second=10, burst=1)
    started: list[tuple[str, float]] = []

    async def dear(x: int, call: Any) -> int:
        started.append(("dear", asyncio.get_running_loop().time()))
        await asyncio.sleep(1.05)
        call.report(input_tokens=0)
        return x

    async def free(x: int) -> int:
        started.append(("free", asyncio.get_running_loop().time()))
        return x

    pipeline.add_stage("free", free, rate_limit=quota, max_in_flight=1)
    pipeline.add_stage("dear", dear, model="small", max_tokens=(MILLION, 0), rate_limit=quota, max_in_flight=5)
    report, _ = run(pipeline, 5, budget=1)
    assert report.exit_code == 0
    assert [time for name, time in started if name == "free"] == pytest.approx([0.0, 0.1, 0.3, 0.4, 0.5])
    dear_times = [time for name, time in started if name == "dear"]
    assert all(later - earlier > 1.049 for earlier, later in pairwise(dear_times))


# Refusals


async def _answer(x: int) -> int:
    raise AssertionError("nothing may be called")


@pytest.mark.parametrize(
    ("prices", "settings", "message"),
    [
        ({}, {"max_tokens": 5}, "a budget needs prices, and the job has none"),
        (PRICES, {}, "no stage has max_tokens: what calls may cost can't be reserved from a budget"),
        (PRICES, {"model": "small"}, 'stage "answer" has no max_tokens: what its calls may cost can\'t be reserved'),
        (
            PRICES,
            {"model": "smal", "max_tokens": 5},
            'stage "answer": there is no price for its model "smal", and a budget needs it',
        ),
    ],
)
def test_a_budget_that_can_not_be_kept_is_refused_before_anything_is_read(
    prices: dict[str, Price], settings: dict[str, Any], message: str
) -> None:
    def records() -> Any:
        raise AssertionError("it was read")
        yield

    with pytest.raises(RequestError) as refused:
        run_virtual(job(_answer, prices=prices, **settings).run(records(), [], budget=5))
    assert message in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf"), "5", True])
def test_a_budget_that_is_no_amount_is_refused(budget: Any) -> None:
    with pytest.raises(RequestError, match="budget must be an amount above 0"):
        run_virtual(job(_answer, model="small", max_tokens=5).run([], [], budget=budget))


def test_a_budget_for_several_processes_is_refused() -> None:
    with pytest.raises(RequestError, match="a budget is kept by one process only"):
        run_virtual(job(_answer, model="small", max_tokens=5).run([], [], budget=5, processes=2))


@pytest.mark.parametrize("value", [0, -5, 1.5, True, (1,), (1, -1), (1, 2, 3), "5", (True, 1)])
def test_max_tokens_out_of_range_is_refused(value: Any) -> None:
    with pytest.raises(SettingError, match="max_tokens must be a positive number of tokens, or"):
        job(_answer, max_tokens=value)


@pytest.mark.parametrize("prices", [{"m": 1.5}, [("m", Price(input=1, output=1))], "m"])
def test_prices_that_are_none_are_refused(prices: Any) -> None:
    with pytest.raises(SettingError, match="prices must map models to Price"):
        Pipeline(prices=prices)
