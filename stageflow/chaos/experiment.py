"""The experiment: what it costs is said, both runs are made, what they came to is compared and told."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from stageflow.chaos.compare import differences
from stageflow.chaos.lives import Life, Unequal, ended_by_signals, kill, leave_alone
from stageflow.cli_options import plan_of
from stageflow.ends import source_of
from stageflow.errors import RequestError, RunStopped
from stageflow.graph import nearest
from stageflow.loader import Job
from stageflow.plan import Plan
from stageflow.report.text import counted

__all__ = ["chaos"]

_SHOWN: Final = 10
"""Records that are named."""


def chaos(
    job: Job,
    reference: str,
    input_: str,
    given: Mapping[str, Any],
    *,
    tell: Callable[[str], None],
    show: Callable[[str], None],
) -> None:
    """Run the job twice, once killed ``given["kills"]`` times, and compare.

    Args:
        reference: The job as its children load it: what ``job`` was loaded by.
        given: The options of the command, by name.
        tell: Says something while it goes.
        show: Prints the account.

    Raises:
        RequestError: It can't be done, or neither ``--limit`` nor ``--yes`` says that the calls are wanted.
        RunStopped: The undisturbed run did not come to its end, so there is nothing to compare with.
        Unequal: The runs differ, or a start after a kill failed or hung. The files are kept.
    """
    plan = plan_of(job, given)
    compared = _compared(plan, given["deterministic"])
    seed = given["seed"] if given["seed"] is not None else random.randrange(2**32)
    _announce(plan, input_, given, seed, tell)
    folder, kept = Path(tempfile.mkdtemp(prefix="stageflow-chaos-")), False
    try:
        with ended_by_signals():
            undisturbed = Life(folder / "undisturbed", reference, input_, given)
            began = leave_alone(undisturbed)
            tell(f"stageflow: undisturbed: {began.seconds:,.1f} s, the first call after {began.first_call:.2f} s")
            killed = Life(folder / "killed", reference, input_, given)
            kill(killed, given["kills"], random.Random(seed), began, tell)
        before, after = _calls_of(undisturbed), _calls_of(killed)
        found = list(differences(undisturbed.output, killed.output, compared))
        show(_account(plan, before, after, killed, compared, found))
        if after.most_again > plan.max_open_records:
            raise Unequal(f"{after.most_again:,} records were begun again after one kill, and fewer can be open")
        if found:
            differ = "1 record differs" if len(found) == 1 else f"{len(found):,} records differ"
            raise Unequal(differ, hint=f"both runs are in {folder}; seed {seed}")
    except (Unequal, RunStopped) as error:
        kept = True
        error.hint = error.hint or f"what it said and wrote is in {folder}; seed {seed}"
        raise
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def _compared(plan: Plan, names: Sequence[str]) -> tuple[str, ...] | None:
    """The stages whose values are compared; ``None`` for whole lines."""
    if "all" in names:
        return None
    for name in names:
        if name not in plan.stages:
            near = nearest(name, plan.stages)
            hint = f'did you mean "{near}"?' if near else "stages are: " + ", ".join(plan.stages)
            raise RequestError(f'unknown stage "{name}"', hint=f"{hint} Or give all for whole lines")
        written = plan.emitted or [stage.name for stage in plan.stages.values() if stage.emit]
        if plan.context is not None or name not in written:
            raise RequestError(f'the output has no field for stage "{name}"', hint="give all to compare whole lines")
    return tuple(dict.fromkeys(names))


def _announce(plan: Plan, input_: str, given: Mapping[str, Any], seed: int, tell: Callable[[str], None]) -> None:
    """Say what it will cost; refuse it where nobody has agreed to that."""
    if input_ == "-":
        raise RequestError("chaos reads its input many times", hint="give a file")
    source = source_of(input_)
    source.check()
    records, stages, most = source.estimate() or 0, len(plan.stages), plan.max_open_records
    if given["limit"] is not None:
        records = min(records or given["limit"], given["limit"])
    calls = f"about {2 * records * stages:,} calls, and those of up to {most:,} records again for each of"
    tell(
        f"stageflow: 2 runs of about {records:,} records through {counted(stages, 'stage')}: "
        f"{calls} {given['kills']} kills (seed {seed})"
    )
    if given["limit"] is None and not given["yes"]:
        raise RequestError("chaos makes real calls", hint="pass --limit N for a part of the input, or --yes for all")


# The account


def _account(
    plan: Plan, before: _Calls, after: _Calls, killed: Life, compared: Sequence[str] | None, found: Sequence[str]
) -> str:
    """What the user is told in the end."""
    width = max(map(len, ["stage", *plan.order]))
    lines = [f"{counted(killed.kills, 'kill')} in {counted(killed.starts, 'start')}, {killed.seconds:,.1f} s"]
    if killed.kills:
        again = f"{after.most_again:,} records were begun again after one kill at most"
        lines.append(f"{again} ({plan.max_open_records:,} may be open)")
    lines += ["", f"{'stage':<{width}}  {'calls undisturbed':>17}  {'with kills':>10}  {'made again':>10}"]
    for stage in plan.order:
        numbers = f"{before.calls[stage]:>17,}  {after.calls[stage]:>10,}  {after.again[stage]:>10,}"
        lines.append(f"{stage:<{width}}  {numbers}")
    lines += ["", *found[:_SHOWN]]
    if len(found) > _SHOWN:
        lines.append(f"... and {len(found) - _SHOWN:,} more")
    if not found:
        values = "whole lines" if compared is None else ", ".join(compared) or "none; see --deterministic"
        lines.append(f"equal: each record came to the same; values compared: {values}")
    return "\n".join(lines)


@dataclass
class _Calls:
    """By stage, calls and those of them that an earlier start had made; and the most records begun again by a kill."""

    calls: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)
    most_again: int = 0


def _calls_of(life: Life) -> _Calls:
    found, seen, later = _Calls(), set[str](), set[str]()
    begun: list[set[str]] = []
    for log in life.logs:
        calls = log.read_text().splitlines() if log.exists() else []
        for call in calls:
            stage = call.rpartition("\t")[0]
            found.calls[stage] += 1
            found.again[stage] += call in seen
        seen.update(calls)
        begun.append({call.rpartition("\t")[2].partition(".")[0] for call in calls})
    for records in reversed(begun):
        found.most_again = max(found.most_again, len(records & later))
        later |= records
    return found
