"""What settles becomes commits: their shape, their size, and when the credits are given back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from stageflow import Pipeline
from stageflow.adapters.jsonl.encode import encode_strictly
from stageflow.commit import Commit, InputMark
from stageflow.counters import RunCounters
from stageflow.item import Failure, Item, Part, Reentry
from stageflow.recorder import Recorder
from stageflow.testing import run_virtual


class Output:
    """Keeps the commits; each takes a second."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.times: list[float] = []

    async def write(self, commit: Commit) -> None:
        self.times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(1)
        self.commits.append(commit)

    async def close(self, *, complete: bool) -> None: ...


def pipeline() -> Pipeline:
    made = Pipeline("job")
    made.add_stage("s", lambda x: x)
    return made


def item(index: int, result: Any = 0) -> Item:
    made = Item(index, {"x": index}, 0)
    made.results["s"] = result
    return made


def dead(index: int, *, reentry: Reentry | None = None) -> Item:
    made = Item(index, {"x": index}, 0)
    made.failure, made.closed = Failure("s", LookupError("gone"), 1), True
    if reentry is not None:
        made.reentry = reentry
    return made


def record(
    feed: Callable[[Recorder], Any], *, output: Output | None = None, **options: Any
) -> tuple[Output, RunCounters, list[tuple[float, int]]]:
    """What a recorder made of what ``feed`` handed it; and when it gave back how many credits."""
    output, counters, released = output or Output(), RunCounters(), []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        recorder = Recorder(
            pipeline().plan(),
            output,
            None,
            counters,
            encode=encode_strictly,
            encode_letter=lambda letter: b"%d %s\n" % (letter["index"], letter["stage"].encode()),
            sized=True,
            emit=lambda event: None,
            path=None,
            numbered=False,
            **options,
        )
        recorder.release = lambda count: released.append((loop.time(), count)) if count else None
        writing = asyncio.create_task(recorder.write())
        outcome = feed(recorder)
        if outcome is not None:
            await outcome
        recorder.close()
        await writing

    run_virtual(main())
    return output, counters, released


def test_a_commit_holds_lines_and_letters_and_says_only_what_is_out_of_the_ordinary() -> None:
    dropped = item(2)
    dropped.dropped, dropped.closed = ("s", "spam"), True

    def feed(recorder: Recorder) -> None:
        for each in (item(3), dead(0), dropped, item(1)):
            recorder.settled(each)

    output, counters, _ = record(feed)
    (commit,) = output.commits
    assert commit.ordinals == [3, 0, 2, 1]
    assert commit.lines == [b'{"x":3,"s":0}\n', b'{"x":1,"s":0}\n']
    assert (commit.line_counts, commit.letters, commit.letter_counts) == ({0: 0, 2: 0}, [b"0 s\n"], {0: 1})
    assert (commit.marks, commit.resolved, commit.replaced) == ([], [], [])
    assert (counters.written, counters.dead, counters.dropped) == (2, 1, 1)


def test_what_has_no_form_in_the_output_is_a_letter() -> None:
    output, counters, _ = record(lambda recorder: recorder.settled(item(0, {1, 2})))
    (commit,) = output.commits
    assert (commit.ordinals, commit.lines, commit.line_counts, commit.letter_counts) == ([0], [], {0: 0}, {0: 1})
    assert (counters.written, counters.dead) == (0, 1)


def test_what_settles_while_a_commit_is_written_is_the_next_one() -> None:
    async def feed(recorder: Recorder) -> None:
        recorder.settled(item(0))
        for index in range(1, 5):
            await asyncio.sleep(0.3)
            recorder.settled(item(index))

    output, _, released = record(feed)
    assert [commit.ordinals for commit in output.commits] == [[0], [1, 2, 3], [4]]
    assert output.times == [0, 1, 2]
    assert released == [(1, 1), (2, 3), (3, 1)], "a credit is given back when the commit is written, not before"


@pytest.mark.parametrize(
    ("records", "bytes_each", "sizes"), [(600, 1, [256, 256, 88]), (5, 400_000, [3, 2]), (2, 3_000_000, [1, 1])]
)
def test_a_commit_is_cut_when_it_is_large(records: int, bytes_each: int, sizes: list[int]) -> None:
    def feed(recorder: Recorder) -> None:
        for index in range(records):
            recorder.settled(item(index, "x" * bytes_each))

    output, _, released = record(feed)
    assert [len(commit.ordinals) for commit in output.commits] == sizes
    assert [count for _, count in released] == sizes
    assert [index for commit in output.commits for index in commit.ordinals] == list(range(records))


def test_marks_travel_with_the_next_commit_and_the_last_ones_alone() -> None:
    first, second = InputMark(1, 10, "a"), InputMark(2, 20, "b")

    async def feed(recorder: Recorder) -> None:
        recorder.mark([first])
        recorder.settled(item(0))
        await asyncio.sleep(2)
        recorder.mark([second])

    output, _, _ = record(feed)
    assert [(commit.ordinals, commit.marks) for commit in output.commits] == [([0], [first]), ([], [second])]


def test_a_record_that_is_tried_again_settles_its_letters() -> None:
    part = Part("s", {})
    whole, in_part, again = (
        Reentry({"x": 0}, (0, 4)),
        Reentry({"x": 1}, (1,), (part,)),
        Reentry({"x": 2}, (2,)),
    )

    def feed(recorder: Recorder) -> None:
        recorder._counters.dead = 3  # of the earlier run
        for index, reentry in enumerate((whole, in_part)):
            each = item(index)
            each.reentry = reentry
            recorder.settled(each)
        recorder.settled(dead(2, reentry=again))

    output, counters, _ = record(feed, retrying=True)
    (commit,) = output.commits
    assert (commit.ordinals, commit.resolved) == ([0, 1, 2], [0, 4, 1, 2])
    assert commit.replaced == [0], "what was done from the start takes the place of what was written before"
    assert (counters.written, counters.dead) == (2, 1)


def test_what_settles_in_one_turn_of_the_loop_after_the_other_is_one_commit() -> None:
    async def feed(recorder: Recorder) -> None:
        for index in range(8):
            recorder.settled(item(index))
            await asyncio.sleep(0)

    output, _, released = record(feed)
    assert [commit.ordinals for commit in output.commits] == [list(range(8))]
    assert (output.times, released) == ([0], [(1, 8)])


def test_a_record_after_which_none_comes_is_written_at_once() -> None:
    async def feed(recorder: Recorder) -> None:
        recorder.settled(item(0))
        await asyncio.sleep(0.5)
        recorder.settled(item(1))

    output, _, _ = record(feed)
    assert [commit.ordinals for commit in output.commits] == [[0], [1]]
    assert output.times == [0, 1]


def test_an_endless_trickle_is_written_all_the_same() -> None:
    async def feed(recorder: Recorder) -> None:
        for index in range(100):
            recorder.settled(item(index))
            await asyncio.sleep(0)

    output, _, _ = record(feed)
    assert [ordinal for commit in output.commits for ordinal in commit.ordinals] == list(range(100))
    assert 10 <= len(output.commits[0].ordinals) <= 20


# Where records may wait a moment


def trickle(spare: int, gaps: list[float], *, rest: float = 0.1) -> tuple[list[float], list[list[int]]]:
    """Commits of records that settle so many seconds after one another: when each began, and what is in it."""

    async def feed(recorder: Recorder) -> None:
        recorder.spare = spare
        for index, gap in enumerate(gaps):
            await asyncio.sleep(gap)
            recorder.settled(item(index))
        await asyncio.sleep(rest)

    class AtOnce(Output):
        async def write(self, commit: Commit) -> None:
            self.times.append(round(asyncio.get_running_loop().time(), 6))
            self.commits.append(commit)

    output, _, released = record(feed, output=AtOnce())
    assert [round(time, 6) for time, _ in released] == output.times
    return output.times, [list(commit.ordinals) for commit in output.commits]


def test_between_two_commits_of_few_records_is_a_moment() -> None:
    times, commits = trickle(8, [0.0] + [0.0012] * 9)
    assert (times, commits) == ([0.0, 0.005, 0.01, 0.015], [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]])


def test_many_records_wait_for_no_moment() -> None:
    times, commits = trickle(3, [0.0] + [0.001] * 6)
    assert (times, commits) == ([0.0, 0.003, 0.006], [[0], [1, 2, 3], [4, 5, 6]])


def test_at_low_rates_and_where_none_may_wait_each_record_is_written_at_once() -> None:
    assert trickle(8, [0.0, 0.006, 0.006]) == ([0.0, 0.006, 0.012], [[0], [1], [2]])
    assert trickle(0, [0.0, 0.001, 0.001]) == ([0.0, 0.001, 0.002], [[0], [1], [2]])


def test_the_end_of_the_run_ends_the_moment() -> None:
    assert trickle(8, [0.0, 0.001], rest=0.001) == ([0.0, 0.002], [[0], [1]])
