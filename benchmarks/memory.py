"""Does memory grow with the input? Peak resident memory of a run from file to file, at a size and at ten times of it.

    python benchmarks/memory.py
    python benchmarks/memory.py --quick --loop asyncio

Each run is a process of its own, since a process never gives its peak back. The stages do nothing, but each third
record waits a turn in the second one, so that records settle out of turn. "input order" is a run with the defaults:
what is out of turn is sorted at the end, in bounded memory. "completion order" does without. "by hand" is the script of
benchmarks/jsonl.py, and "one record" what the interpreter and the modules take.

Exits 1 where ten times the records take stageflow over 10 MB more, in either order.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jsonl
import workload
from workload import Settings

from stageflow import Pipeline

MB = 1_000_000
BOUND = 10.0

disordered = Pipeline("memory")
disordered.stage(max_in_flight=jsonl.WORKERS[0])(jsonl.first)
disordered.stage(max_in_flight=jsonl.WORKERS[2])(jsonl.third)


@disordered.stage(max_in_flight=jsonl.WORKERS[1])
async def second(first: int) -> int:
    if first % 3 == 0:
        await asyncio.sleep(0)
    return first * 2


def peak_bytes() -> int:
    """The most memory that was ever resident in this process."""
    try:
        # Linux hands ru_maxrss on to what a process executes, so a child would have its parent's peak at least.
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def child(way: str, source: Path, sink: Path, settings: Settings) -> None:
    """Run once and print the peak as JSON."""
    if way == "by hand":
        jsonl.by_hand(source, sink, settings)
    else:
        disordered.run_sync(str(source), str(sink), loop=settings.loop, order=way.removesuffix(" order"))
    print(json.dumps({"peak_bytes": peak_bytes()}))


def peak_of(way: str, source: Path, records: int, settings: Settings) -> int:
    """The peak in bytes of a process that runs ``way`` over the file; its output is checked."""
    sink = source.with_name("out.jsonl")
    command = [sys.executable, __file__, "--loop", settings.loop, "--child", way, str(source), str(sink)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    jsonl.check(way, sink, records, ordered=way == "input order")
    jsonl.remove(sink)
    return int(json.loads(done.stdout)["peak_bytes"])


def measure(settings: Settings) -> workload.Report:
    """Run every way at both sizes."""
    few = settings.size(100_000, 20_000, 300)
    many = 10 * few
    columns = {"way": "", f"MB at {few:,}": ".1f", f"MB at {many:,}": ".1f", "ratio": ".2f", "growth in MB": ".1f"}
    report = workload.Report("memory", settings, columns)
    with tempfile.TemporaryDirectory() as directory:
        small, large = Path(directory, "few.jsonl"), Path(directory, "many.jsonl")
        workload.write_records(small, 1)
        floor = peak_of("input order", small, 1, settings)
        workload.write_records(small, few)
        workload.write_records(large, many)
        for way in ("input order", "completion order", "by hand"):
            low, high = peak_of(way, small, few, settings), peak_of(way, large, many, settings)
            growth = (high - low) / MB
            sizes = {f"MB at {few:,}": low / MB, f"MB at {many:,}": high / MB}
            report.row(way=way, ratio=high / low, growth_in_MB=growth, **sizes)
            if way != "by hand":
                report.at_most(f"{way}: MB more for ten times the records", growth, BOUND)
    report.row(way="one record", **{f"MB at {few:,}": floor / MB})
    return report


def main(argv: Sequence[str] | None = None) -> int:
    return measure(workload.parse(__doc__, argv)).finish("peak resident memory")


if __name__ == "__main__":
    if "--child" in sys.argv:
        position = sys.argv.index("--child")
        way, source, sink = sys.argv[position + 1 :]
        child(way, Path(source), Path(sink), workload.parse(__doc__, sys.argv[1:position]))
    else:
        workload.run_script(main)
