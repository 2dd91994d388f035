"""``--budget``, prices in ``stageflow.toml``, and what is told of money."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable

import pytest
from running import Running
from workbench import Folder

JOB = """
    from stageflow import Pipeline, Price
    pipeline = Pipeline("paid", prices={"m": Price(input=1, output=3)})

    @pipeline.stage(model="m", max_tokens=(1_000_000, 0), max_in_flight=1)
    async def answer(x: int, call):
        call.report(input_tokens=1_000_000)
        return x
"""
RUN = ("run", "paid.py", "in.jsonl", "-o", "out.jsonl", "--progress", "off")


@pytest.fixture
def paid(folder: Folder) -> Folder:
    folder.write("paid.py", JOB)
    (folder.path / "in.jsonl").write_text("".join(f'{{"x": {n}}}\n' for n in range(10)))
    return folder


def test_a_budget_stops_the_run_and_a_higher_one_goes_on(paid: Folder) -> None:
    told = paid.stageflow(*RUN, "--budget", "4.5")
    assert told.code == 4
    assert told.error[-2:] == [
        "stageflow: stopped: 4 of 10 done: the budget of 4.50 is spent but for 0.50, and a call of "
        '"answer" may cost 1.00; resume with a higher budget',
        "  hint: stageflow run paid.py in.jsonl -o out.jsonl --progress off --budget 9",
    ]
    assert "cost: 4.00, of a budget of 4.50" in told.err
    assert "  its calls cost 4.00, in the currency of the job's prices" in paid.stageflow("status", "out.jsonl").out
    assert json.loads(paid.stageflow("status", "out.jsonl", "--json").out)["cost"] == 4.0
    rest = paid.stageflow(*RUN, "--budget=10")
    assert rest.code == 0
    assert "cost: 10.00, 4.00 of it in earlier runs, of a budget of 10.00" in rest.err


def test_prices_of_the_file_come_before_those_of_the_job(paid: Folder) -> None:
    paid.write("stageflow.toml", '[prices."m"]\ninput = 2\noutput = 3.5\n[prices."other"]\ninput = 0\noutput = 0\n')
    lines = paid.stageflow("check", "paid.py").out.splitlines()
    assert lines[2:4] == [
        "  price of m: input 2, output 3.5 per million tokens  (stageflow.toml)",
        "  price of other: input 0, output 0 per million tokens  (stageflow.toml)",
    ]
    assert "    model = m  (paid.py:4)" in lines
    assert "    max_tokens = (1000000, 0)  (paid.py:4)" in lines
    told = paid.stageflow(*RUN, "--summary", "json")
    assert (told.code, json.loads(told.out)["cost"]) == (0, 20.0)


def test_check_says_which_prices_are_the_jobs_own(paid: Folder) -> None:
    lines = paid.stageflow("check", "paid.py").out.splitlines()
    assert "  price of m: input 1, output 3 per million tokens  (paid.py:2)" in lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[prices.m]\ninput = 1\n", 'stageflow.toml: [prices."m"] must hold input and output, and nothing else'),
        ("[prices]\nm = 3\n", 'stageflow.toml: [prices."m"] must hold input and output, and nothing else'),
        ("prices = 3\n", "stageflow.toml: [prices] holds tables, one per model"),
        (
            '[prices."m"]\ninput = -1\noutput = 1\n',
            'stageflow.toml: [prices."m"]: the price of input must be a number of at least 0, not -1',
        ),
        ("[price.m]\ninput = 1\n", 'stageflow.toml has no section "price"'),
        ("[stages.answer]\nmax_tokens = [1]\n", 'stageflow.toml: stage "answer": max_tokens must be a positive number'),
    ],
)
def test_a_file_with_wrong_prices_is_refused(paid: Folder, text: str, message: str) -> None:
    paid.write("stageflow.toml", text)
    told = paid.stageflow("check", "paid.py")
    assert told.code == 2
    assert told.error[0].startswith(f"stageflow: error: {message}")
    assert len(told.error) == 2


def test_what_a_budget_needs_is_asked_for_before_anything_is_made(paid: Folder) -> None:
    paid.write("paid.py", JOB.replace(", max_tokens=(1_000_000, 0)", ""))
    before = paid.names()
    told = paid.stageflow(*RUN, "--budget", "5")
    assert told.code == 2
    assert told.error == [
        'stageflow: error: stage "answer" has no max_tokens: what its calls may cost can\'t be reserved from a budget',
        "  hint: max_tokens=(input, output): the most tokens that one call may use",
    ]
    paid.write("stageflow.toml", "[stages.answer]\nmax_tokens = [1_000_000, 5]\n")
    assert paid.names() == sorted([*before, "stageflow.toml"])
    assert paid.stageflow(*RUN, "--budget", "5").code == 4


def test_prices_and_what_calls_may_use_are_no_part_of_what_decides_the_results(paid: Folder) -> None:
    written = JOB.replace('prices={"m": Price(input=1, output=3)}', "prices=PRICES").replace(
        "    pipeline =", '    PRICES = {"m": Price(input=1, output=3)}\n    pipeline ='
    )
    paid.write("paid.py", written)
    assert paid.stageflow(*RUN, "--limit", "2").code == 0
    paid.write("paid.py", written.replace("input=1,", "input=2,").replace("max_tokens=(1_000_000, 0), ", ""))
    assert paid.stageflow(*RUN, "--limit", "4").code == 0
    paid.write("paid.py", JOB.replace("input=1,", "input=2,"))
    assert paid.stageflow(*RUN).code == 7  # a constant that is gone is a change


def test_a_budget_for_several_processes_is_refused(paid: Folder) -> None:
    told = paid.stageflow(*RUN, "--budget", "5", "--processes", "2")
    assert (told.code, told.error[0]) == (2, "stageflow: error: a budget is kept by one process only, not by several")


def test_several_processes_tell_what_they_have_spent(paid: Folder) -> None:
    paid.write("paid.py", JOB.replace("max_in_flight=1", "max_in_flight=2"))
    done = paid.process(*RUN, "--processes", "2", "--summary", "json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["cost"], report["stages"]["answer"]["input_tokens"]) == (10.0, 10_000_000)
    assert json.loads(paid.stageflow("status", "out.jsonl", "--json").out)["cost"] == 10.0


def test_a_limit_tells_what_the_whole_input_would_cost(paid: Folder) -> None:
    told = paid.stageflow(*RUN, "--limit", "3")
    assert told.code == 0
    assert "the whole input (about 10 records) would cost about 10.00 and take about " in told.err
    again = paid.stageflow(*RUN, "--limit", "6")
    assert "would cost about 10.00 and take about " in again.err


SLOW = """
    import asyncio, os
    from stageflow import Pipeline, Price
    pipeline = Pipeline("paid", prices={"m": Price(input=1, output=3)})
    service = os.open("service.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @pipeline.stage(model="m", max_tokens=(1_000_000, 0), max_in_flight=4)
    async def answer(x: int, call):
        os.write(service, b"began\\n")
        await asyncio.sleep(0.1)
        os.write(service, b"ended\\n")
        call.report(input_tokens=1_000_000)
        return x
"""


def test_after_a_kill_the_budget_is_passed_by_the_calls_in_flight_at_the_most(
    paid: Folder, start: Callable[..., Running]
) -> None:
    paid.write("paid.py", SLOW)
    (paid.path / "in.jsonl").write_text("".join(f'{{"x": {n}}}\n' for n in range(100)))

    def calls() -> Counter[str]:
        log = paid.path / "service.log"
        return Counter(log.read_text().split()) if log.exists() else Counter()

    process = start(*RUN, "--budget", "30")
    process.until(lambda: calls()["ended"] >= 10)
    process.signal(signal.SIGKILL)
    process.ends()
    cut = calls()
    in_flight = cut["began"] - cut["ended"]
    assert 10 <= cut["began"] < 30
    told = paid.stageflow("status", "out.jsonl", "--json")
    found = json.loads(told.out)
    assert cut["ended"] - 4 <= found["cost"] + found["cost_unsure"] <= cut["began"] + 4
    rest = paid.process(*RUN, "--budget", "30")
    assert rest.returncode == 4, rest.stderr
    assert 30 - 4 <= calls()["began"] <= 30 + in_flight
