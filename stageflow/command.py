"""``stageflow run``: a run with a screen and signals around it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import click

from stageflow.errors import RunStopped
from stageflow.loader import Job, load
from stageflow.plan import Override
from stageflow.report.progress import Progress, make_progress
from stageflow.report.stats import RunReport
from stageflow.report.summary import summary_json, summary_text
from stageflow.report.text import printable
from stageflow.runner import Options, Run, guarded, run_on_loop
from stageflow.settings import parse_params

__all__ = ["run_job"]

Overrides = Callable[[Job, Mapping[str, Any]], tuple[Override, ...]]


class Interrupted(RunStopped):
    """A signal asked the run to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number  # type: ignore[misc]  # by shell convention, one per signal


def run_job(reference: str, input_: str, output: str, given: Mapping[str, Any], overrides: Overrides) -> int:
    """Run a job as ``stageflow run`` does.

    Returns:
        The exit code.
    """
    data = _claim_stdout() if output == "-" else None
    job = load(reference)
    dead = given["dead"] or (f"{output}.dead.jsonl" if output != "-" else None)
    progress = make_progress(given["progress"], sys.stderr, dead=dead)
    options = Options(
        params=parse_params(given["params"], job.pipeline.parameters),
        overrides=overrides(job, given),
        dead=dead or _Told(),
        order=given["order"],
        limit=given["limit"],
        fresh=given["fresh"],
        on_bad_input=given["on_bad_input"],
        max_open_records=given["max_open_records"],
        grace=given["grace"],
        listeners=(progress,),
    )
    run = Run(job.pipeline, input_, _stdout_sink(data, options) if data is not None else output, options)
    try:
        report = run_on_loop(guarded(_with_screen(run, progress)), given["loop"])
    finally:
        progress.close()
    _finish(report, output, given)
    _leave_threads_behind(report.exit_code)
    return report.exit_code


class _Told:
    """Dead letters that are kept nowhere are told one by one; the first one is told by the progress listener."""

    def __init__(self) -> None:
        self._told = 0

    def __call__(self, letter: Mapping[str, Any]) -> None:
        self._told += 1
        if self._told > 1:
            error = printable(f"{letter['error']['type']}: {letter['error']['message']}")
            click.echo(f"stageflow: record {letter['index']} failed at {letter['stage']}: {error}", err=True)


def _claim_stdout() -> int:
    """Keep standard output for records: what the job prints goes to stderr from here on."""
    sys.stdout.flush()
    data = os.dup(1)
    os.dup2(2, 1)
    return data


def _stdout_sink(data: int, options: Options) -> Any:
    from stageflow.adapters.jsonl import JsonlSink

    return JsonlSink("-", order="completion", stream=data)


async def _with_screen(run: Run, progress: Progress) -> RunReport:
    ticking = asyncio.create_task(_tick(progress), name="progress")
    try:
        with _signals(run):
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


def _finish(report: RunReport, output: str, given: Mapping[str, Any]) -> None:
    """The account, and what to do next."""
    if given["summary"] == "json":
        click.echo(summary_json(report))
    else:
        click.echo(summary_text(report), err=True)
    if report.stopped:
        done = report.written + report.dropped + report.dead
        click.echo(f"stageflow: stopped: {done:,} of {report.read:,} read records done: {report.stopped}", err=True)
        if output != "-":
            click.echo(
                f"  hint: the results so far are in {output}.partial; run again with --fresh to start anew", err=True
            )
    elif report.dead:
        dead = given["dead"] or (f"{output}.dead.jsonl" if output != "-" else None)
        letters = "dead letter" if report.dead == 1 else "dead letters"
        kept = f"see {dead}" if dead else "with -o - they are kept only with --dead PATH"
        click.echo(f"stageflow: {report.dead:,} {letters}: {kept}", err=True)
    elif not report.read:
        click.echo("stageflow: note: the input is empty", err=True)


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
