"""What the lines of the bar say in so many columns. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from stageflow.events import Snapshot, StageSnapshot
from stageflow.report.progress.rates import Rates
from stageflow.report.progress.sentences import percent_done, roughly, total_of
from stageflow.report.progress.waiting import load
from stageflow.report.text import cells, clip, count, pad, printable, rate

__all__ = ["bar_format", "busiest", "stage_lines"]


def bar_format(pipeline: str, snapshot: Snapshot, per_second: float, columns: int) -> str:
    """The first line as a template for tqdm, with as much beside the bar as leaves it ten columns."""
    settled, total = snapshot.settled, total_of(snapshot)
    dead = f"  {count(snapshot.dead)} dead" if snapshot.dead else ""
    if total is None:
        return _braces(clip(f"{pipeline}: {count(settled)} done  {rate(per_second)}{dead}", columns))
    head = f" {percent_done(snapshot, total):3} % |"
    left = f"  {roughly(round((total - settled) / per_second))} left" if per_second > 0 else ""
    done = f"| {count(settled)}/~{count(total)}"
    speed = f"  {rate(per_second)}"
    for name, tail in (
        (pipeline, done + speed + left + dead),
        ("", done + speed + left + dead),
        ("", done + speed + dead),
        ("", done + dead),
    ):
        if columns - cells(name + head + tail) >= 10:
            return _braces(name + head) + "{bar}" + _braces(tail)
    words = head.strip(" |") + done[1:]
    fitting = (words + tail for tail in (speed + dead, dead) if cells(words + tail) <= columns)
    return _braces(clip(next(fitting, words), columns))


def _braces(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def busiest(stages: Sequence[StageSnapshot], most: int) -> list[StageSnapshot]:
    """At most so many stages, those with the most work, in execution order."""
    ranked = sorted(range(len(stages)), key=lambda place: -load(stages[place]) - stages[place].blocked)
    return [stages[place] for place in sorted(ranked[: max(0, most)])]


def stage_lines(stages: Sequence[StageSnapshot], rates: Rates, columns: int) -> list[str]:
    """One line for each stage: aligned and in words where there is room, else short."""
    names = [printable(stage.name) for stage in stages]
    widest = min(24, max(map(cells, names), default=0))
    for words in ((" in flight", " queued", " blocked", " failed", ""), ("", "q", "b", "f", "")):
        numbers = [_aligned(column, word) for column, word in zip(_numbers(stages, rates), words, strict=True)]
        tails = ["".join(f"  {cell}" for cell in row) for row in zip(*numbers, strict=True)]
        room = columns - 2 - max(map(len, tails), default=0)
        if room >= widest:
            break
    width = max(6, min(widest, room))
    return [clip(f"  {pad(clip(name, width), width)}{tail}", columns) for name, tail in zip(names, tails, strict=True)]


def _numbers(stages: Sequence[StageSnapshot], rates: Rates) -> list[list[str]]:
    return [
        [f"{count(stage.in_flight)}/{count(stage.max_in_flight)}" for stage in stages],
        [count(stage.queued) for stage in stages],
        [count(stage.blocked) for stage in stages],
        [count(stage.dead) for stage in stages],
        [rate(rates.stage(stage.name)) for stage in stages],
    ]


def _aligned(column: Sequence[str], word: str) -> list[str]:
    width = max(map(len, column), default=0)
    return [cell.rjust(width) + word for cell in column]
