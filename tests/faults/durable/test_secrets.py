"""No file that a run leaves, and nothing it says, holds a secret, however it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from accounts import ROOT
from ledgers import ledger_lines
from watched import Runs

CANARY = "canary-7f3a9c51e0d2"
OTHER = "sk-otherCanary0123456789"
"""What stands in no variable of the environment: only its place in a header gives it away."""

JOB = """
import os
import httpx
from stageflow import Pipeline, Retry, degrade

pipeline = Pipeline("leaks", key="n", params={"api_key": ""})
key = os.environ["API_KEY"]

@pipeline.resource
async def client(params):
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as client:
        yield client

def refuse(status):
    request = httpx.Request(
        "POST", f"https://user:{key}@api.example/v1?token={key}&q=1",
        headers={"Authorization": "Bearer OTHER", "X-API-Key": key, "Cookie": f"session={key}"},
    )
    response = httpx.Response(status, request=request, headers={"Set-Cookie": f"session={key}"}, text=f"bad key {key}")
    text = f"{status} for {request.url} with {dict(request.headers)}"
    return httpx.HTTPStatusError(text, request=request, response=response)

class Odd(Exception):
    def __init__(self):
        self.token = key
        super().__init__({"Authorization": "Bearer OTHER", "key": key})

@pipeline.stage(retry=Retry(2, base=0.0, cap=0.0))
async def ask(n, client, params):
    local = key
    if n % 8 == 1:
        raise refuse(500)
    if n % 8 == 2:
        raise Odd()
    if n % 8 == 3:
        try:
            raise ValueError(f"inner {local}")
        except ValueError as error:
            raise RuntimeError(f"outer {local}") from error
    if n % 8 == 4:
        raise ExceptionGroup(f"several with {key}", [refuse(503), KeyError(key)])
    if n % 8 == 5:
        raise SystemExit(f"leaving with {key}")
    return n

@pipeline.stage(on_error=degrade(None))
async def soft(n, ask):
    if n % 8 == 6:
        raise RuntimeError(f"soft {key}")
    return n

@pipeline.stage(on_error="ON_ERROR")
async def last(n, soft):
    if n % 8 == 7:
        raise RuntimeError(f"headers {{'authorization': 'Bearer OTHER', 'x-api-key': '{key}'}}")
    return n
""".replace("OTHER", OTHER)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    pytest.importorskip("httpx")
    made = Runs(tmp_path)
    yield made
    made.close()


def assert_kept(runs: Runs) -> None:
    """Nothing but the job itself, which names one of them, holds a canary."""
    looked = 0
    for path in runs.path.rglob("*"):
        if path.is_file() and path.name != "job.py" and "__pycache__" not in path.parts:
            data = path.read_bytes()
            looked += len(data)
            for secret in (CANARY, OTHER):
                assert secret.encode() not in data, (
                    f"{path.name}: {data[max(0, data.find(secret.encode()) - 200) :][:400]!r}"
                )
    assert looked > 1000


@pytest.mark.parametrize("progress", ["log", "bar"])
@pytest.mark.parametrize("on_error", ["dead_letter", "skip", "abort"])
def test_no_file_and_no_stream_holds_a_secret(runs: Runs, on_error: str, progress: str) -> None:
    runs.job(JOB.replace("ON_ERROR", on_error), 40)
    options = ["--progress", progress, "-p", f"api_key={CANARY}", "--debug"]
    given = {"environment": {"API_KEY": CANARY}}
    first = runs.run(*options, **given)
    assert first.process.returncode == (4 if on_error == "abort" else 3), first.err
    letters = (runs.path / "out.jsonl.dead.jsonl").read_text()
    assert "***" in letters
    assert_kept(runs)
    again = runs.run(*options, "--retry-failed", "--set", "last.on_error=dead_letter", **given)
    assert again.process.returncode == 3, again.err
    assert_kept(runs)


def test_a_stage_that_is_refused_everywhere_stops_the_run_without_telling_the_key(runs: Runs) -> None:
    runs.job(
        JOB.replace("ON_ERROR", "skip").replace(
            "if n % 8 == 1:\n        raise refuse(500)", "if True:\n        raise refuse(401)"
        ),
        40,
    )
    ended = runs.run("--progress", "log", environment={"API_KEY": CANARY})
    assert ended.process.returncode == 4, ended.err
    assert "401" in ended.err
    assert CANARY not in ended.err + ended.out
    assert OTHER not in ended.err + ended.out


def test_a_resource_that_fails_with_a_key_does_not_tell_it(runs: Runs) -> None:
    job = JOB.replace(
        "    async with httpx", '    raise RuntimeError(f"cannot log in with {key}")\n    async with httpx'
    )
    runs.job(job, 40)
    ended = runs.run("--progress", "log", environment={"API_KEY": CANARY})
    assert ended.process.returncode == 2, ended.err
    assert CANARY not in ended.err + ended.out


def test_what_chaos_keeps_and_says_holds_no_secret(runs: Runs) -> None:
    unlike = "@pipeline.stage\nasync def unlike(n, last):\n    return os.getpid()\n"
    runs.job(JOB.replace("ON_ERROR", "dead_letter") + unlike, 40)
    with open(runs.path / "stdout", "wb") as out, open(runs.path / "stderr", "wb") as err:
        options = ["--yes", "--kills", "1", "--deterministic", "unlike", "-p", f"api_key={CANARY}"]
        code = subprocess.run(
            [sys.executable, "-m", "stageflow", "chaos", "job.py", "in.jsonl", *options],
            cwd=runs.path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "API_KEY": CANARY, "TMPDIR": str(runs.path)},
            stdout=out,
            stderr=err,
            timeout=60,
        ).returncode
    assert code == 3, (runs.path / "stderr").read_text()
    assert list(runs.path.glob("stageflow-chaos-*/killed/out.jsonl.dead.jsonl")), "nothing was kept"
    assert_kept(runs)


def test_the_ledger_names_no_parameter_by_its_value(runs: Runs) -> None:
    runs.job(JOB.replace("ON_ERROR", "skip"), 8)
    runs.run("-p", f"api_key={CANARY}", environment={"API_KEY": CANARY})
    header = ledger_lines(runs.path / "out.jsonl.ledger")[0]
    assert CANARY not in json.dumps(header)
