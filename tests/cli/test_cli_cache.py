"""``cache=True`` on the command line: what a rerun pays for after an edit or a kill, and in several processes."""

from __future__ import annotations

import json
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator

import pytest
from running import Running
from workbench import Folder

JOB = """
    import asyncio
    from pathlib import Path
    from stageflow import Pipeline, Price

    PROMPT = "Answer briefly: "
    MOST = 100
    prices = {"m": Price(input=1, output=1)}
    pipeline = Pipeline("cached", params={"model": "small", "api_key": "secret"}, prices=prices)

    class Client:
        def __init__(self, model):
            self.model = model

        async def ask(self, prompt):
            while Path("stop").exists() and int(prompt[len(PROMPT):]) >= 20:
                await asyncio.sleep(0.001)
            return f"{self.model}: {prompt}"

    @pipeline.resource
    def client(params):
        return Client(params.model)

    @pipeline.stage(cache=True, max_in_flight=4, model="m", max_tokens=(1_000_000, 0))
    async def generate(x: int, client, call):
        with open("calls", "a") as calls:
            calls.write(f"{x}\\n")
        call.report(input_tokens=1_000_000)
        return await client.ask(PROMPT + str(x))

    def is_short(text):
        return len(text) < MOST

    @pipeline.stage
    async def validate(generate):
        return is_short(generate)
"""
RUN = ("run", "cached.py", "in.jsonl", "-o", "out.jsonl", "--progress", "off")


@pytest.fixture
def cached(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it is told from newer source by whole seconds
    folder.write("cached.py", JOB)
    (folder.path / "in.jsonl").write_text("".join(f'{{"x": {n}}}\n' for n in range(50)))
    yield folder
    _forget(folder)


def _forget(folder: Folder) -> None:
    """Let the next command load the job anew, as it does in a process of its own."""
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(folder.path)):
            del sys.modules[name]


def edit(folder: Folder, before: str, after: str) -> None:
    text = folder.read("cached.py")
    assert text.count(before) == 1, f"{before!r} is there {text.count(before)} times"
    (folder.path / "cached.py").write_text(text.replace(before, after))
    _forget(folder)


def calls(folder: Folder) -> list[int]:
    """The calls since this was last asked."""
    log = folder.path / "calls"
    made = sorted(map(int, log.read_text().split())) if log.exists() else []
    log.unlink(missing_ok=True)
    return made


def results(folder: Folder, name: str = "out.jsonl") -> list[str]:
    return [json.loads(line)["generate"] for line in folder.read(name).splitlines()]


def test_after_an_edit_of_validate_nothing_is_paid_for_and_that_is_said(cached: Folder) -> None:
    first = cached.stageflow(*RUN)
    assert first.code == 0, first.err
    assert calls(cached) == list(range(50))
    assert "\ngenerate: 0 of 50 from the cache, 50 calls\ncost: 50.00\n" in first.err
    before = cached.read("out.jsonl")
    edit(cached, "return is_short(generate)", 'return is_short(generate) and "?" not in generate')
    second = cached.stageflow(*RUN, "--fresh")
    assert (second.code, calls(cached)) == (0, [])
    assert "\ngenerate: 50 of 50 from the cache, 0 calls\n" in second.err
    assert "cost:" not in second.err
    assert cached.read("out.jsonl") == before
    # So does what only validate uses.
    edit(cached, "MOST = 100", "MOST = 10")
    edit(cached, "return len(text) < MOST", "return 0 < len(text) < MOST")
    told = cached.stageflow(*RUN, "--fresh", "--summary", "json")
    assert calls(cached) == []
    stages = json.loads(told.out)["stages"]
    assert (stages["generate"]["cached"], stages["generate"]["calls"], stages["validate"]["cached"]) == (50, 0, None)
    assert '"validate":false' in cached.read("out.jsonl").replace(" ", "")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("await client.ask(PROMPT + str(x))", "await client.ask(PROMPT + str(x) + '!')"),
        ('PROMPT = "Answer briefly: "', 'PROMPT = "Answer at length: "'),
        ("return Client(params.model)", 'return Client(params.model + "-v2")'),
        ('return f"{self.model}: {prompt}"', 'return f"{self.model} says: {prompt}"'),
        ("cache=True, max_in", 'cache=True, version="2", max_in'),
        ('"model": "small"', '"model": "large"'),
    ],
    ids=["source", "prompt", "resource", "class", "version", "parameter"],
)
def test_what_generate_is_made_of_misses(cached: Folder, before: str, after: str) -> None:
    assert cached.stageflow(*RUN).code == 0
    assert len(calls(cached)) == 50
    edit(cached, before, after)
    assert cached.stageflow(*RUN, "--fresh").code == 0
    assert len(calls(cached)) == 50
    # What was kept of the former is still there.
    edit(cached, after, before)
    assert cached.stageflow(*RUN, "--fresh").code == 0
    assert calls(cached) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("max_in_flight=4,", 'max_in_flight=8, retry=3, timeout=5, on_error="skip", when=lambda x: True,'),
        ('"api_key": "secret"', '"api_key": "another"'),
        ("return await client.ask", "# asks\n    return await client.ask"),
        ('Pipeline("cached", ', 'Pipeline("cached", key="x", '),
    ],
    ids=["settings", "secret", "comment", "pipeline"],
)
def test_what_decides_no_result_does_not_miss(cached: Folder, before: str, after: str) -> None:
    assert cached.stageflow(*RUN).code == 0
    calls(cached)
    edit(cached, before, after)
    assert cached.stageflow(*RUN, "--fresh").code == 0
    assert calls(cached) == []


def test_a_declared_file_counts(cached: Folder) -> None:
    cached.write("prompt.txt", "one")
    edit(cached, 'Pipeline("cached", ', 'Pipeline("cached", files=["prompt.txt"], ')
    assert cached.stageflow(*RUN).code == 0
    calls(cached)
    cached.write("prompt.txt", "two")
    assert cached.stageflow(*RUN, "--fresh").code == 0
    assert len(calls(cached)) == 50


def test_after_a_kill_only_what_had_not_settled_is_called_for(cached: Folder, start: Callable[..., Running]) -> None:
    stop = cached.path / "stop"
    stop.touch()
    running = start(*RUN)
    # Records from 20 on wait in their calls, so 20 settle, and no more.
    partial = cached.path / "out.jsonl.partial"
    running.until(lambda: partial.exists() and partial.read_bytes().count(b"\n") == 20)
    running.until(lambda: len((cached.path / "calls").read_text().split()) == 24)
    running.process.kill()
    running.process.wait()
    assert calls(cached) == list(range(24))
    stop.unlink()
    edit(cached, "return is_short(generate)", "return not is_short(generate)")
    told = cached.stageflow(*RUN, "--fresh")
    assert told.code == 0, told.err
    assert calls(cached) == list(range(20, 50))
    assert "generate: 20 of 50 from the cache, 30 calls" in told.err
    assert results(cached) == [f"small: Answer briefly: {n}" for n in range(50)]


def test_two_processes_share_it(cached: Folder) -> None:
    assert cached.process(*RUN, "--limit", "30").returncode == 0
    calls(cached)
    several = cached.process(*RUN[:3], "-o", "other.jsonl", "--progress", "off", "--processes", "2")
    assert several.returncode == 0, several.stderr
    assert calls(cached) == list(range(30, 50))
    assert "generate: 30 of 50 from the cache, 20 calls" in several.stderr
    again = cached.process(*RUN, "--fresh")
    assert (again.returncode, calls(cached)) == (0, [])
    assert results(cached) == results(cached, "other.jsonl")


def test_a_stage_in_processes_has_a_cache_too(cached: Folder) -> None:
    edit(
        cached,
        "@pipeline.stage\nasync def validate",
        '@pipeline.stage(run="process", max_in_flight=1, cache=True)\ndef validate',
    )
    for found in (0, 50):
        told = cached.process(*RUN, "--fresh")
        assert told.returncode == 0, told.stderr
        assert f"validate: {found} of 50 from the cache, {50 - found} calls" in told.stderr


def test_where_it_is(cached: Folder) -> None:
    assert cached.stageflow(*RUN).code == 0
    home = cached.path / ".stageflow"
    assert sorted(path.name for path in home.iterdir()) == [".gitignore", "results.sqlite3"]
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "results.sqlite3").stat().st_mode) == 0o600
    calls(cached)
    assert cached.stageflow(*RUN, "--fresh", "--cache", "mine/kept").code == 0
    assert len(calls(cached)) == 50
    assert (cached.path / "mine" / "kept").exists()
    assert cached.stageflow(*RUN, "--fresh", "--cache", "mine/kept").code == 0
    assert calls(cached) == []


def test_nothing_of_what_decides_a_result_can_be_read_in_it(cached: Folder) -> None:
    assert cached.stageflow(*RUN).code == 0
    content = (cached.path / ".stageflow" / "results.sqlite3").read_bytes()
    assert b"small: Answer briefly: 7" in content
    assert b"secret" not in content


def test_no_cache_neither_finds_nor_keeps(cached: Folder) -> None:
    assert cached.stageflow(*RUN, "--no-cache").code == 0
    assert len(calls(cached)) == 50
    assert not (cached.path / ".stageflow").exists()
    assert cached.stageflow(*RUN, "--fresh").code == 0
    assert len(calls(cached)) == 50
    told = cached.stageflow(*RUN, "--fresh", "--no-cache")
    assert len(calls(cached)) == 50
    assert "from the cache" not in told.err


def test_a_cache_can_be_set_from_outside(cached: Folder) -> None:
    edit(cached, "cache=True, ", "")
    cached.write("stageflow.toml", "[stages.generate]\ncache = true\n")
    assert "    cache = True  (stageflow.toml)" in cached.stageflow("check", "cached.py").out
    for made in (50, 0):
        assert cached.stageflow(*RUN, "--fresh").code == 0
        assert len(calls(cached)) == made
    assert cached.stageflow(*RUN, "--fresh", "--set", "generate.cache=false").code == 0
    assert len(calls(cached)) == 50


def test_a_file_of_something_else_is_refused_before_anything_is_made(cached: Folder) -> None:
    (cached.path / "notes.txt").write_text("not a database, but my notes " * 100)
    for words, error in (
        (("--cache", "notes.txt"), f"stageflow: error: {cached.path}/notes.txt is no cache of results: "),
        (("--cache", "."), f"stageflow: error: cannot open the cache {cached.path}: "),
        (("--cache", "a", "--no-cache"), "stageflow: error: --cache and --no-cache can't both be"),
    ):
        told = cached.stageflow(*RUN, *words)
        assert told.code == 2
        assert told.error[0].startswith(error)
        assert len(told.error) == 2
        assert told.error[1].startswith("  hint: ")
    assert not (cached.path / "out.jsonl.partial").exists()
    assert cached.read("notes.txt").startswith("not a database")


def test_a_file_that_fails_in_the_middle_is_told_of_once(cached: Folder) -> None:
    assert cached.stageflow(*RUN, "--limit", "5").code == 0
    file = cached.path / ".stageflow" / "results.sqlite3"
    with sqlite3.connect(file) as database:
        database.execute("DROP TABLE results")
    database.close()
    told = cached.stageflow(*RUN, "--fresh")
    assert told.code == 0
    assert [line for line in told.error if "the cache" in line and "failed" in line] == [
        f"stageflow: warning: the cache {file} failed: no such table: results; the run goes on without it"
    ]
    assert len(results(cached)) == 50


def test_what_is_found_costs_nothing_of_a_budget(cached: Folder) -> None:
    assert cached.stageflow(*RUN, "--limit", "40").code == 0
    told = cached.stageflow(*RUN, "--fresh", "--budget", "10")
    assert told.code == 0, told.err
    assert "cost: 10.00, of a budget of 10.00" in told.err


def test_dead_letters_are_tried_again_through_it(cached: Folder) -> None:
    edit(cached, "return is_short(generate)", 'assert not generate.endswith("7")\n    return True')
    assert cached.stageflow(*RUN).code == 3
    assert len(calls(cached)) == 50
    assert cached.stageflow(*RUN, "--retry-failed").code == 3
    edit(cached, 'assert not generate.endswith("7")\n    ', "")
    assert cached.stageflow(*RUN, "--retry-failed").code == 0
    assert calls(cached) == []
    assert len(results(cached)) == 50


def test_a_benchmark_makes_its_calls(cached: Folder) -> None:
    assert cached.stageflow(*RUN).code == 0
    calls(cached)
    assert cached.stageflow("bench", "cached.py", "in.jsonl", "--repeat", "2", "--yes").code == 0
    assert len(calls(cached)) >= 100
