"""A fast producer and a slow consumer: the channel between them fills, and then the producer waits.

    python jobs/backpressure.py
    stageflow run jobs/backpressure.py jobs/queries.jsonl -o out.jsonl

`produce` could make thousands of items a second, `consume` takes a few hundred. The channel holds 8, so no more than 8
ever wait, however long the input is: memory is bounded by the settings and not by the input.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from stageflow import Pipeline

RECORDS = 400

pipeline = Pipeline("backpressure")


@pipeline.stage(max_in_flight=1, queue_size=4, run="inline")
def produce(record: Mapping[str, Any]) -> int:
    return len(str(record))


@pipeline.stage(max_in_flight=4, queue_size=8)
async def consume(produce: int) -> int:
    await asyncio.sleep(0.01)  # a service that answers after 10 ms, four calls at once
    return produce


class Lead:
    """Counts how far reading runs ahead of finishing."""

    def __init__(self) -> None:
        self.read = self.done = self.most = 0

    def source(self) -> Iterator[dict[str, int]]:
        for number in range(RECORDS):
            self.read += 1
            self.most = max(self.most, self.read - self.done)
            yield {"id": number}

    def sink(self, record: Mapping[str, Any]) -> None:
        self.done += 1


def main() -> None:
    lead = Lead()
    report = pipeline.run_sync(lead.source(), lead.sink)
    print(f"{'stage':<10}{'peak depth':>12}{'queue_size':>12}{'peak in flight':>16}{'max_in_flight':>15}")
    for name, stage in report.stages.items():
        print(
            f"{name:<10}{stage.peak_depth:>12}{stage.queue_size:>12}{stage.peak_in_flight:>16}{stage.max_in_flight:>15}"
        )
    print(f"{lead.done} records; reading was never more than {lead.most} ahead of finishing")


if __name__ == "__main__":
    main()
