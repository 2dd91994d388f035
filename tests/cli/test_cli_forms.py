"""Outputs that are no JSON lines: made at the end, made again, and gone on with."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import Running
from workbench import Folder

from stageflow.ledger.disk import FORM_MOMENTS, Disk


def read_gz(path: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.open(path, "rt")]


def read_zst(path: Path) -> list[dict]:
    library = pytest.importorskip("backports.zstd")
    return [json.loads(line) for line in library.decompress(path.read_bytes()).splitlines()]


def read_csv(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def read_parquet(path: Path) -> list[dict]:
    return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()


FORMS = {
    "out.jsonl.gz": read_gz,
    "out.zst": read_zst,
    "out.csv": read_csv,
    "out.tsv": read_csv,
    "out.parquet": read_parquet,
}


@pytest.fixture(params=FORMS)
def output(request: pytest.FixtureRequest) -> str:
    if library := {".zst": "backports.zstd", ".parquet": "pyarrow"}.get(Path(request.param).suffix):
        pytest.importorskip(library)
    return str(request.param)


def values(output: str) -> list[float]:
    return [float(record["inverse"]) for record in FORMS[output](Path(output))]


def beside(folder: Folder, output: str) -> list[str]:
    return [name for name in folder.names() if name.startswith(output)]


def run(output: str, *more: str) -> tuple[str, ...]:
    return ("run", "job.py", "in.jsonl", "-o", output, "--progress", "off", *more)


def test_the_output_is_of_the_form_its_name_says(folder: Folder, output: str) -> None:
    assert folder.stageflow(*run(output)).code == 3
    assert values(output) == [0.5, 0.25]
    lines = [] if ".gz" in output or ".zst" in output else [f"{output}.jsonl"]
    assert beside(folder, output) == sorted([output, f"{output}.dead.jsonl", *lines, f"{output}.ledger"])
    made = Path(output).read_bytes()
    told = folder.stageflow(*run(output))
    assert "already complete: 3 inputs, 2 results" in told.err
    assert Path(output).read_bytes() == made
    assert beside(folder, output) == sorted([output, f"{output}.dead.jsonl", *lines, f"{output}.ledger"])
    assert json.loads(folder.stageflow("status", output, "--json").out)["settled"] == 3


def test_a_finished_output_is_gone_on_with(folder: Folder, output: str) -> None:
    assert folder.stageflow(*run(output, "--limit", "1")).code == 0
    assert values(output) == [0.5]
    assert folder.stageflow(*run(output)).code == 3
    assert values(output) == [0.5, 0.25]
    with open("in.jsonl", "a") as file:
        file.write('{"x": 4}\n')
    assert folder.stageflow(*run(output)).code == 3
    assert values(output) == [0.5, 0.25, 0.125]
    folder.write("job.py", folder.read("job.py").replace("1 / double", "1 / (double or 4)"))
    sys.modules.pop("job", None)
    job = str(folder.path / "job.py")
    for name in [name for name, module in sys.modules.items() if getattr(module, "__file__", None) == job]:
        del sys.modules[name]
    assert folder.stageflow(*run(output, "--retry-failed")).code == 0
    assert values(output) == [0.5, 0.25, 0.25, 0.125]
    assert folder.stageflow(*run(output, "--fresh", "--order", "completion")).code == 0
    assert sorted(values(output)) == [0.125, 0.25, 0.25, 0.5]
    assert f"{output}.1" in folder.names()


class Killed(BaseException):
    """In place of a kill."""


@pytest.mark.parametrize("moment", [*FORM_MOMENTS, "in the middle"])
def test_what_was_interrupted_is_made_again(
    folder: Folder, output: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = os.fork()
    if child == 0:

        def reached(disk: Disk, name: str) -> None:
            if name == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        def write(disk: Disk, descriptor: int, data: bytes) -> int:
            name = os.readlink(f"/proc/self/fd/{descriptor}")
            if moment == "in the middle" and ".tmp" in name:
                os.write(descriptor, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return os.write(descriptor, data)

        monkeypatch.setattr(Disk, "reached", reached)
        monkeypatch.setattr(Disk, "write", write)
        folder.stageflow(*run(output))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == 0:
        assert moment == "lines removed", f"{moment} was not reached"
        assert beside(folder, output)[-2:] == [f"{output}.jsonl", f"{output}.ledger"]
    else:
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        told = folder.stageflow(*run(output))
        assert "already complete: 3 inputs, 2 results" in told.err
    assert values(output) == [0.5, 0.25]
    assert not [name for name in folder.names() if ".tmp" in name or ".partial" in name]


@pytest.mark.parametrize("moment", ["ledger cut", "epoch begun", "output taken back", "commit written"])
def test_going_on_with_a_finished_output_survives_a_kill(
    folder: Folder, output: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert folder.stageflow(*run(output)).code == 3
    with open("in.jsonl", "a") as file:
        file.write('{"x": 4}\n')
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(Disk, "reached", lambda _, name: os.kill(os.getpid(), 9) if name == moment else None)
        folder.stageflow(*run(output))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert folder.stageflow(*run(output)).code == 3
    assert values(output) == [0.5, 0.25, 0.125]
    assert not [name for name in folder.names() if ".tmp" in name or ".partial" in name]


def test_a_killed_run_goes_on(folder: Folder, output: str, start: Callable[..., Running]) -> None:
    folder.write(
        "slow.py",
        folder.read("job.py").replace(
            "    return 1", "    import asyncio\n    await asyncio.sleep(0.001)\n    return 1"
        ),
    )
    folder.write("in.jsonl", "".join(f'{{"x": {n + 1}}}\n' for n in range(2000)))
    command = ("run", "slow.py", *run(output, "--max-in-flight", "4")[2:])
    running = start(*command)
    partial = folder.path / f"{output}.partial"
    running.until(lambda: partial.exists() and partial.read_bytes().count(b"\n") > 500)
    running.process.kill()
    running.process.wait()
    assert not (folder.path / output).exists()
    told = folder.stageflow(*command)
    assert told.code == 0, told.err
    assert values(output) == [1 / (2 * (n + 1)) for n in range(2000)]


def test_a_file_of_somebody_else_is_not_touched(folder: Folder, output: str) -> None:
    folder.write(output, "mine\n")
    told = folder.stageflow(*run(output))
    assert told.code == 2
    assert told.error[0].startswith(f"stageflow: error: {output} exists and was not written by stageflow")
    assert folder.read(output) == "mine\n"


@pytest.fixture(autouse=True)
def _forget_jobs() -> Iterator[None]:
    yield
    sys.modules.pop("slow", None)
