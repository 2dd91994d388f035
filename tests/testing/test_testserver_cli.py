"""``stageflow testserver``: one line when it answers, its counts when it is interrupted."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stageflow.cli import cli, invoke

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts test servers; what is still running at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(*options: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "stageflow", "testserver", *options]
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield begin
    for server in started:
        server.kill()
        server.communicate()


def ask(url: str, prompt: str) -> str:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}]}).encode()
    with urllib.request.urlopen(f"{url}/chat/completions", body, timeout=20) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_it_serves_until_it_is_interrupted(start: Start, tmp_path: Path, name: str, loop: str) -> None:
    script = tmp_path / "script.toml"
    script.write_text('seed = 5\n[prices.m]\noutput = 1\n[[fault]]\ndo = "error"\ncalls = 2\nstatus = 418\n')
    server = start("--script", str(script), "--loop", loop)
    assert server.stdout is not None
    url = server.stdout.readline().rstrip("\n")
    assert url.startswith("http://127.0.0.1:")
    assert url.endswith("/v1")
    first = ask(url, "x")
    with pytest.raises(urllib.error.HTTPError, match="418") as caught:
        ask(url, "x")
    caught.value.close()
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/stats", timeout=20) as answer:
        told = json.load(answer)
    server.send_signal(getattr(signal, name))
    out, err = server.communicate(timeout=20)
    assert server.returncode == 0, err
    assert {**json.loads(out), "connections": 0} == {**told, "connections": 0}
    assert told["outcomes"] == {"ok": 1, "error": 1}
    assert told["cost"] == pytest.approx(16e-6)
    assert err == "stageflow: test server, seed 5, for this machine only; Ctrl-C ends it and prints what it counted\n"

    from stageflow.testing.answers import answer_text

    assert first == answer_text("x", seed=5)


def test_a_seed_outranks_that_of_the_script(start: Start, tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text("seed = 5\n")
    server = start("--script", str(script), "--seed", "6")
    assert server.stderr is not None
    assert "seed 6" in server.stderr.readline()


def test_an_address_for_others_is_said_loudly(start: Start) -> None:
    server = start("--host", "0.0.0.0")
    assert server.stderr is not None
    assert "FOR EVERYBODY WHO REACHES 0.0.0.0" in server.stderr.readline()


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert invoke(["testserver", "--port", str(port)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert f"stageflow: error: cannot listen at 127.0.0.1:{port}: " in told.err
    assert "  hint: --port 0 takes a port that is free" in told.err


def test_a_script_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script.toml"
    script.write_text('[[fault]]\ndo = "error"\n\n[[fault]]\nshare = 0.5\ndo = "eror"\n')
    assert invoke(["testserver", "--script", str(script)]) == 2
    first, second, end = capsys.readouterr().err.split("\n")
    assert first.startswith(f"stageflow: error: {script}:6: fault 2 do must be one of")
    assert second.startswith("  hint: ")
    assert end == ""


@pytest.mark.parametrize("name", ["--script", "--host", "--port", "--seed", "--loop"])
def test_its_options_are_told(name: str) -> None:
    told: Any = CliRunner().invoke(cli, ["testserver", "--help"])
    assert name in told.output
