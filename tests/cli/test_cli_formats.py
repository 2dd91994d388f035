"""A hundred thousand records of each form, in and out: killed, gone on with, and not one lost or changed."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import Running
from workbench import Folder

COUNT = 100_000

JOB = """
from stageflow import Pipeline

pipeline = Pipeline("job")

@pipeline.stage
async def size(text: str):
    return len(text)
"""

NAMES = ["x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.csv", "x.csv.gz", "x.parquet"]


def record(n: int) -> dict[str, Any]:
    return {"id": str(n), "text": f'{n % 97 * "é"}, "{n}"\n' + "x" * (n % 7)}


def write(path: Path, records: list[dict[str, Any]]) -> None:
    lines = b"".join(json.dumps(each, ensure_ascii=False).encode() + b"\n" for each in records)
    match path.name:
        case "x.jsonl":
            path.write_bytes(lines)
        case "x.jsonl.gz":
            path.write_bytes(gzip.compress(lines, 1))
        case "x.jsonl.zst":
            path.write_bytes(pytest.importorskip("backports.zstd").compress(lines))
        case "x.csv" | "x.csv.gz":
            text = io.StringIO(newline="")
            rows = csv.DictWriter(text, list(records[0]))
            rows.writeheader()
            rows.writerows(records)
            data = text.getvalue().encode()
            path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
        case _:
            arrow = pytest.importorskip("pyarrow")
            pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(records), path, 10_000)


def read(path: Path) -> list[dict[str, Any]]:
    match path.name.removeprefix("out."):
        case "x.jsonl":
            lines = path.read_bytes()
        case "x.jsonl.gz":
            lines = gzip.decompress(path.read_bytes())
        case "x.jsonl.zst":
            lines = pytest.importorskip("backports.zstd").decompress(path.read_bytes())
        case "x.csv":
            with open(path, newline="") as file:
                return [{**row, "size": int(row["size"])} for row in csv.DictReader(file)]
        case _:
            return list(pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist())
    return [json.loads(line) for line in lines.splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_thousand_records_survive_a_kill(folder: Folder, name: str, start: Callable[..., Running]) -> None:
    folder.write("sizes.py", JOB)
    records = [record(n) for n in range(COUNT)]
    write(folder.path / name, records)
    output = f"out.{name.replace('.csv.gz', '.csv')}"
    command = ("run", "sizes.py", name, "-o", output, "--progress", "off")
    partial = folder.path / f"{output}.partial"
    for least in (10_000, 60_000):
        running = start(*command, "--max-open-records", "200")
        running.until(lambda: partial.exists() and partial.read_bytes().count(b"\n") > least)  # noqa: B023
        running.process.kill()
        running.process.wait()
    told = folder.process(*command)
    assert told.returncode == 0, told.stderr
    assert "resuming: " in told.stderr
    expected = [{**each, "size": len(each["text"])} for each in records]
    assert read(folder.path / output) == expected
    told = folder.process(*command)
    assert f"already complete: {COUNT:,} inputs" in told.stderr
