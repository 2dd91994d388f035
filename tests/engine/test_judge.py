"""What a failure means for the record, the stage and the run. The judge decides in numbers; no loop is needed."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from stageflow import Pipeline, Retry
from stageflow.counters import StageCounters
from stageflow.engine.gate import Gate
from stageflow.engine.judge import Judge, Ruling
from stageflow.errors import HandlerFailed, RunStopped, WorkerDied
from stageflow.item import Item, Note


class Court:
    """A judge and all that it talks to."""

    def __init__(self, **settings: Any) -> None:
        pipeline = Pipeline("judged")
        pipeline.add_stage("x", _returns, **settings)
        self.now = 0.0
        self.stops: list[RunStopped] = []
        self.said: list[str] = []
        self.counters = StageCounters()
        self.gate = Gate(None, lambda: self.now)
        self.judge = Judge(
            pipeline.plan().stages["x"],
            counters=self.counters,
            gate=self.gate,
            random=Random(1),
            stop=self.stops.append,
            warn=self.said.append,
            clock=lambda: self.now,
            max_retry_after=600.0,
        )

    def rule(
        self, error: BaseException, *, attempt: int = 1, index: int = 0, fresh: bool = True, **item: Any
    ) -> Ruling:
        judged = Item(index, {}, 1)
        judged.attempts = {"x": attempt}
        for name, value in item.items():
            setattr(judged, name, value)
        return self.judge.rule(judged, error, error, fresh=fresh)


def _returns(n: int) -> None: ...


def asks(seconds: float) -> Exception:
    error = ValueError("busy")
    error.retry_after = seconds  # type: ignore[attr-defined]
    return error


END = Ruling()


def test_without_retry_the_first_failure_is_the_last() -> None:
    assert Court().rule(ValueError()) == END


def test_a_retry_waits_by_its_own_rules_up_to_its_attempts() -> None:
    court = Court(retry=Retry(3, base=2.0))
    waits = [court.rule(ValueError(), attempt=attempt).wait for attempt in (1, 2, 3)]
    assert waits[2] is None
    assert 0 <= (waits[0] or 0) <= 2.0
    assert 0 <= (waits[1] or 0) <= 4.0
    assert court.rule(TypeError(), attempt=1).wait is None
    assert court.rule(ValueError(), attempt=1, fresh=False) == END, "a generator that has yielded is not run again"


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (WorkerDied("worker died: signal 9"), True),
        (HandlerFailed('cancelled inside stage "x"'), True),
        (HandlerFailed('SystemExit(1) raised in stage "x"'), False),
        (ValueError('cancelled inside stage "x"'), False),
    ],
    ids=repr,
)
def test_what_befell_the_call_from_outside_is_tried_once_more_at_once(error: Exception, again: bool) -> None:
    court = Court()
    assert court.rule(error).wait == (0.0 if again else None)
    assert court.rule(error, attempt=2).wait is None


def test_abort_stops_the_run_at_the_last_attempt_and_leaves_the_record_undone() -> None:
    court = Court(on_error="abort", retry=Retry(2, base=0.0))
    assert court.rule(ValueError("no"), attempt=1) == Ruling(wait=0.0)
    assert court.stops == []
    assert court.rule(ValueError("no"), attempt=2, index=7) == Ruling(withhold=True)
    assert [str(stop) for stop in court.stops] == ['stage "x": record 7 failed: ValueError: no']
    assert court.stops[0].exit_code == 4


def test_a_pause_the_service_asked_for_holds_the_stage_and_is_told_once() -> None:
    court = Court(retry=3)
    ruling = court.rule(asks(7))
    assert ruling.wait is not None
    assert 7.0 <= ruling.wait <= 7.7
    assert court.gate.shut
    assert court.gate.paused_until == 7.0
    court.now = 1.0
    court.rule(asks(7))
    assert court.gate.paused_until == 8.0
    assert court.said == ['stage "x" waits 7 s: the service said so']
    assert court.stops == []


def test_one_that_asks_for_too_long_a_pause_stops_the_run() -> None:
    court = Court(retry=3)
    assert court.rule(asks(601)) == Ruling(withhold=True)
    assert [str(stop) for stop in court.stops] == ["stage x: server asked to wait 10 minutes"]
    assert court.gate.paused_until == 0.0


def test_the_fifth_death_within_ten_seconds_stops_the_run_and_is_no_dead_letter() -> None:
    court = Court()
    for number in range(4):
        court.now = 2.0 * number
        attempt = 1 + number % 2
        assert court.rule(WorkerDied("worker died: signal 11"), attempt=attempt).withhold is False
    assert court.stops == []
    court.now = 9.0
    assert court.rule(WorkerDied("worker died: signal 11"), attempt=1) == Ruling(withhold=True)
    assert [str(stop) for stop in court.stops] == ['stage "x": 5 worker processes died within 10 s']


def test_deaths_that_lie_further_apart_do_not() -> None:
    court = Court()
    for number in range(50):
        court.now = 2.6 * number
        assert court.rule(WorkerDied("worker died: signal 11"), attempt=2) == END
    assert court.stops == []


def test_suspects_are_held_until_the_stage_succeeds_once() -> None:
    court = Court()
    assert court.rule(NameError("typo")) == Ruling(hold=True)
    assert court.judge.probation == "pending"
    court.counters.passed = 1
    assert court.judge.probation == "cleared"
    assert court.rule(NameError("typo")) == END


def test_a_stand_in_is_no_success_of_the_stage_and_a_record_with_one_proves_nothing() -> None:
    court = Court()
    court.counters.passed = court.counters.degraded = 3
    assert court.rule(NameError("typo")) == Ruling(hold=True)
    notes = {"above": Note("skipped", None, 1)}
    assert court.rule(NameError("typo"), notes=notes) == END


def test_ten_of_one_class_and_no_success_trip() -> None:
    court = Court()
    for _ in range(9):
        assert court.rule(NameError("typo")) == Ruling(hold=True)
    assert court.rule(NameError("typo")) == Ruling(withhold=True)
    assert court.judge.probation == "tripped"
    assert [str(stop) for stop in court.stops] == ["stage x: NameError in every call (10 in a row)"]


def test_of_abandoned_calls_the_first_is_told_and_one_more_than_workers_stops() -> None:
    court = Court(max_in_flight=2)
    for count in (1, 2):
        court.judge.abandoned(count, 5.0)
    assert court.said == ['stage "x": a call did not end 5 s after it was cancelled and is left behind']
    assert court.stops == []
    court.judge.abandoned(3, 5.0)
    assert len(court.said) == 1
    assert [str(stop) for stop in court.stops] == ['stage "x": more than 2 calls did not end after they were cancelled']
