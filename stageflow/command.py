"""``stageflow run``: a run with a screen and signals around it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import click

from stageflow.cli_options import overrides, plan_of
from stageflow.engine.watch import watch_loop
from stageflow.entry import guarded, run_on_loop
from stageflow.errors import (
    BudgetSpent,
    InputDamaged,
    OutputLocked,
    RequestError,
    RunStopped,
    StateMismatch,
    StorageError,
)
from stageflow.files import Files
from stageflow.loader import load
from stageflow.options import Options
from stageflow.policies.redact import MASK, SECRET_NAME, redact, secrets_of
from stageflow.policies.tolerance import Tolerance, parse_rate
from stageflow.report.progress import Progress, make_progress
from stageflow.report.stats import RunReport
from stageflow.report.summary import summary_json, summary_text
from stageflow.report.text import counted, printable
from stageflow.runner import Run
from stageflow.settings import from_amounts, parse_params

__all__ = ["run_job"]

_AS_GIVEN = (
    "order",
    "limit",
    "fresh",
    "retry_failed",
    "accept_job_change",
    "fsync",
    "disk_full_wait",
    "spool",
    "max_input_bytes",
    "strict",
    "on_bad_input",
    "max_open_records",
    "grace",
    "debug",
    "allow_failures",
    "max_retry_after",
    "processes",
    "budget",
    "engine",
    "address",
    "nodes",
    "shard",
    "shard_bytes",
    "max_shard_attempts",
    "env",
    "replica_cpus",
    "replica_gpus",
)
"""Options that are the same on the command line and from Python."""


class Interrupted(RunStopped):
    """A signal asked the run to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number  # type: ignore[misc]  # by shell convention, one per signal


def run_job(reference: str, input_: str | Files, output: str, given: Mapping[str, Any], typed: Sequence[str]) -> int:
    """Run a job as ``stageflow run`` does.

    Args:
        given: The other options, by name.
        typed: The command line as the user typed it, without the program: the hints are made of it.

    Returns:
        The exit code.
    """
    data = _claim_stdout() if output == "-" else None
    if given["allow_failures"]:
        Tolerance.parse(given["allow_failures"])
    job = load(reference)
    sharded = given["engine"] != "local"
    dead = given["dead"] or (_dead_of(output, sharded=sharded) if output != "-" else None)
    progress = make_progress(given["progress"], sys.stderr, dead=dead)
    options = Options.of(
        {
            **{name: given[name] for name in _AS_GIVEN},
            "cache": _cache(given),
            "max_in_flight_total": _amounts(given, "max_in_flight_total"),
            "model_actors": _amounts(given, "model_actors") or 1,
            "dead": given["dead"] if sharded else dead or _Told(),
            "max_failure_rate": parse_rate(given["max_failure_rate"]) if given["max_failure_rate"] else None,
            "listeners": (progress,),
        }
    )
    plan = plan_of(job, given)
    sink = _stdout_sink(data) if data is not None else output
    settings = overrides(job, given), parse_params(given["params"], job.pipeline.parameters)
    elsewhere = functools.partial(job.pipeline._elsewhere, *settings)
    run = Run(plan, input_, sink, options, job.pipeline._prepare, elsewhere)
    try:
        report = run_on_loop(lambda: guarded(_with_screen(run, progress)), given["loop"])
    except SystemExit as error:
        # One raised in a stage is the record's failure; but asyncio lets one of a task of the job's own through.
        raise RunStopped(f"a task that the job had started raised {error!r}", hint="run it again") from None
    except Interrupted as error:  # before there was anything to finish
        error.hint = f"nothing was begun; the same command again: {again(typed)}"
        raise
    except StorageError as error:
        _hint_at_command(error, run, typed)
        raise
    finally:
        progress.close()
    _finish(report, run, dead, given, typed)
    if run.work is not None and run.work.given_up:
        _say(f"stageflow: {counted(len(run.work.given_up), 'shard')} failed: nothing of that input is in the output")
        _say(f"  hint: to see which: {shlex.join(['stageflow', 'status', output])}")
    _leave_threads_behind(report.exit_code)
    return report.exit_code


def _cache(given: Mapping[str, Any]) -> Any:
    if given["cache"] and given["no_cache"]:
        raise RequestError("--cache and --no-cache can't both be", hint="give one of them")
    return False if given["no_cache"] else given["cache"]


def _dead_of(output: str, *, sharded: bool) -> str:
    return f"{output.rstrip('/')}/dead/" if sharded else f"{output}.dead.jsonl"


def _amounts(given: Mapping[str, Any], name: str) -> int | dict[str, int] | None:
    """What an option such as ``--max-in-flight-total`` says, as the one from Python does."""
    option = f"--{name.replace('_', '-')}"
    found = {each.stage: each.value for each in from_amounts(name, given[name], option)}
    if None in found and len(found) > 1:
        raise RequestError(f"{option} is given for every stage, and for one", hint="give it by stage")
    return found.get(None) if None in found or not found else {str(stage): value for stage, value in found.items()}


def _hint_at_command(error: StorageError, run: Run, typed: Sequence[str]) -> None:
    """Give the command that goes on where the output failed, or another one is to be chosen."""
    if isinstance(error, OutputLocked):
        error.hint = f"when it has ended: {again(typed)}"
    elif isinstance(error, StateMismatch):
        if error.hint is not None and "--accept-job-change" in error.hint:
            anew = "another output" if run.sharded else "--fresh"
            error.hint = f"{again(typed, '--accept-job-change')} goes on with the new job, {anew} starts anew"
    elif run.started and run.resumable:
        if isinstance(run.stopped_by, Interrupted):  # the file that was being put in order when it was asked to end
            error.exit_code = run.stopped_by.exit_code  # type: ignore[misc]
        safe = "" if "are safe" in error.message else f"{run.snapshot().settled:,} records are safe; "
        hint = f"{safe}resume with the same command: {again(typed)}"
        error.hint = hint if error.hint is None else f"{error.hint}; {hint}"


def again(typed: Sequence[str], *more: str) -> str:
    """The command that goes on with a run: as it was typed, less what would start anew, and secrets masked."""
    secrets = secrets_of(os.environ)
    kept = [_masked(word, secrets) for word in typed if word != "--fresh"]
    return shlex.join(["stageflow", *kept, *(option for option in more if option not in kept)])


def _with_more(typed: Sequence[str], budget: float) -> list[str]:
    """The command with twice its budget."""
    more, words = f"{2 * budget:.12g}", list(typed)
    for place, word in enumerate(words):
        if word.startswith("--budget="):
            words[place] = f"--budget={more}"
        elif word == "--budget":
            words[place + 1] = more
    return words


def _masked(word: str, secrets: Collection[str]) -> str:
    name, equals, _ = word.partition("=")
    return f"{name}={MASK}" if equals and SECRET_NAME.search(name) else redact(word, secrets)


def _columns() -> int:
    """How wide the summary may be."""
    return shutil.get_terminal_size((100, 24)).columns if sys.stderr is not None and sys.stderr.isatty() else 100


class _Told:
    """Dead letters that are kept nowhere are told one by one; the first one is told by the progress listener."""

    def __init__(self) -> None:
        self._told = 0

    def __call__(self, letter: Mapping[str, Any]) -> None:
        self._told += 1
        if self._told > 1:
            error = printable(f"{letter['error']['type']}: {letter['error']['message']}")
            _say(f"stageflow: record {letter['index']} failed at {letter['stage']}: {error}")


def _claim_stdout() -> int:
    """Keep standard output for records: what the job prints goes to stderr from here on."""
    if sys.stdout is None:
        raise RequestError("cannot write to stdout: it is closed", hint="write to a file")
    sys.stdout.flush()
    data = os.dup(1)
    os.dup2(2, 1)
    return data


def _stdout_sink(data: int) -> Any:
    from stageflow.adapters.jsonl import JsonlSink

    return JsonlSink("-", stream=data)


async def _with_screen(run: Run, progress: Progress) -> RunReport:
    ticking = asyncio.create_task(_tick(progress), name="progress")
    try:
        with _signals(run), watch_loop(run.warn, lambda: run.started):
            return await run.execute()
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)


async def _tick(progress: Progress) -> None:
    while True:
        await asyncio.sleep(progress.interval)
        progress.refresh()


@contextlib.contextmanager
def _signals(run: Run) -> Iterator[None]:
    """The first signal stops the run, the second cancels it, the third ends the process.

    Handlers of ``signal`` rather than of the loop: they run also while a stage blocks the loop.
    """
    loop = asyncio.get_running_loop()
    seen = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            loop.call_soon_threadsafe(run.stop, Interrupted(number))
        elif seen == 2:
            loop.call_soon_threadsafe(run.cancel)
        else:
            os._exit(128 + number)

    wanted = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(report: RunReport, run: Run, dead: str | None, given: Mapping[str, Any], typed: Sequence[str]) -> None:
    """The account, and what to do next."""
    if given["summary"] == "json":
        click.echo(summary_json(report))
    elif not report.already_complete:
        _say(summary_text(report, width=_columns()))
    if report.already_complete:
        ends = f"{report.written:,} results, {report.dead:,} dead letters"
        _say(f"stageflow: already complete: {report.read:,} inputs, {ends}")
    if report.stopped:
        _tell_stopped(report, run, typed)
    elif report.dead:
        _tell_letters(report, run, dead, typed)
    elif report.exit_code and not (run.work and run.work.given_up):  # the input was changed, and that was told
        _say(f"stageflow: what was read is complete; the same command reads what is new\n  hint: {again(typed)}")
    elif not report.read and not run.sharded:
        _say("stageflow: note: the input is empty")


def _tell_stopped(report: RunReport, run: Run, typed: Sequence[str]) -> None:
    done = report.written + report.dropped + report.dead
    total = run.snapshot().total
    of = f"{report.read:,}" if total is None or total <= report.read else f"~{total:,}"
    why = "" if isinstance(run.stopped_by, Interrupted) else f": {report.stopped}"
    if isinstance(run.stopped_by, BudgetSpent) and report.budget is not None and run.resumable:
        _say(f"stageflow: stopped: {done:,} of {of} done{why}; resume with a higher budget")
        _say(f"  hint: {again(_with_more(typed, report.budget))}")
    elif isinstance(run.stopped_by, InputDamaged):
        _say(f"stageflow: error: {report.stopped}; {done:,} records are done")
        _say(f"  hint: when the input is whole: {again(typed)}" if run.resumable else "  hint: give it whole")
    elif run.resumable:
        _say(f"stageflow: stopped: {done:,} of {of} done{why}; resume with the same command\n  hint: {again(typed)}")
    else:
        _say(f"stageflow: stopped: {done:,} of {of} done{why}")
        fresh = ("--fresh",) if run.durable and done else ()
        _say(f"  hint: it can't be resumed; to start anew: {again(typed, *fresh)}")


def _tell_letters(report: RunReport, run: Run, dead: str | None, typed: Sequence[str]) -> None:
    kept = f"see {dead}" if dead else "with -o - they are kept only with --dead PATH"
    _say(f"stageflow: {counted(report.dead, 'dead letter')}: {kept}")
    if report.exit_code and run.retryable:
        _say(f"  hint: to try them again: {again(typed, '--retry-failed')}")


def _say(text: str) -> None:
    """Tell on stderr; where that can't be written to, the run was what it was all the same."""
    try:
        click.echo(text, err=True)
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)  # or what is still buffered fails again at exit, which makes it exit 120


def _leave_threads_behind(code: int) -> None:
    """End the process where a stage's thread does not: the interpreter's own exit would wait for it.

    Idle threads of a pool need a moment to notice that it was shut down; that moment is theirs.
    """
    deadline = time.monotonic() + 1.0
    for thread in threading.enumerate():
        if thread.name.startswith("stageflow-"):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
