"""The command line: click commands, thin over the runner.

What the user gets to see of an error is two lines on stderr, ``stageflow: error: ...`` and ``  hint: ...``; a traceback
means a bug in stageflow. Nothing but records, or what was asked for with ``--json`` and the like, goes to stdout.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

import click

from stageflow.cli_options import LOOP, engine_options, job_options, plan_of
from stageflow.errors import DefinitionError, RequestError, RunFailed, StageflowError, StorageError

__all__ = ["cli", "invoke", "main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: runs a command and exits with its code."""
    _hold_standard_descriptors()
    code = invoke(arguments)
    if code == DefinitionError.exit_code and _threads_left():
        # A job that was refused, and has started threads: the interpreter would wait for them for ever.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _threads_left() -> bool:
    return any(not thread.daemon and thread is not threading.main_thread() for thread in threading.enumerate())


def _hold_standard_descriptors() -> None:
    """Let nothing else get a standard descriptor that was closed: an output file, or a pipe of the event loop.

    Standard input is held for writing and standard output for reading, so that using them still fails.
    """
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # it gets the lowest number that is free


def invoke(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code. Errors have been told on stderr.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(args=typed, prog_name="stageflow", standalone_mode=False, obj=tuple(typed))
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.exceptions.NoArgsIsHelpError as help_:
        click.echo(help_.format_message(), err=True)
        return 2
    except click.Abort:
        return 130
    except click.ClickException as error:
        hint = f"{error.ctx.command_path} --help" if isinstance(error, click.UsageError) and error.ctx else None
        _tell(error.format_message().rstrip("."), hint)
        return 2
    except StageflowError as error:
        _tell(str(error), error.hint or _what_next(error))
        return error.exit_code
    except RunFailed as failure:
        import traceback

        traceback.print_exception(failure)
        _tell(failure.message, "the traceback above belongs into the report")
        return failure.exit_code
    return code if isinstance(code, int) else 0


def _what_next(error: StageflowError) -> str:
    """The hint of an error that has none of its own."""
    if isinstance(error, DefinitionError):
        return "mend it, then try stageflow check JOB"
    if isinstance(error, StorageError):
        return "what was written before stays where it is"
    return "stageflow COMMAND --help says what is accepted"


def _tell(message: str, hint: str | None) -> None:
    # A closed stderr must not turn one exit code into another.
    try:
        click.echo(f"stageflow: error: {message}", err=True)
        if hint:
            click.echo(f"  hint: {hint}", err=True)
    except OSError:
        pass


def _print(text: str) -> None:
    """Write to standard output. Whoever reads it may have had enough."""
    try:
        click.echo(text)
    except OSError as error:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)  # what is still buffered would fail again at exit
        if error.errno == errno.EPIPE:
            raise click.exceptions.Exit(128 + signal.SIGPIPE) from None
        raise StorageError(f"cannot write to stdout: {error.strerror}", hint="write to a file") from None


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="stageflow", message="%(prog)s %(version)s")
def cli() -> None:
    """Run plain Python functions as a pipeline over JSON lines: every service as busy as allowed, no record lost."""


# Run


@cli.command(name="run", short_help="Run a job over a file of JSON lines.")
@click.argument("job")
@click.argument("input_", metavar="INPUT...", nargs=-1, required=True)
@click.option("-o", "--output", required=True, metavar="OUTPUT", help="The file of results, or - for standard output.")
@job_options
@click.option("--dead", metavar="PATH", help="Where dead letters go.  [default: OUTPUT.dead.jsonl]")
@click.option(
    "--order",
    type=click.Choice(["input", "completion"]),
    help="Order of the results.  [default: input; completion for -]",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Do the first N records of the input.")
@click.option("--fresh", is_flag=True, help="Rename existing output files (never delete them) and start anew.")
@click.option(
    "--retry-failed", is_flag=True, help="Do the records of the dead letters again; the job may have changed."
)
@click.option("--accept-job-change", is_flag=True, help="Go on with what another version of the job began.")
@click.option(
    "--on-bad-input",
    type=click.Choice(["dead", "stop"]),
    default="dead",
    show_default=True,
    help="What an unreadable line does: become a dead letter, or stop the run.",
)
@click.option("--strict", is_flag=True, help="An input line in which a key comes twice is a dead letter.")
@click.option(
    "--max-input-bytes", type=click.IntRange(min=1), metavar="N", help="Stop when the input, decompressed, is larger."
)
@click.option(
    "--spool", is_flag=True, help="Copy standard input to OUTPUT.spool first and run on that, so it can be resumed."
)
@click.option(
    "--fsync",
    default="interval=1s",
    show_default=True,
    metavar="interval=SECONDS|group|off",
    help="When results are made safe from a power loss. A killed process loses none.",
)
@click.option(
    "--disk-full-wait",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for space on a full disk.",
)
@click.option(
    "--max-open-records",
    type=click.IntRange(min=1),
    metavar="N",
    help="Records admitted and not yet written.  [default: what workers and channels hold]",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Run the pipeline in N processes, which share the input and all limits.",
)
@engine_options
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    metavar="AMOUNT",
    help="Stop before the calls, with those of earlier runs, cost more, in the currency of the job's prices.",
)
@click.option(
    "--cache", metavar="PATH", help="Where stages with cache=True keep results.  [default: .stageflow/ beside JOB]"
)
@click.option("--no-cache", is_flag=True, help="Make every call, whatever was kept of earlier ones, and keep nothing.")
@click.option("--debug", is_flag=True, help="Warn of functions that change values they share with other stages; slow.")
@click.option("--max-failure-rate", metavar="RATE", help="Stop when more of the last 100 records fail: 50% or 0.5.")
@click.option("--allow-failures", metavar="N|P%", help="So many dead letters still end in exit code 0.")
@click.option(
    "--max-retry-after",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Stop when a service asks to be left alone for longer.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a stopped run may finish what is in flight.",
)
@LOOP
@click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "log", "off"]),
    default="auto",
    show_default=True,
    help="How progress is shown on stderr.",
)
@click.option(
    "--summary",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="The account at the end: a table on stderr, or one line of JSON on stdout.",
)
@click.pass_obj
def run_command(typed: Sequence[str], /, job: str, input_: Sequence[str], output: str, **given: Any) -> int:
    """Run JOB over the records of INPUT.

    JOB is path.py, path.py:name or package.module:name; its code is run. INPUT and OUTPUT may be -. Several inputs are
    read one after the other; a quoted pattern stands for the files that match it, sorted. Results go to OUTPUT, records
    that failed to OUTPUT.dead.jsonl. The same command again goes on with a run that was interrupted.
    """
    from stageflow.command import run_job
    from stageflow.files import chosen

    if given["summary"] == "json" and output == "-":
        raise RequestError("--summary json and -o - both want standard output", hint="write the results to a file")
    return run_job(job, chosen(input_), output, given, typed or ())


@cli.command(name="status", short_help="Tell how far a run is.")
@click.argument("output")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON on standard output.")
def status_command(output: str, as_json: bool) -> int:
    """Tell how far the run that writes OUTPUT is, or was when it ended. Nothing is locked, and nothing is changed."""
    from stageflow.status import status_json, status_text

    _print(status_json(output) if as_json else status_text(output))
    return 0


@cli.command(name="merge", short_help="Make one file of what a run past one machine wrote.")
@click.argument("output", metavar="OUT")
@click.option("-o", "--output", "path", required=True, metavar="FILE", help="The file; its suffix says of what kind.")
@click.option("--fresh", is_flag=True, help="Rename existing files (never delete them).")
def merge_command(output: str, path: str, fresh: bool) -> int:
    """Write the results of the complete run in OUT, a folder or an address, to FILE, in the order of the input.

    The dead letters go to FILE.dead.jsonl. Exits with 3 where shards have failed: their records are in neither file.
    """
    from stageflow.cluster.merge import merge

    return merge(output, path, fresh=fresh, tell=lambda text: click.echo(text, err=True))


# Check and graph


@cli.command(name="check", short_help="Check a job without running it.")
@click.argument("job")
@click.argument("input_", metavar="[INPUT...]", nargs=-1)
@job_options
def check_command(job: str, input_: Sequence[str], **given: Any) -> int:
    """Refuse or pass JOB, and print its stages, edges and settings with where each came from.

    The job file is imported, so its top level is run; no stage is. With INPUT the fields of its first records are
    checked against what the stages take.
    """
    from stageflow.loader import load
    from stageflow.report.listing import describe_plan

    plan = plan_of(load(job), given)
    _print(describe_plan(plan))
    if input_:
        from stageflow.ends import look_ahead, source_of
        from stageflow.files import chosen

        source = source_of(chosen(input_))
        source.check()
        looked = look_ahead(plan, source)
        told = f"each required field is in some of its first {looked} records" if looked else "not looked into"
        _print(f"input {source.path or input_[0]}: {told}")
    return 0


@cli.command(name="graph", short_help="Draw a job.")
@click.argument("job")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "mermaid", "dot", "svg"]),
    default="text",
    show_default=True,
    help="What is drawn.",
)
@job_options
def graph_command(job: str, format_: str, **given: Any) -> int:
    """Draw the graph of JOB on standard output."""
    from stageflow.loader import load
    from stageflow.report.picture import Picture, PictureNode, render

    plan = plan_of(load(job), given)
    stages = [plan.stages[name] for name in plan.order]
    nodes = tuple(PictureNode(s.name, s.run, s.max_in_flight, s.queue_size) for s in stages)
    _print(render(Picture(plan.name, nodes, plan.edges), format_))
    return 0


# Bench


@cli.command(name="bench", short_help="Measure throughput over a range of settings.")
@click.argument("job")
@click.argument("input_", metavar="INPUT")
@click.option(
    "--sweep", metavar="STAGE=N,N,...", multiple=True, help="Values of max_in_flight to try. Several are combined."
)
@click.option("--sweep-queue", metavar="STAGE=N,N,...", multiple=True, help="Values of queue_size to try.")
@click.option(
    "--repeat", type=click.IntRange(min=1), default=3, show_default=True, help="Runs per setting; the median is shown."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use the first N records.")
@click.option("--yes", is_flag=True, help="Make the calls without --limit.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON on standard output instead of the table.")
@click.option("--plot", metavar="FILE.svg", help="Draw the curve of a sweep into this file.")
@job_options
@LOOP
def bench_command(job: str, input_: str, **given: Any) -> int:
    """Run JOB over INPUT once per setting and repeat, throw the results away, and print records per second.

    The settings take turns. With --sweep a bar shows each of them, and one sentence says where more in flight stops
    paying.

    The calls are real: it says first how many it will make, and wants --limit or --yes.
    """
    from stageflow.loader import load
    from stageflow.sweep import sweep

    sweep(load(job), input_, given, tell=lambda text: click.echo(text, err=True), show=_print)
    return 0


# Chaos


@cli.command(name="chaos", short_help="Kill a job again and again, and see that nothing is lost.")
@click.argument("job")
@click.argument("input_", metavar="INPUT")
@click.option(
    "--kills", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="How often it is killed."
)
@click.option("--seed", type=int, metavar="N", help="For the moments of the kills.  [default: drawn, and told]")
@click.option(
    "--deterministic",
    metavar="STAGE",
    multiple=True,
    help="Compare the values of this stage, too: its input decides them. Repeatable; all for whole lines.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use the first N records.")
@click.option("--yes", is_flag=True, help="Make the calls without --limit.")
@job_options
@LOOP
def chaos_command(job: str, input_: str, **given: Any) -> int:
    """Run JOB over INPUT twice in a temporary folder, kill the second run at random moments, and compare.

    The first run is undisturbed. The second is killed with SIGKILL, while it works and while it recovers, started again
    each time, and then let finish. Each record must come to the same in both: written, dropped or dead, with as many
    lines and dead letters. Values are compared for the stages that --deterministic names, since a model may answer
    differently each time.

    The calls are real: it says first how many it will make, and wants --limit or --yes. Exits with 0 where the runs are
    equal, and with 3 where they differ or a start after a kill fails; the first records that differ are named.
    """
    from stageflow.chaos import chaos
    from stageflow.loader import load

    chaos(load(job), job, input_, given, tell=lambda text: click.echo(text, err=True), show=_print)
    return 0


# Test server


@cli.command(name="testserver", short_help="Answer as an LLM service would that fails by script.")
@click.option("--script", metavar="FILE", help="What goes wrong in which calls, as TOML or .jsonl.  [default: nothing]")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; it asks for no key.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The port to listen on.  [default: a free one]")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="For all that is drawn.  [default: FILE's, or 0]")
@LOOP
def testserver_command(script: str | None, host: str, port: int, seed: int | None, loop: str) -> int:
    """Rehearse: answer as an OpenAI-compatible service that is slow, full or broken as FILE says.

    Prints the base URL on standard output as soon as it answers. Ctrl-C ends it, prints what it counted as JSON (GET
    /stats says the same at any time), and exits with 0. Answers and faults are functions of the calls and the seed.
    """
    from stageflow.testing.serving import serve

    serve(
        script,
        host=host,
        port=port,
        seed=seed,
        loop=loop,
        tell=lambda text: click.echo(text, err=True),
        show=_print,
    )
    return 0


if __name__ == "__main__":
    main()
