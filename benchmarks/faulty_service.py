"""Does every record settle once, and every token count, where a fifth of all calls goes wrong? And what does it cost?

    pip install 'stageflow[llm]'
    python benchmarks/faulty_service.py
    python benchmarks/faulty_service.py --quick --loop asyncio

A job with one stage asks ``stageflow testserver``, a process of its own, from a file to a file with its ledger: 20,000
records, 1,000 calls in flight, 50 ms each. Faults of every kind strike 20 % of the calls: refusals, connections that
are reset before, after and within the answer, answers that are cut, garbled, mislabelled, empty, slow, or never come.
(Not those two that are to stop a run: a key that is refused and a quota that is used up. Nor those that only a stream
can have: of one that breaks off behind its usage the client knows what it cost, while the server counts it as lost.)

What has to be right, or nothing is told:

* Each record is in the output or in the dead letters, once; each answer is the one that the server gives to its prompt.
* Dead letters are those that no further call can mend: a 400, an answer cut off by its length or by a filter. The
  others were asked again until they had an answer.
* No answer was paid for twice, no ``Retry-After`` was ignored, no call is in progress at the end.
* Tokens and cost of the report are those that the server counted for answers that arrived whole.

"us/call" is CPU time of this process, all its threads, per call that the server saw; "of good" is the median of the
ratios to the same run without faults, in the same round. Exits 1 where a call costs more than LIMIT times as much.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson
import workload
from workload import Settings, WrongAnswer

from stageflow import Pipeline, Price, Retry, RunReport
from stageflow.llm import Chat
from stageflow.testing import TestServer

SEED: Final = 7
LIMIT: Final = 3.0
SHARE: Final = 0.2
FAULTS: Final[tuple[dict[str, Any], ...]] = (
    {"do": "rate_limit", "retry_after": 0.02, "retry_after_as": "ms"},
    {"do": "error", "status": 400},
    {"do": "error", "status": 500},
    {"do": "error", "status": 503, "after": [0.0, 0.1]},
    {"do": "reset_before"},
    {"do": "reset_after"},
    {"do": "reset_body"},
    {"do": "cut_body"},
    {"do": "truncated_json"},
    {"do": "invalid_json"},
    {"do": "stall"},
    {"do": "content_type"},
    {"do": "empty_choices"},
    {"do": "slow_body", "bytes": 128, "pause": 0.01},
    {"do": "hang"},
    {"do": "length"},
    {"do": "content_filter"},
)
SLOW: Final = {"do": "delay", "share": 0.01, "seconds": 0.5}
PRICE: Final = {"input": 0.15, "output": 0.6}
UNFINISHED: Final = ("length", "content_filter")


class Load(NamedTuple):
    """So many records, so many calls in flight; a call that hangs is given up after so many seconds."""

    records: int
    in_flight: int
    timeout: float
    rounds: int


FULL: Final = Load(20_000, 1_000, 10.0, 3)
QUICK: Final = Load(3_000, 500, 5.0, 1)
TINY: Final = Load(400, 50, 1.0, 1)


class Figures(NamedTuple):
    """What one run comes to."""

    microseconds: float
    calls: int
    faults: int
    most_in_flight: int
    seconds: float


def script(*, faulty: bool) -> dict[str, Any]:
    """What the server does; each fault has the same part of the calls."""
    faults = [{**fault, "share": SHARE / len(FAULTS)} for fault in FAULTS]
    told = {"seed": SEED, "latency": 0.05, "answer_tokens": [16, 100], "prices": {"small": PRICE}}
    return {**told, "fault": [*faults, SLOW] if faulty else []}


@contextmanager
def server(said: dict[str, Any], folder: Path, loop: str) -> Iterator[str]:
    """Yields the base URL of a test server that has counted nothing yet."""
    path = folder / "script.jsonl"
    entries = [{"fault": fault} for fault in said["fault"]]
    entries += [{name: value} for name, value in said.items() if name != "fault"]
    path.write_bytes(b"".join(orjson.dumps(entry) + b"\n" for entry in entries))
    command = [sys.executable, "-m", "stageflow", "testserver", "--script", str(path), "--loop", loop]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def counted(base_url: str) -> dict[str, Any]:
    """The server's own count, once it has noticed that all connections are closed."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(100):
        with opener.open(base_url.removesuffix("/v1") + "/stats") as answer:
            stats: dict[str, Any] = json.load(answer)
        if stats["in_flight"] == 0:
            return stats
        time.sleep(0.05)
    raise WrongAnswer(f"{stats['in_flight']} calls are still in progress after the run")


def prompt(number: int) -> str:
    return f"question {number}: what is to be done?"


def job(base_url: str, load: Load) -> Pipeline:
    """As a user writes it."""
    pipeline = Pipeline("faulty-service", key="number", prices={"small": Price(**PRICE)})

    @pipeline.resource
    async def chat() -> Any:
        async with Chat(base_url=base_url, model="small") as chat:
            yield chat

    retry = Retry(attempts=12, base=0.05, cap=1.0)

    @pipeline.stage(model="small", max_in_flight=load.in_flight, timeout=load.timeout, retry=retry)
    async def generate(number: int, chat: Chat, call: Any) -> str:
        return (await chat.complete(prompt(number), call=call, must_finish=True)).text

    return pipeline


def spend(load: Load, settings: Settings, *, faulty: bool) -> Figures:
    """Run the job against a fresh server, and check all that can be checked."""
    said = script(faulty=faulty)
    with tempfile.TemporaryDirectory() as name, server(said, Path(name), settings.loop) as base_url:
        source, sink, dead = (Path(name, file) for file in ("in.jsonl", "out.jsonl", "dead.jsonl"))
        source.write_bytes(b"".join(b'{"number":%d}\n' % number for number in range(load.records)))
        pipeline = job(base_url, load)
        gc.collect()
        began, start = time.perf_counter(), time.process_time()
        report = settings.run(pipeline.run(source, sink, dead=dead, max_failure_rate=1.0))
        spent, took = time.process_time() - start, time.perf_counter() - began
        stats = counted(base_url)
        outputs = [orjson.loads(line) for line in sink.read_bytes().splitlines()]
        letters = [orjson.loads(line) for line in dead.read_bytes().splitlines()] if dead.exists() else []
    check_records(outputs, letters, load, TestServer(said))
    check_account(report, stats, letters, load)
    faults = stats["calls"] - stats["outcomes"]["ok"]
    return Figures(spent / stats["calls"] * 1e6, stats["calls"], faults, stats["most_in_flight"], took)


def check_records(outputs: list[Any], letters: list[Any], load: Load, asked: TestServer) -> None:
    """Each record has settled, once, and with the answer to its own question."""
    settled = Counter(output["number"] for output in outputs)
    settled.update(letter["record"]["number"] for letter in letters)
    if settled != Counter(range(load.records)):
        twice = sum(times > 1 for times in settled.values())
        raise WrongAnswer(f"{load.records - len(settled)} of {load.records} records did not settle, {twice} did twice")
    for output in outputs:
        if output["generate"] != asked.answer(prompt(output["number"])):
            raise WrongAnswer(f"record {output['number']} was answered {output['generate'][:40]!r}")


def check_account(report: RunReport, stats: dict[str, Any], letters: list[Any], load: Load) -> None:
    """What the run says of itself is what the server counted."""
    stage = report.stages["generate"]
    unfinished = [letter for letter in letters if letter["error"]["type"] == "Unfinished"]
    # The server counts a 400 among its errors.
    others = [letter for letter in letters if letter not in unfinished and "400 from" not in letter["error"]["message"]]
    pairs = {
        "answers that are none": (len(unfinished), sum(stats["outcomes"].get(outcome, 0) for outcome in UNFINISHED)),
        "records that another call would have mended": (len(others), 0),
        "tokens": (stage.tokens, stats["tokens_in"] + stats["tokens_out"]),
        "cost": (round(stage.cost, 9), round(stats["cost"], 9)),
        "attempts": (load.records + stage.retries, stats["calls"]),
        "answers that were paid for twice": (0, stats["duplicates"]),
        "calls before the time they were asked to come at": (0, stats["retry_after_ignored"]),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise WrongAnswer(f"{what}: {ours} here, {theirs} by the server's count")


def measure(settings: Settings) -> workload.Report:
    """Run with faults and without, in turns."""
    columns = {"service": "", "records": ",", "in flight": ",", "calls": ",", "faults": ",", "us/call": ",.0f"}
    report = workload.Report("faulty_service", settings, {**columns, "of good": ".2f", "seconds": ".1f"})
    load = settings.size(FULL, QUICK, TINY)

    def contender(faulty: bool) -> Callable[[], Figures]:
        return lambda: spend(load, settings, faulty=faulty)

    spend(TINY, settings, faulty=True)  # so that all modules are there
    found = workload.in_turns({"good": contender(False), "faulty": contender(True)}, rounds=load.rounds, warm_up=False)
    spent = {name: [run.microseconds for run in runs] for name, runs in found.items()}
    for name, runs in found.items():
        values: dict[str, Any] = {"calls": runs[-1].calls, "faults": runs[-1].faults}
        values |= {"us/call": statistics.median(spent[name]), "of good": workload.ratio(spent[name], spent["good"])}
        values |= {"in flight": max(run.most_in_flight for run in runs)}
        values |= {"seconds": statistics.median(run.seconds for run in runs)}
        report.row(service=name, records=load.records, **values)
    ratio = workload.ratio(spent["faulty"], spent["good"])
    report.at_most("CPU per call, over that of a service without faults", ratio, LIMIT)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    return measure(workload.parse(__doc__, argv)).finish("a fifth of all calls goes wrong, in every way there is")


if __name__ == "__main__":
    workload.run_script(main)
