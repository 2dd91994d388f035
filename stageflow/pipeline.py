"""What a job file writes to: it collects stages and resources, and hands what they make to the runner."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from types import CodeType, FrameType, ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from stageflow.errors import DefinitionError, SettingError
from stageflow.money import Price
from stageflow.plan import Draft, Override, Plan, ResourceDraft, Scope, StageDraft, freeze
from stageflow.stage import check_setting

if TYPE_CHECKING:
    from stageflow.report.stats import RunReport
    from stageflow.runner import Run
    from stageflow.work import JobOrigin

__all__ = ["Pipeline"]

F = TypeVar("F", bound=Callable[..., Any])


class Pipeline:
    """A job: stages that are plain functions, joined by their parameter names into a directed acyclic graph.

    A parameter is, in this order: a stage, a resource, a reserved name (``record``, ``results``, ``params``, ``call``,
    ``ctx``), else a field of the input record, optional where it has a default.

    Args:
        name: What the job is called in messages.
        key: The field of the input record that names it: ``call.key``.
        params: The job's parameters and their defaults; ``-p NAME=VALUE`` is parsed to the default's type.
        context: A dataclass for the context style: each record gets one instance, built from its fields, which every
            stage takes as ``ctx`` and fills in. The output is the input's fields and the context's.
        on_partial: Where some of a record's children fail, the others are kept (``"keep"``), or nothing of the record
            is written (``"drop"``).
        files: Further files that decide the results, relative to the folder of the job file: ``["prompt.txt"]``. An
            interrupted run is not continued with other contents. The job file itself always counts; modules that it
            imports count where they are named here.
        prices: What tokens cost, by model: ``{"small": Price(input=0.15, output=0.60)}``. Those in ``stageflow.toml``
            come before them.

    Raises:
        DefinitionError: ``context`` is no dataclass, ``files`` no list of paths, or ``prices`` no mapping of prices.
    """

    def __init__(
        self,
        name: str = "pipeline",
        *,
        key: str | None = None,
        params: Mapping[str, Any] | None = None,
        context: type | None = None,
        on_partial: Literal["keep", "drop"] = "keep",
        files: Iterable[str | os.PathLike[str]] = (),
        prices: Mapping[str, Price] | None = None,
    ) -> None:
        where = _caller()
        if on_partial not in ("keep", "drop"):
            raise SettingError(f'on_partial must be "keep" or "drop", not {on_partial!r}', where=where)
        if context is not None and not (isinstance(context, type) and dataclasses.is_dataclass(context)):
            raise DefinitionError(
                f"context must be a dataclass, not {context!r}", hint="put @dataclass above the class", where=where
            )
        paths = () if isinstance(files, (str, bytes)) else tuple(files)
        if isinstance(files, (str, bytes)) or not all(isinstance(path, (str, os.PathLike)) for path in paths):
            raise SettingError(f"files must be a list of paths, not {files!r}", where=where)
        if prices is not None and not (
            isinstance(prices, Mapping) and all(isinstance(price, Price) for price in prices.values())
        ):
            hint = 'prices={"small": Price(input=0.15, output=0.60)}'
            raise SettingError(f"prices must map models to Price(...), not {prices!r}", hint=hint, where=where)
        self._draft = Draft(name, where, key, dict(params or {}), context, on_partial)
        self._draft.prices = dict(prices or {})
        self._draft.file, self._draft.files = _caller_file(), tuple(os.fspath(path) for path in paths)
        self._prepare: Callable[[], object] | None = None
        self._reference: str | None = None  # under which it was loaded

    @property
    def name(self) -> str:
        return self._draft.name

    def __repr__(self) -> str:
        return f"<Pipeline {self.name}: {', '.join(stage.name for stage in self._draft.stages) or 'no stages'}>"

    # What a job file says

    @overload
    def stage(self, function: F, /) -> F: ...
    @overload
    def stage(self, /, **settings: Any) -> Callable[[F], F]: ...

    def stage(self, function: Any = None, /, **settings: Any) -> Any:
        """Make a function a stage: ``@pipeline.stage`` or ``@pipeline.stage(max_in_flight=64)``.

        The function itself is returned unchanged, so that a test calls it directly.

        Args:
            settings: ``name`` (default: the function's), ``max_in_flight`` (calls in progress at once; 16),
                ``queue_size`` (items that may wait in front of it; ``max(64, max_in_flight)``), ``run`` (``"async"``,
                ``"thread"``, ``"process"``, ``"inline"``; by the kind of the function), ``gpus`` (what one
                process of a stage with ``run="process"`` takes on a cluster; none), ``on_error``
                (``"dead_letter"``, ``"skip"``, ``"abort"`` or ``degrade(...)``), ``timeout`` (seconds per attempt;
                600), ``retry`` (a :class:`Retry` or the number of attempts), ``hedge`` (a :class:`Hedge` or the most
                extra calls as a share: a call that takes long is made a second time, which says that the stage is
                idempotent), ``rate_limit`` (a :class:`RateLimit`, shared where the object is shared), ``batch`` (a
                :class:`Batch`: lists in, lists out), ``when`` (a predicate whose parameters are names like a stage's;
                false: skipped for this record), ``emit`` (whether the result is a field of the output; true),
                ``version`` (text that is part of the stage's identity), ``cache`` (keep results over runs, and look for
                them before a call; false), ``model`` (whose price holds for its calls), ``max_tokens`` (the most that
                one call may use, as a number or as ``(input, output)``: what a budget sets aside).

        Raises:
            SettingError: A setting is unknown or out of its range.
        """
        where = _caller()
        if function is not None:
            self._add(getattr(function, "__name__", ""), function, (), settings, where)
            return function

        def decorate(function: F) -> F:
            name = settings.pop("name", None) or getattr(function, "__name__", "")
            self._add(name, function, (), settings, where)
            return function

        return decorate

    def add_stage(
        self, name: str, function: Callable[..., Any], *, depends_on: Iterable[str] = (), **settings: Any
    ) -> None:
        """Add a stage by a call, for graphs that a program builds.

        Args:
            depends_on: Stages it comes after, besides those that its parameters name; ``results`` maps each of both to
                its result. They may be added later.
            settings: As for :meth:`stage`.
        """
        needs = (depends_on,) if isinstance(depends_on, str) else tuple(depends_on)
        self._add(name, function, needs, settings, _caller())

    @classmethod
    def linear(cls, *functions: Callable[..., Any], name: str = "linear", **options: Any) -> Pipeline:
        """One stage after another, each named after its function; ``options`` are those of :class:`Pipeline`."""
        pipeline = cls(name, **options)
        pipeline._draft.where = where = _caller()
        before: tuple[str, ...] = ()
        for function in functions:
            step = getattr(function, "__name__", "")
            pipeline._add(step, function, before, {}, _defined(function) or where)
            before = (step,)
        return pipeline

    @overload
    def resource(self, function: F, /) -> F: ...
    @overload
    def resource(self, /, *, name: str | None = None, scope: Scope = "run") -> Callable[[F], F]: ...

    def resource(self, function: Any = None, /, *, name: str | None = None, scope: Scope = "run") -> Any:
        """Make a function a resource: opened once per run before anything is read, closed after the last record.

        An (async) generator yields the resource once and cleans up behind the ``yield``; an (async) function returns
        it. Its parameters are ``params`` and other resources.

        Args:
            scope: ``"process"``: opened once in each worker process of the stages that take it, which all run there.

        Raises:
            DefinitionError: The scope is neither ``"run"`` nor ``"process"``.
        """
        where = _caller()
        if scope not in ("run", "process"):
            raise DefinitionError(
                f'the scope of a resource is "run" or "process", not {scope!r}',
                hint='the default is "run"',
                where=where,
            )

        def decorate(function: F) -> F:
            called = name or str(getattr(function, "__name__", ""))
            self._draft.resources.append(ResourceDraft(called, function, scope, where))
            return function

        return decorate if function is None else decorate(function)

    def emit(self, *fields: str) -> None:
        """Select the fields of the output record, in this order: input fields, stages, or fields of the context."""
        self._draft.emitted = fields

    def _add(
        self, name: str, function: Callable[..., Any], depends_on: tuple[str, ...], settings: dict[str, Any], where: str
    ) -> None:
        for setting, value in settings.items():
            if not (setting == "version" and value is None):
                check_setting(name, setting, value, where)
        self._draft.stages.append(StageDraft(name, function, depends_on, dict(settings), where))

    # What a job does

    def plan(self, overrides: Iterable[Override] = (), params: Mapping[str, Any] | None = None) -> Plan:
        """The job resolved and checked, without running anything.

        Raises:
            DefinitionError: The job is wrong; with the place in its file.
        """
        return freeze(self._draft, tuple(overrides), params)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The job's parameters with their defaults."""
        return dict(self._draft.params)

    async def execute(self, record: Any, *, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Run one record through all stages.

        Returns:
            The results by stage name, in the order of definition; in the context style, the context's fields.

        Raises:
            Exception: What a stage raised after its ``on_error`` was applied, with a note that names the stage.
        """
        from stageflow.entry import execute  # a job file that is only checked needs no engine

        return await execute(self.plan((), params), record, self._prepare)

    async def run(self, source: Any, sink: Any, **options: Any) -> RunReport:
        """Run every record of ``source`` and hand the output records to ``sink``.

        Args:
            source: A path (``"-"`` is standard input), a pattern such as ``"data/*.jsonl"``, :class:`Files` of several
                paths, an iterable or an async iterable of records of any kind; one that is no mapping is reachable as
                ``record``. A list of strings is records, too.
            sink: A path, a list, or a plain or async function that takes each output record.
            options: Spelt as on the command line, see :class:`stageflow.options.Options`.

        Returns:
            The account of the run, also where it was stopped by policy (``report.stopped``).

        Raises:
            DefinitionError, RequestError: Refused before anything was read.
            StorageError: The sink failed; the run ended.
            RunFailed: A bug in stageflow.
        """
        from stageflow.entry import guarded  # see execute

        return await guarded(self._start(source, sink, options).execute())

    def run_sync(self, source: Any, sink: Any, *, loop: str = "auto", **options: Any) -> RunReport:
        """:meth:`run` on a loop of its own: ``"uvloop"``, ``"asyncio"``, or ``"auto"`` (uvloop if installed)."""
        from stageflow.entry import run_on_loop  # see execute

        return run_on_loop(lambda: self.run(source, sink, **options), loop)

    def stream(self, source: Any, **options: Any) -> AsyncGenerator[dict[str, Any], None]:
        """The output records as they finish. While nobody takes them nothing more than ``max_open_records`` is read.

        A failed record goes to ``dead=`` (a path, a list or a function), or is logged as a warning where there is none.
        Leaving early cancels what is in flight; use ``contextlib.aclosing`` to have it done at once.
        """
        from stageflow.entry import stream  # see execute

        return stream(lambda sink: self._start(source, sink, options))

    def _start(self, source: Any, sink: Any, given: Mapping[str, Any]) -> Run:
        from stageflow.options import Options  # see execute
        from stageflow.runner import Run

        options = Options.of(given)
        plan = self.plan(options.all_overrides(), options.params)
        elsewhere = functools.partial(self._elsewhere, options.all_overrides(), options.params)
        return Run(plan, source, sink, options, self._prepare, elsewhere)

    def _elsewhere(
        self, overrides: Iterable[Override], params: Mapping[str, Any] | None, more: Iterable[Override]
    ) -> JobOrigin:
        """Where another process finds this job with further settings, which are refused here if they don't suit it."""
        from stageflow.work import JobOrigin  # see execute

        reference = self._reference or _place_of(self)
        if reference is None:
            raise DefinitionError(
                f'pipeline "{self.name}" can\'t be found by another process',
                hint="give it a name at the top level of a file, and run it from there",
                where=self._draft.where,
            )
        self.plan(whole := (*overrides, *more), params)
        return JobOrigin(reference, whole, params)

    def pipe(self, **options: Any) -> Any:
        """The job as an aiostream operator: ``stream.iterate(records) | pipeline.pipe() | pipe.take(5)``."""
        from stageflow.adapters.streams import pipe_operator

        return pipe_operator(lambda source: self.stream(source, **options))


def _place_of(pipeline: Pipeline) -> str | None:
    """A reference by which a pipeline can be loaded, where it is a variable of a module.

    The script that was started comes last: what it has imported is better found where that stands.
    """
    for name, module in sorted(sys.modules.items(), key=lambda each: each[0] == "__main__"):
        for variable, value in tuple(vars(module).items()) if isinstance(module, ModuleType) else ():
            if value is not pipeline:
                continue
            if name != "__main__":
                return f"{name}:{variable}"
            if spec := getattr(module, "__spec__", None):  # python -m
                return f"{spec.name}:{variable}"
            if file := getattr(module, "__file__", None):
                return f"{os.path.abspath(file)}:{variable}"
    return None


def _caller() -> str:
    """The line outside this module that led here, as ``job.py:12``."""
    frame = _calling_frame()
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"


def _caller_file() -> str | None:
    """The file that it stands in; ``None`` at a prompt. With its folder, since the working directory may change."""
    path = os.path.abspath(_calling_frame().f_code.co_filename)
    return path if os.path.isfile(path) else None


def _calling_frame() -> FrameType:
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame


def _defined(function: Callable[..., Any]) -> str | None:
    """The line on which a function begins, where it has one."""
    code = getattr(function, "__code__", None)
    return f"{code.co_filename.rpartition('/')[2]}:{code.co_firstlineno}" if isinstance(code, CodeType) else None
