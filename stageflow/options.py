"""What a run from Python can be told, and what the command line passes on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf
from typing import Any, Final, Literal

from stageflow.errors import RequestError
from stageflow.graph import nearest
from stageflow.plan import Override
from stageflow.protocols import Listener

__all__ = ["Options", "parse_fsync"]

_MOST_MONEY: Final = 1e12

Amounts = int | Mapping[str, int]


def parse_fsync(text: str) -> tuple[Literal["interval", "group", "off"], float]:
    """How often to ask the disk, from ``"interval=1s"``, ``"interval"``, ``"group"`` or ``"off"``; and the seconds.

    Raises:
        RequestError: It is none of these.
    """
    if text in ("group", "off"):
        return text, 1.0  # type: ignore[return-value]  # a Literal is not narrowed by `in`
    name, equals, seconds = str(text).partition("=")
    try:
        interval = float(seconds.removesuffix("s")) if equals else 1.0
    except ValueError:
        interval = 0.0
    if name != "interval" or not 0 < interval < inf:
        raise RequestError(f"fsync {text}: expected interval=SECONDS, group or off", hint="for instance interval=1s")
    return "interval", interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run from Python can be told; the command line has the same names.

    Args:
        params: Values for the job's parameters.
        max_in_flight, queue_size: A number for every stage, or one by stage name.
        settings: Other settings, ``{"generate": {"on_error": "skip"}}``.
        dead: Where dead letters go: a path, a list or a function. Default: ``OUT.dead.jsonl`` where the sink is a path;
            else each is logged as a warning.
        order: ``"input"`` (default for a file) or ``"completion"`` (default otherwise).
        limit: Do at most so many records of the input, from its first, >= 1; those of earlier runs are among them.
        fresh: Rename existing output files and start anew.
        retry_failed: Do the records of the dead letters again; a changed job is accepted.
        accept_job_change: Go on with what another version of the job began.
        fsync: When results are made safe from a power loss: ``"interval=1s"`` (once a second, in the background),
            ``"group"`` (each time something is written) or ``"off"``. A killed process loses nothing in either case.
        disk_full_wait: Seconds to wait for space on a full disk, >= 0, before the run stops.
        spool: Where the source is ``"-"``: copy standard input to ``OUT.spool`` first and run on that file, so that
            the run can be resumed. A copy that exists is used, and standard input is left alone.
        max_input_bytes: Read at most so many bytes, decompressed, >= 1; the run stops there.
        strict: An input line in which a key comes twice is a dead letter.
        on_bad_input: ``"dead"`` makes an unreadable line a dead letter; ``"stop"`` stops the run at it.
        max_open_records: The most records admitted and not yet written; default: the sum of all ``max_in_flight`` and
            ``queue_size``.
        max_failure_rate: Stop the run when a larger share (0 to 1) of the last hundred settled records failed.
        allow_failures: ``"5"`` or ``"2.5%"``: so many dead letters still end in exit code 0.
        max_retry_after: Seconds; a service that asks to be left alone for longer stops the run.
        grace: Seconds in which a stopped run may finish what it has accepted.
        budget: Stop the run before its calls, with those of the runs it goes on with, cost more; > 0, in the currency
            of the job's prices.
        cache: The file in which stages with ``cache=True`` keep their results; default: ``.stageflow/results.sqlite3``
            beside the job file. ``False``: nothing is looked for there, and nothing kept.
        processes: Run the whole pipeline in so many processes, >= 1, which share the input and all limits.
        engine: Where the stages run: ``"local"``, ``"ray"`` (replicas on a Ray cluster), or ``"static"`` (one of
            several runs that are started by others, each with its ``shard``). With an engine the source is files or
            addresses, and the sink a folder or an address.
        address: Of the Ray cluster: ``"auto"``, ``"HOST:PORT"``, or ``"local"`` for one that is started and ended with
            the run.
        nodes: Replicas to start, >= 1; each runs the whole pipeline, under limits of its own except for rates.
        max_in_flight_total: Calls in progress at once in all replicas together: a number for every stage, or one by
            stage name.
        shard: ``"I/N"``: do every N-th shard, from the I-th, counted from 0.
        shard_bytes: The size of a shard in bytes of input, >= 1; default: at most 1 MiB, and 20 for each replica.
        max_shard_attempts: Replicas that may die of a shard before it is given up, >= 1.
        env: Names of variables that replicas are to have as they are here; their values are kept in no file.
        replica_cpus, replica_gpus: What a replica takes of its node, by Ray's count.
        model_actors: Processes that make the calls of a stage with ``gpus``, for all replicas on a Ray cluster: a
            number for every such stage, or one by stage name.
        debug: Warn of handlers that change values they share with other stages; slow.
        listeners: Hear of every event.
    """

    params: Mapping[str, Any] | None = None
    max_in_flight: Amounts | None = None
    queue_size: Amounts | None = None
    settings: Mapping[str, Mapping[str, Any]] | None = None
    dead: Any = None
    order: Literal["input", "completion"] | None = None
    limit: int | None = None
    fresh: bool = False
    retry_failed: bool = False
    accept_job_change: bool = False
    fsync: str = "interval=1s"
    disk_full_wait: float = 600.0
    spool: bool = False
    max_input_bytes: int | None = None
    strict: bool = False
    on_bad_input: Literal["dead", "stop"] = "dead"
    max_open_records: int | None = None
    max_failure_rate: float | None = None
    allow_failures: str | None = None
    max_retry_after: float = 600.0
    grace: float = 20.0
    budget: float | None = None
    cache: str | os.PathLike[str] | Literal[False] | None = None
    processes: int = 1
    engine: Literal["local", "ray", "static"] = "local"
    address: str = "auto"
    nodes: int = 1
    max_in_flight_total: Amounts | None = None
    shard: str | None = None
    shard_bytes: int | None = None
    max_shard_attempts: int = 4
    env: Sequence[str] = ()
    replica_cpus: float = 1.0
    replica_gpus: float = 0.0
    model_actors: Amounts = 1
    debug: bool = False
    listeners: Sequence[Listener] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Check what a caller gave.

        Raises:
            RequestError: An option is unknown, or out of its range.
        """
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                near = nearest(name, known)
                raise RequestError(
                    f'unknown option "{name}"',
                    hint=f'did you mean "{near}"?' if near else "see stageflow.options.Options",
                )
        options = cls(**given)
        for name in (
            "limit",
            "max_open_records",
            "max_input_bytes",
            "processes",
            "nodes",
            "shard_bytes",
            "max_shard_attempts",
        ):
            value = getattr(options, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise RequestError(f"{name} must be a positive integer, not {value!r}")
        counts = options.model_actors
        for value in counts.values() if isinstance(counts, Mapping) else (counts,):
            if not isinstance(value, int) or value < 1:
                raise RequestError(f"model_actors must be positive integers, not {value!r}")
        if options.order not in (None, "input", "completion"):
            raise RequestError(f'order must be "input" or "completion", not {options.order!r}')
        if options.engine not in ("local", "ray", "static"):
            raise RequestError(f'engine must be "local", "ray" or "static", not {options.engine!r}')
        if options.on_bad_input not in ("dead", "stop"):
            raise RequestError(f'on_bad_input must be "dead" or "stop", not {options.on_bad_input!r}')
        if (
            options.cache is not None
            and options.cache is not False
            and not isinstance(options.cache, (str, os.PathLike))
        ):
            raise RequestError(f"cache must be a path or False, not {options.cache!r}")
        if not isinstance(options.disk_full_wait, (int, float)) or not 0 <= options.disk_full_wait < inf:
            raise RequestError(f"disk_full_wait must be a number of seconds, not {options.disk_full_wait!r}")
        budget = options.budget
        if budget is not None and (
            not isinstance(budget, (int, float)) or isinstance(budget, bool) or not 0 < budget <= _MOST_MONEY
        ):
            raise RequestError(f"budget must be an amount above 0, not {budget!r}")
        if budget is not None and options.processes > 1:
            raise RequestError(
                "a budget is kept by one process only, not by several",
                hint="run it with --processes 1, or without --budget",
            )
        parse_fsync(options.fsync)
        return options

    def all_overrides(self) -> tuple[Override, ...]:
        """The settings given from outside the job, weakest first."""
        found: list[Override] = []
        for setting, amounts in (("max_in_flight", self.max_in_flight), ("queue_size", self.queue_size)):
            if isinstance(amounts, Mapping):
                found += [Override(stage, setting, value, f"{setting}=") for stage, value in amounts.items()]
            elif amounts is not None:
                found.append(Override(None, setting, amounts, f"{setting}="))
        for stage, settings in (self.settings or {}).items():
            found += [Override(stage, name, value, "settings=") for name, value in settings.items()]
        return tuple(found)
