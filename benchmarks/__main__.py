"""All benchmarks, one after another, each in a process of its own: ``python -m benchmarks [--quick] [--loop LOOP]``.

Exits 1 where a script missed its bound or found an answer wrong, and names it.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # the scripts run alone, so they know each other by their plain names

import contenders  # noqa: E402 - the path comes first
import workload  # noqa: E402

SCRIPTS = (
    "engine",
    "instructions",
    "sleeping",
    "in_flight",
    "slow_items",
    "hedging",
    "jsonl",
    "formats",
    "durability",
    "memory",
    "processes",
    *(("faulty_service",) if importlib.util.find_spec("httptools") else ()),
    "start",
    "sweep",
    *(("peers",) if contenders.any_installed() else ()),
)
WITHOUT_LOOP = ("quality",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run all scripts; return 1 where one failed."""
    settings = workload.parse(__doc__, argv)
    mode = [] if settings.mode == "full" else [f"--{settings.mode}"]
    failed, took = [], []
    start = time.perf_counter()
    for script in (*SCRIPTS, *WITHOUT_LOOP):
        if script in WITHOUT_LOOP and settings.mode == "tiny":
            continue
        began = time.perf_counter()
        loop = [] if script in WITHOUT_LOOP else ["--loop", settings.loop]
        if subprocess.run([sys.executable, HERE / f"{script}.py", *mode, *loop], check=False).returncode:
            failed.append(script)
        took.append(f"{script} {time.perf_counter() - began:.0f}")
    print(
        f"\n{time.perf_counter() - start:.0f} s ({', '.join(took)}); "
        + (f"failed: {', '.join(failed)}" if failed else "all bounds met")
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
