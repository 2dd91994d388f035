"""Where does a record's work go? For ``benchmarks/instructions.py --by-function``: the functions that take the most.

The interpreter's own functions are told in instructions, by valgrind. To those every function written in Python is the
same, so these are told in bytecodes, which the interpreter's tracing counts: each takes some tens of instructions, and
what is called in C takes none. "own" is without what a function calls or awaits, "all" with it; what a record takes is,
as there, the difference of a longer run and a shorter one.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

__all__ = ["Bytecodes", "bytecodes_table", "instructions_by_function", "instructions_table"]

SHOWN: Final = 30
MOST: Final = 40


@dataclass
class Bytecodes:
    """How many bytecodes a run took, by function.

    Args:
        begun: How often it was called, or went on after it had waited.
    """

    begun: Counter[CodeType] = field(default_factory=Counter)
    own: Counter[CodeType] = field(default_factory=Counter)
    inclusive: Counter[CodeType] = field(default_factory=Counter)

    def count(self, run: Callable[[], object]) -> Bytecodes:
        """Count those of ``run``; it takes a hundred times as long.

        From Python 3.12 on a function's bytecodes are told from the second time on that it is traced: there it is run
        twice, and the second time counts.
        """
        for _ in range(2 if sys.version_info >= (3, 12) else 1):
            for counter in (self.begun, self.own, self.inclusive):
                counter.clear()
            self._trace(run)
        return self

    def _trace(self, run: Callable[[], object]) -> None:
        before = sys.gettrace()
        sys.settrace(self._begin)
        try:
            run()
        finally:
            sys.settrace(before)

    def minus(self, other: Bytecodes) -> Bytecodes:
        """What this one has more."""
        return Bytecodes(self.begun - other.begun, self.own - other.own, self.inclusive - other.inclusive)

    def _begin(self, frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self.begun[frame.f_code] += 1
        return self._step

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            self.own[frame.f_code] += 1
            self.inclusive.update(set(_with_callers(frame)))
        return self._step


def _with_callers(frame: FrameType | None) -> Iterator[CodeType]:
    """The function and those above it; one that calls itself comes more than once."""
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def bytecodes_table(counted: Bytecodes, records: int) -> list[str]:
    """The functions in Python that take the most with what they call, per record."""
    lines = [f"{'all':>9} {'own':>9} {'begun':>9}  bytecodes per record, by function in Python"]
    # What only called the run, and is above all that it does, is left out.
    inside = Counter({code: counted.inclusive[code] for code in counted.own})
    for code, inclusive in inside.most_common(MOST):
        numbers = (inclusive, counted.own[code], counted.begun[code])
        path = Path(code.co_filename)
        where = f"{code.co_qualname} ({'/'.join(path.parts[-2:])}:{code.co_firstlineno})"
        lines.append(" ".join(f"{number / records:9.2f}" for number in numbers) + f"  {where}")
    return [*lines, f"{'':9} {sum(counted.own.values()) / records:9.2f} {'':9}  all together"]


# The interpreter's functions

_FUNCTION: Final = re.compile(r"fn=\((\d+)\)(?: (.*))?")
_NAME: Final = re.compile(r"c?fn=\((\d+)\) (.*)")


def instructions_by_function(parts: Iterator[Path]) -> Iterator[Counter[str]]:
    """Own instructions by function, of each part of a profile by callgrind in turn.

    In a part ``fn=(number) name`` says whose costs follow. The name stands at the number's first use, where ``cfn=``
    may be that, and holds for the parts that follow, too. The last number of a line of costs counts; what comes after
    ``calls=`` is what was spent in a function that was called.
    """
    names: dict[str, str] = {}
    for part in parts:
        own: Counter[str] = Counter()
        function, in_call = "", False
        for line in part.read_text(encoding="utf-8", errors="replace").splitlines():
            if named := _NAME.match(line):
                names[named[1]] = named[2].split("'")[0]  # without the depth, where it calls itself
            if found := _FUNCTION.match(line):
                function = names[found[1]]
            elif line.startswith("calls="):
                in_call = True
            elif line[:1] in {*"0123456789+-*"}:
                if not in_call:
                    own[function] += int(line.split()[-1])
                in_call = False
        yield own


def instructions_table(own: Counter[str], records: int) -> list[str]:
    """The interpreter's functions that take the most by themselves, per record."""
    lines = [f"{'own':>9}  instructions per record, by function of the interpreter"]
    lines += [f"{number / records:9.0f}  {name}" for name, number in own.most_common(SHOWN)]
    return [*lines, f"{sum(own.values()) / records:9.0f}  all together"]
