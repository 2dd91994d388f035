"""How many instructions does a record take? Stages that do nothing, against a script by hand, counted by valgrind.

    python benchmarks/instructions.py
    python benchmarks/instructions.py --quick
    python benchmarks/instructions.py --by-function   # where they go, for whoever makes it quicker
    python benchmarks/instructions.py --record        # write the ratios down, for this minor version of Python

What benchmarks/engine.py asks of the clock is asked here of ``valgrind --tool=callgrind``: seconds depend on who else
uses the machine, instructions hardly do, so that a small loss shows on a busy machine, too. One process, with
PYTHONHASHSEED=0 and the loop of asyncio, runs each contender over N and over 3 N records, after a run that warms up;
the difference over 2 N is what a record takes, without what a start and a run take. Seconds are another matter: a
processor does not take the same time for each instruction, and uvloop has a loop of its own.

How reproducible: two runs in one environment come to the same number, or to within 0.1 % where bytecode had to be
written; in two fresh environments at other places counts differ by 0.3 %, ratios by 0.1 %. Another build of the same
minor version (Debian's 3.11.2 against one of 3.11.7 from source) differs by 6 % in counts and 3 % in ratios.

Exits 1 where the ratio of stageflow to "by hand, tuned" has grown by more than 5 % over the one in instructions.json
for the interpreter's minor version. One that is not there, or has become better by as much, is told: ``--record`` it.
It takes half a minute, quick or not, and without valgrind nothing is counted.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import by_function
import engine
import workload
from engine import OURS, POLICIES, TUNED
from workload import Settings, WrongAnswer

RECORDED: Final = Path(__file__).with_suffix(".json")
"""By minor version of Python and by what is compared the ratio that was measured last."""

MORE_ALLOWED: Final = 1.05
RECORDS: Final = 1_000
"""Also in a quick run: ratios of other numbers of records are a little different."""

SHAPES: Final = (engine.ROW, engine.TENTH, engine.ALL)
WAYS: Final = (OURS, POLICIES, TUNED)

TRACED: Final = 100
"""Records whose bytecodes are counted."""

MARK: Final = "ctermid"
"""A function of the C library which nobody calls otherwise: each call of it ends a part of the profile."""


def mark() -> None:
    os.ctermid()


# In the process that is watched


class CountingLoop(asyncio.SelectorEventLoop):
    """The loop of asyncio by a clock that goes on 1 us whenever it is looked at.

    Under valgrind everything takes about fifty times as long, which stageflow would take into account: a worker's turn
    is measured in time. And what depends on the time depends on who else uses the machine.
    """

    def __init__(self) -> None:
        super().__init__()
        self._looked = 0

    def time(self) -> float:
        self._looked += 1
        return self._looked * 1e-6


def turns(records: int) -> Iterator[tuple[str, int, str]]:
    """Every run in its order: the shape, how many records, and the way."""
    for shape in SHAPES:
        for count in (records, records, 3 * records):
            for way in WAYS:
                yield shape, count, way


def child(records: int) -> None:
    """Make every run, with a mark on both sides, and check its answers."""
    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        for shape, count, way in turns(records):
            numbers = [{"n": n} for n in range(count)]
            run = engine.ways(engine.SHAPES[shape], numbers, runner)[way]
            check = engine.checks(engine.SHAPES[shape], numbers)(way)
            gc.collect()
            mark()
            outputs = run()
            mark()
            check(outputs)


# Counting


def profile(records: int, directory: Path) -> dict[tuple[str, int, str], Path]:
    """Make every run under valgrind.

    Returns:
        By run its part of the profile. The first run of each name only warms up: the second one takes its place.

    Raises:
        WrongAnswer: The runs failed.
    """
    file = directory / "callgrind.out"
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={file}", f"--dump-after={MARK}"]
    command += [sys.executable, __file__, "--child", str(records)]
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise WrongAnswer(f"the runs under valgrind: exit code {done.returncode}\n{done.stderr[-2000:]}")
    # Parts are numbered from 1, and each run has two: what went on before it, and itself.
    parts = [file.with_name(f"{file.name}.{2 * number}") for number in range(1, len(list(turns(records))) + 1)]
    return dict(zip(turns(records), parts, strict=True))


def instructions_of(part: Path) -> int:
    """What one part of a profile comes to."""
    found = re.search(r"^totals: (\d+)", part.read_text(encoding="utf-8"), re.MULTILINE) if part.exists() else None
    if found is None:
        raise WrongAnswer(f"the profile has no total in {part.name}")
    return int(found[1])


def count(records: int, directory: Path) -> dict[tuple[str, str], float]:
    """Instructions per record by shape and way."""
    parts = profile(records, directory)
    return {
        (shape, way): (instructions_of(part) - instructions_of(parts[shape, records, way])) / (2 * records)
        for (shape, many, way), part in parts.items()
        if many > records
    }


def show_functions(settings: Settings) -> None:
    """Print where stageflow's records go."""
    records = settings.size(RECORDS, RECORDS, 20)
    with tempfile.TemporaryDirectory() as directory:
        parts = profile(records, Path(directory))
        found = dict(zip(parts, by_function.instructions_by_function(iter(parts.values())), strict=True))
    for shape in SHAPES:
        print(f"\n{shape}, {OURS}")
        more = found[shape, 3 * records, OURS] - found[shape, records, OURS]
        print("\n".join(by_function.instructions_table(more, 2 * records)))
        print("\n".join(by_function.bytecodes_table(bytecodes(shape, TRACED), 2 * TRACED)))


def bytecodes(shape: str, records: int) -> by_function.Bytecodes:
    """Those that three times as many records take more."""
    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        few, many = (
            by_function.Bytecodes().count(engine.ways(engine.SHAPES[shape], numbers, runner)[OURS])
            for numbers in ([{"n": n} for n in range(count)] for count in (records, 3 * records))
        )
    return many.minus(few)


# Comparing


def version() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def recorded() -> Mapping[str, Mapping[str, float]]:
    found: Mapping[str, Mapping[str, float]] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return found


def record(ratios: Mapping[str, float]) -> None:
    """Write the ratios down for this version of Python."""
    everything = {**recorded(), version(): {what: round(ratio, 3) for what, ratio in ratios.items()}}
    RECORDED.write_text(json.dumps(everything, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def hold(ratios: Mapping[str, float], known: Mapping[str, float], report: workload.Report) -> list[str]:
    """Compare ratios with those recorded.

    Returns:
        What is to be said of those which need recording.
    """
    notes = []
    for what, ratio in ratios.items():
        before = known.get(what)
        if before is None:
            notes.append(f"not recorded for Python {version()}: {what} {ratio:.3f}")
            continue
        report.at_most(f"instructions, {what}", ratio, before * MORE_ALLOWED)
        if ratio * MORE_ALLOWED < before:
            notes.append(f"better than recorded ({before:.3f}), so --record it: {what} {ratio:.3f}")
    return notes


def measure(settings: Settings, *, to_record: bool = False) -> workload.Report:
    """Count for all contenders, and compare the ratios with those recorded, or record them."""
    columns = {"shape": "", "contender": "", "instructions/record": ",.0f", "of by hand": ".3f", "recorded": ".3f"}
    report = workload.Report("instructions", settings, columns)
    with tempfile.TemporaryDirectory() as directory:
        found = count(settings.size(RECORDS, RECORDS, 20), Path(directory))
    known = recorded().get(version(), {})
    ratios = {}
    for (shape, way), instructions in found.items():
        ratio, what = instructions / found[shape, TUNED], f"{shape}: {way} / {TUNED}"
        values = {"instructions/record": instructions, "recorded": known.get(what)}
        report.row(shape=shape, contender=way, of_by_hand=ratio, **values)
        if way != TUNED:
            ratios[what] = ratio
    if to_record:
        record(ratios)
    elif settings.mode != "tiny":
        for note in hold(ratios, known, report):
            print(note)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    parser = workload.argument_parser(__doc__)
    parser.add_argument(
        "--by-function", action="store_true", help="show where the instructions go, and compare nothing"
    )
    parser.add_argument("--record", action="store_true", help="write the ratios down rather than compare them")
    given = parser.parse_args(argv)
    settings = replace(workload.settings_of(given), loop="asyncio")
    if not shutil.which("valgrind"):
        print(f"\ninstructions ({settings.mode}, {settings.loop}): valgrind is not installed, so nothing is counted")
        return 0
    if given.by_function:
        show_functions(settings)
        return 0
    return measure(settings, to_record=given.record).finish("instructions per record, by valgrind")


if __name__ == "__main__":
    if "--child" in sys.argv:
        child(int(sys.argv[-1]))
    else:
        workload.run_script(main)
