"""One slow record holds no other back from the disk, although results come in the order of the input."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from ledgers import committed

from stageflow import Pipeline

RECORDS = 300


def test_a_slow_first_record_delays_no_other_ones_commit(tmp_path: Path) -> None:
    source, output, ledger = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "out.jsonl.ledger"))
    source.write_text("".join(f'{{"n": {n}}}\n' for n in range(RECORDS)))
    pipeline = Pipeline("slow first")

    async def main() -> None:
        gate = asyncio.Event()

        @pipeline.stage(max_in_flight=8)
        async def x(n: int) -> int:
            if n == 0:
                await gate.wait()
            return n

        run = asyncio.create_task(pipeline.run(str(source), str(output), order="input", max_open_records=16))
        deadline = time.monotonic() + 20.0
        while sorted(committed(ledger)) != list(range(1, RECORDS)):
            assert not run.done(), run.result()
            assert time.monotonic() < deadline, f"{len(committed(ledger))} records are committed while the first waits"
            await asyncio.sleep(0.01)
        assert not output.exists()
        gate.set()
        report = await run
        assert (report.written, report.exit_code) == (RECORDS, 0)

    asyncio.run(main())
    assert [json.loads(line)["n"] for line in output.read_text().splitlines()] == list(range(RECORDS))
