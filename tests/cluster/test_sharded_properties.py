"""Whatever the job, the input, the shards, and whoever is killed or silent: merged, it is what one run makes."""

from __future__ import annotations

import asyncio
import functools
import json
import random
import zlib
from pathlib import Path
from typing import Any

import pytest

from stageflow.cluster.merge import merge
from stageflow.cluster.sharded import Sharded
from stageflow.errors import RunStopped
from stageflow.loader import load
from stageflow.options import Options
from stageflow.pipeline import Pipeline
from stageflow.report.stats import RunReport
from stageflow.runner import Run
from tests.cluster.in_process import LEASE, Quick

_STAGES = {
    "plain": "async def {name}({needs}):\n    await wait({seed}, {needs})\n    return [{seed}, {needs}]",
    "fails": (
        "async def {name}({needs}):\n    await wait({seed}, {needs})\n"
        "    if dice({seed}, {needs}) % 7 == 0:\n        raise ValueError('unlucky')\n    return {seed}"
    ),
    "drops": "async def {name}({needs}):\n    return drop('odd') if dice({seed}, {needs}) % 5 == 0 else {seed}",
    "leaves": "async def {name}({needs}):\n    return done('early') if dice({seed}, {needs}) % 6 == 0 else {seed}",
    "fans out": (
        "async def {name}({needs}):\n    for each in range(dice({seed}, {needs}) % 4):\n"
        "        if dice({seed}, each, {needs}) % 11 == 0:\n            raise ValueError('in the middle')\n"
        "        yield [each, {seed}]"
    ),
    "skips": (
        "async def {name}({needs}):\n    if dice({seed}, {needs}) % 3 == 0:\n        raise OSError\n    return {seed}"
    ),
    "batches": "async def {name}({needs}):\n    return [{seed} for _ in {first}]",
}

_SETTINGS = {"skips": "on_error='skip'", "batches": "batch=Batch(4, 0.002)"}


def random_job(dice: random.Random) -> str:
    """A job of some stages, each of which needs earlier ones or fields of the record."""
    lines = [
        "import asyncio, zlib",
        "from stageflow import Batch, Pipeline, done, drop",
        f"pipeline = Pipeline('random', on_partial={dice.choice(['keep', 'drop'])!r})",
        "def dice(*of):\n    return zlib.crc32(repr(of).encode())",
        "async def wait(*of):\n    await asyncio.sleep(dice('wait', *of) % 3 / 1000)",
    ]
    names, last, fanned = ["n"], "n", False
    for number in range(dice.randint(1, 5)):
        kind = dice.choice([kind for kind in _STAGES if not (fanned and kind == "fans out")])
        fanned = fanned or kind == "fans out"
        needs = dice.sample(names, dice.randint(1, min(2, len(names))))
        if kind not in ("plain", "batches"):  # which of two that are side by side ends a record first is chance
            needs, last = list(dict.fromkeys([last, *needs])), f"s{number}"
        settings = [f"max_in_flight={dice.choice([4, 8])}"]
        settings += [_SETTINGS[kind]] if kind in _SETTINGS else []
        settings += ["when=lambda n: n % 9 != 4"] if dice.random() < 0.2 else []
        lines.append(f"@pipeline.stage({', '.join(settings)})")
        lines.append(
            _STAGES[kind].format(name=f"s{number}", needs=", ".join(needs), first=needs[0], seed=dice.randrange(99))
        )
        names.append(f"s{number}")
    return "\n".join(lines) + "\n"


def random_input(dice: random.Random) -> bytes:
    """Lines, of which some are blank, or hold no record; ends of any kind."""
    lines = []
    for number in range(dice.randint(0, 400)):
        line = b'{"n": %d, "text": "%s"}' % (number, b"x" * int(dice.expovariate(0.05)))
        line = dice.choices([line, b"", b"  ", b"nonsense", b"[1]"], [30, 1, 1, 1, 1])[0]
        lines.append(line + dice.choice([b"\n", b"\n", b"\r\n"]))
    text = b"".join(lines)
    return text[:-1] if dice.random() < 0.3 and text.endswith(b"}\n") else text


async def trouble(engine: Quick, dice: random.Random) -> None:
    """Now and then somebody is killed or falls silent, or the coordinator is lost."""
    while True:
        await asyncio.sleep(dice.uniform(0.01, 0.15))
        if not (there := sorted(engine.replicas)) or engine.deaths >= 4:
            continue
        match dice.choice(["kill", "kill", "deafen", "restart", "nothing"]):
            case "kill":
                engine.deaths += 1
                engine.kill(dice.choice(there))
            case "deafen":
                engine.deaths += 1
                deaf = dice.choice(there)
                engine.deaf.add(deaf)
                await asyncio.sleep(dice.choice([0.5, 1.5]) * LEASE)
                engine.deaf.discard(deaf)
            case "restart":
                engine.restart_coordinator()


class Troubled(Quick):
    deaths = 0


def lines(path: Path) -> list[Any]:
    """As they are; but which of two stages side by side was skipped first is chance."""
    found = path.read_bytes().splitlines(keepends=True)
    return [json.loads(line) if b"_stageflow" in line else line for line in found]


def letters(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    for letter in found:
        # What stages beside the one that failed had made by then is chance, too.
        del letter["at"], letter["results"]
        letter.pop("retry", None)
    return sorted(found, key=lambda letter: (letter["path"], letter["line"], str(letter)))


def one_case(folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(seed)
    job = folder / f"job{seed}.py"
    job.write_text(random_job(dice))
    for number in range(dice.randint(1, 3)):
        (folder / f"in-{number}.jsonl").write_bytes(random_input(dice))
    pipeline = load(str(job)).pipeline
    given = str(folder / "in-*.jsonl")
    engine = Troubled()
    monkeypatch.setattr(Sharded, "_engine", lambda self, tell: engine)

    async def local() -> Any:
        return await pipeline.run(given, str(folder / "local.jsonl"))

    options = {"nodes": dice.randint(1, 3), "shard_bytes": dice.choice([40, 300, 4000])}
    one, many = asyncio.run(local()), asyncio.run(sharded(pipeline, folder, engine, dice, options))
    assert merge(str(folder / "out"), str(folder / "merged.jsonl"), fresh=False, tell=lambda text: None) == 0
    assert lines(folder / "merged.jsonl") == lines(folder / "local.jsonl")
    assert letters(folder / "merged.jsonl.dead.jsonl") == letters(folder / "local.jsonl.dead.jsonl")
    counted = ("read", "written", "dropped", "dead", "exit_code", *([] if many.already_complete else ["blank"]))
    for name in counted:
        assert getattr(one, name) == getattr(many, name), name


async def sharded(pipeline: Pipeline, folder: Path, engine: Quick, dice: random.Random, options: Any) -> RunReport:
    """Run it in the midst of trouble, now and then stopped or cancelled at some moment, until it is complete."""
    given = Options.of({"engine": "ray", "max_shard_attempts": 9, **options})
    troubling = asyncio.create_task(trouble(engine, dice))
    try:
        while True:
            elsewhere = functools.partial(pipeline._elsewhere, (), {})
            source, sink = str(folder / "in-*.jsonl"), str(folder / "out")
            run = Run(pipeline.plan(), source, sink, given, pipeline._prepare, elsewhere)
            stopping = asyncio.create_task(stop(run, dice))
            try:
                async with asyncio.timeout(60):
                    report = await run.execute()
            finally:
                stopping.cancel()
            if report.stopped is None:
                return report
    finally:
        troubling.cancel()


async def stop(run: Run, dice: random.Random) -> None:
    """Sometimes."""
    if dice.random() < 0.4:
        await asyncio.sleep(dice.expovariate(5))
        run.stop(RunStopped("enough"))
        await asyncio.sleep(dice.uniform(0, 0.1))
        if dice.random() < 0.5:
            run.cancel()


def cases(folder: Path, seeds: range, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in seeds:
        case = folder / str(seed)
        case.mkdir()
        try:
            one_case(case, seed, monkeypatch)
        except BaseException as error:
            error.add_note(f"seed {seed}, in {case}")
            raise


def test_merged_it_is_what_one_run_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases(tmp_path, range(6), monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_merged_it_is_what_one_run_makes_many_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = zlib.crc32(str(tmp_path).encode()) % 1_000_000
    cases(tmp_path, range(first, first + 60), monkeypatch)
