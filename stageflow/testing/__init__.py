"""Helpers for tests of jobs, and of stageflow: a virtual clock, explored schedules, planned faults, a test server.

:class:`FaultPlan` plans what goes wrong in a job's own functions, :class:`TestServer` in a service behind HTTP.

A test hands its coroutine to :func:`run_virtual`. The rules there:

1. Time moves only when nothing is runnable, and then straight to the next timer. An hour of backoff takes no time,
   and durations come out exact: ``assert loop.time() == 3.0``.
2. If nothing is runnable and no timer is left, nothing can ever happen again: that is a :class:`Deadlock`, raised at
   once with the line at which each task waits.
3. Without a seed, callbacks run in asyncio's order. With one, each step runs one of the runnable callbacks, chosen at
   random; the same seed chooses the same again. asyncio promises the order in which callbacks run, but not what will
   be runnable when, so a program that is right only in one order is right by luck. Try a few hundred seeds.
4. While a call in a thread or a process is out (``run_in_executor``, ``asyncio.to_thread``), the loop waits for it in
   real time, and the clock stands. The order in which threads return is not the seed's to choose.
5. Nothing fails unseen: tasks left behind, exceptions that nobody looked at and coroutines that nobody awaited fail the
   run.
"""

from __future__ import annotations

from stageflow.testing.clock import Deadlock, LeftBehind, Livelock, Unhandled, VirtualLoop, run_virtual
from stageflow.testing.handlers import CallCount, FaultPlan
from stageflow.testing.script import Script, read_script
from stageflow.testing.server import TestServer
from stageflow.testing.tally import Stats

__all__ = [
    "CallCount",
    "Deadlock",
    "FaultPlan",
    "LeftBehind",
    "Livelock",
    "Script",
    "Stats",
    "TestServer",
    "Unhandled",
    "VirtualLoop",
    "read_script",
    "run_virtual",
]
