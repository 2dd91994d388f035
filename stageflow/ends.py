"""The two ends of a run: sources and outputs from what a caller gave, and what is refused about them.

A path to a regular file, or to none yet, is written through a ledger, and a later run can go on with it. Whatever else
takes records takes them directly.
"""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
import uuid
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from stageflow.commit import Commit, JobIdentity, LetterPlace, OpenRequest, Resumption
from stageflow.errors import OutputLocked, RequestError, StorageError
from stageflow.files import Files, chosen, is_url, source_of_files
from stageflow.graph import nearest
from stageflow.options import Options, parse_fsync
from stageflow.plan import Plan
from stageflow.protocols import Sink, Source

__all__ = [
    "LOOKED_AT",
    "NO_JOB",
    "DirectOutput",
    "Ends",
    "RunOutput",
    "ends_of",
    "log_letter",
    "look_ahead",
    "source_of",
    "spooled",
]

_BLOCK_BYTES: Final = 256 * 1024

LOOKED_AT: Final = 100
"""Records looked at before a run starts, for fields that none of them has."""

NO_JOB: Final = JobIdentity(file="", rest="", stages={}, graph={})
"""Of a run that no later one goes on with."""

log = logging.getLogger("stageflow")


def look_ahead(plan: Plan, source: Source) -> int:
    """Refuse a run whose first records all lack a field that a stage requires, or that the job emits.

    Returns:
        How many records were looked at; 0 for a source that can't be looked into.

    Raises:
        RequestError: With the nearest name among the stages, resources and fields there are.
    """
    records = [record for _, record in source.peek(LOOKED_AT) if isinstance(record, Mapping)]
    seen = dict.fromkeys(name for record in records for name in record)
    for name, owner in plan.required.items():
        if name in seen or not records:
            continue
        near = nearest(name, [*seen, *plan.stages, *plan.resources])
        hint = f'did you mean "{near}"?' if near else "fields are: " + ", ".join(seen)
        raise RequestError(f'{owner} takes "{name}", which none of the first {len(records)} records has', hint=hint)
    known = [*seen, *plan.stages, *plan.context_fields]
    for name in plan.emitted or ():
        if records and name not in known:
            near = nearest(name, known)
            hint = f'did you mean "{near}"?' if near else "fields are: " + ", ".join(known)
            raise RequestError(
                f'the job emits "{name}", which is no stage and no field of its first records', hint=hint
            )
    return len(records)


class RunOutput(Protocol):
    """An output as a run handles it, from its opening to its end."""

    def open(self, request: OpenRequest) -> Resumption: ...

    async def write(self, commit: Commit) -> None: ...

    def read_letter(self, place: LetterPlace) -> bytes: ...

    def give_up_waiting(self) -> None: ...

    async def close(self, *, complete: bool, ended: bool = True) -> None: ...


class DirectOutput:
    """Hands commits to a sink, entry by entry; nothing of the run can be found again."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def open(self, request: OpenRequest | None = None) -> Resumption:
        """Open the sink. There is never anything to go on with."""
        self._sink.open()
        return Resumption(run=uuid.uuid4().hex[:12])

    async def write(self, commit: Commit) -> None:
        """Hand over the commit's lines with their indices."""
        owners: Iterable[int] = commit.ordinals
        if counts := commit.line_counts:
            owners = (index for index in commit.ordinals for _ in range(counts.get(index, 1)))
        if commit.lines:
            await self._sink.write(list(zip(owners, commit.lines, strict=True)))

    def read_letter(self, place: LetterPlace) -> bytes:
        """There are none."""
        raise AssertionError("an output without a ledger has no dead letters to read")

    def give_up_waiting(self) -> None:
        """It waits for whoever reads, and for nothing else."""

    async def close(self, *, complete: bool, ended: bool = True) -> None:
        """Close the sink."""
        await self._sink.close(complete=complete)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Where a run ends.

    Args:
        output: Where commits go.
        dead: Where dead letters go, if not into the ledger.
        encode, encode_letter: Make of a record, and of a dead letter, what the output takes.
        durable: There is a ledger, and lines are bytes.
        notes: What the user should know of it.
        paths: The files, by what they are for.
        retrying: Records of earlier dead letters may come in, whatever ``output`` says of them.
        as_lines, letters_as_lines: What is taken is bytes: lines of JSON.
    """

    output: RunOutput
    dead: Sink | None
    encode: Callable[[Any], Any]
    encode_letter: Callable[[Any], Any]
    durable: bool
    notes: tuple[str, ...]
    paths: Mapping[str, str]
    retrying: bool = False
    as_lines: bool = True
    letters_as_lines: bool = True

    def refuse_same_files(self, source: Source) -> None:
        """Refuse a run that would write over its own input, or two outputs into one.

        Raises:
            RequestError: By name, by a link or by a hard link, two of them are one file.
        """
        inputs = [("input", path) for path in getattr(source, "paths", [source.path]) if path not in (None, "-")]
        outputs = list(self.paths.items())
        pairs = itertools.chain(itertools.product(inputs, outputs), itertools.combinations(outputs, 2))
        for (one, first), (other, second) in pairs:
            if _same_file(first, second):
                raise RequestError(f"{other} and {one} are the same file", hint=f"{second}: choose another name")


def source_of(source: Any, options: Options | None = None, *, resumable: bool = True) -> Source:
    """A source from what a caller gave: a path or a pattern, files, an iterable or async iterable, or a source.

    Args:
        resumable: A later run may go on with this one: lines are read with marks to go on from.
    """
    if hasattr(source, "read") and hasattr(source, "peek"):
        return source  # type: ignore[no-any-return]
    if isinstance(source, (str, Files)) or hasattr(source, "__fspath__"):
        given = source if isinstance(source, Files) else chosen([str(source)])
        return source_of_files(given, options or Options(), resumable=resumable)
    if isinstance(source, (Iterable, AsyncIterable)):
        from stageflow.adapters.memory import IterableSource

        return IterableSource(source)
    raise RequestError(f"can't read records from {source!r}", hint="give a path, an iterable or an async iterable")


def spooled(source: Any, sink: Any, options: Options) -> Any:
    """The source, or the file that standard input was copied to, as ``spool`` asks for.

    The copy gets its name when it is whole and on the disk. One that is there is taken as it stands.

    Raises:
        RequestError: There is nothing to copy, no file to copy it beside, or it can't be copied.
        OutputLocked: The copy that is there is another run's, which is going on.
    """
    if not options.spool:
        return source
    from stageflow.adapters.jsonl.files import free_name

    path = _path_of(sink)
    if source != "-" or path is None or not _is_regular(path):
        raise RequestError("spool keeps standard input for a file", hint="give - as the input and a file as the output")
    spool = f"{os.path.realpath(path)}.spool"
    try:
        if options.fresh and os.path.lexists(spool):
            _refuse_running(path)
            os.rename(spool, free_name(spool))
        if not os.path.lexists(spool):
            _copy_stdin(spool)
    except FileExistsError:
        raise OutputLocked(
            f"{path}.spool was made just now, by a run that began while standard input was copied",
            hint="choose another output",
        ) from None
    except OSError as error:
        raise RequestError(f"cannot write {path}.spool: {error.strerror}") from error
    return f"{path}.spool" if os.path.realpath(f"{path}.spool") == spool else spool


def _copy_stdin(spool: str) -> None:
    from stageflow.adapters.jsonl.files import sync_directory

    # Made with 0600, under a name that nobody can guess.
    descriptor, copy = tempfile.mkstemp(prefix=f"{os.path.basename(spool)}.", dir=os.path.dirname(spool))
    try:
        with open(descriptor, "wb") as file:
            while block := os.read(0, _BLOCK_BYTES):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        _give_name(copy, spool)
    except BaseException:
        os.unlink(copy)
        raise
    sync_directory(os.path.dirname(spool))


def _give_name(copy: str, spool: str) -> None:
    """Give the copy its name, and never the name of another run's."""
    try:
        os.link(copy, spool)
    except FileExistsError:
        raise
    except OSError:  # no second names on this file system
        os.rename(copy, spool)
    else:
        os.unlink(copy)


def _refuse_running(path: str) -> None:
    """Refuse to rename what another run reads."""
    from stageflow.ledger.status import status

    try:
        holder = status(path).holder
    except RequestError:
        return  # no run has begun
    if holder is not None:
        who = f"pid {holder.pid} on {holder.host} since {holder.since}"
        raise OutputLocked(f"{path} is being written by {who}", hint="wait for it, or choose another output")


def ends_of(
    sink: Any, options: Options, *, tell: Callable[[str], None], failed: Callable[[StorageError], None]
) -> Ends:
    """Where a run ends, from what a caller gave: a path, a list, a function, a sink, or ends; and ``dead=`` likewise.

    Args:
        tell: Called with what the user should know at once.
        failed: Called where the disk fails while nothing is being written: the run must end.
    """
    if isinstance(sink, Ends):
        return sink
    path = _path_of(sink)
    for given in (path, _path_of(options.dead)):
        if given is not None and is_url(given):
            raise RequestError(
                f"can't write to {given}: results are made safe on a disk of this machine",
                hint="give a file, and copy it there when the run is complete",
            )
    dead_path = _path_of(options.dead)
    if options.dead is None and path is not None and path != "-":
        dead_path = f"{path}.dead.jsonl"
    given = options.dead if dead_path is None else dead_path
    paths = {"output": path or getattr(sink, "path", None), "dead letters": dead_path}
    found = {what: where for what, where in paths.items() if where not in (None, "-")}
    if path is not None and _is_regular(path):
        return _durable(path, given, options, found, tell=tell, failed=failed)
    direct = _sink_of(sink)
    dead = _dead_sink(log_letter if given is None else given, options)
    notes = ("output is not a regular file, resume is off",) if path not in (None, "-") else ()
    return Ends(
        output=DirectOutput(direct),
        dead=dead,
        encode=direct.encode,
        encode_letter=dead.encode,
        durable=False,
        notes=notes,
        paths=found,
        as_lines=_takes_lines(direct.encode),
        letters_as_lines=_takes_lines(dead.encode),
    )


def _durable(
    path: str,
    given: Any,
    options: Options,
    paths: Mapping[str, str],
    *,
    tell: Callable[[str], None],
    failed: Callable[[StorageError], None],
) -> Ends:
    from stageflow.adapters.forms import form_of
    from stageflow.adapters.jsonl.encode import encode_leniently, encode_strictly
    from stageflow.ledger import LedgerOutput

    with_output = isinstance(given, str) and _is_regular(given)
    dead = None if with_output else _dead_sink(given, options)
    mode, interval = parse_fsync(options.fsync)
    form = form_of(path)
    output = LedgerOutput(
        path,
        dead=given if with_output else None,
        fsync=mode,
        interval=interval,
        disk_full_wait=options.disk_full_wait,
        tell=tell,
        failed=failed,
        form=form,
    )
    real = os.path.realpath(path)
    if form is not None:
        paths = {**paths, "the lines of the output": f"{real}.jsonl"}
    return Ends(
        output=output,
        dead=dead,
        encode=encode_strictly,
        encode_letter=encode_leniently if dead is None else dead.encode,
        durable=True,
        notes=(),
        paths={**paths, "the unfinished output": f"{real}.partial", "the ledger": f"{real}.ledger"},
        letters_as_lines=dead is None or _takes_lines(dead.encode),
    )


def _takes_lines(encode: Callable[[Any], Any]) -> bool:
    return isinstance(encode({}), bytes)


def _path_of(given: Any) -> str | None:
    return str(given) if isinstance(given, (str, os.PathLike)) else None


def _is_regular(path: str) -> bool:
    from stageflow.adapters.jsonl.files import is_file_name

    return is_file_name(path)


def _dead_sink(given: Any, options: Options) -> Sink:
    if isinstance(given, str):
        from stageflow.adapters.jsonl import JsonlSink

        return JsonlSink(given, fresh=options.fresh, mode=0o600, lenient=True)
    return _sink_of(given)


def _sink_of(sink: Any) -> Sink:
    if hasattr(sink, "write") and hasattr(sink, "encode"):
        return sink  # type: ignore[no-any-return]
    if (path := _path_of(sink)) is not None:
        from stageflow.adapters.jsonl import JsonlSink

        return JsonlSink(path)
    from stageflow.adapters.memory import CallableSink, ListSink

    if isinstance(sink, list):
        return ListSink(sink)
    if callable(sink):
        return CallableSink(sink)
    raise RequestError(f"can't write records to {sink!r}", hint="give a path, a list or a function")


def _same_file(first: str, second: str) -> bool:
    if os.path.realpath(first) == os.path.realpath(second):
        return not os.path.exists(first) or os.path.isfile(first)
    try:
        return os.path.isfile(first) and os.path.samefile(first, second)
    except OSError:
        return False


def log_letter(letter: Mapping[str, Any]) -> None:
    error = letter["error"]
    log.warning("record %s failed at %s: %s: %s", letter["index"], letter["stage"], error["type"], error["message"])
