"""What does each form of input and output cost? Reading alone, and making alone, of 200,000 records.

    python benchmarks/formats.py
    python benchmarks/formats.py --quick

CPU time of one process, the forms in turns; records have three fields and about 120 bytes. What is not installed is
left out. No bound: the figures are to be known.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import importlib.util
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import workload
from workload import Settings, WrongAnswer

from stageflow import Files
from stageflow.adapters.forms import form_of
from stageflow.ends import source_of

ZSTD = importlib.util.find_spec("backports.zstd" if importlib.util.find_spec("backports") else "compression")
ARROW = importlib.util.find_spec("pyarrow")


def write_inputs(folder: Path, records: list[dict[str, str]]) -> dict[str, Any]:
    """The records in each form; by name what is read."""
    lines = [orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records]
    text, table = b"".join(lines), io.StringIO(newline="")
    rows = csv.DictWriter(table, list(records[0]))
    rows.writeheader()
    rows.writerows(records)
    files = {"in.jsonl": text, "in.jsonl.gz": gzip.compress(text), "in.csv": table.getvalue().encode()}
    for part in range(10):
        files[f"{part}.jsonl"] = b"".join(lines[len(lines) * part // 10 : len(lines) * (part + 1) // 10])
    for name, data in files.items():
        (folder / name).write_bytes(data)
    made = [name for name, found in (("in.jsonl.zst", ZSTD), ("in.parquet", ARROW)) if found]
    for name in made:
        with open(folder / name, "wb") as file:
            make(name, lines, file.write)
    named = {name: str(folder / name) for name in ("in.jsonl", "in.jsonl.gz", "in.csv", *made)}
    return {**named, "ten .jsonl": Files(str(folder / "[0-9].jsonl"))}


def make(name: str, lines: list[bytes], write: Callable[[bytes], object]) -> None:
    def begin() -> Iterator[bytes]:
        return iter(lines)

    form = form_of(name)
    assert form is not None
    form.make(begin, write)


def read(what: Any, records: int) -> None:
    """Read an input to its end, as a run does, with marks."""

    async def count() -> int:
        source, found = source_of(what), 0
        async for portion in source.read():
            found += sum(1 for _ in portion)
            source.take_marks()
        return found

    if (found := asyncio.run(count())) != records:
        raise WrongAnswer(f"{what}: {found} records")


def measure(settings: Settings) -> workload.Report:
    """Read and make each form in turns."""
    report = workload.Report("formats", settings, {"form": "", "us CPU/record": ".2f", "records/CPU second": ",.0f"})
    count = settings.size(200_000, 20_000, 300)
    records = [
        {"id": str(n), "text": f"record {n} " + 3 * "lorem ipsum dolor sit amet ", "score": str(n / 7)}
        for n in range(count)
    ]
    lines = [orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records]
    spent: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        inputs = write_inputs(Path(directory), records)
        outputs = ["out.jsonl.gz", "out.csv", *(["out.jsonl.zst"] if ZSTD else []), *(["out.parquet"] if ARROW else [])]
        for _ in range(settings.size(5, 3, 1)):
            for name, what in inputs.items():
                start = time.process_time()
                read(what, count)
                spent.setdefault(f"read {name}", []).append(time.process_time() - start)
            for name in outputs:
                start = time.process_time()
                make(name, lines, bytes)
                spent.setdefault(f"make {name}", []).append(time.process_time() - start)
    for name, seconds in spent.items():
        median = max(statistics.median(seconds), 1e-9)
        report.row(form=name, **{"us CPU/record": median / count * 1e6, "records/CPU second": count / median})
    return report


def main(argv: Sequence[str] | None = None) -> int:
    return measure(workload.parse(__doc__, argv)).finish("CPU time of one process, without the run around it")


if __name__ == "__main__":
    workload.run_script(main)
