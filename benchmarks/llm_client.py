"""What does a chat call cost, and do as many run at once as were asked for? Clients against a server on this machine.

    pip install 'stageflow[llm]' aiohttp httpx openai
    python benchmarks/llm_client.py
    python benchmarks/llm_client.py --quick --loop asyncio

The server is a process of its own. It answers after 50 ms, with what depends on the question, so that every answer is
checked. 64, 512 and 2,000 tasks ask one question after another, each as soon as it has its answer; with --quick 2,000
alone, whose calls take longer, so that a busy machine gets round to as many at once:

* stageflow.llm: ``Chat.complete``, as a handler calls it.
* stage and ledger: the same in a stage of a job, from a file to a file with its ledger.
* aiohttp: a session without a limit on its connections, and orjson on both sides.
* by hand: a protocol of asyncio's that finds the length of the answer and knows nothing else of HTTP. The floor.
* httpx, and openai, the official SDK: with their own limits on connections, and no time limits. Who is not installed is
  left out, and named.

"us/call" is CPU time of this process, all its threads, per call; connections are open before it is measured. The
contenders take turns; "of aiohttp" is the median of the ratios within a round. httpx and openai cost so much that they
run fewer calls, in a round of their own with aiohttp, and none with --quick. "seen" is the most calls that the server
had in progress.

Exits 1 where a call costs more than aiohttp's, a call in a stage more than 1.3 times that, or where the server saw
fewer calls in progress than were asked for. What it is to get to is told as a goal.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson
import workload
from chat_clients import (
    KEY_VARIABLE,
    PADDING,
    TOKENS,
    Ask,
    by_hand,
    messages,
    with_aiohttp,
    with_httpx,
    with_openai,
    with_stageflow,
)
from workload import Settings, WrongAnswer

from stageflow import Pipeline
from stageflow.llm import Chat

OURS, STAGE, AIOHTTP, BY_HAND, HTTPX, OPENAI = (
    "stageflow.llm",
    "stage and ledger",
    "aiohttp",
    "by hand",
    "httpx",
    "openai",
)
CLIENTS: Final = {OURS: with_stageflow, AIOHTTP: with_aiohttp, BY_HAND: by_hand, HTTPX: with_httpx, OPENAI: with_openai}


class Load(NamedTuple):
    """So many tasks that ask so many questions each, and fewer of the costly clients, or none.

    Args:
        seconds: What a call takes.
    """

    in_flight: int
    turns: int
    few: int
    rounds: int
    seconds: float = 0.05


FULL: Final = (Load(64, 20, 4, 5), Load(512, 6, 1, 5), Load(2_000, 3, 1, 5))
QUICK: Final = (Load(2_000, 3, 0, 2, 0.25),)
TINY: Final = (Load(8, 2, 1, 1),)


class Figures(NamedTuple):
    """What one run comes to."""

    microseconds: float
    seen: int


# The server, in a process of its own


class Served(asyncio.Protocol):
    """Reads a request, waits, answers."""

    now = most = 0
    seconds = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._read = b""

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, rest = self._read.partition(b"\r\n\r\n")
        if not found:
            return
        if head.startswith(b"GET"):
            self._read = b""
            self._write(b'{"most": %d}' % Served.most)
            Served.most = 0
            return
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if len(rest) < int(length):
            return
        self._read = b""
        Served.now += 1
        Served.most = max(Served.most, Served.now)
        number = rest.partition(b"question ")[2].partition(b" ")[0]
        asyncio.get_running_loop().call_later(Served.seconds, self._answer, number)

    def _answer(self, number: bytes) -> None:
        Served.now -= 1
        self._write(ANSWER % number)

    def _write(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)


ANSWER: Final = orjson.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": f"answer %b {PADDING[:200]}", "refusal": None},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 120, "completion_tokens": 50, "total_tokens": TOKENS},
    }
)


async def serve() -> None:
    """Answer until the standard input ends, as it does with the process that began this."""
    allow_connections()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Served, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


@contextmanager
def server(settings: Settings, seconds: float) -> Iterator[str]:
    """Yields its base URL."""
    command = [sys.executable, __file__, "--server", str(seconds), settings.loop]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.kill()


def most_seen(base_url: str) -> int:
    """The most calls that were in progress since this was asked last."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(base_url) as answer:
        return int(json.load(answer)["most"])


def allow_connections() -> None:
    with suppress(ImportError, ValueError, OSError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# Measuring


def check(number: int, text: str) -> None:
    if not text.startswith(f"answer {number} ") or not text.endswith(PADDING[:200]):
        raise WrongAnswer(f"question {number} was answered {text[:40]!r}")


async def ask_all(ask: Ask, in_flight: int, turns: int) -> None:
    """Each task asks one question after another."""

    async def some(first: int) -> None:
        for number in range(first, first + turns):
            check(number, await ask(number))

    async with asyncio.TaskGroup() as tasks:
        for place in range(in_flight):
            tasks.create_task(some(place * turns))


async def spend(client: str, base_url: str, in_flight: int, turns: int) -> Figures:
    """Open all connections, then measure."""
    async with CLIENTS[client](base_url) as ask:
        await ask_all(ask, in_flight, 1)
        most_seen(base_url)
        gc.collect()
        start = time.process_time()
        await ask_all(ask, in_flight, turns)
        spent = time.process_time() - start
        return Figures(spent / (in_flight * turns) * 1e6, most_seen(base_url))


def spend_in_stage(base_url: str, settings: Settings, in_flight: int, turns: int) -> Figures:
    """The same questions as records of a job, from a file to a file."""
    with tempfile.TemporaryDirectory() as folder:
        source, sink = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        source.write_bytes(b"".join(b'{"number":%d}\n' % number for number in range(in_flight * turns)))
        figures = settings.run(run_job(base_url, source, sink, in_flight, turns))
        lines = sink.read_bytes().splitlines()
    if len(lines) != in_flight * turns:
        raise WrongAnswer(f"{len(lines)} outputs for {in_flight * turns} records")
    for number, line in enumerate(lines):
        check(number, orjson.loads(line)["generate"])
    return figures


async def run_job(base_url: str, source: Path, sink: Path, in_flight: int, turns: int) -> Figures:
    """Run the job; its resource has its connections already."""
    pipeline = Pipeline("questions", key="number")
    async with Chat(base_url=base_url, model="m", api_key_env=KEY_VARIABLE) as client:

        @pipeline.resource
        def chat() -> Chat:
            return client

        @pipeline.stage(max_in_flight=in_flight)
        async def generate(number: int, chat: Chat, call: Any) -> str:
            return (await chat.complete(messages(number), call=call, max_tokens=100)).text

        async def ask(number: int) -> str:
            return (await client.complete(messages(number))).text

        await ask_all(ask, in_flight, 1)
        most_seen(base_url)
        gc.collect()
        start = time.process_time()
        await pipeline.run(source, sink)
        spent = time.process_time() - start
    return Figures(spent / (in_flight * turns) * 1e6, most_seen(base_url))


def contender(name: str, base_url: str, settings: Settings, in_flight: int, turns: int) -> Callable[[], Figures]:
    def once() -> Figures:
        if name == STAGE:
            return spend_in_stage(base_url, settings, in_flight, turns)
        return settings.run(spend(name, base_url, in_flight, turns))

    return once


def measure(settings: Settings) -> workload.Report:
    """Compare all that are installed under each load."""
    columns = {"in flight": ",", "client": "", "us/call": ",.0f", "of aiohttp": ".2f", "seen": ","}
    report = workload.Report("llm_client", settings, columns)
    os.environ[KEY_VARIABLE] = "none-of-your-business"
    allow_connections()
    installed = [name for name in CLIENTS if name in (OURS, BY_HAND) or importlib.util.find_spec(name)]
    for load in settings.size(FULL, QUICK, TINY):
        with server(settings, load.seconds) as base_url:

            def these(names: Sequence[str], turns: int, load: Load = load) -> dict[str, Callable[[], Figures]]:
                return {name: contender(name, base_url, settings, load.in_flight, turns) for name in names}

            quick = [name for name in (OURS, STAGE, AIOHTTP, BY_HAND) if name in (*installed, STAGE)]
            found = workload.in_turns(these(quick, load.turns), rounds=load.rounds, warm_up=False)
            compare(load, found, report)
            costly = [name for name in (HTTPX, OPENAI) if name in installed and load.few]
            if costly:
                costly = [AIOHTTP, *costly] if AIOHTTP in installed else costly
                found = workload.in_turns(these(costly, load.few), rounds=1, warm_up=False)
                compare(load, found, report, costly=True)
    return report


def compare(load: Load, found: dict[str, list[Figures]], report: workload.Report, *, costly: bool = False) -> None:
    """A row for each client, and what is promised of ours."""
    spent = {name: [run.microseconds for run in runs] for name, runs in found.items()}
    ratios = {name: workload.ratio(spent[name], spent[AIOHTTP]) for name in found} if AIOHTTP in found else {}
    for name, runs in found.items():
        if costly and name == AIOHTTP:
            continue  # it is there for the ratio
        seen = max(run.seen for run in runs)
        values = {"us/call": statistics.median(spent[name]), "of aiohttp": ratios.get(name), "seen": seen}
        report.row(in_flight=load.in_flight, client=name, **values)
    if costly:
        return
    what = f"{load.in_flight:,} in flight:"
    report.at_least(f"{what} calls that the server saw at once", max(run.seen for run in found[OURS]), load.in_flight)
    if ratios:
        report.at_most(f"{what} CPU per call, over aiohttp", ratios[OURS], 1.0)
        report.at_most(f"{what} CPU per call in a stage, over aiohttp", ratios[STAGE], 1.3)
        report.goal(f"{what} CPU per call, over aiohttp", ratios[OURS], 0.5, at_most=True)


def main(argv: Sequence[str] | None = None) -> int:
    settings = workload.parse(__doc__, argv)
    absent = [name for name in (AIOHTTP, HTTPX, OPENAI) if importlib.util.find_spec(name) is None]
    note = f"; not installed: {', '.join(absent)}" if absent else ""
    return measure(settings).finish(f"CPU of a chat call{note}")


if __name__ == "__main__":
    if "--server" in sys.argv:
        Served.seconds = float(sys.argv[-2])
        workload.parse(__doc__, ["--loop", sys.argv[-1]]).run(serve())
    else:
        workload.run_script(main)
