"""What a server by others thinks of our calls: llmock breaks a run on purpose, and judges how the client took it.

    pip install llmock && python -m pytest -s -m slow tests/llm/test_llm_llmock.py

prints its verdicts on 2,000 calls each; the default run makes fewer. Each is made with answers in one piece, and with
streams, which it cuts, stalls and garbles.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from stageflow import Pipeline, RateLimit
from stageflow.llm import Chat

pytest.importorskip("httptools")

# Beside this interpreter, or in an environment of its own.
LLMOCK = shutil.which("llmock", path=str(Path(sys.executable).parent)) or shutil.which("llmock")
if LLMOCK is None:
    pytest.skip("llmock is not installed", allow_module_level=True)

ATTEMPTS = 10
"""More of one call are a storm to llmock."""
ASKS_TO_WAIT = {429: 0.09, 503: 0.09, 400: 0.02}
"""A fifth of all calls; llmock's 429 and 503 say how long to wait."""
SAYS_NOTHING = {500: 0.08, 502: 0.05, 408: 0.05, 400: 0.02}
STALL_SECONDS, IDLE_SECONDS = 6.0, 2.0
CUT = [
    *(
        word
        for fault in ("truncate=0.05", "disconnect=0.05", "malformed=0.05", "stall=0.02")
        for word in ("--stream-fault", fault)
    ),
    *("--stream-stall-seconds", f"{STALL_SECONDS:g}"),
    # Between two events, so that it sees whether its client goes on reading behind one that is none.
    *("--stream-chunk-delay-ms", "20"),
]
STREAMS = {"in one piece": False, "streams": True}

Ask = Callable[[str], Any]


def get(address: str) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=30) as answer:
        return answer.read().decode()


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts llmock with options, and gives its address."""
    running = []

    def started(*options: str) -> str:
        assert LLMOCK is not None
        address = f"127.0.0.1:{free_port()}"
        command = [LLMOCK, "serve", "--port", address.partition(":")[2], "--log-level", "error", *options]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and running[-1].poll() is None:
            with suppress(OSError):
                get(f"http://{address}/health")
                return f"http://{address}"
            time.sleep(0.1)
        raise AssertionError("llmock did not start")

    yield started
    for process in running:
        process.kill()
        process.wait()


def ask(
    address: str, records: int, stream: bool, rate_limit: RateLimit | None = None
) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Run a job with one stage against it; gives what was written, the dead letters, and the verdict."""
    pipeline = Pipeline("ask", key="n")

    @pipeline.resource
    async def chat() -> Any:
        settings: dict[str, Any] = {"model": "gpt-4o-mini", "stream": stream, "idle_timeout": IDLE_SECONDS}
        async with Chat(base_url=f"{address}/v1", **settings) as chat:
            yield chat

    @pipeline.stage(max_in_flight=64, timeout=30, retry=ATTEMPTS, rate_limit=rate_limit)
    async def generate(n: int, chat: Chat, call: Any) -> str:
        return (await chat.complete(f"question {n}", call=call, max_tokens=20)).text

    out: list[Any] = []
    dead: list[Any] = []
    pipeline.run_sync([{"n": n} for n in range(records)], out, dead=dead, max_failure_rate=1.0)
    print(f"{len(out):,} answers, {len(dead):,} dead letters", get(f"{address}/_llmock/verdict?format=text"), sep="\n")
    return out, dead, json.loads(get(f"{address}/_llmock/verdict"))


def rates(errors: dict[int, float]) -> list[str]:
    return [word for status, rate in errors.items() for word in ("--error-rate", f"{status}={rate}")]


def check_settled(records: int, out: list[Any], dead: list[Any]) -> None:
    """Each record once; a dead letter is what was refused for good, or as often as may be."""
    assert sorted(each["n"] for each in [*out, *(letter["record"] for letter in dead)]) == list(range(records))
    assert all(each["generate"] for each in out)
    assert all(letter["error"]["message"].startswith("400 from ") or letter["attempts"] == ATTEMPTS for letter in dead)


def faults_of(address: str) -> list[str]:
    """What it did to each request."""
    return [each["fault"] or "" for each in json.loads(get(f"{address}/_llmock/requests"))["requests"]]


def check_waits(verdict: dict[str, Any], records: int) -> None:
    """No error; and nothing to remark on but waits.

    They are drawn from 0 on, and pauses of the stage make them longer. So the second may be the shorter one, which
    llmock takes for a fixed wait; and the next attempt may come before it has noticed that a client left a stream,
    which makes it another call.
    """
    assert verdict["passed"]
    assert verdict["errors"] == 0
    assert 0 <= verdict["calls"] - records <= 1 + records / 200
    remarks = Counter(finding["code"] for finding in verdict["findings"])
    print(dict(remarks))
    assert remarks.keys() <= {"no_backoff", "malformed_chunk_ignored"}
    assert remarks["malformed_chunk_ignored"] <= 1 + records / 200


@pytest.mark.real_clock
@pytest.mark.timeout(300)  # what exceeds the quota has to wait for the next minute's calls
@pytest.mark.parametrize(("records", "per_minute"), [(120, 100), pytest.param(2_000, 1_000, marks=pytest.mark.slow)])
def test_quotas_and_errors_that_ask_to_wait_leave_nothing_to_object_to(
    serve: Callable[..., str], records: int, per_minute: int
) -> None:
    """The job knows nothing of the quotas. They begin to bite when the minute's calls have been made."""
    quotas = ["--rpm", str(per_minute), "--tpm", str(45 * per_minute)]
    address = serve("--latency-ms", "20", *quotas, *rates(ASKS_TO_WAIT), *CUT)
    out, dead, verdict = ask(address, records, stream=False)
    check_settled(records, out, dead)
    assert verdict["calls"] == records
    assert verdict["findings"] == []
    faults = faults_of(address)
    assert sum(fault.startswith("chaos:") for fault in faults) > records / 20
    assert sum(fault.startswith("ratelimit:") for fault in faults) > 0


@pytest.mark.real_clock
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("records", "per_minute"), [(120, 600), pytest.param(2_000, 2_000, marks=pytest.mark.slow)])
def test_streams_that_are_cut_under_a_quota_that_is_known(
    serve: Callable[..., str], records: int, per_minute: int
) -> None:
    """To use up all attempts on a quota that is not known is to end some with a cut stream, which llmock counts as one
    that was taken for whole."""
    quotas = ["--rpm", str(per_minute), "--tpm", str(70 * per_minute)]
    address = serve("--latency-ms", "20", *quotas, *rates(ASKS_TO_WAIT), *CUT)
    out, dead, verdict = ask(address, records, True, RateLimit(per_minute=per_minute))
    check_settled(records, out, dead)
    check_waits(verdict, records)
    kinds = Counter(fault.partition("@")[0] for fault in faults_of(address))
    print(dict(kinds))
    assert kinds.keys() >= {"stream:truncate", "stream:disconnect", "stream:malformed"}
    assert sum(count for kind, count in kinds.items() if kind.startswith("chaos:")) > records / 8


@pytest.mark.real_clock
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("records", [120, pytest.param(2_000, marks=pytest.mark.slow)])
def test_errors_that_say_nothing_are_retried_after_waits_of_any_length(
    serve: Callable[..., str], records: int, stream: bool
) -> None:
    address = serve("--latency-ms", "20", *rates(SAYS_NOTHING), *CUT)
    out, dead, verdict = ask(address, records, stream)
    check_settled(records, out, dead)
    assert verdict["faults_injected"] > records / 20
    check_waits(verdict, records)
