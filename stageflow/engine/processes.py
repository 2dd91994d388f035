"""A child process that calls one handler, over a pipe of its own.

Children are spawned, not forked: a forked child would share locks, files and the loop's descriptors with a parent that
runs threads. The pipe is anonymous and between our own processes, so pickling over it is safe. A child ends when its
pipe does, and in the middle of a call when its parent does, so it never outlives its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stageflow.engine.attempt import describe, shown
from stageflow.engine.resources import open_one
from stageflow.errors import DefinitionError, HandlerFailed, ResultError, WorkerDied
from stageflow.plan import Plan

if TYPE_CHECKING:  # a run without processes does not load what starts them
    from multiprocessing.connection import Connection

__all__ = ["Child", "ChildSetup", "answer_of", "child_setups", "opened_handler"]


_CHECK = "stageflow: are you there?"


@dataclass(frozen=True, slots=True)
class ChildSetup:
    """What a child needs before its first call; everything in it can be pickled by reference.

    Args:
        prepare: Called first: it makes the job's module importable. ``None`` where it is anyway.
        handler: The stage's function, pickled.
        resources: The process-scoped resources: ``(name, function, names it uses)``, pickled, in opening order.
        params: The job's parameters.
        takes: For each positional resource the handler's parameter name; they are added to every call by name.
    """

    prepare: Callable[[], object] | None
    handler: bytes
    resources: bytes
    params: Any
    takes: tuple[str, ...]


class Child:
    """One process and the parent's end of its pipe; used by one thread at a time."""

    def __init__(self, setup: ChildSetup) -> None:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, setup), daemon=True)
        self._process.start()
        theirs.close()
        self.alive = True
        self._busy = False

    def call(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Call the handler in the child and wait for what it returns or raises.

        Raises:
            WorkerDied: The child ended before it answered.
            ResultError: What it returned can't be sent over.
        """
        self._busy = True
        try:
            self._pipe.send((arguments, dict(named)))
            failed, answer, trace = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.alive = False
            self._process.join(1.0)
            code = self._process.exitcode
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            raise WorkerDied(f"worker died: {how}") from None
        finally:
            self._busy = False
        return answer_of(failed, answer, trace)

    def check(self) -> None:
        """Wait until the child is set up.

        Raises:
            Exception: What its setting up raised.
        """
        self.call((_CHECK,), {})

    def kill(self) -> None:
        """End the child at once; whoever waits for its answer is told that it died."""
        self.alive = False
        self._process.kill()

    def let_go(self) -> None:
        """Let the child close its resources and end; a call in it is lost."""
        self.alive = False
        if self._busy:
            self._process.kill()
        else:
            self._pipe.close()

    def join(self, seconds: float) -> None:
        """Wait for its end; one that takes longer is ended at once."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join(1.0)


def _serve(pipe: Connection, setup: ChildSetup) -> None:
    """The child's life: set up, then one call at a time until the pipe closes."""
    # Ctrl-C goes to the whole process group; it is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="stageflow-parent", daemon=True).start()
    asyncio.run(_serve_calls(pipe, setup))


def _end_with_parent() -> None:
    """End this process when its parent has: a call in progress would not look at the pipe."""
    import multiprocessing.connection

    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


async def _serve_calls(pipe: Connection, setup: ChildSetup) -> None:
    async with contextlib.AsyncExitStack() as stack:
        try:
            call = await opened_handler(stack, setup)
        except BaseException as error:  # noqa: BLE001 - the job's own code; whoever calls is told
            with contextlib.suppress(EOFError, OSError):
                while True:
                    pipe.recv()
                    pipe.send_bytes(_message(True, error))
            return
        while True:
            try:
                arguments, named = pipe.recv()
            except (EOFError, OSError):
                return
            if arguments and type(arguments[0]) is str and arguments[0] == _CHECK:
                pipe.send_bytes(_message(False, None))
                continue
            pipe.send_bytes(call(arguments, named))


async def opened_handler(
    stack: contextlib.AsyncExitStack, setup: ChildSetup
) -> Callable[[tuple[Any, ...], Mapping[str, Any]], bytes]:
    """Set up what the calls of a handler need.

    Returns:
        Makes a call, and gives what came of it: the arguments of :func:`answer_of`, pickled.
    """
    if setup.prepare is not None:
        setup.prepare()
    handler = pickle.loads(setup.handler)
    opened = await _open(stack, setup)
    given = {name: opened[name] for name in setup.takes}

    def call(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> bytes:
        try:
            value = handler(*arguments, **named, **given)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the item's failure, not the child's
            return _message(True, error)
        return _message(False, value)

    return call


def answer_of(failed: bool, answer: Any, trace: str) -> Any:
    """What a call in another process has returned.

    Raises:
        BaseException: What it has raised.
    """
    if failed:
        answer.add_note(f"in its process:\n{trace}")
        raise answer
    return answer


async def _open(stack: contextlib.AsyncExitStack, setup: ChildSetup) -> dict[str, Any]:
    opened: dict[str, Any] = {"params": setup.params}
    for name, function, uses in pickle.loads(setup.resources):
        opened[name] = await open_one(stack, function, [opened[use] for use in uses])
    return opened


def _message(failed: bool, answer: Any) -> bytes:
    trace = "".join(traceback.format_exception(answer)[1:]) if failed else ""
    try:
        message = pickle.dumps((failed, answer, trace))
        if failed:
            pickle.loads(message)  # fails where the class wants other arguments than the error holds
    except Exception as error:  # noqa: BLE001 - pickle raises whatever __reduce__ does
        what = describe(answer) if failed else f"the result {shown(answer)} can't leave its process: {error}"
        message = pickle.dumps((True, HandlerFailed(what) if failed else ResultError(what), trace))
    return message


def child_setups(plan: Plan, prepare: Callable[[], object] | None) -> dict[str, ChildSetup]:
    """What the children of each process stage need.

    Raises:
        DefinitionError: A function can't be found by its name in another process.
    """
    setups = {}
    for stage in plan.stages.values():
        if stage.run != "process":
            continue
        takes = tuple(p.name for p in stage.parameters if p.kind == "resource")
        resources = [(r.name, r.function, r.uses) for r in plan.resources.values() if r.scope == "process"]
        try:
            handler, openers = pickle.dumps(stage.handler), pickle.dumps(resources)
        except Exception as error:
            raise DefinitionError(
                f'stage "{stage.name}" runs in processes, and a function of it can\'t be found there: {error}',
                hint="define it at the top level of the job file",
                where=stage.where,
            ) from error
        setups[stage.name] = ChildSetup(prepare, handler, openers, plan.params, takes)
    return setups
